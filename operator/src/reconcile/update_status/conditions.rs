//! The status of a resource, from what the API server holds after the apply. Pure: time is an argument.

use disagg_api::crd::{DisaggDeploymentStatus, RoleStatus, RouterStatus};
use disagg_api::kubernetes::Component;
use disagg_api::kubernetes::conditions::{PROGRESSING, READY, RECONCILING, SETTINGS_VALID, STALLED};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::children::{children_applied, describe, gravest, monitoring};
use super::diagnose::{diagnose, missing_pods};
use super::finding::Finding;
use super::init::waiting_for;
use super::numbers::{Numbers, of_deployment, of_set, serving};
use super::progress::{Facts, progress};
use super::routers::InForce;
use super::trouble::Trouble;
use crate::reconcile::apply::{Applied, Problem, SettingsState};
use crate::reconcile::build::url;
use crate::reconcile::dereference::Warning;
use crate::reconcile::validate::Wanted;

/// A component, judged.
struct Judged {
    numbers: Numbers,
    available: Finding,
    trouble: Option<Trouble>,
}

/// The status of a resource that was applied. `before` is the one that was written last.
pub(super) fn status(
    generation: Option<i64>,
    wanted: &Wanted,
    applied: &Applied,
    in_force: InForce,
    before: Option<&DisaggDeploymentStatus>,
    now: &Time,
) -> DisaggDeploymentStatus {
    let [prefill, decode, router] = Component::ALL.map(|component| judge(component, wanted, applied));
    // What nothing is served without comes first.
    let trouble = [&decode, &router, &prefill].into_iter().find_map(|of| of.trouble.as_ref());
    let facts = Facts {
        generation,
        problems: &applied.problems,
        components: [&prefill.numbers, &decode.numbers, &router.numbers],
        trouble: trouble.map(|trouble| (trouble.reason, trouble.message.as_str())),
        settings_pending: in_force.pending,
        deadline: wanted.progress_deadline,
    };
    let (progressing, last_progress) = progress(&facts, before, now);
    let mut findings = vec![readiness(&applied.problems, [&decode, &router, &prefill], &wanted.namespace)];
    let role = |component: Component, numbers: &Numbers| RoleStatus {
        replicas: numbers.exist,
        ready_replicas: numbers.ready,
        updated_replicas: numbers.updated,
        selector: Some(selector(component, &wanted.name)),
    };
    let status = DisaggDeploymentStatus {
        observed_generation: generation,
        conditions: Vec::new(),
        prefill: Some(role(Component::Prefill, &prefill.numbers)),
        decode: Some(role(Component::Decode, &decode.numbers)),
        router: Some(RouterStatus {
            replicas: router.numbers.exist,
            ready_replicas: router.numbers.ready,
            updated_replicas: router.numbers.updated,
            url: Some(url(wanted)),
        }),
        settings: in_force.settings,
        last_progress_time: Some(last_progress),
    };
    findings.extend([prefill, decode, router].map(|of| of.available));
    let for_tools = reconciling_or_stalled(&progressing);
    findings.push(progressing);
    findings.push(children_applied(applied, &wanted.namespace));
    findings.extend(applied.settings.as_ref().map(validity));
    findings.extend(applied.monitoring.as_ref().map(|state| monitoring(state, &wanted.namespace)));
    findings.extend(for_tools);
    DisaggDeploymentStatus { conditions: conditions(generation, findings, before, now), ..status }
}

/// The status of a resource that cannot be applied at all. What is known of its children stays.
pub(super) fn invalid_status(
    generation: Option<i64>,
    why: &str,
    before: Option<&DisaggDeploymentStatus>,
    now: &Time,
) -> DisaggDeploymentStatus {
    let mut status = before.cloned().unwrap_or_default();
    status.observed_generation = generation;
    let new = conditions(
        generation,
        not_reconciled("InvalidSpec", why, "Correct the resource").into(),
        before,
        now,
    );
    status.conditions.retain(|condition| {
        condition.type_ != RECONCILING && new.iter().all(|new| new.type_ != condition.type_)
    });
    status.conditions.splice(0..0, new);
    status
}

/// The conditions of a resource that asks for nothing that can be done.
pub(super) fn not_reconciled(reason: &str, why: &str, advice: &str) -> [Finding; 3] {
    let message = format!("{why}. {advice}; its children stay as they are.");
    [(READY, false), (PROGRESSING, false), (STALLED, true)]
        .map(|(type_, status)| Finding::new(type_, status, reason, message.clone()))
}

fn judge(component: Component, wanted: &Wanted, applied: &Applied) -> Judged {
    let pods = || applied.pods_of(component, &wanted.name);
    let ready = applied.pods.is_some().then(|| serving(pods()));
    let numbers = match component {
        Component::Prefill => applied.prefill.as_ref().map(|set| of_set(set, ready)),
        Component::Decode => applied.decode.as_ref().map(|set| of_set(set, ready)),
        Component::Router => applied.router.as_ref().map(|router| of_deployment(router, ready)),
    };
    let numbers = numbers.unwrap_or_default();
    let trouble = diagnose(component, pods(), &applied.warnings, &wanted.namespace);
    let trouble = trouble.or_else(|| match component {
        Component::Router => applied.router.as_ref().and_then(replica_failure),
        Component::Prefill | Component::Decode => None,
    });
    let trouble = trouble.filter(|_| numbers.ready < numbers.wanted);
    let waits = pods().find_map(waiting_for);
    Judged { available: availability(component, &numbers, trouble.as_ref(), waits), numbers, trouble }
}

/// A component is available while one of its pods serves. That fewer serve than are wanted is what `Progressing` tells.
fn availability(
    component: Component,
    numbers: &Numbers,
    trouble: Option<&Trouble>,
    waits: Option<String>,
) -> Finding {
    let type_ = component.condition();
    let Numbers { created, wanted, ready, .. } = *numbers;
    let count = format!("{ready} of {wanted} ready");
    let serves = ready > 0;
    match (created, wanted, trouble) {
        (false, ..) => Finding::new(type_, false, "NotCreated", "it has not been created yet"),
        (true, 0, _) if component == Component::Prefill => Finding::new(
            type_,
            true,
            "ScaledToZero",
            "no prefill workers are wanted: every prompt is prefilled where it is decoded",
        ),
        (true, 0, _) => {
            let message = format!("spec.{}.replicas is 0: no request can be served", component.as_str());
            Finding::new(type_, false, "ScaledToZero", message)
        }
        (true, _, Some(trouble)) => {
            Finding::new(type_, serves, trouble.reason, format!("{count}; {}", trouble.message))
        }
        (true, ..) if ready >= wanted => Finding::new(type_, true, "AllReady", count),
        (true, ..) => {
            let reason = if serves { "EnoughReady" } else { "Starting" };
            let message = waits.map_or_else(|| count.clone(), |waits| format!("{count}; {waits}"));
            Finding::new(type_, serves, reason, message)
        }
    }
}

/// `components` in the order in which they are needed.
fn readiness(problems: &[Problem], components: [&Judged; 3], namespace: &str) -> Finding {
    let missing = components.into_iter().map(|of| &of.available).find(|finding| !finding.status);
    let Some(missing) = missing else {
        return Finding::new(READY, true, "Serving", "requests are served");
    };
    // What could not be applied comes before what follows from it.
    if let Some(cause) = gravest(problems) {
        let (reason, message) = describe(cause, namespace);
        return Finding::new(READY, false, reason, message);
    }
    let message = format!("{}: {}", missing.type_.trim_end_matches("Available"), missing.message);
    Finding::new(READY, false, &missing.reason, message)
}

/// The same as `progressing`, for tools that look for these conditions.
fn reconciling_or_stalled(progressing: &Finding) -> Option<Finding> {
    let type_ = match (progressing.status, progressing.reason.as_str()) {
        (true, _) => RECONCILING,
        (false, "Complete") => return None,
        (false, _) => STALLED,
    };
    Some(Finding::new(type_, true, &progressing.reason, progressing.message.clone()))
}

fn validity(settings: &SettingsState) -> Finding {
    match &settings.verdict {
        Ok(_) => Finding::new(SETTINGS_VALID, true, "Valid", "routers may apply what the ConfigMap holds"),
        Err(errors) => Finding::new(
            SETTINGS_VALID,
            false,
            "Invalid",
            format!("{errors}. The last good values stay in force until the ConfigMap is corrected."),
        ),
    }
}

/// Of a Deployment the controller itself tells why pods are missing.
fn replica_failure(router: &Deployment) -> Option<Trouble> {
    let conditions = router.status.as_ref()?.conditions.as_ref()?;
    let failure = conditions
        .iter()
        .find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")?;
    let warning = Warning {
        object: router.metadata.name.clone().unwrap_or_default(),
        reason: failure.reason.clone().unwrap_or_default(),
        message: failure.message.clone().unwrap_or_default(),
    };
    Some(missing_pods(&warning, "spec.router"))
}

/// The label selector of a component's pods, as text.
fn selector(component: Component, deployment: &str) -> String {
    let labels = component.selector(deployment);
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Dates the findings: a condition keeps its time unless its status changes.
pub(super) fn conditions(
    generation: Option<i64>,
    findings: Vec<Finding>,
    before: Option<&DisaggDeploymentStatus>,
    now: &Time,
) -> Vec<Condition> {
    let before = before.into_iter().flat_map(|status| &status.conditions);
    findings
        .into_iter()
        .map(|finding| {
            let status = if finding.status { "True" } else { "False" };
            let same = before
                .clone()
                .find(|condition| condition.type_ == finding.type_ && condition.status == status);
            Condition {
                type_: finding.type_.to_owned(),
                status: status.to_owned(),
                reason: finding.reason,
                message: finding.message,
                observed_generation: generation,
                last_transition_time: same
                    .map_or_else(|| now.clone(), |same| same.last_transition_time.clone()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
