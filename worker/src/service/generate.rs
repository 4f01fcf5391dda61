//! One `Generate` request: placed, then streamed until every choice has ended or the caller has gone.

use std::sync::Arc;

use disagg_core::PlacementReason;
use disagg_core::placement::exceeds_local_length;
use disagg_engine::engine::BlockFate;
use disagg_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::convert::{Generate, Remote, ValidPrompt, sequence_event};
use crate::engine_thread::SequenceEvent;
use crate::handoff::decode::{self, Placed};
use crate::state::{RequestGuard, WorkerState, submit_status};

/// Events that wait for the connection. A caller that does not read leaves them here, in its HTTP/2 window (which the
/// caller sets) and in the request's own channel; then the engine pauses the request.
pub(super) const EVENTS_MAX: usize = 64;

type Events = mpsc::Sender<Result<v1::GenerateEvent, Status>>;

/// Runs the request. Exactly one terminal event goes out: the end of every choice, or a status.
pub(super) async fn run(worker: Arc<WorkerState>, request: Generate, guard: RequestGuard, out: Events) {
    let choices = request.prompt.request.choices;
    // Room for a status, also if the caller does not read.
    let Ok(last) = out.clone().reserve_owned().await else { return };
    let placed = match place(&worker, request, &out).await {
        Ok(placed) => placed,
        Err(status) => {
            last.send(Err(status));
            return;
        }
    };
    let remote = placed.prefill_worker.is_some();
    worker.metrics.placed(remote, placed.reason.as_str());
    let sequence = placed.sequence;
    let result = stream(&worker, placed, choices, &out).await;
    if result.is_err()
        && let Some(sequence) = sequence
    {
        worker.engine.cancel(sequence, BlockFate::Free).await;
    }
    if let Err(Some(status)) = result {
        last.send(Err(status));
    }
    // The id is live until here.
    drop(guard);
}

/// Prefills here or elsewhere.
async fn place(worker: &Arc<WorkerState>, request: Generate, out: &Events) -> Result<Placed, Status> {
    let Generate { prompt, remote, reason } = request;
    match remote {
        None => place_locally(worker, prompt, reason).await,
        Some(remote) => {
            let tokens = prompt.request.prompt.clone();
            let overlap = worker.engine.overlap_tokens(tokens, prompt.request.cache_salt.clone()).await;
            let overlap = overlap.map_err(|error| Status::unavailable(error.to_string()))?;
            let net_new = (prompt.request.prompt.len() as u32).saturating_sub(overlap);
            if !exceeds_local_length(net_new, remote.max_local_prefill_length) {
                return place_locally(worker, prompt, PlacementReason::DecodeOverlap).await;
            }
            place_remotely(worker, prompt, remote, reason, out).await
        }
    }
}

async fn place_locally(
    worker: &Arc<WorkerState>,
    prompt: ValidPrompt,
    reason: PlacementReason,
) -> Result<Placed, Status> {
    let prompt_tokens = prompt.request.prompt.len() as u32;
    let taken = worker.engine.submit(prompt.request).await.map_err(|error| submit_status(&error))?;
    worker.metrics.prefilled(prompt_tokens - taken.overlap_tokens);
    Ok(Placed {
        prefill_worker: None,
        reason,
        overlap_tokens: taken.overlap_tokens,
        sequence: Some(taken.sequence),
        events: taken.events,
    })
}

/// The handoff runs on its own, since it has to clean up after this request has ended.
async fn place_remotely(
    worker: &Arc<WorkerState>,
    prompt: ValidPrompt,
    remote: Remote,
    reason: PlacementReason,
    out: &Events,
) -> Result<Placed, Status> {
    let (outcome, mut placed) = oneshot::channel();
    let cancel = CancellationToken::new();
    let handoff = decode::run(Arc::clone(worker), prompt, remote, reason, cancel.clone(), outcome);
    worker.lifecycle.spawn_handoff(handoff);
    let gone = || Status::internal("the handoff ended without an answer");
    tokio::select! {
        placed = &mut placed => placed.map_err(|_| gone())?,
        () = out.closed() => {
            cancel.cancel();
            // It may have been placed just now; then the stream finds the caller gone and cancels it.
            placed.await.map_err(|_| gone())?
        }
    }
}

/// `Err`: it did not come to its own end; with a status if the caller is there to be told.
async fn stream(
    worker: &WorkerState,
    placed: Placed,
    choices: u32,
    out: &Events,
) -> Result<(), Option<Status>> {
    let Placed { prefill_worker, reason, overlap_tokens, sequence: _, mut events } = placed;
    let started = v1::Started {
        remote: prefill_worker.is_some(),
        reason: reason.as_str().to_owned(),
        prefill_worker: prefill_worker.map_or_else(String::new, |worker| worker.as_str().to_owned()),
        overlap_tokens,
    };
    let started = v1::GenerateEvent { event: Some(v1::generate_event::Event::Started(started)) };
    // The first event fits: but for the room for a status the channel is still empty.
    out.try_send(Ok(started)).map_err(|_| None)?;

    let mut open_choices = choices;
    while open_choices > 0 {
        let event = tokio::select! {
            event = events.recv() => event,
            () = out.closed() => return Err(None),
        };
        let Some(event) = event else {
            return Err(Some(Status::unavailable("the engine ended the request")));
        };
        let permit = tokio::time::timeout(worker.unread_max, out.reserve()).await.map_err(|_| {
            let seconds = worker.unread_max.as_secs();
            Status::deadline_exceeded(format!("the caller has read nothing for {seconds} s"))
        })?;
        let permit = permit.map_err(|_| None)?;
        match &event {
            SequenceEvent::Tokens { tokens, .. } => worker.metrics.decoded(tokens.len()),
            SequenceEvent::Finished { .. } => open_choices -= 1,
        }
        permit.send(Ok(sequence_event(event)));
    }
    Ok(())
}
