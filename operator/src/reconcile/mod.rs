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

pub(crate) use apply::Sent;
pub(crate) use ownership::Held;
pub(crate) use update_status::{Reports, Written};

use crate::context::Context;
use crate::stores::Guarded;
use crate::text::short;

/// Everything that one reconcile waits for has to be done in this time.
const DEADLINE: Duration = Duration::from_mins(2);

/// A reconcile that has to be tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("looking at the pods: {0}")]
    Dereference(#[from] dereference::NoNamespace),
    #[error("telling of it: {0}")]
    UpdateStatus(#[from] update_status::UpdateStatusError),
    /// The status tells of each; this one may pass.
    #[error("{kind} {name} is not applied: {why}")]
    NotApplied { kind: &'static str, name: String, why: String },
    #[error("not done within {} s", DEADLINE.as_secs())]
    Deadline,
}

/// Brings the cluster to what `resource` asks for, and its status to what is so.
pub(crate) async fn reconcile(resource: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Error> {
    let started = Instant::now();
    let turn = async {
        match &resource.0 {
            // From the heap: it holds every child on its way.
            Ok(resource) => Box::pin(five_calls(resource, &context)).await,
            Err(invalid) => {
                update_status::update_undecodable_status(invalid, &context).await?;
                Ok(Action::await_change())
            }
        }
    };
    let result = tokio::time::timeout(DEADLINE, Box::pin(turn)).await.unwrap_or(Err(Error::Deadline));
    context.metrics.reconciled(result.is_ok(), started.elapsed());
    if result.is_ok() {
        context.backoff.forget(&resource.namespace().unwrap_or_default(), &resource.name_any());
    }
    result
}

async fn five_calls(resource: &DisaggDeployment, context: &Context) -> Result<Action, Error> {
    if resource.metadata.deletion_timestamp.is_some() {
        // Its children go with it, by their owner references.
        return Ok(Action::await_change());
    }
    let observed = dereference::dereference(resource, context).await?;
    let (wanted, children) = match validated(resource, context) {
        Ok(both) => both,
        Err(why) => {
            update_status::update_invalid_status(resource, &why, context).await?;
            return Ok(Action::await_change());
        }
    };
    let Ok(applied) = apply::apply(resource, &wanted, &children, observed, context).await else {
        return Ok(Action::await_change());
    };
    let again = update_status::update_status(resource, &wanted, &applied, context).await?;
    match applied.problems.into_iter().find(apply::Problem::may_pass) {
        Some(apply::Problem { kind, name, why }) => {
            Err(Error::NotApplied { kind, name, why: why.to_string() })
        }
        None => Ok(Action::requeue(again)),
    }
}

/// What `resource` asks for and its children, or why it asks for nothing that can be.
fn validated(
    resource: &DisaggDeployment,
    context: &Context,
) -> Result<(validate::Wanted, build::Children), String> {
    let wanted = validate::validate(resource, &context.images).map_err(|error| error.to_string())?;
    let children = build::build(&wanted).map_err(|error| error.to_string())?;
    Ok((wanted, children))
}

/// How long a resource waits after a failure.
#[allow(clippy::needless_pass_by_value)] // as the controller calls it
pub(crate) fn on_error(resource: Arc<Guarded>, error: &Error, context: Arc<Context>) -> Action {
    let (namespace, name) = (resource.namespace().unwrap_or_default(), resource.name_any());
    let wait = context.backoff.failed(&namespace, &name);
    let error = short(&error.to_string());
    tracing::warn!(namespace, name, error, retry_in_ms = wait.as_millis(), "reconcile failed");
    Action::requeue(wait)
}
