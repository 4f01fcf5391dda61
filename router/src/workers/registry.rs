//! All workers, the models they serve, and the index of their prefix caches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use disagg_core::prefix_index::IndexUsage;
use disagg_core::{BlockHash, ModelFingerprint, PrefixIndex, WorkerId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::Addresses;
use super::connection::{self, ConnectionLimits};
use super::discovery::EndpointState;
use super::worker::{Identity, ReadyWorker, State, Worker, WorkerStatus};
use crate::model::Model;

/// Workers that one message names at most.
const WORKERS_NAMED_MAX: usize = 8;

/// Another live worker has this name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the name {name} belongs to the worker at {address}")]
pub(super) struct NameTaken {
    name: WorkerId,
    address: String,
}

/// The workers. Cheap to read from any request; written only by the workers' own tasks.
pub(crate) struct Registry {
    workers: RwLock<BTreeMap<String, (Arc<Worker>, AbortHandle)>>,
    models: RwLock<BTreeMap<ModelFingerprint, Arc<Model>>>,
    index: RwLock<PrefixIndex>,
    /// One at a time, so that a card which several workers serve is fetched and built once.
    pub(super) building: tokio::sync::Mutex<()>,
    /// One at a time, so that two workers cannot take one name.
    joining: Mutex<()>,
    sessions: AtomicU64,
    changes: watch::Sender<u64>,
    limits: ConnectionLimits,
}

impl Registry {
    /// A registry without workers. Its prefix index holds at most this many blocks.
    pub(crate) fn new(max_in_flight: u32, index_blocks_max: usize) -> Arc<Self> {
        Arc::new(Self {
            workers: RwLock::default(),
            models: RwLock::default(),
            index: RwLock::new(PrefixIndex::new(index_blocks_max)),
            building: tokio::sync::Mutex::default(),
            joining: Mutex::default(),
            sessions: AtomicU64::new(0),
            changes: watch::channel(0).0,
            limits: ConnectionLimits::for_requests(max_in_flight),
        })
    }

    /// Follows `addresses` until their end, with a task for each. To be spawned once; when this future is dropped, so
    /// are the tasks.
    pub(crate) async fn follow(self: Arc<Self>, mut addresses: Addresses) {
        let _abort_all = AbortAll(&self);
        loop {
            let wanted = addresses.borrow_and_update().clone();
            self.set_addresses(&wanted);
            if addresses.changed().await.is_err() {
                // No more changes: the workers' tasks go on.
                return std::future::pending().await;
            }
        }
    }

    fn set_addresses(self: &Arc<Self>, wanted: &BTreeMap<String, EndpointState>) {
        let mut workers = self.workers.write();
        workers.retain(|address, (worker, task)| {
            let keep = wanted.get(address);
            if let Some(endpoint_state) = keep {
                worker.set_endpoint_state(*endpoint_state);
            } else {
                tracing::info!(%address, "worker left");
                task.abort();
                if let Some(identity) = worker.identity() {
                    self.index.write().remove_worker(&identity.name);
                }
            }
            keep.is_some()
        });
        for (address, endpoint_state) in wanted {
            if !workers.contains_key(address) {
                let worker = Arc::new(Worker::new(address.clone(), *endpoint_state));
                let task =
                    tokio::spawn(connection::maintain(Arc::clone(self), Arc::clone(&worker), self.limits));
                workers.insert(address.clone(), (worker, task.abort_handle()));
            }
        }
        drop(workers);
        self.changed();
    }

    /// Something that requests wait for may have changed.
    pub(super) fn changed(&self) {
        self.changes.send_modify(|number| *number += 1);
    }

    /// Changes of workers' states and models. Subscribe, look, then wait: no change is missed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Workers that take requests now, by address. Those whose pods Kubernetes does not find ready are left out where
    /// another of the same role and model is ready.
    pub(crate) fn ready(&self) -> Vec<ReadyWorker> {
        let mut ready: Vec<ReadyWorker> =
            self.workers.read().values().filter_map(|(worker, _)| worker.ready()).collect();
        if ready.iter().any(|worker| !worker.serving) {
            let part = |worker: &ReadyWorker| (worker.identity.role, worker.identity.fingerprint);
            let served: Vec<_> = ready.iter().filter(|worker| worker.serving).map(part).collect();
            ready.retain(|worker| worker.serving || !served.contains(&part(worker)));
        }
        ready
    }

    /// Whether a request for some model could be served now.
    pub(crate) fn can_serve(&self) -> bool {
        self.ready().iter().any(|worker| worker.identity.role.decodes())
    }

    /// What keeps [`Self::can_serve`] from being true.
    pub(crate) fn why_not(&self) -> String {
        let workers = self.status();
        if workers.is_empty() {
            return "no worker has been found yet".to_owned();
        }
        let of = |worker: &WorkerStatus| {
            let name = worker.identity.as_ref().map_or(worker.address.as_str(), |it| it.name.as_str());
            let problem = worker.problem.as_deref().unwrap_or("prefills only");
            format!("{name} ({}): {problem}", worker.state.as_str())
        };
        let shown: Vec<String> = workers.iter().take(WORKERS_NAMED_MAX).map(of).collect();
        let more = workers.len() - shown.len();
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        format!("no decode worker has been ready yet: {}{more}", shown.join("; "))
    }

    /// Every worker, by address.
    pub(crate) fn status(&self) -> Vec<WorkerStatus> {
        self.workers.read().values().map(|(worker, _)| worker.status()).collect()
    }

    /// The models known, of every generation.
    pub(crate) fn models(&self) -> Vec<Arc<Model>> {
        self.models.read().values().cloned().collect()
    }

    /// The model of one generation.
    pub(crate) fn model(&self, fingerprint: ModelFingerprint) -> Option<Arc<Model>> {
        self.models.read().get(&fingerprint).cloned()
    }

    /// Adds a generation, and drops those that no worker has any more.
    pub(super) fn add_model(&self, model: Model) {
        let named = |(worker, _): &(Arc<Worker>, AbortHandle)| Some(worker.identity()?.fingerprint);
        let mut live: BTreeSet<ModelFingerprint> = self.workers.read().values().filter_map(named).collect();
        live.insert(model.fingerprint);
        let mut models = self.models.write();
        models.insert(model.fingerprint, Arc::new(model));
        models.retain(|fingerprint, _| live.contains(fingerprint));
    }

    /// Lets `worker` be known under its name, unless another worker that is not gone has it.
    pub(super) fn join(
        &self,
        worker: &Arc<Worker>,
        identity: &Arc<Identity>,
        channel: tonic::transport::Channel,
    ) -> Result<u64, NameTaken> {
        let _one_at_a_time = self.joining.lock();
        let others = self.workers.read();
        let same_name = |other: &Worker| other.identity().is_some_and(|other| other.name == identity.name);
        let holder = others.values().map(|(other, _)| other).find(|other| {
            other.address != worker.address && other.state() != State::Gone && same_name(other)
        });
        if let Some(holder) = holder {
            return Err(NameTaken { name: identity.name.clone(), address: holder.address.clone() });
        }
        let session = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        if worker.join(Arc::clone(identity), channel, session) {
            self.index.write().reset_worker(&identity.name);
        }
        Ok(session)
    }

    /// The index, to take in a worker's events.
    pub(super) fn index(&self) -> &RwLock<PrefixIndex> {
        &self.index
    }

    /// How many leading blocks of a prompt each worker has cached.
    pub(crate) fn overlap(&self, hashes: &[BlockHash]) -> Vec<(WorkerId, u32)> {
        self.index.read().overlap(hashes)
    }

    /// How full the prefix index is.
    pub(crate) fn index_usage(&self) -> IndexUsage {
        self.index.read().usage()
    }
}

/// Ends the workers' tasks with the registry's own.
struct AbortAll<'a>(&'a Registry);

impl Drop for AbortAll<'_> {
    fn drop(&mut self) {
        for (_, task) in self.0.workers.read().values() {
            task.abort();
        }
    }
}
