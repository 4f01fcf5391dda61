//! The task that keeps up with one worker, for as long as its address is known.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use disagg_core::prefix_index::{Applied, BatchKind, KvEventBatch};
use disagg_core::{Epoch, KvEvent, WorkerId};
use disagg_proto::v1::{self, worker_client::WorkerClient};
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::load::Load;
use super::registry::{NameTaken, Registry};
use super::worker::{BadHello, Identity, Transfers, Worker};
use crate::model::{CardAssembler, CardError, Model};
use crate::wire;

/// Pause before the next attempt to connect: grows from the first to the last. A worker that restarts is known again
/// within the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
const CARD_TIMEOUT: Duration = Duration::from_secs(30);
/// Reports come every second; after this long without one a worker gets no new requests,
const SUSPECT_AFTER: Duration = Duration::from_secs(3);
/// and after this much longer the connection is given up.
const GONE_AFTER: Duration = Duration::from_secs(7);
/// HTTP/2 pings, which notice a host that vanished without closing its connections.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 windows, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionLimits {
    /// A request whose client does not read holds this much, and then its worker has to wait.
    stream_window: u32,
    /// All requests together: so large that those who do not read cannot stop those who do.
    connection_window: u32,
}

impl ConnectionLimits {
    pub(super) fn for_requests(max_in_flight: u32) -> Self {
        let stream_window = 32 * 1024;
        let connection_window =
            max_in_flight.saturating_add(1).saturating_mul(stream_window).min(i32::MAX as u32);
        Self { stream_window, connection_window }
    }
}

/// Why a session with a worker ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("cannot connect: {0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("{call}: {}", .status.message())]
    Call { call: &'static str, status: Status },
    #[error("{0} took too long")]
    Slow(&'static str),
    #[error(transparent)]
    Hello(#[from] BadHello),
    #[error("its model card cannot be used: {0}")]
    Card(#[from] CardError),
    #[error("building its model failed: {0}")]
    Build(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Name(#[from] NameTaken),
    #[error("it closed the connection")]
    Closed,
    #[error("it has restarted")]
    Restarted,
    #[error("no sign of life for {} seconds", (SUSPECT_AFTER + GONE_AFTER).as_secs())]
    Silent,
}

/// Connects, follows, and connects again, until aborted.
pub(super) async fn maintain(registry: Arc<Registry>, worker: Arc<Worker>, limits: ConnectionLimits) {
    let mut pause = BACKOFF.0;
    let mut told = String::new();
    loop {
        let started = Instant::now();
        let Err(error) = session(&registry, &worker, limits).await;
        if let Some(identity) = worker.identity() {
            registry.index().write().reset_worker(&identity.name);
        }
        let problem = error.to_string();
        let was_in_use = worker.lost(problem.clone());
        registry.changed();
        if was_in_use || problem != told {
            tracing::warn!(address = %worker.address, %problem, "worker not connected; trying again");
            told = problem;
        }
        // A session that lasted was no failed attempt.
        pause = if started.elapsed() > CONNECT_TIMEOUT { BACKOFF.0 } else { (pause * 2).min(BACKOFF.1) };
        sleep(pause).await;
    }
}

/// One connection, from the greeting to its end.
async fn session(
    registry: &Arc<Registry>,
    worker: &Arc<Worker>,
    limits: ConnectionLimits,
) -> Result<Infallible, SessionError> {
    let endpoint = Endpoint::from_shared(format!("http://{}", worker.address))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    // Watching and requests have a connection each, so that neither can fill the other's window.
    let control = endpoint.clone().initial_stream_window_size(1024 * 1024).connect().await?;
    let requests = endpoint
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .connect_lazy();
    let mut client =
        WorkerClient::new(control).max_decoding_message_size(disagg_proto::limits::MESSAGE_BYTES_MAX);

    let hello = within(HELLO_TIMEOUT, "Hello", client.hello(v1::HelloRequest {})).await?.into_inner();
    let identity = Arc::new(Identity::from_wire(hello)?);
    registry.join(worker, &identity, requests)?;
    registry.changed();
    tracing::info!(address = %worker.address, worker = %identity.name, role = %identity.role,
        epoch = %identity.epoch, backend = identity.backend, "worker joined");
    ensure_model(registry, &identity, &mut client).await?;

    let kv_events = follow_kv_events(registry, &identity, client.clone());
    tokio::select! {
        ended = follow_load(registry, worker, identity.epoch, client) => ended,
        ended = kv_events => ended,
    }
}

async fn within<T>(
    limit: Duration,
    call: &'static str,
    answer: impl Future<Output = Result<T, Status>>,
) -> Result<T, SessionError> {
    timeout(limit, answer)
        .await
        .map_err(|_| SessionError::Slow(call))?
        .map_err(|status| SessionError::Call { call, status })
}

/// Fetches and builds the worker's model unless another worker's card was the same.
async fn ensure_model(
    registry: &Registry,
    identity: &Identity,
    client: &mut WorkerClient<Channel>,
) -> Result<(), SessionError> {
    if registry.model(identity.fingerprint).is_some() {
        return Ok(());
    }
    let _one_at_a_time = registry.building.lock().await;
    if registry.model(identity.fingerprint).is_some() {
        return Ok(());
    }
    let fetch = async {
        let mut parts = client.get_model_card(v1::GetModelCardRequest {}).await?.into_inner();
        let mut card = CardAssembler::default();
        while let Some(part) = parts.message().await? {
            if let Err(error) = card.push(part) {
                return Ok(Err(error));
            }
        }
        Ok(card.finish())
    };
    let card = within(CARD_TIMEOUT, "GetModelCard", fetch).await??;
    if card.fingerprint != identity.fingerprint {
        return Err(SessionError::Restarted);
    }
    let model = tokio::task::spawn_blocking(move || Model::from_card(&card)).await??;
    tracing::info!(model = model.name, fingerprint = %model.fingerprint, "model known");
    registry.add_model(model);
    registry.changed();
    Ok(())
}

/// Takes in load reports until the connection ends.
async fn follow_load(
    registry: &Registry,
    worker: &Worker,
    epoch: Epoch,
    mut client: WorkerClient<Channel>,
) -> Result<Infallible, SessionError> {
    let failed = |status| SessionError::Call { call: "WatchLoad", status };
    let watch = client.watch_load(v1::WatchLoadRequest {});
    let mut reports = within(HELLO_TIMEOUT, "WatchLoad", watch).await?.into_inner();
    loop {
        let report = if let Ok(report) = timeout(SUSPECT_AFTER, reports.message()).await {
            report
        } else {
            worker.suspect(format!("no load report for {} seconds", SUSPECT_AFTER.as_secs()));
            registry.changed();
            timeout(GONE_AFTER, reports.message()).await.map_err(|_| SessionError::Silent)?
        };
        let report = report.map_err(failed)?.ok_or(SessionError::Closed)?;
        if report.epoch != epoch.0 {
            return Err(SessionError::Restarted);
        }
        let (load, draining) = (load(&report), report.draining);
        if worker.report(load, transfers(report.transfers), draining, Instant::now()) {
            tracing::info!(address = %worker.address, state = worker.state().as_str(), "worker changed state");
            registry.changed();
        }
    }
}

fn load(report: &v1::LoadReport) -> Load {
    Load {
        running: report.running,
        waiting: report.waiting,
        awaiting_kv: report.awaiting_kv,
        blocks_total: report.blocks_total,
        blocks_used: report.blocks_used,
        blocks_quarantined: report.blocks_quarantined,
        prefill_queue: report.prefill_queue,
        prefill_queue_tokens: report.prefill_queue_tokens,
        prefill_tokens_per_second: report.prefill_tokens_per_second,
    }
}

fn transfers(reported: Vec<v1::PeerTransfer>) -> Transfers {
    let pair = |transfer: v1::PeerTransfer| (WorkerId::new(transfer.worker), transfer.bytes_per_second);
    reported.into_iter().map(pair).collect()
}

/// Keeps the prefix index up with the worker, subscribing again whenever the numbering breaks. The index is a hint, so
/// no failure here ends the session.
async fn follow_kv_events(
    registry: &Registry,
    identity: &Identity,
    mut client: WorkerClient<Channel>,
) -> Result<Infallible, SessionError> {
    let mut pause = BACKOFF.0;
    loop {
        match subscribe(registry, identity, &mut client).await {
            Ok(()) => pause = BACKOFF.0,
            Err(problem) => {
                tracing::debug!(worker = %identity.name, %problem, "KV events interrupted; subscribing again");
                pause = (pause * 2).min(GONE_AFTER);
            }
        }
        registry.index().write().reset_worker(&identity.name);
        sleep(pause).await;
    }
}

/// One subscription. `Ok` after a reset that a new snapshot mends.
async fn subscribe(
    registry: &Registry,
    identity: &Identity,
    client: &mut WorkerClient<Channel>,
) -> Result<(), SessionError> {
    let failed = |status| SessionError::Call { call: "WatchKvEvents", status };
    let watch = client.watch_kv_events(v1::WatchKvEventsRequest {});
    let mut batches = within(HELLO_TIMEOUT, "WatchKvEvents", watch).await?.into_inner();
    while let Some(batch) = batches.message().await.map_err(failed)? {
        let sent = batch.events.len();
        let events: Vec<KvEvent> = batch.events.into_iter().filter_map(wire::kv_event).collect();
        if batch.epoch != identity.epoch.0 || events.len() != sent {
            return Ok(());
        }
        let kind =
            if batch.snapshot { BatchKind::Snapshot { end: batch.snapshot_end } } else { BatchKind::Delta };
        let batch =
            KvEventBatch { epoch: identity.epoch, last_event: batch.last_event, kind, events: &events };
        match registry.index().write().apply(&identity.name, &batch) {
            Applied::Ok | Applied::Stale => {}
            Applied::NeedsSnapshot(reason) => {
                tracing::debug!(worker = %identity.name, reason = reason.as_str(), "asking for a new snapshot");
                return Ok(());
            }
        }
    }
    Err(SessionError::Closed)
}
