//! One worker, as the router sees it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use disagg_core::{Epoch, KvCompat, ModelFingerprint, Role, WorkerId};
use disagg_proto::limits::WORKER_NAME_BYTES_MAX;
use disagg_proto::v1;
use parking_lot::Mutex;
use tonic::transport::Channel;

use super::discovery::EndpointState;
use super::load::{Load, LoadBook, Sending, SentGuard};
use crate::wire;

/// State of a worker.
///
/// ```text
/// Joining → Ready ⇄ Draining
///    ↑        ⇅
///   Gone ←  Suspect
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum State {
    /// Connected; its card or first load report is still to come.
    Joining,
    /// Takes new requests.
    Ready,
    /// Finishes what it has.
    Draining,
    /// Silent, but not proven gone: gets no new requests.
    Suspect,
    /// Not connected. The router keeps trying.
    Gone,
}

impl State {
    pub(crate) const ALL: [Self; 5] = [Self::Joining, Self::Ready, Self::Draining, Self::Suspect, Self::Gone];

    /// Name in metrics and status.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Suspect => "suspect",
            Self::Gone => "gone",
        }
    }
}

/// What a worker says of itself. Stays the same for one life of its process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub name: WorkerId,
    pub epoch: Epoch,
    pub role: Role,
    pub fingerprint: ModelFingerprint,
    pub kv_compat: KvCompat,
    /// Tokens in a block.
    pub block_size: u32,
    /// Bytes of a KV block over all layers; 0 if not told.
    pub kv_block_bytes: u64,
    /// Prompt and output together, in tokens.
    pub max_model_len: u32,
    pub transports: Vec<String>,
    pub version: String,
    pub backend: String,
}

/// A field of the greeting that is missing or out of its limits.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the worker's greeting has no valid {0}")]
pub(crate) struct BadHello(&'static str);

impl Identity {
    /// Checks a greeting.
    pub(crate) fn from_wire(hello: v1::HelloResponse) -> Result<Self, BadHello> {
        let worker = hello.worker.ok_or(BadHello("worker"))?;
        if !(1..=WORKER_NAME_BYTES_MAX).contains(&worker.name.len()) {
            return Err(BadHello("worker.name"));
        }
        if worker.epoch == 0 {
            return Err(BadHello("worker.epoch"));
        }
        if hello.block_size == 0 {
            return Err(BadHello("block_size"));
        }
        if hello.max_model_len < 2 {
            return Err(BadHello("max_model_len"));
        }
        Ok(Self {
            name: WorkerId::new(worker.name),
            epoch: Epoch(worker.epoch),
            role: wire::role(hello.role).ok_or(BadHello("role"))?,
            fingerprint: hello
                .model_fingerprint
                .map(wire::fingerprint)
                .ok_or(BadHello("model_fingerprint"))?,
            kv_compat: hello.kv_compat.map(wire::kv_compat).ok_or(BadHello("kv_compat"))?,
            block_size: hello.block_size,
            kv_block_bytes: hello.kv_block_bytes,
            max_model_len: hello.max_model_len,
            transports: hello.transports,
            version: hello.version,
            backend: hello.backend,
        })
    }
}

/// One address, and whoever answers there.
pub(crate) struct Worker {
    pub(crate) address: String,
    view: Mutex<View>,
}

struct View {
    /// By the worker's own word.
    state: State,
    endpoint_state: EndpointState,
    /// Of the present process, or of the last one while there is none.
    identity: Option<Arc<Identity>>,
    /// For requests; present while connected.
    channel: Option<Channel>,
    /// Which connection this is: counts up over all workers.
    session: u64,
    load: LoadBook,
    transfers: Arc<Transfers>,
    /// Why it is not ready.
    problem: Option<String>,
}

/// A worker that takes requests, at one moment.
#[derive(Clone, Debug)]
pub(crate) struct ReadyWorker {
    pub worker: Arc<Worker>,
    pub identity: Arc<Identity>,
    pub channel: Channel,
    pub session: u64,
    /// Kubernetes, where it has a say, finds it ready.
    pub serving: bool,
    pub load: Load,
    /// Sent by this router since that load was reported.
    pub unreported: Sending,
    /// As last reported.
    pub transfers: Arc<Transfers>,
}

/// How fast one worker's pushes reach others, in bytes per second.
pub(crate) type Transfers = BTreeMap<WorkerId, f64>;

impl ReadyWorker {
    /// Time to move one block from it to `decode`, as the two measured it.
    pub(crate) fn transfer_ms_per_block(&self, decode: &WorkerId) -> Option<f64> {
        let speed = self.transfers.get(decode).filter(|speed| speed.is_finite() && **speed > 0.0)?;
        let bytes = self.identity.kv_block_bytes;
        (bytes > 0).then(|| 1000.0 * bytes as f64 / speed)
    }
}

/// A worker for status and metrics, at one moment.
pub(crate) struct WorkerStatus {
    pub address: String,
    pub state: State,
    pub identity: Option<Arc<Identity>>,
    pub load: Load,
    pub transfers: Arc<Transfers>,
    pub unreported: Sending,
    pub in_flight: usize,
    pub problem: Option<String>,
}

impl Worker {
    pub(super) fn new(address: String, endpoint_state: EndpointState) -> Self {
        let view = View {
            state: State::Gone,
            endpoint_state,
            identity: None,
            channel: None,
            session: 0,
            load: LoadBook::default(),
            transfers: Arc::default(),
            problem: Some("not connected yet".to_owned()),
        };
        Self { address, view: Mutex::new(view) }
    }

    /// A process has answered. True if it is another one than before.
    pub(super) fn join(&self, identity: Arc<Identity>, channel: Channel, session: u64) -> bool {
        let mut view = self.view.lock();
        let restarted = view.identity.as_ref().is_none_or(|before| before.epoch != identity.epoch);
        if restarted {
            view.load.restart();
        }
        view.state = State::Joining;
        view.identity = Some(identity);
        view.channel = Some(channel);
        view.session = session;
        view.problem = Some("waiting for its model card and load".to_owned());
        restarted
    }

    /// A load report has come. True if the state is another one now.
    pub(super) fn report(&self, load: Load, transfers: Transfers, draining: bool, now: Instant) -> bool {
        let mut view = self.view.lock();
        if *view.transfers != transfers {
            view.transfers = Arc::new(transfers);
        }
        view.load.record(load, now);
        let state = if draining { State::Draining } else { State::Ready };
        view.problem = draining.then(|| "draining".to_owned());
        std::mem::replace(&mut view.state, state) != state
    }

    /// Whoever named its address says so.
    pub(super) fn set_endpoint_state(&self, endpoint_state: EndpointState) {
        self.view.lock().endpoint_state = endpoint_state;
    }

    /// It refused a request, having begun nothing: no other is sent there until its next report says otherwise.
    pub(crate) fn refused(&self, session: u64) {
        let mut view = self.view.lock();
        if view.session == session && view.state == State::Ready {
            view.state = State::Draining;
            view.problem = Some("it refused a request".to_owned());
        }
    }

    /// Load reports have stopped coming.
    pub(super) fn suspect(&self, problem: String) {
        let mut view = self.view.lock();
        view.state = State::Suspect;
        view.problem = Some(problem);
    }

    /// The connection is gone. True if the worker had taken part until then.
    pub(super) fn lost(&self, problem: String) -> bool {
        let mut view = self.view.lock();
        view.channel = None;
        view.problem = Some(problem);
        let before = std::mem::replace(&mut view.state, State::Gone);
        matches!(before, State::Ready | State::Draining | State::Suspect)
    }

    pub(crate) fn state(&self) -> State {
        self.view.lock().state
    }

    /// Who answers there, or did last.
    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        self.view.lock().identity.clone()
    }

    /// The worker for routing, if it takes requests.
    pub(super) fn ready(self: &Arc<Self>) -> Option<ReadyWorker> {
        let view = self.view.lock();
        if view.shown() != State::Ready {
            return None;
        }
        Some(ReadyWorker {
            worker: Arc::clone(self),
            identity: view.identity.clone()?,
            channel: view.channel.clone()?,
            session: view.session,
            serving: view.endpoint_state == EndpointState::Serving,
            load: view.load.report(),
            unreported: view.load.unreported(),
            transfers: Arc::clone(&view.transfers),
        })
    }

    pub(super) fn status(&self) -> WorkerStatus {
        let view = self.view.lock();
        WorkerStatus {
            address: self.address.clone(),
            state: view.shown(),
            identity: view.identity.clone(),
            load: view.load.report(),
            transfers: Arc::clone(&view.transfers),
            unreported: view.load.unreported(),
            in_flight: view.load.in_flight(),
            problem: view.problem.clone().or_else(|| view.endpoint_state.problem().map(str::to_owned)),
        }
    }

    /// Counts a request towards this worker's load, at once and until the guard is dropped.
    pub(crate) fn sending(self: &Arc<Self>, what: Sending) -> SentGuard {
        let number = self.view.lock().load.add(what, Instant::now());
        SentGuard { worker: Arc::clone(self), number }
    }

    pub(super) fn forget_sent(&self, number: u64) {
        self.view.lock().load.remove(number);
    }
}

impl View {
    /// Its own word, and that of who named it.
    fn shown(&self) -> State {
        match (self.state, self.endpoint_state) {
            (State::Ready, EndpointState::Terminating) => State::Draining,
            (state, _) => state,
        }
    }
}

impl EndpointState {
    fn problem(self) -> Option<&'static str> {
        match self {
            Self::Serving => None,
            Self::NotServing => Some("its pod is not ready; it is used only where no other worker can be"),
            Self::Terminating => Some("its pod is being deleted"),
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("address", &self.address).finish_non_exhaustive()
    }
}
