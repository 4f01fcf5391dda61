//! Third call: the children of a resource as they are to be. Pure; snapshot tests hold it.

mod access;
mod labels;
mod monitoring;
mod order;
mod pod;
mod policy;
mod router;
mod workers;

use disagg_api::kubernetes::Component;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};

use super::validate::Wanted;
use crate::prometheus::PodMonitor;
pub(crate) use monitoring::names as pod_monitor_names;
pub(crate) use router::url;

/// Something that cannot be written down as Kubernetes wants it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum BuildError {
    /// A limit of the API that our own rules should have kept us from.
    #[error("the name {name:?} of a child is longer than 63 characters")]
    NameTooLong {
        /// The name that is too long.
        name: String,
    },
}

/// Everything that belongs to a resource. Replicas are missing where the resource leaves their number out.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Children {
    pub service_accounts: Vec<ServiceAccount>,
    pub role: Role,
    pub role_binding: RoleBinding,
    /// Metadata alone: the data has rules of its own.
    pub settings: ConfigMap,
    pub services: Vec<Service>,
    pub network_policy: NetworkPolicy,
    pub disruption_budgets: Vec<PodDisruptionBudget>,
    pub prefill: StatefulSet,
    pub decode: StatefulSet,
    pub router: Deployment,
    /// None, where none are asked for.
    pub pod_monitors: Vec<PodMonitor>,
}

/// The children of `wanted`.
pub(crate) fn build(wanted: &Wanted) -> Result<Children, BuildError> {
    let children = Children {
        service_accounts: access::service_accounts(wanted),
        role: access::role(wanted),
        role_binding: access::role_binding(wanted),
        settings: router::settings(wanted),
        services: Component::ALL
            .map(|component| match component {
                Component::Prefill => workers::service(wanted, &wanted.prefill),
                Component::Decode => workers::service(wanted, &wanted.decode),
                Component::Router => router::service(wanted),
            })
            .into(),
        network_policy: policy::network_policy(wanted),
        disruption_budgets: policy::disruption_budgets(wanted),
        prefill: workers::stateful_set(wanted, &wanted.prefill),
        decode: workers::stateful_set(wanted, &wanted.decode),
        router: router::deployment(wanted),
        pod_monitors: monitoring::pod_monitors(wanted),
    };
    let names = children.services.iter().filter_map(|service| service.metadata.name.as_ref());
    for name in names {
        if name.len() > 63 {
            return Err(BuildError::NameTooLong { name: name.clone() });
        }
    }
    Ok(children)
}

#[cfg(test)]
mod tests;
