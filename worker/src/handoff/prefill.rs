//! The prefill worker's side: drives [`PrefillLease`] with what the decode worker, the engine and the push say.

use std::sync::Arc;
use std::time::Duration;

use disagg_core::handoff::{PrefillLease, SourceAction, SourceDeadline, SourceFact};
use disagg_engine::SampledToken;
use disagg_engine::engine::RemotePrefill;
use disagg_proto::v1::{
    PrefillAccepted, PrefillCommand, PrefillCompleted, PrefillDrained, PrefillEvent, PrefillProgress,
    prefill_command, prefill_event,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::convert::{StartPrefill, token_to_wire, worker_ref_to_wire};
use crate::engine_thread::{PrefillEvents, PrefillFailed};
use crate::state::{WorkerState, submit_status};
use crate::transport::tcp::{PushError, PushTarget};

/// Events on their way to the decode worker. Progress is left out when there is no more room than the others need.
pub const EVENTS_MAX: usize = 16;

/// Room kept for `accepted`, `completed`, `drained` and a status.
const EVENTS_KEPT: usize = 4;

type Events = mpsc::Sender<Result<PrefillEvent, Status>>;

/// Takes the prefill, or says why not, and sees it through: until its push has drained, however the stream ends.
pub async fn run(
    worker: Arc<WorkerState>,
    start: StartPrefill,
    commands: Streaming<PrefillCommand>,
    events: Events,
) {
    let StartPrefill { handoff, prompt, landing_address, token, first_block, lease, decode_worker, .. } =
        start;
    let prompt_tokens = prompt.request.prompt.len() as u32;
    let to_push = worker.identity.layout.blocks_for(prompt_tokens) - first_block;

    // Before the engine knows of it, so that no block is ready without a queue.
    let Some(ready) = worker.push_queues.open(handoff, to_push) else {
        let _ = events.try_send(Err(Status::already_exists(format!("handoff {handoff} is known already"))));
        return;
    };
    let taken =
        worker.engine.submit_prefill(RemotePrefill { handoff, request: prompt.request, first_block }).await;
    let taken = match taken {
        Ok(taken) => taken,
        Err(error) => {
            worker.push_queues.finish(handoff);
            worker.metrics.lease_ended("refused");
            // Whoever asked may be gone.
            let _ = events.try_send(Err(submit_status(&error)));
            return;
        }
    };
    let stop_push = CancellationToken::new();
    let push = (to_push > 0).then(|| {
        let peer = decode_worker.worker;
        let target = PushTarget { handoff, peer, address: landing_address, token };
        tokio::spawn(worker.pusher.clone().push(target, ready, stop_push.clone()))
    });
    let (machine, actions) = PrefillLease::start(lease, &worker.timeouts);
    let queue_depth = worker.engine.load().borrow().engine.prefill_queue.saturating_sub(1);
    let driver = Driver {
        net_new: prompt_tokens - taken.overlap_tokens,
        worker,
        handoff,
        lease,
        machine,
        events,
        first_tokens: None,
        deadline: None,
        stop_push,
        failure: None,
    };
    driver.send(prefill_event::Event::Accepted(PrefillAccepted {
        overlap_tokens: taken.overlap_tokens,
        queue_depth,
        prefill_worker: Some(worker_ref_to_wire(&driver.worker.this_worker())),
    }));
    driver.run(actions, commands, taken.events, push).await;
}

/// `None` when it was stopped.
type Push = JoinHandle<Option<Result<u64, PushError>>>;

struct Driver {
    worker: Arc<WorkerState>,
    handoff: disagg_core::HandoffId,
    lease: Duration,
    machine: PrefillLease,
    events: Events,
    first_tokens: Option<Vec<SampledToken>>,
    /// What is waited for, which arming, and until when.
    deadline: Option<(SourceDeadline, u64, Instant)>,
    stop_push: CancellationToken,
    /// Prompt tokens that are computed for it.
    net_new: u32,
    /// Why it was given up, for the decode worker and the log.
    failure: Option<Status>,
}

impl Driver {
    async fn run(
        mut self,
        actions: Vec<SourceAction>,
        mut commands: Streaming<PrefillCommand>,
        mut engine: PrefillEvents,
        mut push: Option<Push>,
    ) {
        let mut actions = actions;
        let mut listening = true;
        let mut computing = true;
        let mut heartbeat = tokio::time::interval(self.lease / 4);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            for action in actions {
                if self.perform(action).await.is_break() {
                    return;
                }
            }
            let pushing = push.is_some();
            let stopped = self.stop_push.is_cancelled();
            let fact = tokio::select! {
                command = commands.message(), if listening => match self.commanded(command) {
                    Some(SourceFact::PeerLost) => {
                        listening = false;
                        SourceFact::PeerLost
                    }
                    Some(fact) => fact,
                    None => { actions = Vec::new(); continue }
                },
                () = self.events.closed(), if listening => {
                    listening = false;
                    self.gave_up(Status::cancelled("the decode worker closed the stream"))
                }
                done = &mut engine.done, if computing => {
                    computing = false;
                    self.computed(done)
                }
                // What was pushed while layers are computed is not the end of it; the queue ends with `finish`.
                ended = ended(&mut push), if pushing => {
                    push = None;
                    self.push_ended(ended)
                }
                // Nothing to push, or the push has ended: drained as soon as there is nothing to compute.
                () = std::future::ready(()), if !pushing && (!computing || stopped) => SourceFact::PushDrained,
                _ = heartbeat.tick(), if !stopped => {
                    let computed_tokens = *engine.computed_tokens.borrow_and_update();
                    self.progress(computed_tokens);
                    actions = Vec::new();
                    continue;
                }
                fact = deadline(self.deadline) => fact,
            };
            actions = self.machine.on(fact);
        }
    }

    /// What a message of the decode worker says; `None` for one that this version does not know.
    fn commanded(&mut self, command: Result<Option<PrefillCommand>, Status>) -> Option<SourceFact> {
        match command {
            Ok(Some(PrefillCommand { command: Some(command) })) => match command {
                prefill_command::Command::Heartbeat(_) => Some(SourceFact::Heartbeat),
                prefill_command::Command::Cancel(_) => {
                    self.gave_up(Status::cancelled("the decode worker cancelled"));
                    Some(SourceFact::Cancelled)
                }
                prefill_command::Command::Start(_) => {
                    let status = Status::invalid_argument("start: sent twice; it comes once, first");
                    Some(self.gave_up(status))
                }
            },
            Ok(Some(PrefillCommand { command: None })) => None,
            Ok(None) => Some(self.gave_up(Status::cancelled("the decode worker ended the stream"))),
            Err(status) => Some(self.gave_up(status)),
        }
    }

    fn computed(
        &mut self,
        done: Result<Result<Vec<SampledToken>, PrefillFailed>, oneshot::error::RecvError>,
    ) -> SourceFact {
        match done {
            Ok(Ok(first_tokens)) => {
                tracing::debug!(handoff = %self.handoff, tokens = self.net_new, "the prompt is computed");
                self.worker.metrics.prefilled(self.net_new);
                self.first_tokens = Some(first_tokens);
                SourceFact::Computed
            }
            Ok(Err(failed)) => {
                self.gave_up(Status::aborted(failed.to_string()));
                SourceFact::PrefillFailed
            }
            // Cancelled, by this driver; or the engine thread is gone.
            Err(_) => {
                self.gave_up(Status::unavailable("the engine dropped the prefill"));
                SourceFact::PrefillFailed
            }
        }
    }

    fn push_ended(&mut self, ended: Option<Result<u64, PushError>>) -> SourceFact {
        match ended {
            Some(Ok(_)) | None => SourceFact::PushDrained,
            Some(Err(error)) => self.gave_up(Status::aborted(error.to_string())),
        }
    }

    /// Notes the first reason.
    fn gave_up(&mut self, why: Status) -> SourceFact {
        self.failure.get_or_insert(why);
        SourceFact::PeerLost
    }

    async fn perform(&mut self, action: SourceAction) -> std::ops::ControlFlow<()> {
        match action {
            SourceAction::ArmDeadline { deadline, serial, after } => {
                self.deadline = Some((deadline, serial, Instant::now() + after));
            }
            SourceAction::SendCompleted => {
                // All pushes are queued by now.
                let chunks = self.worker.push_queues.finish(self.handoff);
                let first_tokens = self.first_tokens.take().unwrap_or_default();
                self.send(prefill_event::Event::Completed(PrefillCompleted {
                    first_tokens: first_tokens.into_iter().map(token_to_wire).collect(),
                    chunks,
                }));
            }
            SourceAction::StopPushes => {
                // Without another reason it was the lease that ran out.
                self.gave_up(Status::deadline_exceeded("the decode worker was silent for the lease time"));
                // A thread that is gone pushes nothing.
                let _ = self.worker.engine.cancel_prefill(self.handoff).await;
                self.worker.push_queues.finish(self.handoff);
                self.stop_push.cancel();
            }
            SourceAction::FreeSource => self.worker.engine.push_drained(self.handoff).await,
            SourceAction::SendDrained => {
                self.send(prefill_event::Event::Drained(PrefillDrained {}));
                self.end();
                return std::ops::ControlFlow::Break(());
            }
            SourceAction::ReportStuck => {
                tracing::error!(handoff = %self.handoff, "a push did not stop; its source blocks are not reused");
                self.worker.metrics.lease_ended("stuck");
                return std::ops::ControlFlow::Break(());
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    /// The stream ends with what went wrong, if something did.
    fn end(&mut self) {
        let Some(status) = self.failure.take() else {
            self.worker.metrics.lease_ended("completed");
            return;
        };
        self.worker.metrics.lease_ended("given-up");
        tracing::info!(handoff = %self.handoff, reason = status.message(), "a prefill was given up");
        let _ = self.events.try_send(Err(status));
    }

    /// A stream without room is one that nobody reads; the lease ends it.
    fn send(&self, event: prefill_event::Event) {
        let _ = self.events.try_send(Ok(PrefillEvent { event: Some(event) }));
    }

    fn progress(&self, computed_tokens: u32) {
        if self.events.capacity() > EVENTS_KEPT {
            self.send(prefill_event::Event::Progress(PrefillProgress { computed_tokens }));
        }
    }
}

/// Waits for the push task. A task that panicked has stopped as well.
async fn ended(push: &mut Option<Push>) -> Option<Result<u64, PushError>> {
    match push {
        Some(push) => push.await.unwrap_or_else(|error| {
            Some(Err(PushError::Protocol(format!("the push ended abnormally: {error}"))))
        }),
        None => std::future::pending().await,
    }
}

async fn deadline(deadline: Option<(SourceDeadline, u64, Instant)>) -> SourceFact {
    match deadline {
        Some((deadline, serial, at)) => {
            tokio::time::sleep_until(at).await;
            SourceFact::DeadlinePassed { deadline, serial }
        }
        None => std::future::pending().await,
    }
}
