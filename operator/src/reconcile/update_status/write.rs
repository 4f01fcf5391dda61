//! Writes a status and the Events that go with it, and remembers what was written.

use disagg_api::DisaggDeployment;
use disagg_api::crd::DisaggDeploymentStatus;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Resource as _;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::Event;
use serde_json::json;

use super::events;
use super::routers::Reports;
use crate::context::Context;
use crate::memory::Memory;
use crate::reconcile::subject::Subject;
use crate::text::short;

/// Field manager of the status.
const STATUS_MANAGER: &str = "disagg-operator-status";

/// The status cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpdateStatusError {
    #[error("cannot write the status: {0}")]
    Write(#[source] kube::Error),
}

/// What telling of a resource remembers.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// What routers said last, so that each is asked once for each change.
    pub(super) reports: Reports,
    /// The status that was written last, which the watch may not have shown yet.
    written: Option<Written>,
    /// What was said of it while it could not be decoded: the generation that it was about, and why.
    pub(super) undecodable: Option<(Option<i64>, String)>,
    /// The other operator that was last told of, while this one leaves the resource alone.
    pub(super) left_to: Option<String>,
}

/// A status, and the version of the resource that it was written for. As long as the watch shows that version, it has not
/// shown the status.
#[derive(Clone, Debug)]
struct Written {
    version: Option<String>,
    status: DisaggDeploymentStatus,
}

/// The status as it is: that of the resource, unless the watch has not shown yet what was written last.
pub(super) fn last_status(subject: &Subject, memory: &Memory<Remembered>) -> Option<DisaggDeploymentStatus> {
    match memory.of(&subject.id, |of| of.written.clone()) {
        Some(written) if written.version == subject.version => Some(written.status),
        _ => subject.status.clone(),
    }
}

/// Writes `status` unless it is as `before`, and publishes `events` and those of the change.
pub(super) async fn write(
    subject: &Subject,
    before: Option<&DisaggDeploymentStatus>,
    status: DisaggDeploymentStatus,
    mut events: Vec<Event>,
    context: &Context,
    memory: &Memory<Remembered>,
) -> Result<(), UpdateStatusError> {
    events.extend(events::of_change(before, &status));
    if before != Some(&status) {
        let name = &subject.id.name;
        let api: Api<DisaggDeployment> = Api::namespaced(context.client.clone(), &subject.id.namespace);
        let body = json!({
            "apiVersion": DisaggDeployment::api_version(&()),
            "kind": DisaggDeployment::kind(&()),
            "metadata": { "name": name, "uid": subject.uid },
            "status": status,
        });
        let params = PatchParams::apply(STATUS_MANAGER).force();
        match api.patch_status(name, &params, &Patch::Apply(&body)).await {
            Ok(_) => {}
            // It was deleted meanwhile.
            Err(kube::Error::Api(error)) if error.code == 404 => return Ok(()),
            Err(error) => return Err(UpdateStatusError::Write(error)),
        }
        let written = Written { version: subject.version.clone(), status };
        memory.of(&subject.id, |of| of.written = Some(written));
    }
    publish(&events, &subject.object_reference(), context).await;
    Ok(())
}

/// Publishes Events. The status says the same, so one that cannot be written is no reason to reconcile again.
pub(super) async fn publish(events: &[Event], about: &ObjectReference, context: &Context) {
    for event in events {
        if let Err(error) = context.recorder.publish(event, about).await {
            let error = short(&error.to_string());
            tracing::warn!(about = about.name, reason = event.reason, error, "an Event cannot be written");
        }
    }
}

/// The time, in whole seconds, as conditions have it.
pub(super) fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}
