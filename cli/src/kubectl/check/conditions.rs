//! Judges what the operator says of a deployment, and whether it says anything.

use disagg_api::DisaggDeployment;
use disagg_api::kubernetes::Component;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;

use super::Finding;
use super::findings::seconds_since;
use super::fold::{About, Follows, Sign};

/// The operator answers a change within seconds.
const OPERATOR_SECONDS: i64 = 60;

/// Reasons of conditions that a change under way gives by itself. All others name something that stands in its way.
const PASSING: [&str; 7] = [
    "ApplyingSettings",
    "NotCreated",
    "ReplicasUnavailable",
    "Restarted",
    "RollingOut",
    "Scaling",
    "Starting",
];
/// Reasons that lie with the namespace: parts that have the same one have one trouble.
const OF_THE_NAMESPACE: [&str; 2] = ["PodsForbidden", "QuotaExceeded"];
/// Conditions that sum up what others say.
const SUMMARIES: [&str; 4] = ["Progressing", "Ready", "Reconciling", "Stalled"];

/// The operator has not spoken, though it has had the time to.
pub(super) fn silence(subject: &str, resource: &DisaggDeployment, now: Timestamp) -> Option<Finding> {
    let created = resource.metadata.creation_timestamp.as_ref()?.0;
    if seconds_since(created, now) <= OPERATOR_SECONDS {
        return None;
    }
    let what = match &resource.status {
        None => "the operator has not said anything of it",
        Some(status) if status.observed_generation < resource.metadata.generation => {
            "the operator has not taken its last change over"
        }
        Some(_) => return None,
    };
    let advice =
        "see in the operator's log why; that it runs and watches this namespace is told here, if it does not";
    Some(Finding::error(subject, what, advice))
}

/// A sign for every condition that is not as it should be.
pub(super) fn conditions(subject: &str, resource: &DisaggDeployment) -> Vec<Sign> {
    let Some(status) = &resource.status else { return Vec::new() };
    let changing = status.conditions.iter().any(|it| it.type_ == "Progressing" && it.status == "True");
    let bad: Vec<&Condition> = status.conditions.iter().filter(|it| is_bad(it)).collect();
    bad.iter().map(|condition| sign(subject, condition, &bad, changing)).collect()
}

fn is_bad(Condition { type_, status, reason, .. }: &Condition) -> bool {
    let is_true = status == "True";
    match type_.as_str() {
        // A change that goes on, and one that has come to its end, are both as they should be.
        "Progressing" if is_true => !PASSING.contains(&reason.as_str()),
        "Progressing" => reason != "Complete",
        // For other tools; what it says is told by Progressing.
        "Reconciling" => false,
        "Stalled" => is_true,
        _ => !is_true,
    }
}

fn sign(subject: &str, condition: &Condition, bad: &[&Condition], changing: bool) -> Sign {
    let Condition { type_, status, reason, message, .. } = condition;
    let passing = changing && PASSING.contains(&reason.as_str());
    let what = format!("{type_} is {status}, {reason}: {message}");
    let part = part_of(type_);
    let advice = match (type_.as_str(), part) {
        ("SettingsValid", _) => "repair the settings ConfigMap; the last good values are in force meanwhile",
        _ if passing => "wait: a change is under way; what keeps it is told here, if anything does",
        (_, Some(_)) => "what the condition says to do; kubectl describe dd and its pods tell more",
        _ => "what the condition says to do",
    };
    let finding = if status == "False" && !passing {
        Finding::error(subject, what, advice)
    } else {
        Finding::warning(subject, what, advice)
    };
    let short = format!("{type_} is {status}");
    let repeated = || bad.iter().any(|it| !SUMMARIES.contains(&it.type_.as_str()) && it.reason == *reason);
    match (type_.as_str(), part) {
        (_, Some(part)) => {
            let shared = OF_THE_NAMESPACE.contains(&reason.as_str());
            // Without decode workers nothing is served, so of several parts they are told of.
            let of_decode =
                |it: &Condition| it.reason == *reason && part_of(&it.type_) == Some(Component::Decode);
            let from = if shared && bad.iter().copied().any(of_decode) { Component::Decode } else { part };
            Sign::following(finding, About::Part(part), Follows::Part(from), short)
        }
        ("SettingsValid", _) => Sign::following(finding, About::Settings, Follows::Settings, short),
        // Nothing depends on them.
        ("MonitoringAvailable", _) => Sign::cause(finding, About::Aside),
        (_, _) if reason == "WatchFailed" => Sign::cause(finding, About::Aside),
        ("Progressing" | "Stalled", _) => Sign::following(finding, About::Aside, Follows::Any, short),
        // It repeats what another condition says, or else it alone says what is wrong: the spec, or a child that cannot
        // be written.
        ("Ready", _) if repeated() => Sign::following(finding, About::Aside, Follows::Any, short),
        _ => Sign::cause(finding, About::Whole),
    }
}

/// The part whose condition this is.
fn part_of(type_: &str) -> Option<Component> {
    Component::ALL.into_iter().find(|part| part.condition() == type_)
}
