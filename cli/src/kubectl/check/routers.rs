//! Judges what the routers of a deployment say.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use super::gather::RouterSnapshot;
use crate::router_client::Worker;

/// Everything that is wrong by what the routers say. `settings_told`: what is wrong with the settings is known already.
pub(super) fn routers(
    subject: &str,
    routers: &BTreeMap<String, RouterSnapshot>,
    settings_told: bool,
) -> Vec<Finding> {
    let mut found: Vec<Finding> =
        routers.iter().flat_map(|(pod, router)| one(&format!("pod/{pod}"), router, settings_told)).collect();
    found.extend(differing_settings(subject, routers));
    if let Some(workers) = routers.values().find_map(|router| router.workers.as_ref().ok()) {
        found.extend(roles(subject, workers));
    }
    found
}

fn one(subject: &str, router: &RouterSnapshot, settings_told: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    match &router.not_ready_because {
        Ok(None) => {}
        Ok(Some(reason)) => {
            let advice = if reason.contains("Kubernetes API") {
                "see that the router's Role and RoleBinding are there and that no NetworkPolicy keeps it from the \
                 API server"
            } else {
                "it waits for a decode worker: what is told of the workers' pods is the cause"
            };
            found.push(Finding::error(subject, format!("the router is not ready: {reason}"), advice));
        }
        Err(why) => {
            let advice = "the check is incomplete without: it takes the right to create pods/portforward";
            found.push(Finding::warning(subject, format!("the router cannot be asked: {why}"), advice));
            return found;
        }
    }
    if !settings_told
        && let Ok(report) = &router.settings
        && let Some(problem) = &report.problem
    {
        let advice = format!("repair {}", report.source);
        found.push(Finding::error(subject, format!("the settings are not in force: {problem}"), advice));
    }
    for worker in router.workers.iter().flatten() {
        found.extend(self::worker(subject, worker));
    }
    found
}

/// A worker whose pod is there and that this router cannot use.
fn worker(subject: &str, worker: &Worker) -> Option<Finding> {
    let name = worker.name.as_deref().unwrap_or(&worker.address);
    let problem = worker.problem.as_deref().unwrap_or_default();
    match worker.state.as_str() {
        "gone" | "joining" if problem.contains("cannot connect") => Some(Finding::warning(
            subject,
            format!("the router cannot reach the worker {name}: {problem}"),
            "if its pod is ready, something is between them: see that NetworkPolicies let routers reach port 9000 of \
             workers",
        )),
        "gone" | "joining" if !problem.is_empty() => {
            let advice = "see the worker's log; router and workers should be of one version";
            Some(Finding::warning(subject, format!("the router does not use {name}: {problem}"), advice))
        }
        "suspect" => Some(Finding::warning(
            subject,
            format!("the worker {name} is silent: {problem}"),
            "see whether its node is overloaded or cut off",
        )),
        _ => None,
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
