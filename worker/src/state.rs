//! What all services of a worker share.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use disagg_core::HandoffId;
use disagg_core::handoff::Timeouts;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::convert::{Peer, PromptLimits};
use crate::engine_thread::{EngineHandle, EngineStatus, SubmitError};
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::model::ModelCard;
use crate::transport::landing::LandingRegistry;
use crate::transport::peers::Peers;
use crate::transport::queue::PushQueues;
use crate::transport::tcp::Pusher;

/// Everything that lives as long as the worker.
pub struct WorkerState {
    /// Who this is.
    pub identity: Identity,
    /// Its model, for routers.
    pub card: ModelCard,
    /// host:port under which peers reach it.
    pub advertise: String,
    /// The engine.
    pub engine: EngineHandle,
    /// Where pushes to this worker land.
    pub landing: Arc<LandingRegistry>,
    /// What this worker's engine has ready to push.
    pub push_queues: Arc<PushQueues>,
    /// Sends it.
    pub pusher: Pusher,
    /// Connections to other workers.
    pub peers: Arc<Peers>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// How long handoffs wait for what.
    pub timeouts: Timeouts,
    /// A caller that has tokens to read and takes none for this long is given up.
    pub unread_max: Duration,
    /// Live requests by id.
    pub requests: RequestRegistry,
    /// Whether work is taken, and what is under way.
    pub lifecycle: Lifecycle,
    /// Number of the last handoff.
    pub last_handoff: AtomicU64,
}

impl WorkerState {
    /// This worker as handoffs name it.
    pub fn this_worker(&self) -> Peer {
        Peer { worker: self.identity.worker.clone(), epoch: self.identity.epoch }
    }

    /// What prompts may be here.
    pub fn limits(&self) -> PromptLimits {
        PromptLimits { max_model_len: self.identity.max_model_len, vocab_size: self.identity.vocab_size }
    }

    /// A name that was never used.
    pub fn next_handoff(&self) -> HandoffId {
        let number = self.last_handoff.fetch_add(1, Ordering::Relaxed) + 1;
        HandoffId { epoch: self.identity.epoch, number }
    }

    /// Refuses new work while draining or when the engine has failed.
    pub fn accepts_work(&self) -> Result<(), Status> {
        if self.lifecycle.is_draining() {
            return Err(refused("this worker is draining"));
        }
        match &*self.engine.status().borrow() {
            EngineStatus::Healthy => Ok(()),
            EngineStatus::Failed(why) | EngineStatus::Gone(why) => Err(refused(why)),
        }
    }

    /// Refuses requests that were tokenized for another model.
    pub fn same_model(&self, fingerprint: disagg_core::ModelFingerprint) -> Result<(), Status> {
        if fingerprint == self.identity.fingerprint {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "prompt.model_fingerprint: {fingerprint} given; this worker's model is {}",
            self.identity.fingerprint
        )))
    }
}

/// For work that was not even looked at.
fn refused(why: &str) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(disagg_proto::REFUSED_METADATA, MetadataValue::from_static("true"));
    Status::with_metadata(Code::Unavailable, why, metadata)
}

/// What the contract answers for work that was not taken.
pub fn submit_status(error: &SubmitError) -> Status {
    use disagg_engine::engine::AdmitError;

    let message = error.to_string();
    match error {
        SubmitError::Refused(AdmitError::QueueFull { .. } | AdmitError::NoBlocks { .. })
        | SubmitError::Busy => Status::resource_exhausted(message),
        SubmitError::Refused(AdmitError::PromptTooLong { .. } | AdmitError::EmptyPrompt) => {
            Status::invalid_argument(message)
        }
        SubmitError::Refused(AdmitError::DuplicateHandoff(_)) => Status::already_exists(message),
        SubmitError::Failed(_) | SubmitError::Gone(_) => Status::unavailable(message),
    }
}

/// Ids of live requests: each is live once.
#[derive(Clone, Default)]
pub struct RequestRegistry {
    live: Arc<Mutex<HashSet<String>>>,
}

impl RequestRegistry {
    /// Enters a request. It leaves when the guard is dropped. `None`: the id is live already.
    pub fn enter(&self, request_id: String) -> Option<RequestGuard> {
        let new = self.live.lock().insert(request_id.clone());
        new.then(|| RequestGuard { registry: self.clone(), request_id })
    }
}

/// A live request.
pub struct RequestGuard {
    registry: RequestRegistry,
    request_id: String,
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.registry.live.lock().remove(&self.request_id);
    }
}

/// Whether a worker takes work, and what it still has to do.
#[derive(Clone)]
pub struct Lifecycle {
    draining: watch::Sender<bool>,
    sequences: TaskTracker,
    handoffs: TaskTracker,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            draining: watch::Sender::new(false),
            sequences: TaskTracker::new(),
            handoffs: TaskTracker::new(),
        }
    }
}

/// What was alive when a drain ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remaining {
    /// Requests.
    pub sequences: usize,
    /// Handoffs of either side.
    pub handoffs: usize,
}

impl Lifecycle {
    /// Whether new work is refused.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Changes when a drain begins.
    pub fn watch_draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// Requests under way.
    pub fn sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Handoffs under way, of either side.
    pub fn handoffs(&self) -> usize {
        self.handoffs.len()
    }

    /// Runs a request.
    pub fn spawn_sequence(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.sequences.spawn(task);
    }

    /// Runs one side of a handoff.
    pub fn spawn_handoff(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handoffs.spawn(task);
    }

    /// Refuses new work from now on, and waits until what there is has ended, or for `patience`.
    pub async fn drain(&self, patience: Duration) -> Remaining {
        self.draining.send_replace(true);
        self.sequences.close();
        self.handoffs.close();
        let idle = async {
            self.sequences.wait().await;
            self.handoffs.wait().await;
        };
        // What remains at the deadline is counted below.
        let _ = tokio::time::timeout(patience, idle).await;
        Remaining { sequences: self.sequences(), handoffs: self.handoffs() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_live_once() {
        let registry = RequestRegistry::default();
        let guard = registry.enter("a".into()).unwrap();
        assert!(registry.enter("a".into()).is_none());
        assert!(registry.enter("b".into()).is_some());
        drop(guard);
        assert!(registry.enter("a".into()).is_some());
    }

    #[tokio::test]
    async fn a_drain_waits_for_what_is_alive() {
        let lifecycle = Lifecycle::default();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        lifecycle.spawn_sequence(async {
            let _ = ended.await;
        });
        let remaining = lifecycle.drain(Duration::from_millis(1)).await;
        assert_eq!(remaining, Remaining { sequences: 1, handoffs: 0 });
        assert!(lifecycle.is_draining());
        drop(end);
        let remaining = lifecycle.drain(Duration::from_secs(30)).await;
        assert_eq!(remaining, Remaining { sequences: 0, handoffs: 0 });
    }
}
