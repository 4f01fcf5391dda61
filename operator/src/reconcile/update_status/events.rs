//! Which changes of the status deserve an Event. Pure: one for each change, none for a reconcile that changes nothing.

use disagg_api::crd::DisaggDeploymentStatus;
use disagg_api::kubernetes::Component;
use disagg_api::kubernetes::conditions::{
    CHILDREN_APPLIED, MONITORING_AVAILABLE, PROGRESSING, READY, SETTINGS_VALID,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};

/// Characters of an Event's text that the API server takes.
const NOTE: usize = 1000;

/// Reasons that are nothing but the course of things.
const USUAL: [&str; 5] = ["Starting", "NotCreated", "EnoughReady", "AllReady", "ScaledToZero"];

/// The Events of the change from `before` to `after`.
pub(super) fn of_change(
    before: Option<&DisaggDeploymentStatus>,
    after: &DisaggDeploymentStatus,
) -> Vec<Event> {
    let mut events = Vec::new();
    for condition in &after.conditions {
        let was = before.and_then(|before| before.conditions.iter().find(|was| was.type_ == condition.type_));
        events.extend(of_condition(was, condition));
    }
    if let Some(settings) = &after.settings {
        let was = before.and_then(|before| before.settings.as_ref());
        let values = |settings: &disagg_api::crd::SettingsStatus| {
            (
                settings.max_local_prefill_length,
                settings.max_prefill_queue_depth,
                settings.fallback_policy,
                settings.overlap_weight_percent,
            )
        };
        if was.is_none_or(|was| values(was) != values(settings)) {
            let (length, depth, policy, weight) = values(settings);
            events.push(event(
                EventType::Normal,
                "SettingsApplied",
                "ApplySettings",
                &format!(
                    "every ready router applies maxLocalPrefillLength {length}, maxPrefillQueueDepth {depth}, \
                     fallbackPolicy {policy}, overlapWeightPercent {weight}"
                ),
            ));
        }
    }
    events
}

fn of_condition(was: Option<&Condition>, now: &Condition) -> Option<Event> {
    let was_true = was.is_some_and(|was| was.status == "True");
    let is_true = now.status == "True";
    match now.type_.as_str() {
        READY if is_true && !was_true => Some(event(EventType::Normal, "Ready", "Serve", &now.message)),
        READY if !is_true && was_true => Some(event(EventType::Warning, "NotReady", "Serve", &now.message)),
        // Other conditions tell of pods and children; Ready alone tells of the spec.
        READY if !is_true => {
            let news = was.is_none_or(|was| was.reason != now.reason || was.message != now.message);
            (now.reason == "InvalidSpec" && news)
                .then(|| event(EventType::Warning, &now.reason, "Apply", &now.message))
        }
        PROGRESSING => (now.reason == "ProgressDeadlineExceeded"
            && was.is_none_or(|was| was.reason != now.reason))
        .then(|| event(EventType::Warning, &now.reason, "RunPods", &now.message)),
        CHILDREN_APPLIED if is_true => (was.is_some() && !was_true)
            .then(|| event(EventType::Normal, "ChildrenApplied", "Apply", &now.message)),
        CHILDREN_APPLIED => {
            // What may pass is said in other words each time it is tried.
            let passes = now.reason == "ChildFailed";
            let news =
                was.is_none_or(|was| was.reason != now.reason || (!passes && was.message != now.message));
            news.then(|| event(EventType::Warning, &now.reason, "Apply", &now.message))
        }
        SETTINGS_VALID if is_true => (was.is_some() && !was_true)
            .then(|| event(EventType::Normal, "SettingsValid", "ReadSettings", &now.message)),
        SETTINGS_VALID => {
            let news = was.is_none_or(|was| was.message != now.message);
            news.then(|| event(EventType::Warning, "SettingsInvalid", "ReadSettings", &now.message))
        }
        MONITORING_AVAILABLE if is_true => None,
        MONITORING_AVAILABLE => {
            let news = was.is_none_or(|was| was.reason != now.reason || was.message != now.message);
            news.then(|| event(EventType::Warning, &now.reason, "Apply", &now.message))
        }
        type_ if Component::ALL.iter().any(|component| component.condition() == type_) => {
            let news = was.is_none_or(|was| was.reason != now.reason);
            (news && !USUAL.contains(&now.reason.as_str()))
                .then(|| event(EventType::Warning, &now.reason, "RunPods", &now.message))
        }
        _ => None,
    }
}

/// Children that had lost their owner, by kind and name, are ours again. One Event for all: others with its reason would
/// only be counted.
pub(super) fn of_adoption(adopted: &[(&'static str, String)]) -> Option<Event> {
    let names: Vec<_> = adopted.iter().map(|(kind, name)| format!("{kind} {name}")).collect();
    let note = format!(
        "objects that belonged to nobody and have all labels of a child are children of this resource now: {}",
        names.join(", ")
    );
    (!names.is_empty()).then(|| event(EventType::Normal, "ChildAdopted", "Apply", &note))
}

/// A resource that an operator of all namespaces leaves to the one of its namespace.
pub(super) fn of_left_alone(namespace: &str, holder: &str) -> Event {
    let note = format!(
        "{holder} holds a Lease in {namespace}, and so looks after the resources of this namespace alone; the operator of \
         all namespaces does nothing here until that one is gone"
    );
    event(EventType::Normal, "LeftToAnotherOperator", "Reconcile", &note)
}

/// A resource that cannot be decoded.
pub(super) fn of_undecodable(note: &str) -> Event {
    event(EventType::Warning, "Undecodable", "Read", note)
}

fn event(type_: EventType, reason: &str, action: &str, note: &str) -> Event {
    let note = match note.char_indices().nth(NOTE) {
        // Bounded in bytes: cut well before.
        Some(_) => note.chars().take(NOTE / 4).chain(['…']).collect(),
        None if note.len() > NOTE => note.chars().take(NOTE / 4).chain(['…']).collect(),
        None => note.to_owned(),
    };
    Event { type_, reason: reason.to_owned(), note: Some(note), action: action.to_owned(), secondary: None }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn status(conditions: &[(&str, &str, &str, &str)]) -> DisaggDeploymentStatus {
        let conditions = conditions.iter().map(|(type_, status, reason, message)| Condition {
            type_: (*type_).to_owned(),
            status: (*status).to_owned(),
            reason: (*reason).to_owned(),
            message: (*message).to_owned(),
            observed_generation: Some(1),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        });
        DisaggDeploymentStatus { conditions: conditions.collect(), ..DisaggDeploymentStatus::default() }
    }

    fn reasons(before: Option<&DisaggDeploymentStatus>, after: &DisaggDeploymentStatus) -> Vec<String> {
        of_change(before, after).into_iter().map(|event| event.reason).collect()
    }

    #[test]
    fn each_change_is_told_once() {
        let starting = status(&[
            ("Ready", "False", "Starting", "Decode: 0 of 1 ready"),
            ("DecodeAvailable", "False", "Starting", "0 of 1 ready"),
            ("SettingsValid", "True", "Valid", ""),
        ]);
        assert!(reasons(None, &starting).is_empty(), "a start is no news");
        let crash = status(&[
            ("Ready", "False", "CrashLoop", "x"),
            ("DecodeAvailable", "False", "CrashLoop", "restarts: 1"),
            ("SettingsValid", "False", "Invalid", "maxLocalPrefillLength: bad"),
        ]);
        assert_eq!(reasons(Some(&starting), &crash), ["CrashLoop", "SettingsInvalid"]);
        assert!(reasons(Some(&crash), &crash).is_empty());
        let again = status(&[
            ("Ready", "False", "CrashLoop", "x"),
            ("DecodeAvailable", "False", "CrashLoop", "restarts: 2"),
            ("SettingsValid", "False", "Invalid", "maxPrefillQueueDepth: bad"),
        ]);
        assert_eq!(
            reasons(Some(&crash), &again),
            ["SettingsInvalid"],
            "another key is bad; the crash is no news"
        );
        let ready = status(&[
            ("Ready", "True", "Serving", ""),
            ("DecodeAvailable", "True", "AllReady", ""),
            ("SettingsValid", "True", "Valid", ""),
        ]);
        assert_eq!(reasons(Some(&again), &ready), ["Ready", "SettingsValid"]);
        assert_eq!(reasons(Some(&ready), &again), ["NotReady", "CrashLoop", "SettingsInvalid"]);
    }

    #[test]
    fn a_child_that_cannot_be_applied_is_told_once_and_when_it_can_be() {
        let of = |status_: &str, reason: &str, message: &str| {
            status(&[("ChildrenApplied", status_, reason, message)])
        };
        let applied = of("True", "Applied", "");
        assert!(reasons(None, &applied).is_empty());
        let refused = of("False", "ChildRefused", "Service a: no");
        assert_eq!(reasons(Some(&applied), &refused), ["ChildRefused"]);
        assert!(reasons(Some(&refused), &refused).is_empty());
        let another = of("False", "ChildRefused", "Service b: no");
        assert_eq!(reasons(Some(&refused), &another), ["ChildRefused"], "another child");
        let failed = of("False", "ChildFailed", "Service a: timeout after 10.2 s");
        assert_eq!(reasons(Some(&another), &failed), ["ChildFailed"]);
        let again = of("False", "ChildFailed", "Service a: timeout after 10.3 s");
        assert!(reasons(Some(&failed), &again).is_empty(), "the same in other words");
        assert_eq!(reasons(Some(&again), &applied), ["ChildrenApplied"]);
    }

    #[test]
    fn a_change_that_is_stuck_is_told_once() {
        let of = |reason: &str, message: &str| status(&[("Progressing", "False", reason, message)]);
        let stuck = of("ProgressDeadlineExceeded", "2 of 3");
        assert_eq!(reasons(Some(&of("Complete", "")), &stuck), ["ProgressDeadlineExceeded"]);
        assert!(reasons(Some(&stuck), &of("ProgressDeadlineExceeded", "1 of 3")).is_empty());
        assert!(reasons(Some(&stuck), &of("Complete", "")).is_empty());
    }

    #[test]
    fn missing_definitions_of_prometheus_are_told_once() {
        let of = |status_: &str, reason: &str| status(&[("MonitoringAvailable", status_, reason, reason)]);
        let (missing, there) = (of("False", "PodMonitorNotServed"), of("True", "Applied"));
        assert_eq!(reasons(None, &missing), ["PodMonitorNotServed"]);
        assert!(reasons(Some(&missing), &missing).is_empty());
        assert!(reasons(Some(&missing), &there).is_empty());
        assert!(reasons(None, &there).is_empty());
    }

    #[test]
    fn notes_fit_the_api() {
        let long = status(&[("SettingsValid", "False", "Invalid", &"ß".repeat(2000))]);
        assert!(of_change(None, &long)[0].note.as_ref().unwrap().len() <= 1024);
    }
}
