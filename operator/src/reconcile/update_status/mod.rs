//! Fifth call: the status, and an Event for each change of it that a person should hear of.

mod children;
mod conditions;
mod diagnose;
mod events;
mod finding;
mod init;
mod left_alone;
mod numbers;
mod progress;
mod routers;
mod trouble;
mod undecodable;
mod write;

use std::time::Duration;

use disagg_api::kubernetes::conditions::{PROGRESSING, READY};

pub(crate) use left_alone::tell_left_alone;
pub(crate) use undecodable::update_undecodable_status;
pub(crate) use write::{Remembered, UpdateStatusError};

use super::apply::{Applied, MonitoringState};
use super::subject::Subject;
use super::validate::Wanted;
use crate::context::Context;
use crate::memory::Memory;
use routers::InForce;
use write::{last_status, now, write};

/// How long until the next look while children were made just now, or a router has yet to say that it applies the settings.
const SOON: Duration = Duration::from_secs(1);
/// The same while something is not as it should be: pods may tell why without an event of a child.
const LATER: Duration = Duration::from_secs(10);
/// The same while all is well.
const RARELY: Duration = Duration::from_mins(5);

/// Writes what is true of a resource that was applied, and says when to look again without being told of a change.
pub(crate) async fn update_status(
    subject: &Subject,
    wanted: &Wanted,
    applied: &Applied,
    context: &Context,
    memory: &Memory<Remembered>,
) -> Result<Duration, UpdateStatusError> {
    // Told of now, they would be told of again as soon as the watches show them.
    if applied.made && applied.problems.is_empty() {
        return Ok(SOON);
    }
    let in_force = match &applied.settings {
        Some(settings) => {
            let (name, version) = (&subject.id.name, &settings.resource_version);
            let reports = memory.of(&subject.id, |of| of.reports.clone());
            let (in_force, reports) = routers::ask(name, applied, version, reports, context).await;
            memory.of(&subject.id, |of| of.reports = reports);
            in_force
        }
        None => InForce { settings: None, pending: false },
    };
    let (before, now, pending) = (last_status(subject, memory), now(), in_force.pending);
    let status = conditions::status(subject.generation, wanted, applied, in_force, before.as_ref(), &now);
    let is =
        |type_: &str| status.conditions.iter().any(|found| found.type_ == type_ && found.status == "True");
    let waits = applied.monitoring.as_ref().is_some_and(|state| *state != MonitoringState::Applied);
    let again = if pending {
        SOON
    } else if is(PROGRESSING) {
        let last = status.last_progress_time.as_ref().unwrap_or(&now);
        // A second more, since times are in whole ones.
        LATER.min(progress::until_deadline(last, wanted.progress_deadline, &now) + Duration::from_secs(1))
    } else if is(READY)
        && !waits
        && !applied.unseen
        && applied.unwatched.is_empty()
        && applied.problems.is_empty()
    {
        RARELY
    } else {
        LATER
    };
    let adopted = events::of_adoption(&applied.adopted).into_iter().collect();
    write(subject, before.as_ref(), status, adopted, context, memory).await?;
    Ok(again)
}

/// Writes what is wrong with a resource that cannot be applied.
pub(crate) async fn update_invalid_status(
    subject: &Subject,
    why: &str,
    context: &Context,
    memory: &Memory<Remembered>,
) -> Result<(), UpdateStatusError> {
    let before = last_status(subject, memory);
    let status = conditions::invalid_status(subject.generation, why, before.as_ref(), &now());
    write(subject, before.as_ref(), status, Vec::new(), context, memory).await
}

/// The status of what was applied, to tests of the apply.
#[cfg(test)]
pub(crate) fn status_for_tests(
    subject: &Subject,
    wanted: &Wanted,
    applied: &Applied,
) -> disagg_api::crd::DisaggDeploymentStatus {
    let in_force = InForce { settings: None, pending: false };
    conditions::status(subject.generation, wanted, applied, in_force, None, &now())
}
