//! One reconcile of one resource, as five calls.

mod apply;
mod build;
mod dereference;
mod ownership;
mod update_status;
mod validate;

use std::sync::Arc;
use std::time::{Duration, Instant};

use disagg_api::DisaggDeployment;
use kube::ResourceExt as _;
use kube::runtime::controller::Action;

pub(crate) use apply::Applied;
pub(crate) use build::MANAGED_BY;
pub(crate) use ownership::Held;
pub(crate) use update_status::Reports;

use crate::context::Context;
use crate::stores::NotReady;
use update_status::Next;

/// Everything that one reconcile waits for has to be done in this time.
const DEADLINE: Duration = Duration::from_mins(2);

/// A reconcile that has to be tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    NotReady(#[from] NotReady),
    #[error("looking at the children: {0}")]
    Dereference(#[from] dereference::DereferenceError),
    #[error("building the children: {0}")]
    Build(#[from] build::BuildError),
    #[error("applying the children: {0}")]
    Apply(#[from] apply::ApplyError),
    #[error("telling of it: {0}")]
    UpdateStatus(#[from] update_status::UpdateStatusError),
    #[error("not done within {} s", DEADLINE.as_secs())]
    Deadline,
}

/// Brings the cluster to what `resource` asks for, and its status to what is so.
pub(crate) async fn reconcile(
    resource: Arc<DisaggDeployment>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let started = Instant::now();
    let result = tokio::time::timeout(DEADLINE, Box::pin(five_calls(&resource, &context))).await;
    let result = result.unwrap_or(Err(Error::Deadline));
    context.metrics.reconciled(result.is_ok(), started.elapsed());
    if result.is_ok() {
        context.backoff.forget(&resource.namespace().unwrap_or_default(), &resource.name_any());
    }
    result
}

async fn five_calls(resource: &DisaggDeployment, context: &Context) -> Result<Action, Error> {
    context.stores.ready().await?;
    if resource.metadata.deletion_timestamp.is_some() {
        // Its children go with it, by their owner references.
        return Ok(Action::await_change());
    }
    let observed = dereference::dereference(resource, context).await?;
    let wanted = match validate::validate(resource, &context.images) {
        Ok(wanted) => wanted,
        Err(error) => {
            update_status::update_invalid_status(resource, &error, context).await?;
            return Ok(Action::await_change());
        }
    };
    let children = build::build(&wanted)?;
    let outcome = match apply::apply(resource, &wanted, &children, &observed, context).await {
        Err(error) if error.namespace_is_ending() => return Ok(Action::await_change()),
        outcome => outcome?,
    };
    let next = update_status::update_status(resource, &wanted, &observed, &outcome, context).await?;
    Ok(Action::requeue(match next {
        Next::Soon => Duration::from_secs(1),
        Next::Later => Duration::from_secs(10),
        Next::Rarely => Duration::from_mins(5),
    }))
}

/// How long a resource waits after a failure.
#[allow(clippy::needless_pass_by_value)] // as the controller calls it
pub(crate) fn on_error(resource: Arc<DisaggDeployment>, error: &Error, context: Arc<Context>) -> Action {
    let (namespace, name) = (resource.namespace().unwrap_or_default(), resource.name_any());
    let wait = context.backoff.failed(&namespace, &name);
    tracing::warn!(namespace, name, %error, retry_in_ms = wait.as_millis(), "reconcile failed");
    Action::requeue(wait)
}
