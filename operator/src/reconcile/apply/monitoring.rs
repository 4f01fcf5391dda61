//! PodMonitors: made where they are asked for and known to the cluster, and deleted when nobody asks any more.
//!
//! That they were asked for before is known from the condition that tells of them, so a resource that never asks costs
//! no request.

use disagg_api::kubernetes::conditions::MONITORING_AVAILABLE;
use futures::future::join_all;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Preconditions};

use super::child::Applying;
use super::problem::{Problem, Why};
use crate::prometheus::{GROUP_VERSION, PodMonitor};

/// What became of the PodMonitors that a resource asks for.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum MonitoringState {
    /// They are as they should be.
    Applied,
    /// The cluster does not know them.
    NotServed,
    /// One of them cannot be applied, or not be deleted any more.
    Bad(Problem),
}

/// Applies `monitors`. Nothing, if none are asked for; those that were before, named `names`, are then deleted.
pub(super) async fn apply(
    applying: &Applying<'_>,
    monitors: &[PodMonitor],
    names: &[String],
) -> Option<MonitoringState> {
    if monitors.is_empty() {
        let conditions = applying.subject.status.iter().flat_map(|status| &status.conditions);
        if conditions.into_iter().any(|condition| condition.type_ == MONITORING_AVAILABLE) {
            let deleted = join_all(names.iter().map(|name| delete(applying, name))).await;
            // The condition stays as long as one of them does, so that it is tried again.
            return deleted.into_iter().find_map(Result::err).map(MonitoringState::Bad);
        }
        return None;
    }
    match applying.context.pod_monitors.ask(&applying.context.client).await {
        Ok(true) => {}
        Ok(false) => return Some(MonitoringState::NotServed),
        Err(error) => {
            return Some(MonitoringState::Bad(Problem::of::<PodMonitor>(GROUP_VERSION, &error)));
        }
    }
    let problems = applying.apply_all(monitors).await;
    // Their definition was deleted.
    if problems.iter().any(|problem| matches!(problem.why, Why::NotFound(_))) {
        applying.context.pod_monitors.forget();
        return Some(MonitoringState::NotServed);
    }
    Some(problems.into_iter().next().map_or(MonitoringState::Applied, MonitoringState::Bad))
}

/// Deletes one, if it is there and ours.
async fn delete(applying: &Applying<'_>, name: &str) -> Result<(), Problem> {
    let api = applying.api::<PodMonitor>();
    let work = async {
        let failed = |error| Problem::of::<PodMonitor>(name, &error);
        let Some(found) = api.get_metadata_opt(name).await.map_err(failed)? else { return Ok(()) };
        if !applying.subject.owns(&found.metadata) {
            return Ok(());
        }
        // Never another object that has come to the name meanwhile.
        let this = Preconditions { uid: found.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(this), ..DeleteParams::default() };
        match api.delete(name, &params).await {
            Ok(_) => {
                tracing::debug!(kind = "PodMonitor", name, "deleted");
                Ok(())
            }
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    };
    applying.within::<PodMonitor, _>(name, work).await
}
