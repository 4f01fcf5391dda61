//! When a process serves: asked of the router, since that is what counts for a request.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::router_client::{RouterClient, Worker};

/// How often the router is asked while something is not ready.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// What to wait for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// The router answers.
    Router,
    /// The router sees a ready worker at this address, in another life than `not_epoch`.
    Worker { address: String, not_epoch: Option<String> },
    /// The router says that requests are served.
    Serving,
}

/// One life of a process: its index, and how often it had been restarted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Life {
    pub(super) process: usize,
    pub(super) restarts: u32,
}

/// A target that was reached.
#[derive(Debug)]
pub(super) struct Reached {
    /// As given to [`wait_for`].
    pub(super) life: Option<Life>,
    /// For a worker: its life.
    pub(super) epoch: Option<String>,
}

/// Asks until the target is reached and tells so. Ends without a word when nobody listens any more.
pub(super) async fn wait_for(
    client: RouterClient,
    target: Target,
    life: Option<Life>,
    reached: mpsc::Sender<Reached>,
) {
    let mut ticks = interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = reached.closed() => return,
        }
        let epoch = match &target {
            Target::Router => client.is_alive().await.then_some(None),
            Target::Serving => client.is_ready().await.then_some(None),
            Target::Worker { address, not_epoch } => match client.workers().await {
                Ok(answer) => serving_epoch(&answer.workers, address, not_epoch.as_deref()).map(Some),
                Err(_) => None,
            },
        };
        if let Some(epoch) = epoch {
            let _ = reached.send(Reached { life, epoch }).await;
            return;
        }
    }
}

/// The epoch of the worker at `address`, if it is ready and not the one that died.
fn serving_epoch(workers: &[Worker], address: &str, not_epoch: Option<&str>) -> Option<String> {
    let worker = workers.iter().find(|worker| worker.address == address)?;
    let epoch = worker.epoch.as_deref()?;
    (worker.state == "ready" && Some(epoch) != not_epoch).then(|| epoch.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_serves_when_it_is_ready_in_a_new_life() {
        let worker = |state: &str, epoch: Option<&str>| Worker {
            address: "127.0.0.1:1".to_owned(),
            state: state.to_owned(),
            epoch: epoch.map(ToOwned::to_owned),
            ..Worker::default()
        };
        let serving =
            |worker: Worker, not: Option<&str>| serving_epoch(&[worker], "127.0.0.1:1", not).is_some();
        assert!(serving(worker("ready", Some("a")), None));
        assert!(serving(worker("ready", Some("b")), Some("a")));
        assert!(!serving(worker("ready", Some("a")), Some("a")), "the dead one, still in the table");
        assert!(!serving(worker("joining", Some("b")), Some("a")));
        assert!(!serving(worker("gone", None), None));
        assert_eq!(serving_epoch(&[worker("ready", Some("a"))], "127.0.0.1:2", None), None);
    }
}
