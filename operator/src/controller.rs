//! When it is whose turn: what the watches report, spread over a bounded number of reconciles at once.

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use kube::runtime::controller::{self, Error, applier};
use kube::runtime::reflector::ObjectRef;
use tokio_util::sync::CancellationToken;

use crate::memory::ResourceId;
use crate::reconcile::{Reconciler, on_error, reconcile};
use crate::stores::{Guarded, Triggers};
use crate::text::short;

/// Changes of one resource's children within this time are one turn.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Reconciles until `stop`, then finishes the turns that have begun.
pub(crate) async fn run(
    reconciler: Arc<Reconciler>,
    triggers: Triggers,
    concurrency: u16,
    stop: CancellationToken,
) {
    let config = controller::Config::default().debounce(DEBOUNCE).concurrency(concurrency);
    let turns = applier(
        |resource, reconciler| reconcile(resource, reconciler).boxed(),
        on_error,
        Arc::clone(&reconciler),
        reconciler.context.stores.resources.clone(),
        triggers.take_until(stop.cancelled_owned()),
        config,
    );
    turns
        .for_each(|turn| {
            report(turn, &reconciler);
            std::future::ready(())
        })
        .await;
}

fn report<E, Q>(turn: Result<(ObjectRef<Guarded>, controller::Action), Error<E, Q>>, reconciler: &Reconciler)
where
    E: std::error::Error + 'static,
    Q: std::error::Error + 'static,
{
    match turn {
        Ok((resource, _)) => tracing::debug!(%resource, "reconciled"),
        // Its children were the last to change: it is gone.
        Err(Error::ObjectNotFound(resource)) => {
            let namespace = resource.namespace.clone().unwrap_or_default();
            reconciler.forget(&ResourceId { namespace, name: resource.name });
        }
        // `on_error` has logged it.
        Err(Error::ReconcilerFailed(..)) => {}
        // The text of some errors has the whole answer of the API server in it.
        Err(Error::QueueError(error)) => {
            tracing::warn!(error = short(&error.to_string()), "a watch failed; it is started again");
        }
        Err(Error::RunnerError(error)) => tracing::error!(%error, "the controller failed"),
    }
}
