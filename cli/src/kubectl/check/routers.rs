//! Judges what the routers of a deployment say.

use std::collections::{BTreeMap, BTreeSet};

use disagg_api::kubernetes::{Component, WORKER_GRPC_PORT};

use super::Finding;
use super::fold::{About, Follows, Sign};
use super::gather::{DeploymentSnapshot, RouterSnapshot};
use super::network::{self, Way};
use crate::router_client::Worker;

/// Everything that is wrong by what the routers say.
pub(super) fn routers(subject: &str, deployment: &DeploymentSnapshot) -> Vec<Sign> {
    let routers = &deployment.routers;
    let mut found: Vec<Sign> =
        routers.iter().flat_map(|(pod, router)| one(pod, router, deployment)).collect();
    found.extend(differing_settings(subject, routers).map(|found| Sign::cause(found, About::Settings)));
    if let Some(workers) = routers.values().find_map(|router| router.workers.as_ref().ok()) {
        found.extend(roles(subject, workers).map(|found| Sign::cause(found, About::Aside)));
    }
    found
}

fn one(pod: &str, router: &RouterSnapshot, deployment: &DeploymentSnapshot) -> Vec<Sign> {
    let subject = format!("pod/{pod}");
    let mut found = Vec::new();
    match &router.not_ready_because {
        Ok(None) => {}
        Ok(Some(reason)) => found.push(not_ready(pod, reason, deployment)),
        Err(why) => {
            let advice = "the check is incomplete without: it takes the right to create pods/portforward";
            let what = format!("the router cannot be asked: {why}");
            found.push(Sign::cause(Finding::warning(subject, what, advice), About::Aside));
            return found;
        }
    }
    if let Ok(report) = &router.settings
        && let Some(problem) = &report.problem
    {
        let what = format!("the settings are not in force: {problem}");
        let finding = Finding::error(&subject, what, format!("repair {}", report.source));
        let short = format!("{subject} has other settings in force");
        found.push(Sign::following(finding, About::Settings, Follows::Settings, short));
    }
    for worker in router.workers.iter().flatten() {
        found.extend(self::worker(&subject, worker, deployment));
    }
    found
}

/// A router that is not ready: it lacks something of its own, or waits for workers.
fn not_ready(pod: &str, reason: &str, deployment: &DeploymentSnapshot) -> Sign {
    let subject = format!("pod/{pod}");
    let what = format!("the router is not ready: {reason}");
    let about = About::Pod(Component::Router, pod.to_owned());
    let short = format!("{subject} is not ready");
    if reason.contains("Kubernetes API") {
        let policies = &deployment.policies;
        let egress = network::binding(policies, &deployment.name, Component::Router, Way::Egress);
        let policy = network::named(&egress).map_or_else(
            || "that no NetworkPolicy keeps it from the API server".to_owned(),
            |policies| format!("that {policies} lets routers reach the API server"),
        );
        let advice = format!("see that the router's Role and RoleBinding are there and {policy}");
        return Sign::cause(Finding::error(subject, what, advice), about);
    }
    if reason.contains("--min-workers") {
        let advice = "see why workers are missing, start more, or lower spec.router.minWorkers";
        return Sign::following(Finding::error(subject, what, advice), about, Follows::Workers, short);
    }
    let advice = "it waits for a decode worker: kubectl get pods shows whether any is there and ready";
    let follows = Follows::Part(Component::Decode);
    Sign::following(Finding::error(subject, what, advice), about, follows, short)
}

/// A worker whose pod is there and that this router cannot use.
fn worker(subject: &str, worker: &Worker, deployment: &DeploymentSnapshot) -> Option<Sign> {
    let name = worker.name.as_deref().unwrap_or(&worker.address);
    let problem = worker.problem.as_deref().unwrap_or_default();
    let part = Component::ALL.into_iter().find(|part| {
        let of_role = worker.role.as_deref() == Some(part.as_str());
        of_role || name.starts_with(&format!("{}-", part.child(&deployment.name)))
    });
    let finding = match worker.state.as_str() {
        "gone" | "joining" if problem.contains("cannot connect") => Finding::warning(
            subject,
            format!("the router cannot reach the worker {name}: {problem}"),
            blocked(part, deployment),
        ),
        "gone" | "joining" if !problem.is_empty() => {
            let advice = "see the worker's log; router and workers should be of one version";
            Finding::warning(subject, format!("the router does not use {name}: {problem}"), advice)
        }
        "suspect" => Finding::warning(
            subject,
            format!("the worker {name} is silent: {problem}"),
            "see whether its node is overloaded or cut off",
        ),
        _ => return None,
    };
    let about = part.map_or(About::Aside, About::Part);
    let short = format!("routers cannot use {name}");
    Some(Sign::following(finding, about, Follows::Pod(name.to_owned()), short))
}

/// What may be between a router and a worker.
fn blocked(part: Option<Component>, deployment: &DeploymentSnapshot) -> String {
    let policies = |part, way| network::binding(&deployment.policies, &deployment.name, part, way);
    let mut all = part.map_or_else(Vec::new, |part| policies(part, Way::Ingress));
    all.extend(policies(Component::Router, Way::Egress));
    all.sort();
    all.dedup();
    match network::named(&all) {
        Some(policies) => format!(
            "see that {policies} lets the routers of this deployment reach port {WORKER_GRPC_PORT} of its workers"
        ),
        None => format!(
            "if its pod is ready, something is between them: see that nothing in the network plugin or a service mesh keeps \
             routers from port {WORKER_GRPC_PORT} of workers; no NetworkPolicy of the namespace does"
        ),
    }
}

fn differing_settings(subject: &str, routers: &BTreeMap<String, RouterSnapshot>) -> Option<Finding> {
    let answers: Vec<_> = routers
        .iter()
        .filter_map(|(pod, router)| Some((pod, &router.settings.as_ref().ok()?.settings)))
        .collect();
    let (_, first) = answers.first()?;
    if answers.iter().all(|(_, settings)| settings == first) {
        return None;
    }
    let each = answers.iter().map(|(pod, it)| format!("{pod} {}", it.max_local_prefill_length));
    let what = format!(
        "its routers apply different settings (maxLocalPrefillLength: {})",
        each.collect::<Vec<_>>().join(", ")
    );
    let advice = "run this again in a few seconds; if it stays, one of them cannot watch its ConfigMap (its log says why)";
    Some(Finding::error(subject, what, advice))
}

/// Prefill and decode workers that cannot work together.
fn roles(subject: &str, workers: &[Worker]) -> Option<Finding> {
    let compat = |roles: &[&str]| -> BTreeSet<&str> {
        let of_role = |worker: &&Worker| {
            worker.state == "ready" && worker.role.as_deref().is_some_and(|role| roles.contains(&role))
        };
        workers.iter().filter(of_role).filter_map(|worker| worker.kv_compat.as_deref()).collect()
    };
    let (prefill, decode) = (compat(&["prefill", "both"]), compat(&["decode", "both"]));
    if prefill.is_empty() || decode.is_empty() || !prefill.is_disjoint(&decode) {
        return None;
    }
    Some(Finding::warning(
        subject,
        "no prefill worker can hand KV to a decode worker: they differ in model, KV dtype or block size, so every \
         prompt is prefilled locally",
        "wait, if a change is rolling out; else see that both roles run one image and the same options, and, if one role \
         has GPUs and the other none, set spec.kvCache.dtype to the format of the GPUs",
    ))
}
