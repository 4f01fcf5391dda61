//! Streams without an end of their own: KV events and load.

use std::sync::Arc;
use std::time::Duration;

use disagg_core::KvEvent;
use disagg_proto::v1;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::convert;
use crate::state::WorkerState;

/// Events in one batch.
const KV_EVENTS_PER_BATCH: usize = disagg_proto::limits::KV_EVENTS_PER_BATCH_MAX as usize;

/// Load reports are at least this far apart, so that a busy worker does not flood its routers.
const LOAD_EVERY_MIN: Duration = Duration::from_millis(100);

/// An idle worker still says that it lives.
const LOAD_EVERY_MAX: Duration = Duration::from_secs(1);

/// Batches that wait for the connection. A subscriber that reads slower than the log forgets has to come again.
const BATCHES_MAX: usize = 4;

/// The snapshot, then deltas. Ends with DATA_LOSS for a subscriber that fell behind.
pub(super) fn kv_events(
    worker: Arc<WorkerState>,
) -> impl Stream<Item = Result<v1::KvEventBatch, Status>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(BATCHES_MAX);
    tokio::spawn(async move {
        tokio::select! {
            result = send_kv_events(&worker, &sender) => {
                if let Err(status) = result {
                    // The subscriber may be gone, which is an error of that kind too.
                    let _ = sender.send(Err(status)).await;
                }
            }
            () = sender.closed() => {}
        }
    });
    ReceiverStream::new(receiver)
}

async fn send_kv_events(
    worker: &WorkerState,
    sender: &mpsc::Sender<Result<v1::KvEventBatch, Status>>,
) -> Result<(), Status> {
    let epoch = worker.identity.epoch.0;
    let log = worker.engine.kv_log();
    let mut changed = log.subscribe();
    let send = async |last_event: u64, snapshot: bool, snapshot_end: bool, events: Vec<KvEvent>| {
        let events = events.into_iter().map(convert::kv_event).collect();
        let batch = v1::KvEventBatch { epoch, last_event, snapshot, snapshot_end, events };
        sender.send(Ok(batch)).await.map_err(|_| Status::cancelled("the subscriber is gone"))
    };

    let snapshot =
        worker.engine.kv_snapshot().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut last = snapshot.last_event;
    let mut parts = snapshot.events.chunks(KV_EVENTS_PER_BATCH).peekable();
    while let Some(part) = parts.next() {
        send(last, true, parts.peek().is_none(), part.to_vec()).await?;
    }
    if snapshot.events.is_empty() {
        send(last, true, true, Vec::new()).await?;
    }
    loop {
        let events = log
            .read_after(last, KV_EVENTS_PER_BATCH)
            .map_err(|lagged| Status::data_loss(lagged.to_string()))?;
        if events.is_empty() {
            // The engine thread, which holds the other end, is gone.
            changed.changed().await.map_err(|_| Status::unavailable("the engine thread has ended"))?;
            continue;
        }
        last += events.len() as u64;
        send(last, false, false, events).await?;
    }
}

/// At once, then on change or once a second; without delay when work is no longer taken.
pub(super) fn load(
    worker: Arc<WorkerState>,
) -> impl Stream<Item = Result<v1::LoadReport, Status>> + Send + 'static {
    let loads = worker.engine.load();
    let (draining, status) = (worker.lifecycle.watch_draining(), worker.engine.status());
    futures::stream::unfold((worker, loads, draining, status, None::<Instant>), async |state| {
        let (worker, mut loads, mut draining, mut status, last_sent) = state;
        if let Some(last_sent) = last_sent {
            // Load can wait its turn; that no work is taken any more has to be known before the next request is sent.
            let change = async {
                tokio::time::sleep_until(last_sent + LOAD_EVERY_MIN).await;
                tokio::time::timeout_at(last_sent + LOAD_EVERY_MAX, loads.changed()).await.unwrap_or(Ok(()))
            };
            let change = tokio::select! {
                change = draining.changed() => change,
                change = status.changed() => change,
                change = change => change,
            };
            // The engine thread is gone.
            change.ok()?;
        }
        // Seen before it is looked at: what changes after that brings another report.
        draining.mark_unchanged();
        status.mark_unchanged();
        let refusing = worker.accepts_work().is_err();
        let transfers = worker.pusher.speeds.snapshot();
        let report =
            convert::load_report(worker.identity.epoch, &loads.borrow_and_update(), refusing, transfers);
        Some((Ok(report), (worker, loads, draining, status, Some(Instant::now()))))
    })
}
