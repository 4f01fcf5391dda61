//! Second call: the resource, checked, with every default filled in. Pure. No other step reads the spec.

use std::collections::BTreeMap;
use std::time::Duration;

use disagg_api::crd::{
    DisaggDeployment, DisaggDeploymentSpec, EngineSpec, Images, Invalid, ModelSource, ModelSpec,
    MonitoringSpec, PodMonitorOptions, PodOverrides, Resources, RoleSpec, RouterService, RouterSpec,
    SecretKey, ServiceType,
};
use disagg_api::kubernetes::Component;
use disagg_core::{Dtype, LoadFormat, RoutingStrategy};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::args::DefaultImages;
use crate::reconcile::subject::Subject;

/// Routers when the resource leaves the number out.
const ROUTERS_DEFAULT: i32 = 2;
/// Workers of a role when the resource leaves the number out.
const WORKERS_DEFAULT: i32 = 1;
/// Port of the router's Service when the resource names none.
const PORT_DEFAULT: i32 = 8181;
/// Time that pods get to finish their requests when the resource names none.
const DRAIN_SECONDS_DEFAULT: i32 = 30;
/// Time that a change may go without progress when the resource names none: as Deployments have it.
const PROGRESS_DEADLINE_SECONDS_DEFAULT: i32 = 600;

/// A resource that cannot be reconciled.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum ValidateError {
    /// Rules are broken that the API server should have held it to: the definition in the cluster is another one.
    #[error("{}", .0.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(#[from] Invalid),
}

/// What a resource asks for.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Wanted {
    pub name: String,
    pub namespace: String,
    pub owner: OwnerReference,
    pub served_name: String,
    pub model: Model,
    pub max_length: Option<i32>,
    pub dtype: Option<Dtype>,
    pub load_format: LoadFormat,
    pub block_size: Option<i32>,
    pub kv_cache_dtype: Option<Dtype>,
    pub prefill: Workers,
    pub decode: Workers,
    pub router: Router,
    /// Every key of the settings ConfigMap with the value that the resource asks for.
    pub settings: BTreeMap<String, String>,
    /// Absent: no PodMonitors are wanted.
    pub pod_monitor: Option<PodMonitorOptions>,
    pub pull_policy: Option<&'static str>,
    pub pull_secrets: Vec<String>,
    pub drain_seconds: i32,
    /// How long a change may go without progress before it counts as stuck.
    pub progress_deadline: Duration,
}

/// Where the model comes from.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Model {
    /// A folder that the container has by itself or by the user's own volumes.
    Folder(String),
    Hub {
        id: String,
        revision: Option<String>,
        token: Option<SecretKey>,
    },
    Claim {
        name: String,
        path: Option<String>,
    },
    Image {
        reference: String,
        path: Option<String>,
    },
    /// The demo model, part of the workers.
    Bundled,
    Random {
        seed: i32,
    },
}

/// How many pods a component has, and who decides it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Replicas {
    /// The resource says it.
    Fixed(i32),
    /// Somebody else owns the number; it begins here.
    Free { initial: i32 },
}

/// What the resource asks of the workers of one role.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Workers {
    pub component: Component,
    pub replicas: Replicas,
    pub image: String,
    pub on_gpu: bool,
    pub engine: EngineSpec,
    pub resources: Resources,
    pub pod: PodOverrides,
}

/// What the resource asks of its routers.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Router {
    pub replicas: Replicas,
    pub image: String,
    pub port: i32,
    pub service_type: ServiceType,
    pub service_annotations: BTreeMap<String, String>,
    pub max_in_flight: Option<i32>,
    pub request_timeout_seconds: Option<i32>,
    pub max_wait_for_worker_seconds: Option<i32>,
    pub routing: Option<RoutingStrategy>,
    pub min_workers: Option<i32>,
    pub resources: Resources,
    pub pod: PodOverrides,
}

/// Checks the resource and fills in defaults.
pub(crate) fn validate(
    resource: &DisaggDeployment,
    subject: &Subject,
    default_images: &DefaultImages,
) -> Result<Wanted, ValidateError> {
    let settings = resource.validate_in_cluster()?;
    // Destructured without `..`, so that a new field has to be thought of here.
    let DisaggDeploymentSpec {
        model,
        kv_cache,
        prefill,
        decode,
        router,
        disaggregation: _, // It is in the settings.
        monitoring: MonitoringSpec { pod_monitor },
        images,
        drain_seconds,
        progress_deadline_seconds,
    } = resource.spec.clone();
    let progress_deadline = progress_deadline_seconds.unwrap_or(PROGRESS_DEADLINE_SECONDS_DEFAULT);
    let Images { worker, router: router_image, pull_policy, pull_secrets } = images;
    let ModelSpec { source, served_name: _, max_length, dtype, load_format, hub_token_secret } = model;
    let workers = |component, role: RoleSpec| {
        let on_gpu = role.wants_gpu();
        let RoleSpec { replicas, tensor_parallel_size: _, engine, resources, pod_template } = role;
        let default = if on_gpu { &default_images.worker_gpu } else { &default_images.worker };
        Workers {
            component,
            replicas: number(replicas, WORKERS_DEFAULT),
            image: worker.clone().unwrap_or_else(|| default.clone()),
            on_gpu,
            engine,
            resources,
            pod: pod_template,
        }
    };
    let RouterSpec {
        replicas,
        port,
        service: RouterService { type_, annotations },
        max_in_flight,
        request_timeout_seconds,
        max_wait_for_worker_seconds,
        routing,
        min_workers,
        resources,
        pod_template,
    } = router;
    Ok(Wanted {
        served_name: resource.served_name().to_owned(),
        model: model_of(source, hub_token_secret),
        max_length,
        dtype,
        load_format: load_format.unwrap_or_default(),
        block_size: kv_cache.block_size,
        kv_cache_dtype: kv_cache.dtype,
        prefill: workers(Component::Prefill, prefill),
        decode: workers(Component::Decode, decode),
        router: Router {
            replicas: number(replicas, ROUTERS_DEFAULT),
            image: router_image.unwrap_or_else(|| default_images.router.clone()),
            port: port.unwrap_or(PORT_DEFAULT),
            service_type: type_.unwrap_or_default(),
            service_annotations: annotations,
            max_in_flight,
            request_timeout_seconds,
            max_wait_for_worker_seconds,
            routing,
            min_workers,
            resources,
            pod: pod_template,
        },
        settings: settings.to_pairs().map(|(key, value)| (key.to_owned(), value)).into(),
        pod_monitor,
        pull_policy: pull_policy.map(disagg_api::crd::PullPolicy::as_str),
        pull_secrets: pull_secrets.into_iter().map(|secret| secret.name).collect(),
        drain_seconds: drain_seconds.unwrap_or(DRAIN_SECONDS_DEFAULT),
        progress_deadline: Duration::from_secs(progress_deadline.unsigned_abs().into()),
        name: subject.id.name.clone(),
        namespace: subject.id.namespace.clone(),
        owner: subject.owner_reference(),
    })
}

fn number(replicas: Option<i32>, initial: i32) -> Replicas {
    replicas.map_or(Replicas::Free { initial }, Replicas::Fixed)
}

/// Validation has seen to it that exactly one source is set.
fn model_of(source: ModelSource, token: Option<SecretKey>) -> Model {
    let ModelSource { path, hub_id, revision, pvc, image, bundled, random } = source;
    if let Some(path) = path {
        Model::Folder(path)
    } else if let Some(id) = hub_id {
        Model::Hub { id, revision, token }
    } else if let Some(pvc) = pvc {
        Model::Claim { name: pvc.claim_name, path: pvc.path }
    } else if let Some(image) = image {
        Model::Image { reference: image.reference, path: image.path }
    } else if bundled.is_some() {
        Model::Bundled
    } else {
        Model::Random { seed: random.and_then(|random| random.seed).unwrap_or(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It becomes a condition, an Event and a line of the log.
    #[test]
    fn all_that_is_wrong_takes_one_line() {
        let text = "apiVersion: disagg.dev/v1alpha1\nkind: DisaggDeployment\nmetadata: {name: demo, namespace: ns, uid: u}\nspec: {model: {source: {}}, \
                    decode: {replicas: -1}}\n";
        let resource = DisaggDeployment::from_yaml(text).unwrap();
        let images =
            DefaultImages { router: String::new(), worker: String::new(), worker_gpu: String::new() };
        let subject = Subject::of(&resource).unwrap();
        let error = validate(&resource, &subject, &images).unwrap_err().to_string();
        assert!(
            error.contains("spec.model.source: ") && error.contains("; spec.decode.replicas: "),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
