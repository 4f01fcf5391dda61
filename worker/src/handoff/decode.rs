//! The decode worker's side: drives [`Handoff`] with what streams, timers, the engine and the landing zone say.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use disagg_core::handoff::{Action, Attempt, Fact, Handoff, Outcome, Plan, ReservationNumber, Writer};
use disagg_core::{BlockId, HandoffId, PlacementReason, SequenceId, WorkerId};
use disagg_engine::SampledToken;
use disagg_engine::engine::BlockFate;
use disagg_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::attempt::{self, Report};
use super::first_token;
use super::timers::Timers;
use crate::convert::{
    Remote, TCP_TRANSPORT, ValidPrompt, handoff_to_wire, hash, prompt_to_wire, worker_ref_to_wire,
};
use crate::engine_thread::{Reserved, SequenceEvents, SubmitError};
use crate::state::{WorkerState, submit_status};
use crate::transport::token::LandingToken;

/// Reports of attempts that may wait for the driver.
const REPORTS_MAX: usize = 32;

/// A request that is being decoded here.
#[derive(Debug)]
pub struct Placed {
    /// Who prefilled it, if not this worker.
    pub prefill_worker: Option<WorkerId>,
    /// Why there.
    pub reason: PlacementReason,
    /// Prompt tokens that were cached here.
    pub overlap_tokens: u32,
    /// Its id in the engine; `None` if the engine never had it because its first token was its last.
    pub sequence: Option<SequenceId>,
    /// What comes out.
    pub events: SequenceEvents,
}

/// Tries the candidates and answers `outcome` as soon as the request is placed, then cleans up until both sides are
/// done. Cancelling `cancelled` before the answer ends it with CANCELLED; after it, the sequence is the receiver's.
pub async fn run(
    worker: Arc<WorkerState>,
    prompt: ValidPrompt,
    remote: Remote,
    reason: PlacementReason,
    cancelled: CancellationToken,
    outcome: oneshot::Sender<Result<Placed, Status>>,
) {
    let plan = Plan {
        // The tcp transport: this worker writes what it receives.
        candidates: vec![Writer::Us; remote.candidates.len()],
        fallback: remote.fallback,
        timeouts: worker.timeouts,
    };
    let (machine, actions) = Handoff::start(plan);
    let (reports, inbox) = mpsc::channel(REPORTS_MAX);
    let (answers, answer_inbox) = mpsc::channel(1);
    let driver = Driver {
        worker,
        prompt,
        remote,
        reason,
        machine,
        timers: Timers::default(),
        reservations: HashMap::new(),
        attempts: HashMap::new(),
        facts: VecDeque::new(),
        reports,
        answers,
        outcome: Some(outcome),
    };
    driver.run(actions, inbox, answer_inbox, cancelled).await;
}

/// The engine's answer to a reservation.
type Answer = (ReservationNumber, Result<Reserved, SubmitError>);

/// Reserved blocks that are this driver's to give away.
struct Held {
    /// `None` if nothing had to be reserved.
    sequence: Option<SequenceId>,
    overlap_tokens: u32,
    first_block: u32,
    blocks: Vec<BlockId>,
    events: Option<SequenceEvents>,
    quarantined: bool,
}

struct Live {
    handoff: HandoffId,
    cancel: CancellationToken,
    first_tokens: Option<Vec<SampledToken>>,
}

struct Driver {
    worker: Arc<WorkerState>,
    prompt: ValidPrompt,
    remote: Remote,
    /// Why the router placed it remotely.
    reason: PlacementReason,
    machine: Handoff,
    timers: Timers,
    reservations: HashMap<ReservationNumber, Held>,
    attempts: HashMap<Attempt, Live>,
    /// Facts that arose while carrying out actions.
    facts: VecDeque<Fact>,
    reports: mpsc::Sender<(Attempt, Report)>,
    answers: mpsc::Sender<Answer>,
    /// Taken when the request is placed or has failed.
    outcome: Option<oneshot::Sender<Result<Placed, Status>>>,
}

impl Driver {
    async fn run(
        mut self,
        mut actions: Vec<Action>,
        mut inbox: mpsc::Receiver<(Attempt, Report)>,
        mut answers: mpsc::Receiver<Answer>,
        cancelled: CancellationToken,
    ) {
        let mut told_of_cancel = false;
        loop {
            for action in actions {
                if let Action::Finished { outcome } = action {
                    self.finished(outcome, answers).await;
                    return;
                }
                self.perform(action).await;
            }
            let fact = if let Some(fact) = self.facts.pop_front() {
                fact
            } else {
                tokio::select! {
                    Some((attempt, report)) = inbox.recv() => self.reported(attempt, report),
                    Some((reservation, answer)) = answers.recv() => self.answered(reservation, answer),
                    deadline = self.timers.next() => Fact::DeadlinePassed(deadline),
                    () = cancelled.cancelled(), if !told_of_cancel => {
                        told_of_cancel = true;
                        Fact::Cancelled
                    }
                }
            };
            actions = self.machine.on(fact);
        }
    }

    fn reported(&mut self, attempt: Attempt, report: Report) -> Fact {
        let name = self.candidate_name(attempt);
        match report {
            Report::Accepted => Fact::PrefillAccepted { attempt },
            Report::Progress => Fact::Progress { attempt },
            Report::Landed => {
                tracing::debug!(prefill_worker = %name, "all blocks have landed");
                Fact::Landed { attempt }
            }
            Report::Drained => Fact::Drained { attempt },
            Report::Completed(first) => {
                tracing::debug!(prefill_worker = %name, "the prompt is computed");
                if let Some(live) = self.attempts.get_mut(&attempt) {
                    live.first_tokens = Some(first.tokens);
                }
                Fact::Completed { attempt }
            }
            Report::Refused(status) => {
                tracing::info!(prefill_worker = %name, %status, "a prefill was refused");
                self.worker.metrics.handoff_ended("refused");
                Fact::PrefillRefused { attempt }
            }
            Report::Lost(status) => {
                if self.outcome.is_some() {
                    tracing::warn!(prefill_worker = %name, %status, "a prefill worker was lost");
                    self.worker.metrics.handoff_ended("lost");
                }
                Fact::PeerLost { attempt }
            }
        }
    }

    fn answered(&mut self, reservation: ReservationNumber, answer: Result<Reserved, SubmitError>) -> Fact {
        match answer {
            Ok(Reserved { reservation: made, events }) => {
                let held = Held {
                    sequence: Some(made.sequence),
                    overlap_tokens: made.overlap_tokens,
                    first_block: made.first_block,
                    blocks: made.blocks,
                    events: Some(events),
                    quarantined: false,
                };
                self.reservations.insert(reservation, held);
                Fact::Reserved { reservation }
            }
            Err(error) => {
                tracing::info!(%error, "no blocks for a remote prefill");
                Fact::ReserveRefused { reservation }
            }
        }
    }

    async fn perform(&mut self, action: Action) {
        match action {
            Action::Reserve { reservation } => self.reserve(reservation),
            Action::StartPrefill { attempt, reservation } => self.start(attempt, reservation),
            Action::CancelPrefill { attempt } => {
                if let Some(live) = self.attempts.get(&attempt) {
                    live.cancel.cancel();
                }
            }
            Action::Fence { attempt } => {
                if let Some(live) = self.attempts.get(&attempt) {
                    self.worker.landing.close(live.handoff);
                }
            }
            Action::Quarantine { reservation, attempt } => {
                let prefill_worker = self.candidate_name(attempt);
                tracing::warn!(%prefill_worker, "blocks that a lost prefill worker may still write are set aside");
                if let Some(held) = self.reservations.get_mut(&reservation) {
                    held.quarantined = true;
                    if let Some(sequence) = held.sequence {
                        self.worker.engine.cancel(sequence, BlockFate::Quarantine).await;
                    }
                }
            }
            Action::Suspect { attempt, reservation: _ } => {
                // The blocks stay in quarantine.
                let prefill_worker = self.candidate_name(attempt);
                tracing::error!(%prefill_worker, "a prefill worker is connected and silent; its blocks stay set aside");
            }
            Action::FreeBlocks { reservation } => self.free(reservation).await,
            Action::Activate { attempt, reservation } => self.activate(attempt, reservation).await,
            Action::PrefillLocally { reason, reservation } => self.prefill_locally(reason, reservation).await,
            Action::Fail { reason } => {
                let message =
                    format!("no prefill worker delivered ({reason}), and local prefill is not allowed");
                let status = match reason {
                    PlacementReason::PrefillFailed => Status::unavailable(message),
                    _ => Status::resource_exhausted(message),
                };
                self.place(Err(status)).await;
            }
            Action::ArmDeadline { deadline, after } => self.timers.arm(deadline, after),
            Action::DisarmDeadline { kind } => self.timers.disarm(kind),
            // Ends the loop that calls this.
            Action::Finished { .. } => {}
        }
    }

    fn reserve(&mut self, reservation: ReservationNumber) {
        if first_token::is_all(&self.prompt.request) {
            let blocks = self.worker.identity.layout.blocks_for(self.prompt.request.prompt.len() as u32);
            let nothing = Held {
                sequence: None,
                overlap_tokens: 0,
                first_block: blocks,
                blocks: Vec::new(),
                events: None,
                quarantined: false,
            };
            self.reservations.insert(reservation, nothing);
            self.facts.push_back(Fact::Reserved { reservation });
            return;
        }
        let engine = self.worker.engine.clone();
        let request = self.prompt.request.clone();
        let answers = self.answers.clone();
        tokio::spawn(async move {
            let answer = engine.reserve(request).await;
            if let Err(mpsc::error::SendError((_, Ok(unwanted)))) = answers.send((reservation, answer)).await
            {
                // The handoff ended without waiting for this answer; nobody has heard of these blocks.
                engine.cancel(unwanted.reservation.sequence, BlockFate::Free).await;
            }
        });
    }

    fn start(&mut self, attempt: Attempt, reservation: ReservationNumber) {
        let (Some(candidate), Some(held)) =
            (self.remote.candidates.get(attempt.0 as usize), self.reservations.get(&reservation))
        else {
            // The machine names only candidates it was given and reservations that were answered.
            debug_assert!(false, "{attempt:?} of {reservation:?} is not known");
            self.facts.push_back(Fact::PrefillRefused { attempt });
            return;
        };
        let worker = &self.worker;
        let handoff = worker.next_handoff();
        let token = match LandingToken::random() {
            Ok(token) => token,
            Err(error) => {
                tracing::error!(%error, "the system gives no random numbers: no handoff is safe");
                self.facts.push_back(Fact::PrefillRefused { attempt });
                return;
            }
        };
        let landed = if held.blocks.is_empty() {
            self.facts.push_back(Fact::Landed { attempt });
            None
        } else {
            let peer = candidate.peer.clone();
            Some(worker.landing.open(handoff, token.clone(), peer, held.blocks.clone()))
        };
        let start = v1::PrefillStart {
            handoff: Some(handoff_to_wire(handoff)),
            prefill_worker: Some(worker_ref_to_wire(&candidate.peer)),
            decode_worker: Some(worker_ref_to_wire(&worker.this_worker())),
            kv_compat: Some(hash(worker.identity.kv_compat.0)),
            prompt: Some(prompt_to_wire(&self.prompt)),
            landing: Some(v1::Landing {
                address: worker.advertise.clone(),
                transport: TCP_TRANSPORT.to_owned(),
                first_block: held.first_block,
                block_ids: held.blocks.iter().map(|block| block.0).collect(),
                token: token.to_wire(),
            }),
            lease_ms: worker.timeouts.lease.as_millis() as u32,
        };
        let spec = attempt::Spec {
            attempt,
            address: candidate.address.clone(),
            peer: candidate.peer.clone(),
            start,
            landed,
            heartbeat_every: worker.timeouts.heartbeat_every(),
            drain: worker.timeouts.drain,
            choices: self.prompt.request.choices,
            limits: worker.limits(),
        };
        tracing::debug!(%handoff, prefill_worker = %candidate.peer.worker, "a prefill is asked for");
        let cancel = CancellationToken::new();
        let stream = attempt::run(spec, Arc::clone(&worker.peers), self.reports.clone(), cancel.clone());
        worker.lifecycle.spawn_handoff(stream);
        self.attempts.insert(attempt, Live { handoff, cancel, first_tokens: None });
    }

    async fn activate(&mut self, attempt: Attempt, reservation: ReservationNumber) {
        let first_tokens = self.attempts.get_mut(&attempt).and_then(|live| live.first_tokens.take());
        let (Some(held), Some(first_tokens)) = (self.reservations.remove(&reservation), first_tokens) else {
            self.place(Err(Status::internal("a handoff was activated without its blocks or first tokens")))
                .await;
            return;
        };
        let prefill_worker = Some(WorkerId::new(self.candidate_name(attempt)));
        let events = match (held.sequence, held.events) {
            (Some(sequence), Some(events)) => {
                match self.worker.engine.activate(sequence, first_tokens).await {
                    Ok(Ok(())) => events,
                    Ok(Err(error)) => return self.place(Err(Status::internal(error.to_string()))).await,
                    Err(error) => return self.place(Err(Status::unavailable(error.to_string()))).await,
                }
            }
            _ => first_token::events(&self.prompt.request, first_tokens),
        };
        self.worker.metrics.handoff_ended("activated");
        let placed = Placed {
            prefill_worker,
            reason: self.reason,
            overlap_tokens: held.overlap_tokens,
            sequence: held.sequence,
            events,
        };
        self.place(Ok(placed)).await;
    }

    async fn prefill_locally(&mut self, reason: PlacementReason, reservation: Option<ReservationNumber>) {
        let held = reservation.and_then(|reservation| self.reservations.remove(&reservation));
        let placed = match held {
            Some(Held { sequence: Some(sequence), overlap_tokens, events: Some(events), .. }) => {
                match self.worker.engine.fall_back(sequence).await {
                    Ok(Ok(())) => Ok((sequence, overlap_tokens, events)),
                    Ok(Err(error)) => Err(Status::internal(error.to_string())),
                    Err(error) => Err(Status::unavailable(error.to_string())),
                }
            }
            _ => match self.worker.engine.submit(self.prompt.request.clone()).await {
                Ok(taken) => Ok((taken.sequence, taken.overlap_tokens, taken.events)),
                Err(error) => Err(submit_status(&error)),
            },
        };
        let placed = placed.map(|(sequence, overlap_tokens, events)| {
            let net_new = self.prompt.request.prompt.len() as u32 - overlap_tokens;
            self.worker.metrics.prefilled(net_new);
            Placed { prefill_worker: None, reason, overlap_tokens, sequence: Some(sequence), events }
        });
        self.place(placed).await;
    }

    /// Answers once. A request whose client has gone meanwhile is cancelled.
    async fn place(&mut self, outcome: Result<Placed, Status>) {
        let Some(sender) = self.outcome.take() else { return };
        if let Err(Ok(Placed { sequence: Some(sequence), .. })) = sender.send(outcome) {
            self.worker.engine.cancel(sequence, BlockFate::Free).await;
        }
    }

    async fn free(&mut self, reservation: ReservationNumber) {
        let Some(held) = self.reservations.remove(&reservation) else { return };
        match held.sequence {
            Some(sequence) if held.quarantined => self.worker.engine.end_quarantine(sequence).await,
            Some(sequence) => self.worker.engine.cancel(sequence, BlockFate::Free).await,
            None => {}
        }
    }

    async fn finished(mut self, outcome: Outcome, mut answers: mpsc::Receiver<Answer>) {
        if outcome == Outcome::Cancelled {
            self.worker.metrics.handoff_ended("cancelled");
        }
        self.place(Err(Status::cancelled("the request was cancelled"))).await;
        // A reservation that was given up may have been answered just now.
        answers.close();
        while let Some((_, answer)) = answers.recv().await {
            if let Ok(unwanted) = answer {
                self.worker.engine.cancel(unwanted.reservation.sequence, BlockFate::Free).await;
            }
        }
    }

    fn candidate_name(&self, attempt: Attempt) -> &str {
        self.remote.candidates.get(attempt.0 as usize).map_or("?", |one| one.peer.worker.as_str())
    }
}
