//! One reconcile of one resource, as five calls: [`dereference`], [`validate`], [`build`], [`apply`], [`update_status`].
//!
//! Only `validate` reads the spec. The steps after it have what it made of the spec (`Wanted`), and the steps around it
//! know the resource as a [`Subject`], which has none.

mod apply;
mod build;
mod dereference;
mod ownership;
mod subject;
mod update_status;
mod validate;

use std::sync::Arc;
use std::time::{Duration, Instant};

use disagg_api::DisaggDeployment;
use kube::ResourceExt as _;
use kube::runtime::controller::Action;

use crate::backoff::Backoff;
use crate::context::Context;
use crate::election::{Claim, Claims};
use crate::memory::{Memory, ResourceId};
use crate::metrics::Metrics;
use crate::stores::Guarded;
use crate::text::short;
use subject::Subject;

/// Everything that one reconcile waits for has to be done in this time.
const DEADLINE: Duration = Duration::from_mins(2);

/// A reconcile that has to be tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the resource cannot be read: {0}")]
    Incomplete(#[from] subject::Incomplete),
    #[error("the status is not up to date: {0}")]
    UpdateStatus(#[from] update_status::UpdateStatusError),
    /// The status tells of each; this one may pass.
    #[error("{kind} {name} is not applied: {why}")]
    NotApplied { kind: &'static str, name: String, why: String },
    #[error("not done within {} s", DEADLINE.as_secs())]
    Deadline,
}

/// What all reconciles share: the cluster, and what each step remembers of each resource.
pub(crate) struct Reconciler {
    pub context: Context,
    metrics: Arc<Metrics>,
    backoff: Backoff,
    claims: Claims,
    applied: Memory<apply::Remembered>,
    told: Memory<update_status::Remembered>,
}

impl Reconciler {
    pub(crate) fn new(context: Context, metrics: Arc<Metrics>, claims: Claims) -> Self {
        Self {
            context,
            metrics,
            claims,
            backoff: Backoff::default(),
            applied: Memory::default(),
            told: Memory::default(),
        }
    }

    /// Forgets what is remembered of a resource that is gone.
    pub(crate) fn forget(&self, id: &ResourceId) {
        self.applied.forget(id);
        self.told.forget(id);
        self.backoff.forget(id);
    }

    /// Whether the resource's namespace is another operator's; says so on the resource.
    async fn claim(&self, resource: &Guarded) -> Option<Claim> {
        let id = id_of(resource);
        let lease = self.context.stores.lease(&id.namespace).await;
        let claim = self.claims.of(&id.namespace, lease.as_ref(), tokio::time::Instant::now().into_std())?;
        if let Some(holder) = &claim.holder {
            update_status::tell_left_alone(&id, resource.uid(), holder, &self.context, &self.told).await;
        }
        Some(claim)
    }

    async fn reconcile(&self, resource: &DisaggDeployment) -> Result<Action, Error> {
        let Self { context, applied: sent, told, .. } = self;
        if resource.metadata.deletion_timestamp.is_some() {
            // Its children go with it, by their owner references.
            return Ok(Action::await_change());
        }
        let subject = Subject::of(resource)?;
        let observed = dereference::dereference(&subject, context).await;
        let valid = validate::validate(resource, &subject, &context.images);
        let built = valid.map_err(|error| error.to_string()).and_then(|wanted| {
            let children = build::build(&wanted).map_err(|error| error.to_string())?;
            Ok((wanted, children))
        });
        let (wanted, children) = match built {
            Ok(built) => built,
            Err(why) => {
                update_status::update_invalid_status(&subject, &why, context, told).await?;
                return Ok(Action::await_change());
            }
        };
        let Ok(applied) = apply::apply(&subject, &wanted, &children, observed, context, sent).await else {
            return Ok(Action::await_change());
        };
        let again = update_status::update_status(&subject, &wanted, &applied, context, told).await?;
        match applied.problems.into_iter().find(apply::Problem::may_pass) {
            Some(apply::Problem { kind, name, why }) => {
                Err(Error::NotApplied { kind, name, why: why.to_string() })
            }
            None => Ok(Action::requeue(again)),
        }
    }
}

/// Brings the cluster to what `resource` asks for, and its status to what is so.
pub(crate) async fn reconcile(resource: Arc<Guarded>, reconciler: Arc<Reconciler>) -> Result<Action, Error> {
    let started = Instant::now();
    let turn = async {
        if let Some(claim) = reconciler.claim(&resource).await {
            return Ok(Action::requeue(claim.look_again));
        }
        match &resource.0 {
            // On the heap: it holds every child on its way.
            Ok(resource) => Box::pin(reconciler.reconcile(resource)).await,
            Err(invalid) => {
                let Reconciler { context, told, .. } = &*reconciler;
                update_status::update_undecodable_status(invalid, context, told).await?;
                Ok(Action::await_change())
            }
        }
    };
    let result = tokio::time::timeout(DEADLINE, Box::pin(turn)).await.unwrap_or(Err(Error::Deadline));
    reconciler.metrics.reconciled(result.is_ok(), started.elapsed());
    if result.is_ok() {
        reconciler.backoff.forget(&id_of(&resource));
    }
    result
}

fn id_of(resource: &Guarded) -> ResourceId {
    ResourceId { namespace: resource.namespace().unwrap_or_default(), name: resource.name_any() }
}

/// How long a resource waits after a failure.
#[allow(clippy::needless_pass_by_value)] // as the controller calls it
pub(crate) fn on_error(resource: Arc<Guarded>, error: &Error, reconciler: Arc<Reconciler>) -> Action {
    let id = id_of(&resource);
    let wait = reconciler.backoff.failed(&id);
    let error = short(&error.to_string());
    let ResourceId { namespace, name } = id;
    tracing::warn!(namespace, name, error, retry_in_ms = wait.as_millis(), "reconcile failed");
    Action::requeue(wait)
}

#[cfg(test)]
mod tests;
