//! NetworkPolicies: which of them are in somebody's way, and whether the cluster enforces any.

use std::collections::BTreeMap;

use disagg_api::kubernetes::{Component, LABEL_DEPLOYMENT};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt as _;
use kube::core::{Selector, SelectorExt as _};

use super::Finding;
use super::gather::Seen;

/// How the DaemonSets of network plugins that enforce NetworkPolicies are named.
const ENFORCERS: [&str; 16] = [
    "anetd",
    "antrea",
    "aws-node",
    "azure-npm",
    "calico",
    "canal",
    "cilium",
    "kindnet",
    "kube-network-policies",
    "kube-ovn",
    "kube-router",
    "ovnkube",
    "ovs-ovn",
    "romana",
    "terway",
    "weave",
];
/// Marks of distributions whose own processes enforce them, in the API server's version.
const ENFORCING_DISTRIBUTIONS: [&str; 2] = ["+k3s", "+rke2"];

/// One way of traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    Ingress,
    Egress,
}

/// The NetworkPolicies that bind a part's pods in one way, but for the operator's own, which lets through what is needed.
pub(super) fn binding(
    policies: &Seen<Vec<NetworkPolicy>>,
    deployment: &str,
    part: Component,
    way: Way,
) -> Vec<String> {
    let Seen::It(policies) = policies else { return Vec::new() };
    let labels = part.selector(deployment);
    let binds = |policy: &&NetworkPolicy| {
        policy.labels().get(LABEL_DEPLOYMENT).is_none_or(|of| of != deployment) && binds(policy, &labels, way)
    };
    policies.iter().filter(binds).map(kube::ResourceExt::name_any).collect()
}

fn binds(policy: &NetworkPolicy, labels: &BTreeMap<String, String>, way: Way) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let of_way = match &spec.policy_types {
        Some(types) => types.iter().any(|it| it == if way == Way::Ingress { "Ingress" } else { "Egress" }),
        None => way == Way::Ingress || spec.egress.is_some(),
    };
    // A policy without a selector is for all pods of its namespace.
    let selector = spec.pod_selector.clone().unwrap_or_default();
    of_way && Selector::try_from(selector).is_ok_and(|selector| selector.matches(labels))
}

/// Policies as advice has them: `NetworkPolicy a, b`; `None` if there are none.
pub(super) fn named(policies: &[String]) -> Option<String> {
    (!policies.is_empty()).then(|| format!("NetworkPolicy {}", policies.join(", ")))
}

/// That nothing was found that enforces NetworkPolicies. No API tells; known network plugins have agents on the nodes.
pub(super) fn enforced(agents: &Seen<Vec<DaemonSet>>, version: &str) -> Option<Finding> {
    let Seen::It(agents) = agents else { return None };
    let enforces = |agent: &DaemonSet| ENFORCERS.iter().any(|name| agent.name_any().contains(name));
    if agents.iter().any(enforces) || ENFORCING_DISTRIBUTIONS.iter().any(|mark| version.contains(mark)) {
        return None;
    }
    Some(Finding::warning(
        "networkpolicies",
        "nothing that enforces NetworkPolicies is known among the cluster's DaemonSets; without it every pod of the cluster \
         reaches the workers' ports",
        "use a network plugin that enforces them (Calico, Cilium, …); nothing is to be done if yours does under another name",
    ))
}
