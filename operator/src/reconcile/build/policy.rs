//! What may be disrupted, and who may speak to whom.

use disagg_api::kubernetes::{
    Component, LABEL_DEPLOYMENT, LABEL_ROLE, WORKER_GRPC_PORT_NAME, WORKER_METRICS_PORT_NAME,
    shared_by_workers,
};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::labels::{metadata, selector};
use crate::reconcile::validate::Wanted;

/// Drains of nodes take one pod of a component at a time.
pub(super) fn disruption_budgets(wanted: &Wanted) -> Vec<PodDisruptionBudget> {
    let budget = |component: Component| PodDisruptionBudget {
        metadata: metadata(wanted, component.child(&wanted.name), Some(component)),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector(wanted, component)),
            // A pod that is not ready protects nobody: it must not keep a node from being drained.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    };
    Component::ALL.map(budget).into()
}

/// Selects the pods of the workers of both roles.
pub(super) fn workers(wanted: &Wanted) -> LabelSelector {
    let roles = Component::ALL.into_iter().filter(|component| component.is_worker());
    LabelSelector {
        match_labels: Some([(LABEL_DEPLOYMENT.to_owned(), wanted.name.clone())].into()),
        match_expressions: Some(vec![LabelSelectorRequirement {
            key: LABEL_ROLE.to_owned(),
            operator: "In".to_owned(),
            values: Some(roles.map(|role| role.as_str().to_owned()).collect()),
        }]),
    }
}

/// Workers take requests and KV from the pods of their own deployment alone. Their metrics are open.
pub(super) fn network_policy(wanted: &Wanted) -> NetworkPolicy {
    let port = |name: &str| {
        Some(vec![NetworkPolicyPort {
            port: Some(IntOrString::String(name.to_owned())),
            protocol: Some("TCP".to_owned()),
            ..NetworkPolicyPort::default()
        }])
    };
    let of_this = [(LABEL_DEPLOYMENT.to_owned(), wanted.name.clone())].into();
    NetworkPolicy {
        metadata: metadata(wanted, shared_by_workers(&wanted.name), None),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(workers(wanted)),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![
                NetworkPolicyIngressRule {
                    from: Some(vec![NetworkPolicyPeer {
                        pod_selector: Some(LabelSelector {
                            match_labels: Some(of_this),
                            ..LabelSelector::default()
                        }),
                        ..NetworkPolicyPeer::default()
                    }]),
                    ports: port(WORKER_GRPC_PORT_NAME),
                },
                NetworkPolicyIngressRule { from: None, ports: port(WORKER_METRICS_PORT_NAME) },
            ]),
            ..NetworkPolicySpec::default()
        }),
    }
}
