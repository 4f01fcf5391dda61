//! Fifth call: the status, and an Event for each change of it that a person should hear of.

mod children;
mod conditions;
mod diagnose;
mod events;
mod init;
mod numbers;
mod progress;
mod routers;
mod undecodable;

use std::time::Duration;

use disagg_api::DisaggDeployment;
use disagg_api::crd::DisaggDeploymentStatus;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::Event;
use kube::{Resource as _, ResourceExt as _};
use serde_json::json;

pub(crate) use children::{CHILDREN_APPLIED, MONITORING_AVAILABLE};
pub(crate) use routers::Reports;
pub(crate) use undecodable::update_undecodable_status;

use super::apply::{Applied, MonitoringState};
use super::validate::Wanted;
use crate::context::{Context, Key};
use crate::text::short;
use conditions::{PROGRESSING, READY};
use routers::InForce;

/// Field manager of the status.
const STATUS_MANAGER: &str = "disagg-operator-status";

/// Looks again after so long, while children were made just now, or a router has yet to say that it applies the settings.
const SOON: Duration = Duration::from_secs(1);
/// While something is not as it should be: pods may tell why without an event of a child.
const LATER: Duration = Duration::from_secs(10);
/// While all is well.
const RARELY: Duration = Duration::from_mins(5);

/// The status cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpdateStatusError {
    #[error("cannot write the status: {0}")]
    Write(#[source] kube::Error),
}

/// A status, and the version of the resource that it was written for. As long as the watch shows that version, it has not
/// shown the status.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    version: Option<String>,
    status: DisaggDeploymentStatus,
}

/// Writes what is true of a resource that was applied, and says when to look again without being told of a change.
pub(crate) async fn update_status(
    resource: &DisaggDeployment,
    wanted: &Wanted,
    applied: &Applied,
    context: &Context,
) -> Result<Duration, UpdateStatusError> {
    // Told of now, they would be told of again as soon as the watches show them.
    if applied.made && applied.problems.is_empty() {
        return Ok(SOON);
    }
    let in_force = match &applied.settings {
        Some(settings) => routers::ask(wanted, applied, &settings.resource_version, context).await,
        None => InForce { settings: None, pending: false },
    };
    let (before, now, pending) = (written(resource, context), now(), in_force.pending);
    let status = conditions::status(resource, wanted, applied, in_force, before.as_ref(), &now);
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
    write(resource, before.as_ref(), status, adopted, context).await?;
    Ok(again)
}

/// Writes what is wrong with a resource that cannot be applied.
pub(crate) async fn update_invalid_status(
    resource: &DisaggDeployment,
    why: &str,
    context: &Context,
) -> Result<(), UpdateStatusError> {
    let before = written(resource, context);
    let status = conditions::invalid_status(resource, why, before.as_ref(), &now());
    write(resource, before.as_ref(), status, Vec::new(), context).await
}

fn key(resource: &DisaggDeployment) -> Key {
    Key { kind: "status", namespace: resource.namespace().unwrap_or_default(), name: resource.name_any() }
}

/// The status as it is: that of the resource, unless the watch has not shown yet what was written last.
fn written(resource: &DisaggDeployment, context: &Context) -> Option<DisaggDeploymentStatus> {
    let written = context.written.lock().get(&key(resource)).cloned();
    match written {
        Some(written) if written.version == resource.metadata.resource_version => Some(written.status),
        _ => resource.status.clone(),
    }
}

async fn write(
    resource: &DisaggDeployment,
    before: Option<&DisaggDeploymentStatus>,
    status: DisaggDeploymentStatus,
    mut events: Vec<Event>,
    context: &Context,
) -> Result<(), UpdateStatusError> {
    events.extend(events::of_change(before, &status));
    if before != Some(&status) {
        let namespace = resource.namespace().unwrap_or_default();
        let api: Api<DisaggDeployment> = Api::namespaced(context.client.clone(), &namespace);
        let body = json!({
            "apiVersion": DisaggDeployment::api_version(&()),
            "kind": DisaggDeployment::kind(&()),
            "metadata": { "name": resource.name_any(), "uid": resource.uid() },
            "status": status,
        });
        let params = PatchParams::apply(STATUS_MANAGER).force();
        match api.patch_status(&resource.name_any(), &params, &Patch::Apply(&body)).await {
            Ok(_) => {}
            // It was deleted meanwhile.
            Err(kube::Error::Api(error)) if error.code == 404 => return Ok(()),
            Err(error) => return Err(UpdateStatusError::Write(error)),
        }
        let version = resource.metadata.resource_version.clone();
        context.written.lock().insert(key(resource), Written { version, status });
    }
    publish(&events, &resource.object_ref(&()), context).await;
    Ok(())
}

/// Publishes Events. The status says the same, so one that cannot be written is no reason to begin anew.
async fn publish(events: &[Event], about: &ObjectReference, context: &Context) {
    for event in events {
        if let Err(error) = context.recorder.publish(event, about).await {
            let error = short(&error.to_string());
            tracing::warn!(about = about.name, reason = event.reason, error, "an Event cannot be written");
        }
    }
}

fn now() -> Time {
    // Conditions have whole seconds.
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// The status of what was applied, to tests of the apply.
#[cfg(test)]
pub(crate) fn status_for_tests(
    resource: &DisaggDeployment,
    wanted: &Wanted,
    applied: &Applied,
) -> DisaggDeploymentStatus {
    let in_force = InForce { settings: None, pending: false };
    conditions::status(resource, wanted, applied, in_force, None, &now())
}
