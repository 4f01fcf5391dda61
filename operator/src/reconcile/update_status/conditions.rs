//! The status of a resource, from what was applied and what is observed. Pure: time is an argument.

use disagg_api::DisaggDeployment;
use disagg_api::crd::{DisaggDeploymentStatus, RoleStatus, RouterStatus, SettingsStatus};
use disagg_api::kubernetes::Component;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::diagnose::{Trouble, diagnose, missing_pods};
use crate::prometheus::GROUP_VERSION;
use crate::reconcile::apply::{MonitoringState, Outcome, Problem, SettingsState};
use crate::reconcile::build::url;
use crate::reconcile::dereference::{Observed, Warning};
use crate::reconcile::validate::Wanted;

/// Types of conditions, in the order in which they are written.
pub(crate) const READY: &str = "Ready";
const PROGRESSING: &str = "Progressing";
pub(crate) const SETTINGS_VALID: &str = "SettingsValid";
/// Only there while the resource asks for PodMonitors.
pub(crate) const MONITORING_AVAILABLE: &str = "MonitoringAvailable";

/// Type of a component's condition.
const fn available(component: Component) -> &'static str {
    match component {
        Component::Prefill => "PrefillAvailable",
        Component::Decode => "DecodeAvailable",
        Component::Router => "RouterAvailable",
    }
}

/// The pods of a component, by number.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Numbers {
    wanted: i32,
    exist: i32,
    ready: i32,
    /// Every pod is of the newest template, and the controller has seen it.
    current: bool,
}

/// A condition without its time.
struct Finding {
    type_: &'static str,
    status: bool,
    reason: String,
    message: String,
}

impl Finding {
    fn new(type_: &'static str, status: bool, reason: &str, message: impl Into<String>) -> Self {
        Self { type_, status, reason: reason.to_owned(), message: message.into() }
    }
}

/// The status of a resource that was applied.
pub(crate) fn status(
    resource: &DisaggDeployment,
    wanted: &Wanted,
    observed: &Observed,
    outcome: &Outcome,
    in_force: Option<SettingsStatus>,
    now: &Time,
) -> DisaggDeploymentStatus {
    let prefill = observed.prefill.as_deref().map(set_numbers).unwrap_or_default();
    let decode = observed.decode.as_deref().map(set_numbers).unwrap_or_default();
    let router = observed.router.as_deref().map(router_numbers).unwrap_or_default();

    let component = |component: Component, numbers: &Numbers, seen: bool| {
        let pods = observed.pods_of(component);
        let trouble = diagnose(component, pods, &observed.warnings, &wanted.namespace);
        let trouble = trouble.or_else(|| match component {
            Component::Router => observed.router.as_deref().and_then(replica_failure),
            Component::Prefill | Component::Decode => None,
        });
        availability(component, numbers, seen, trouble)
    };
    let components = [
        component(Component::Prefill, &prefill, observed.prefill.is_some()),
        component(Component::Decode, &decode, observed.decode.is_some()),
        component(Component::Router, &router, observed.router.is_some()),
    ];
    let progressing = progress(&outcome.problems, [&prefill, &decode, &router]);
    let ready = readiness(&outcome.problems, &components, &wanted.namespace);
    let mut findings = vec![ready];
    findings.extend(components);
    findings.push(progressing);
    findings.extend(outcome.settings.as_ref().map(validity));
    findings.extend(outcome.monitoring.as_ref().map(|state| monitoring(state, &wanted.namespace)));

    let role = |component: Component, numbers: &Numbers| RoleStatus {
        replicas: numbers.exist,
        ready_replicas: numbers.ready,
        selector: Some(selector(component, &wanted.name)),
    };
    DisaggDeploymentStatus {
        observed_generation: resource.metadata.generation,
        conditions: conditions(resource, findings, now),
        prefill: Some(role(Component::Prefill, &prefill)),
        decode: Some(role(Component::Decode, &decode)),
        router: Some(RouterStatus {
            replicas: router.exist,
            ready_replicas: router.ready,
            url: Some(url(wanted)),
        }),
        settings: in_force,
    }
}

/// The status of a resource that cannot be applied at all. What is known of its children stays.
pub(crate) fn invalid_status(resource: &DisaggDeployment, why: &str, now: &Time) -> DisaggDeploymentStatus {
    let message = format!("{why}. Correct the resource; its children stay as they are.");
    let findings = vec![
        Finding::new(READY, false, "InvalidSpec", message.clone()),
        Finding::new(PROGRESSING, false, "InvalidSpec", message),
    ];
    let mut status = resource.status.clone().unwrap_or_default();
    status.observed_generation = resource.metadata.generation;
    let mut kept = status.conditions;
    let new = conditions(resource, findings, now);
    kept.retain(|condition| new.iter().all(|new| new.type_ != condition.type_));
    status.conditions = new;
    status.conditions.extend(kept);
    status
}

fn availability(component: Component, numbers: &Numbers, seen: bool, trouble: Option<Trouble>) -> Finding {
    let type_ = available(component);
    let Numbers { wanted, ready, .. } = *numbers;
    let count = format!("{ready} of {wanted} ready");
    // As many as a PodDisruptionBudget leaves.
    let enough = ready >= (wanted - 1).max(1);
    match (seen, wanted, trouble) {
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
        (true, _, Some(trouble)) if ready < wanted => {
            Finding::new(type_, enough, trouble.reason, format!("{count}; {}", trouble.message))
        }
        (true, ..) if ready >= wanted => Finding::new(type_, true, "AllReady", count),
        (true, ..) if enough => Finding::new(type_, true, "EnoughReady", count),
        (true, ..) => Finding::new(type_, false, "Starting", count),
    }
}

fn readiness(problems: &[Problem], components: &[Finding], namespace: &str) -> Finding {
    if let Some(problem) = problems.first() {
        let (reason, message) = describe(problem, namespace);
        return Finding::new(READY, false, reason, message);
    }
    // What nothing is served without comes first.
    let order = [Component::Decode, Component::Router, Component::Prefill].map(available);
    let missing = order
        .iter()
        .find_map(|type_| components.iter().find(|finding| finding.type_ == *type_ && !finding.status));
    match missing {
        Some(missing) => {
            let message = format!("{}: {}", missing.type_.trim_end_matches("Available"), missing.message);
            Finding::new(READY, false, &missing.reason, message)
        }
        None => Finding::new(READY, true, "Serving", "requests are served"),
    }
}

fn progress(problems: &[Problem], components: [&Numbers; 3]) -> Finding {
    if !problems.is_empty() {
        let message = format!("{} of the children cannot be applied; Ready tells why", problems.len());
        return Finding::new(PROGRESSING, false, "Blocked", message);
    }
    if components.iter().all(|numbers| numbers.current && numbers.ready == numbers.wanted) {
        return Finding::new(PROGRESSING, false, "Complete", "every pod is as the resource asks and ready");
    }
    let wanted: i32 = components.iter().map(|numbers| numbers.wanted).sum();
    let ready: i32 = components.iter().map(|numbers| numbers.ready).sum();
    let message = format!("{ready} of {wanted} pods are ready");
    if components.iter().all(|numbers| numbers.current) {
        Finding::new(PROGRESSING, true, "Scaling", message)
    } else {
        Finding::new(PROGRESSING, true, "RollingOut", message)
    }
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

fn monitoring(state: &MonitoringState, namespace: &str) -> Finding {
    match state {
        MonitoringState::Applied => Finding::new(
            MONITORING_AVAILABLE,
            true,
            "Applied",
            "the PodMonitors of workers and routers are there",
        ),
        MonitoringState::NotServed => Finding::new(
            MONITORING_AVAILABLE,
            false,
            "PodMonitorNotServed",
            format!(
                "spec.monitoring.podMonitor asks for PodMonitors, and the cluster serves no {GROUP_VERSION} PodMonitor. \
                 Install the definitions of the Prometheus operator, which is noticed by itself, or remove the field"
            ),
        ),
        MonitoringState::Bad(problem) => {
            let (reason, message) = describe(problem, namespace);
            Finding::new(MONITORING_AVAILABLE, false, reason, message)
        }
    }
}

/// Reason and message of a child that a person has to put right.
fn describe(problem: &Problem, namespace: &str) -> (&'static str, String) {
    match problem {
        Problem::Foreign { kind, name, owner } => {
            let whose = owner.as_ref().map_or_else(
                || "it was not made for this resource".to_owned(),
                |owner| format!("it belongs to {owner}"),
            );
            let message = format!(
                "{kind} {name} has the name of a child but is not one: {whose}. Rename this resource, or remove the other \
                 object with kubectl -n {namespace} delete {} {name}",
                kind.to_lowercase()
            );
            ("ForeignChild", message)
        }
        Problem::Immutable { kind, name, message } => {
            let cascade = if *kind == "StatefulSet" { " --cascade=orphan" } else { "" };
            let message = format!(
                "{kind} {name} has a field that cannot be changed in place ({message}). Let it be made again with kubectl -n \
                 {namespace} delete {} {name}{cascade}",
                kind.to_lowercase()
            );
            ("ImmutableField", message)
        }
        Problem::Refused { kind, name, message } => {
            ("ChildRefused", format!("the API server refuses {kind} {name}: {message}"))
        }
    }
}

fn set_numbers(set: &StatefulSet) -> Numbers {
    let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let Some(status) = &set.status else { return Numbers { wanted, ..Numbers::default() } };
    Numbers {
        wanted,
        exist: status.replicas,
        ready: status.ready_replicas.unwrap_or(0),
        current: status.observed_generation >= set.metadata.generation
            && status.replicas == wanted
            && (status.current_revision == status.update_revision || wanted == 0),
    }
}

fn router_numbers(router: &Deployment) -> Numbers {
    let wanted = router.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let Some(status) = &router.status else { return Numbers { wanted, ..Numbers::default() } };
    Numbers {
        wanted,
        exist: status.replicas.unwrap_or(0),
        ready: status.ready_replicas.unwrap_or(0),
        current: status.observed_generation >= router.metadata.generation
            && status.updated_replicas.unwrap_or(0) == wanted
            && status.replicas.unwrap_or(0) == wanted,
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
fn conditions(resource: &DisaggDeployment, findings: Vec<Finding>, now: &Time) -> Vec<Condition> {
    let before = resource.status.iter().flat_map(|status| &status.conditions);
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
                observed_generation: resource.metadata.generation,
                last_transition_time: same
                    .map_or_else(|| now.clone(), |same| same.last_transition_time.clone()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
