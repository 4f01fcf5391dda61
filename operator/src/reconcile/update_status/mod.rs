//! Fifth call: the status, and an Event for each change of it that a person should hear of.

mod conditions;
mod diagnose;
mod events;
mod routers;

use disagg_api::DisaggDeployment;
use disagg_api::crd::DisaggDeploymentStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource as _, ResourceExt as _};
use serde_json::json;

pub(crate) use conditions::{MONITORING_AVAILABLE, READY};
pub(crate) use routers::Reports;

use super::apply::{MonitoringState, Outcome};
use super::dereference::Observed;
use super::validate::{ValidateError, Wanted};
use crate::context::Context;

/// Field manager of the status.
const STATUS_MANAGER: &str = "disagg-operator-status";

/// The status cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpdateStatusError {
    #[error("cannot write the status: {0}")]
    Write(#[source] kube::Error),
    #[error("cannot write an Event: {0}")]
    Event(#[source] kube::Error),
}

/// When to look again without being told of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// Children were made just now, or a router has yet to say that it applies the settings.
    Soon,
    /// Something is not as it should be, and pods may tell why without an event of a child.
    Later,
    /// All is well.
    Rarely,
}

/// Writes what is true of a resource that was applied.
pub(crate) async fn update_status(
    resource: &DisaggDeployment,
    wanted: &Wanted,
    observed: &Observed,
    outcome: &Outcome,
    context: &Context,
) -> Result<Next, UpdateStatusError> {
    // Told of now, they would be told of again as soon as the watches show them.
    if outcome.made && outcome.problems.is_empty() {
        return Ok(Next::Soon);
    }
    let (in_force, pending) = match &outcome.settings {
        Some(settings) => {
            let found = routers::ask(wanted, observed, &settings.resource_version, context).await;
            (found.settings, found.pending)
        }
        None => (None, false),
    };
    let status = conditions::status(resource, wanted, observed, outcome, in_force, &now());
    let is =
        |type_: &str| status.conditions.iter().any(|found| found.type_ == type_ && found.status == "True");
    let waits = outcome.monitoring == Some(MonitoringState::NotServed);
    let next = match (pending, is(READY) && !waits) {
        (true, _) => Next::Soon,
        (false, false) => Next::Later,
        (false, true) => Next::Rarely,
    };
    write(resource, status, context).await?;
    Ok(next)
}

/// Writes what is wrong with a resource that cannot be applied.
pub(crate) async fn update_invalid_status(
    resource: &DisaggDeployment,
    error: &ValidateError,
    context: &Context,
) -> Result<(), UpdateStatusError> {
    let status = conditions::invalid_status(resource, &error.to_string(), &now());
    write(resource, status, context).await
}

async fn write(
    resource: &DisaggDeployment,
    status: DisaggDeploymentStatus,
    context: &Context,
) -> Result<(), UpdateStatusError> {
    if resource.status.as_ref() == Some(&status) {
        return Ok(());
    }
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
    for event in events::of_change(resource.status.as_ref(), &status) {
        match context.recorder.publish(&event, &resource.object_ref(&())).await {
            Ok(()) => {}
            // The namespace is going away.
            Err(kube::Error::Api(error))
                if error.code == 403 && error.message.contains("being terminated") => {}
            Err(error) => return Err(UpdateStatusError::Event(error)),
        }
    }
    Ok(())
}

fn now() -> Time {
    // Conditions have whole seconds.
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}
