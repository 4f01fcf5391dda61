//! What is told of children that cannot be applied. Pure.

use disagg_api::kubernetes::conditions::{CHILDREN_APPLIED, MONITORING_AVAILABLE};

use super::finding::Finding;
use crate::prometheus::GROUP_VERSION;
use crate::reconcile::apply::{Applied, MonitoringState, Problem, Why};

/// The most children that a message tells of in full; the others are counted.
const TOLD: usize = 4;

/// The condition of all children together.
pub(super) fn children_applied(applied: &Applied, namespace: &str) -> Finding {
    let of = |status, reason: &str, message: String| Finding::new(CHILDREN_APPLIED, status, reason, message);
    let problems = &applied.problems;
    if let Some(gravest) = gravest(problems) {
        let mut told: Vec<String> =
            problems.iter().take(TOLD).map(|problem| describe(problem, namespace).1).collect();
        if problems.len() > TOLD {
            told.push(format!("and {} more", problems.len() - TOLD));
        }
        let message = format!("{} of the children cannot be applied: {}", problems.len(), told.join("; "));
        return of(false, describe(gravest, namespace).0, message);
    }
    if !applied.unwatched.is_empty() {
        let message = format!(
            "the operator cannot watch {}, and looks every few seconds instead; may it list and watch them?",
            applied.unwatched.join(", ")
        );
        return of(false, "WatchFailed", message);
    }
    of(true, "Applied", "every child is as the resource asks".to_owned())
}

/// The problem that names the condition: one that a person has to solve before one that may pass.
pub(super) fn gravest(problems: &[Problem]) -> Option<&Problem> {
    problems.iter().min_by_key(|problem| problem.may_pass())
}

/// The condition of PodMonitors.
pub(super) fn monitoring(state: &MonitoringState, namespace: &str) -> Finding {
    let of =
        |status, reason: &str, message: String| Finding::new(MONITORING_AVAILABLE, status, reason, message);
    match state {
        MonitoringState::Applied => {
            of(true, "Applied", "the PodMonitors of workers and routers are there".to_owned())
        }
        MonitoringState::NotServed => of(
            false,
            "PodMonitorNotServed",
            format!(
                "spec.monitoring.podMonitor asks for PodMonitors, and the cluster serves no {GROUP_VERSION} PodMonitor. \
                 Install the definitions of the Prometheus operator, which is noticed by itself, or remove the field"
            ),
        ),
        MonitoringState::Bad(problem) => {
            let (reason, message) = describe(problem, namespace);
            of(false, reason, message)
        }
    }
}

/// Reason and message of a child that could not be applied.
pub(super) fn describe(problem: &Problem, namespace: &str) -> (&'static str, String) {
    let Problem { kind, name, why } = problem;
    let resource = kind.to_lowercase();
    match why {
        Why::Foreign { .. } => {
            let message = format!(
                "{kind} {name} has the name of a child but is not one: {why}. Rename this resource, or remove the other \
                 object with kubectl -n {namespace} delete {resource} {name}"
            );
            ("ForeignChild", message)
        }
        Why::Immutable(said) => {
            let cascade = if *kind == "StatefulSet" { " --cascade=orphan" } else { "" };
            let message = format!(
                "{kind} {name} has a field that cannot be changed in place ({said}). Let it be made again with kubectl -n \
                 {namespace} delete {resource} {name}{cascade}"
            );
            ("ImmutableField", message)
        }
        Why::Refused(said) => ("ChildRefused", format!("the API server refuses {kind} {name}: {said}")),
        Why::Passing(_) | Why::NotFound(_) | Why::NamespaceEnding => {
            ("ChildFailed", format!("{kind} {name} could not be applied and is tried again: {why}"))
        }
    }
}
