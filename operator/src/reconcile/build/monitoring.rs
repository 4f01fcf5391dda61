//! PodMonitors for the Prometheus operator: one for the workers, one for the routers, since their ports differ.

use disagg_api::crd::PodMonitorOptions;
use disagg_api::kubernetes::{
    Component, LABEL_DEPLOYMENT, LABEL_ROLE, ROUTER_ADMIN_PORT_NAME, WORKER_METRICS_PORT_NAME,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::access::worker_account;
use super::labels::{metadata, selector};
use super::policy::workers;
use crate::prometheus::{PodMetricsEndpoint, PodMonitor, PodMonitorSpec};
use crate::reconcile::validate::Wanted;

/// Names of the PodMonitors of a deployment, there or not.
pub(crate) fn names(wanted: &Wanted) -> [String; 2] {
    [worker_account(wanted), Component::Router.child(&wanted.name)]
}

/// None, if none are asked for.
pub(super) fn pod_monitors(wanted: &Wanted) -> Vec<PodMonitor> {
    let Some(options) = &wanted.pod_monitor else { return Vec::new() };
    let PodMonitorOptions { interval, labels } = options;
    let monitor = |name: String, component: Option<Component>, selector: LabelSelector, port: &str| {
        let mut metadata = metadata(wanted, name, component);
        let mut all = labels.clone();
        all.extend(metadata.labels.take().unwrap_or_default());
        metadata.labels = Some(all);
        PodMonitor {
            metadata,
            spec: PodMonitorSpec {
                selector,
                pod_target_labels: [LABEL_DEPLOYMENT, LABEL_ROLE].map(str::to_owned).into(),
                pod_metrics_endpoints: vec![PodMetricsEndpoint {
                    port: port.to_owned(),
                    path: "/metrics".to_owned(),
                    interval: interval.clone(),
                }],
            },
        }
    };
    let [of_workers, of_routers] = names(wanted);
    let routers = selector(wanted, Component::Router);
    vec![
        monitor(of_workers, None, workers(wanted), WORKER_METRICS_PORT_NAME),
        monitor(of_routers, Some(Component::Router), routers, ROUTER_ADMIN_PORT_NAME),
    ]
}
