//! A worker as a whole: engine thread, services, listeners, health, and an orderly end.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use disagg_core::handoff::Timeouts;
use disagg_engine::Backend;
use disagg_engine::engine::{ConfigError, Engine, EngineConfig};
use disagg_proto::limits::MESSAGE_BYTES_MAX;
use disagg_proto::v1::prefill_server::PrefillServer;
use disagg_proto::v1::worker_server::WorkerServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::accept::accept;
use crate::args::ServeConfig;
use crate::convert::Peer;
use crate::engine_thread::{self, EngineStatus};
use crate::http::Probes;
use crate::identity::{Identity, random_epoch};
use crate::metrics::Metrics;
use crate::model::{ModelCard, kv_compat};
use crate::service::{PrefillService, WorkerService};
use crate::state::{Lifecycle, RequestRegistry, WorkerState};
use crate::transport::landing::LandingRegistry;
use crate::transport::peers::Peers;
use crate::transport::queue::{PushQueues, QueueingTransport};
use crate::transport::reach::Reach;
use crate::transport::stages::Stages;
use crate::transport::tcp::{PushReceiver, Pusher, STAGES};

/// Streams one connection may have open: more than requests may wait on a worker, and bounded.
const STREAMS_MAX: u32 = 4096;

/// Pings that notice callers whose host has vanished.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// After a drain: time for the last frames to leave.
const STOP_MAX: Duration = Duration::from_secs(2);

/// After a failure of the engine: time for its last events to be read. Nothing more will come of a longer drain.
const FAILED_DRAIN_MAX: Duration = Duration::from_secs(5);

/// Most bytes of one block of one layer: what a transfer moves as a whole.
const LAYER_BLOCK_BYTES_MAX: usize = 8 << 20;

/// Why a worker cannot serve, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address cannot be listened on.
    #[error("--{flag}: cannot listen on {address}: {source}")]
    Bind {
        /// Which.
        flag: &'static str,
        /// As given.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Peers could not reach this worker.
    #[error("--advertise: needed, since --listen {0} is no address that others can reach")]
    NothingToAdvertise(SocketAddr),
    /// The flags do not fit the model or each other.
    #[error("--{}: {}", .0.field, .0.message)]
    Config(#[from] ConfigError),
    /// No thread for the engine.
    #[error("cannot start the engine thread: {0}")]
    Thread(std::io::Error),
    /// The engine failed or its thread ended while it was needed.
    #[error("the engine has failed: {0}")]
    Engine(String),
    /// The listener broke.
    #[error("the gRPC server has failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// A worker that listens and does not serve yet.
pub struct Server {
    state: Arc<WorkerState>,
    grpc: TcpListener,
    grpc_address: SocketAddr,
    pushes: PushReceiver,
    /// Kept, so that they are served until the end.
    probes: Option<Probes>,
    drain: Duration,
    step_max: Duration,
}

impl Server {
    /// Starts the engine on `backend` and binds the listener. `max_model_len` is the model's limit or less; `probes`
    /// tell of this worker from now on.
    pub async fn bind<B: Backend + 'static>(
        config: ServeConfig,
        card: ModelCard,
        max_model_len: u32,
        backend: B,
        probes: Option<Probes>,
    ) -> Result<Self, ServeError> {
        let layout = backend.layout();
        if layout.layer_block_bytes() > LAYER_BLOCK_BYTES_MAX {
            let message = format!(
                "{} tokens of one layer are {} bytes, more than is handed over at once ({LAYER_BLOCK_BYTES_MAX})",
                layout.block_size,
                layout.layer_block_bytes()
            );
            return Err(ConfigError { field: "block-size", message }.into());
        }
        let grpc = disagg_process::listen(&config.listen)
            .await
            .map_err(|source| cannot_listen(&config.listen, source))?;
        let grpc_address = local_address(&config.listen, &grpc)?;
        let advertise = match config.advertise {
            Some(address) => address,
            None if grpc_address.ip().is_unspecified() => {
                return Err(ServeError::NothingToAdvertise(grpc_address));
            }
            None => grpc_address.to_string(),
        };

        let identity = Identity {
            worker: config.name,
            epoch: random_epoch(),
            role: config.role,
            fingerprint: card.fingerprint,
            kv_compat: kv_compat(card.fingerprint, &layout),
            layout,
            max_model_len,
            vocab_size: card.vocab_size,
            backend: backend.description(),
        };
        let limits = config.limits;
        let engine_config = EngineConfig {
            fingerprint: card.fingerprint,
            max_model_len,
            max_num_seqs: limits.max_num_seqs,
            max_num_batched_tokens: limits.max_num_batched_tokens,
            max_waiting: limits.max_waiting,
            max_prefill_queue: limits.max_prefill_queue,
            enable_chunked_prefill: limits.enable_chunked_prefill,
            enable_prefix_caching: limits.enable_prefix_caching,
        };
        let push_queues = Arc::new(PushQueues::new(&layout));
        let transport = Box::new(QueueingTransport(Arc::clone(&push_queues)));
        let engine = engine_thread::spawn(Engine::new(engine_config, backend)?, transport)
            .map_err(ServeError::Thread)?;

        let metrics = Arc::new(Metrics::new());
        let reach = Reach::of(grpc_address, &advertise);
        let peers = Arc::new(Peers::new(reach));
        let memory = engine.memory();
        let pusher = Pusher {
            stages: Stages::new(Arc::clone(&memory), STAGES),
            this_worker: Peer { worker: identity.worker.clone(), epoch: identity.epoch },
            kv_compat: identity.kv_compat,
            reach,
            metrics: Arc::clone(&metrics),
            speeds: Arc::default(),
        };
        let landing = Arc::new(LandingRegistry::new(Arc::clone(&memory), identity.epoch, identity.kv_compat));
        let pushes =
            PushReceiver::new(Arc::clone(&landing), Stages::new(memory, STAGES), Arc::clone(&metrics));
        let state = WorkerState {
            identity,
            card,
            advertise,
            engine,
            landing,
            push_queues,
            pusher,
            peers,
            metrics,
            timeouts: Timeouts { lease: config.lease, ..Timeouts::default() },
            unread_max: config.unread_max,
            requests: RequestRegistry::default(),
            lifecycle: Lifecycle::default(),
            last_handoff: AtomicU64::new(0),
        };
        let state = Arc::new(state);
        if let Some(probes) = &probes {
            probes.loaded(&state);
        }
        Ok(Self { state, grpc, grpc_address, pushes, probes, drain: config.drain, step_max: config.step_max })
    }

    /// What the services share.
    pub fn state(&self) -> &Arc<WorkerState> {
        &self.state
    }

    /// Where the gRPC server listens.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// Where metrics are served.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.probes.as_ref().map(Probes::address)
    }

    /// Serves until `shutdown`, then drains; or until the engine fails, which ends what runs and is an error.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { state, grpc, grpc_address: _, pushes, probes: _probes, drain, step_max } = self;
        let stopping = CancellationToken::new();
        // However this ends, so do the tasks started here.
        let _stop = stopping.clone().drop_guard();
        let (health, health_service) = tonic_health::server::health_reporter();
        report_health(&health, &state).await;
        tokio::spawn(stopping.clone().run_until_cancelled_owned(follow_health(health, Arc::clone(&state))));
        let engine = state.engine.clone();
        tokio::spawn(
            stopping.clone().run_until_cancelled_owned(async move { engine.watch_steps(step_max).await }),
        );
        let serving = tonic::transport::Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .http2_keepalive_interval(Some(KEEP_ALIVE_EVERY))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .add_service(health_service)
            .add_service(sized(WorkerServer::new(WorkerService::new(Arc::clone(&state), stopping.clone()))))
            .add_service(
                PrefillServer::new(PrefillService::new(Arc::clone(&state)))
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX),
            )
            .serve_with_incoming_shutdown(
                accept(grpc, pushes, stopping.clone()),
                stopping.clone().cancelled_owned(),
            );
        tokio::pin!(serving);

        let ended = tokio::select! {
            () = shutdown => Ok(()),
            why = engine_trouble(&state, false) => Err(ServeError::Engine(why)),
            served = &mut serving => return served.map_err(ServeError::from),
        };
        let drain = if ended.is_ok() { drain } else { drain.min(FAILED_DRAIN_MAX) };
        tracing::info!("worker drains");
        let remaining = tokio::select! {
            remaining = state.lifecycle.drain(drain) => remaining,
            why = engine_trouble(&state, true) => return Err(ServeError::Engine(why)),
            served = &mut serving => return served.map_err(ServeError::from),
        };
        if remaining.sequences + remaining.handoffs > 0 {
            let (sequences, handoffs) = (remaining.sequences, remaining.handoffs);
            tracing::warn!(sequences, handoffs, "the drain ended before its work");
        }
        stopping.cancel();
        if let Ok(served) = tokio::time::timeout(STOP_MAX, serving).await {
            served?;
        }
        ended
    }
}

/// Prompts may be long.
fn sized(server: WorkerServer<WorkerService>) -> WorkerServer<WorkerService> {
    server.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn local_address(address: &str, listener: &TcpListener) -> Result<SocketAddr, ServeError> {
    listener.local_addr().map_err(|source| cannot_listen(address, source))
}

fn cannot_listen(address: &str, source: std::io::Error) -> ServeError {
    ServeError::Bind { flag: "listen", address: address.to_owned(), source }
}

/// Waits until the engine cannot go on: has failed, or (`gone_only`) its thread has ended.
async fn engine_trouble(state: &WorkerState, gone_only: bool) -> String {
    let mut status = state.engine.status();
    loop {
        match &*status.borrow_and_update() {
            EngineStatus::Gone(why) => return why.clone(),
            EngineStatus::Failed(why) if !gone_only => return why.clone(),
            EngineStatus::Failed(_) | EngineStatus::Healthy => {}
        }
        if status.changed().await.is_err() {
            return "the engine thread has ended".to_owned();
        }
    }
}

/// SERVING for the process as a whole and for each service, as long as work is taken.
async fn report_health(health: &HealthReporter, state: &WorkerState) {
    let status =
        if state.accepts_work().is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in ["", "disagg.v1.Worker", "disagg.v1.Prefill"] {
        health.set_service_status(service, status).await;
    }
}

async fn follow_health(health: HealthReporter, state: Arc<WorkerState>) {
    let mut draining = state.lifecycle.watch_draining();
    let mut engine = state.engine.status();
    loop {
        let changed = tokio::select! {
            changed = draining.changed() => changed,
            changed = engine.changed() => changed,
        };
        report_health(&health, &state).await;
        if changed.is_err() {
            return;
        }
    }
}
