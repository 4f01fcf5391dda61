//! Whether a change is under way, and whether it still comes nearer to its end. Pure: time is an argument.

use std::time::Duration;

use disagg_api::crd::DisaggDeploymentStatus;
use disagg_api::kubernetes::conditions::PROGRESSING;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::finding::Finding;
use super::numbers::Numbers;
use crate::reconcile::apply::Problem;

/// Reasons with which nothing is under way: what comes after them begins anew.
const AT_REST: [&str; 4] = ["Complete", "Blocked", "InvalidSpec", "Undecodable"];

/// What there is to judge.
pub(super) struct Facts<'a> {
    pub generation: Option<i64>,
    pub problems: &'a [Problem],
    pub components: [&'a Numbers; 3],
    /// What keeps pods from starting: reason and message.
    pub trouble: Option<(&'a str, &'a str)>,
    /// Some routers have yet to apply the settings.
    pub settings_pending: bool,
    pub deadline: Duration,
}

impl Facts<'_> {
    /// Children that stay as they are until a person acts.
    fn blocked(&self) -> usize {
        self.problems.iter().filter(|problem| !problem.may_pass()).count()
    }

    fn settled(&self) -> bool {
        self.components.iter().all(|numbers| numbers.settled)
    }

    /// There is nothing left to do.
    fn complete(&self) -> bool {
        self.settled() && self.problems.is_empty() && !self.settings_pending
    }

    fn sum(&self, number: fn(&Numbers) -> i32) -> i32 {
        self.components.iter().map(|numbers| number(numbers)).sum()
    }

    /// What is under way, as reason and message.
    fn under_way(&self) -> (&str, String) {
        let (wanted, ready, updated) =
            (self.sum(|n| n.wanted), self.sum(|n| n.ready), self.sum(|n| n.updated));
        let pods = format!("{ready} of {wanted} pods are ready, {updated} are as the resource asks");
        let failed = "a child could not be applied and is tried again; ChildrenApplied tells why";
        match self.trouble {
            _ if !self.problems.is_empty() => ("ChildFailed", failed.to_owned()),
            Some((reason, message)) => (reason, format!("{pods}; {message}")),
            None if self.settled() => {
                ("ApplyingSettings", "not every router has applied the settings yet".to_owned())
            }
            None if updated < wanted => ("RollingOut", pods),
            None => ("ReplicasUnavailable", pods),
        }
    }
}

/// The condition, and when progress was made last.
pub(super) fn progress(
    facts: &Facts<'_>,
    before: Option<&DisaggDeploymentStatus>,
    now: &Time,
) -> (Finding, Time) {
    let last = last_progress(facts, before, now);
    let of = |status, reason: &str, message: String| Finding::new(PROGRESSING, status, reason, message);
    let blocked = facts.blocked();
    let finding = if blocked > 0 {
        let message = format!("{blocked} of the children cannot be applied; ChildrenApplied tells why");
        of(false, "Blocked", message)
    } else if facts.complete() {
        of(false, "Complete", "every pod is as the resource asks and ready".to_owned())
    } else {
        let (reason, message) = facts.under_way();
        if until_deadline(&last, facts.deadline, now).is_zero() {
            let seconds = facts.deadline.as_secs();
            let message =
                format!("no progress for {seconds} s (spec.progressDeadlineSeconds): {reason}: {message}");
            of(false, "ProgressDeadlineExceeded", message)
        } else {
            of(true, reason, message)
        }
    };
    (finding, last)
}

/// When progress was made last: now, if a change has begun or a pod is newer or ready that was not.
fn last_progress(facts: &Facts<'_>, before: Option<&DisaggDeploymentStatus>, now: &Time) -> Time {
    let since = |before: &DisaggDeploymentStatus| {
        let was = before.conditions.iter().find(|condition| condition.type_ == PROGRESSING);
        let was_at_rest = was.is_none_or(|was| AT_REST.contains(&was.reason.as_str()));
        let under_way = !facts.complete() && facts.blocked() == 0;
        let begun = before.observed_generation != facts.generation || (was_at_rest && under_way);
        let (ready, updated) = pods(before);
        let more = facts.sum(|n| n.ready) > ready || facts.sum(|n| n.updated) > updated;
        before.last_progress_time.clone().filter(|_| !begun && !more)
    };
    before.and_then(since).unwrap_or_else(|| now.clone())
}

/// The pods of all components that were ready, and those that were as the resource asked.
fn pods(before: &DisaggDeploymentStatus) -> (i32, i32) {
    // Destructured without `..`, so that a new component has to be thought of here.
    let DisaggDeploymentStatus {
        prefill,
        decode,
        router,
        observed_generation: _,
        conditions: _,
        settings: _,
        last_progress_time: _,
    } = before;
    let roles = [prefill, decode].into_iter().flatten();
    let roles = roles.map(|role| (role.ready_replicas, role.updated_replicas));
    let routers = router.iter().map(|router| (router.ready_replicas, router.updated_replicas));
    roles.chain(routers).fold((0, 0), |sum, pods| (sum.0 + pods.0, sum.1 + pods.1))
}

/// How long until a change that goes on as it is counts as stuck.
pub(super) fn until_deadline(last: &Time, deadline: Duration, now: &Time) -> Duration {
    // A clock that was set back has not gone on.
    let passed = Duration::try_from(now.0.duration_since(last.0)).unwrap_or_default();
    deadline.saturating_sub(passed)
}
