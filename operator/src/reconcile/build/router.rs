//! The routers: a Deployment, the Service that clients use, and the ConfigMap with their settings.

use disagg_api::crd::{Amount, Resources};
use disagg_api::kubernetes::{
    Component, ENV_DEPLOYMENT, ENV_NAMESPACE, ROUTER_ADMIN_PORT, ROUTER_ADMIN_PORT_NAME, ROUTER_HTTP_PORT,
    ROUTER_HTTP_PORT_NAME, ROUTER_INDEX_MEMORY_MIB_DEFAULT, ROUTER_PROCESS_MEMORY_MIB,
    ROUTER_REQUEST_MEMORY_MIB_DEFAULT, settings_config_map,
};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::access::router_account;
use super::labels::{metadata, selector};
use super::pod::{Parts, container_port, field_env, http_probe, plain_env, template};
use crate::reconcile::validate::{Replicas, Router, Wanted};

/// How long a router that is to end goes on accepting, until every node has learnt that it leaves.
const SHUTDOWN_DELAY_SECONDS: i32 = 5;
/// Memory that is set aside for a router of a resource that names none. What it may take is more: see [`resources`].
const MEMORY_REQUEST_MIB: u32 = 256;
/// What a router takes beyond delay and drain to end its process.
const GRACE_MARGIN_SECONDS: i32 = 10;

/// Metadata of the ConfigMap; what is in it has rules of its own.
pub(super) fn settings(wanted: &Wanted) -> ConfigMap {
    ConfigMap {
        metadata: metadata(wanted, settings_config_map(&wanted.name), Some(Component::Router)),
        ..ConfigMap::default()
    }
}

pub(super) fn service(wanted: &Wanted) -> Service {
    let router = &wanted.router;
    let mut metadata = metadata(wanted, Component::Router.child(&wanted.name), Some(Component::Router));
    metadata.annotations =
        Some(router.service_annotations.clone()).filter(|annotations| !annotations.is_empty());
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(router.service_type.as_str().to_owned()),
            selector: Some(Component::Router.selector(&wanted.name)),
            ports: Some(vec![ServicePort {
                name: Some(ROUTER_HTTP_PORT_NAME.to_owned()),
                port: router.port,
                protocol: Some("TCP".to_owned()),
                target_port: Some(IntOrString::String(ROUTER_HTTP_PORT_NAME.to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Where clients inside the cluster reach the routers.
pub(crate) fn url(wanted: &Wanted) -> String {
    let service = Component::Router.child(&wanted.name);
    format!("http://{service}.{}.svc:{}", wanted.namespace, wanted.router.port)
}

/// The container's resources. Where the user says nothing of memory, the limit is what a router takes at most, by its own
/// bounds: a defect there ends one router and not the node.
fn resources(router: &Router) -> Resources {
    let mut resources = router.resources.clone();
    let named = |amounts: &std::collections::BTreeMap<String, Amount>| amounts.contains_key("memory");
    if !named(&resources.requests) && !named(&resources.limits) {
        let limit =
            ROUTER_REQUEST_MEMORY_MIB_DEFAULT + ROUTER_INDEX_MEMORY_MIB_DEFAULT + ROUTER_PROCESS_MEMORY_MIB;
        let amount = |mib: u32| ("memory".to_owned(), Amount::Text(format!("{mib}Mi")));
        resources.requests.extend([amount(MEMORY_REQUEST_MIB)]);
        resources.limits.extend([amount(limit)]);
    }
    resources
}

pub(super) fn deployment(wanted: &Wanted) -> Deployment {
    let router = &wanted.router;
    let mut args = vec![
        format!("--listen=[::]:{ROUTER_HTTP_PORT}"),
        format!("--admin-listen=[::]:{ROUTER_ADMIN_PORT}"),
        format!("--drain-timeout-seconds={}", wanted.drain_seconds),
    ];
    let mut option = |name: &str, value: Option<i32>| {
        args.extend(value.map(|value| format!("--{name}={value}")));
    };
    option("max-in-flight", router.max_in_flight);
    option("request-timeout-seconds", router.request_timeout_seconds);
    option("max-wait-for-worker-seconds", router.max_wait_for_worker_seconds);
    option("min-workers", router.min_workers);
    args.extend(router.routing.map(|routing| format!("--routing={}", routing.as_str())));
    let container = Container {
        name: Component::Router.container().to_owned(),
        image: Some(router.image.clone()),
        args: Some(args),
        env: Some(vec![
            plain_env(ENV_DEPLOYMENT, &wanted.name),
            field_env(ENV_NAMESPACE, "metadata.namespace"),
            plain_env("DISAGG_SHUTDOWN_DELAY_SECONDS", &SHUTDOWN_DELAY_SECONDS.to_string()),
        ]),
        ports: Some(vec![
            container_port(ROUTER_HTTP_PORT_NAME, ROUTER_HTTP_PORT),
            container_port(ROUTER_ADMIN_PORT_NAME, ROUTER_ADMIN_PORT),
        ]),
        // Where clients are not: however many there are, they do not get a router restarted.
        startup_probe: Some(http_probe("/health", ROUTER_ADMIN_PORT_NAME, 1, 30)),
        liveness_probe: Some(http_probe("/health", ROUTER_ADMIN_PORT_NAME, 10, 3)),
        readiness_probe: Some(http_probe("/ready", ROUTER_ADMIN_PORT_NAME, 1, 3)),
        ..Container::default()
    };
    let parts = Parts {
        component: Component::Router,
        account: router_account(wanted),
        needs_token: true,
        container,
        volumes: Vec::new(),
        resources: &resources(router),
        overrides: &router.pod,
        grace_seconds: SHUTDOWN_DELAY_SECONDS + wanted.drain_seconds + GRACE_MARGIN_SECONDS,
    };
    Deployment {
        metadata: metadata(wanted, Component::Router.child(&wanted.name), Some(Component::Router)),
        spec: Some(DeploymentSpec {
            replicas: match router.replicas {
                Replicas::Fixed(replicas) => Some(replicas),
                Replicas::Free { .. } => None,
            },
            selector: selector(wanted, Component::Router),
            // A new router serves before an old one goes.
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            template: template(wanted, parts),
            // Must exceed minReadySeconds, which is not set, and so 0.
            progress_deadline_seconds: i32::try_from(wanted.progress_deadline.as_secs()).ok(),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}
