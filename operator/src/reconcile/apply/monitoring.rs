//! PodMonitors: made where they are asked for and known to the cluster, and deleted when nobody asks any more.
//!
//! That they were asked for before is known from the condition that tells of them, so a resource that never asks costs
//! no request.

use kube::ResourceExt as _;
use kube::api::{DeleteParams, Preconditions};

use super::ApplyError;
use super::child::{Problem, Run, kind};
use crate::prometheus::PodMonitor;
use crate::reconcile::dereference::is_owned;
use crate::reconcile::update_status::MONITORING_AVAILABLE;

/// What became of the PodMonitors that a resource asks for.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum MonitoringState {
    /// They are as they should be.
    Applied,
    /// The cluster does not know them.
    NotServed,
    /// One of them cannot be applied.
    Bad(Problem),
}

/// Applies `monitors`. Nothing, if none are asked for; those that were before, named `names`, are then deleted.
pub(super) async fn apply(
    run: &Run<'_>,
    monitors: &[PodMonitor],
    names: &[String],
) -> Result<Option<MonitoringState>, ApplyError> {
    if monitors.is_empty() {
        let conditions = run.resource.status.iter().flat_map(|status| &status.conditions);
        if conditions.into_iter().any(|condition| condition.type_ == MONITORING_AVAILABLE) {
            for name in names {
                delete(run, name).await?;
            }
        }
        return Ok(None);
    }
    let served = run.context.pod_monitors.ask(&run.context.client).await;
    let served = served.map_err(|source| ApplyError::Read {
        kind: kind::<PodMonitor>(),
        name: crate::prometheus::GROUP_VERSION.to_owned(),
        source,
    })?;
    if !served {
        return Ok(Some(MonitoringState::NotServed));
    }
    for monitor in monitors {
        match run.apply(monitor).await {
            Ok(None) => {}
            Ok(Some(problem)) => return Ok(Some(MonitoringState::Bad(problem))),
            // Their definition was deleted.
            Err(error) if error.is_not_found() => {
                run.context.pod_monitors.forget();
                return Ok(Some(MonitoringState::NotServed));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Some(MonitoringState::Applied))
}

/// Deletes one, if it is there and ours.
async fn delete(run: &Run<'_>, name: &str) -> Result<(), ApplyError> {
    let api = run.api::<PodMonitor>();
    let failed = |source| ApplyError::Delete { kind: kind::<PodMonitor>(), name: name.to_owned(), source };
    let Some(found) = api.get_metadata_opt(name).await.map_err(failed)? else { return Ok(()) };
    if !is_owned(&found.metadata, run.resource) {
        return Ok(());
    }
    // Never another object that has come to the name meanwhile.
    let this = Preconditions { uid: found.uid(), resource_version: None };
    let params = DeleteParams { preconditions: Some(this), ..DeleteParams::default() };
    match api.delete(name, &params).await {
        Ok(_) => {
            tracing::debug!(kind = kind::<PodMonitor>(), name, "deleted");
            Ok(())
        }
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
        Err(source) => Err(failed(source)),
    }
}
