//! The loop of the engine thread: commands, one step, what came of it.

use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use disagg_core::{HandoffId, SequenceId};
use disagg_engine::engine::{BlockFate, Engine, EngineEvent};
use disagg_engine::{Backend, FinishReason, KvTransport, Request, SampledToken};
use tokio::sync::{mpsc, oneshot, watch};

use super::reader::{self, NotTaken, Writer};
use super::watchdog::StepClock;
use super::{
    COMMANDS_MAX, Command, EngineStatus, KvEventLog, KvSnapshot, Load, PrefillEvents, PrefillFailed,
    PrefillSubmitted, Reply, Reserved, SequenceEvent, SubmitError, Submitted,
};

/// Weight of the newest step in the running mean of the prefill speed.
const SPEED_WEIGHT: f64 = 0.3;

/// What the thread publishes.
pub(super) struct Outputs {
    pub(super) load: watch::Sender<Load>,
    pub(super) status: watch::Sender<EngineStatus>,
    pub(super) steps: Arc<StepClock>,
    pub(super) kv_log: Arc<KvEventLog>,
    /// For readers that catch up. Weak, since the thread ends when nobody else can send.
    pub(super) commands: mpsc::WeakSender<Command>,
}

/// Body of the thread. However it ends, the status says so.
pub(super) fn run<B: Backend>(
    engine: Engine<B>,
    transport: Box<dyn KvTransport>,
    inbox: mpsc::Receiver<Command>,
    outputs: Outputs,
) {
    let Outputs { load, status, steps, kv_log, commands } = outputs;
    let speed = 0.0;
    let state = Thread {
        engine,
        transport,
        inbox,
        load,
        status: status.clone(),
        steps,
        kv_log,
        commands,
        sequences: HashMap::new(),
        paused: BTreeSet::new(),
        prefills: HashMap::new(),
        failure: None,
        speed,
    };
    // A panic ends the worker: `serve` watches the status. Nothing of the state is used after it.
    let result = std::panic::catch_unwind(AssertUnwindSafe(move || state.run()));
    let why = match result {
        Ok(()) => "nobody uses it any more".to_owned(),
        Err(payload) => format!("the engine thread panicked: {}", panic_message(payload.as_ref())),
    };
    status.send_replace(EngineStatus::Gone(why));
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Where the events of one request go.
struct SequenceRoute {
    events: Writer,
    /// Choices that have not ended.
    open_choices: u32,
}

/// Where the events of one prefill for another worker go.
struct PrefillRoute {
    computed_tokens: watch::Sender<u32>,
    done: oneshot::Sender<Result<Vec<SampledToken>, PrefillFailed>>,
}

struct Thread<B: Backend> {
    engine: Engine<B>,
    transport: Box<dyn KvTransport>,
    inbox: mpsc::Receiver<Command>,
    load: watch::Sender<Load>,
    status: watch::Sender<EngineStatus>,
    steps: Arc<StepClock>,
    kv_log: Arc<KvEventLog>,
    commands: mpsc::WeakSender<Command>,
    sequences: HashMap<SequenceId, SequenceRoute>,
    /// Requests whose reader is behind.
    paused: BTreeSet<SequenceId>,
    prefills: HashMap<HandoffId, PrefillRoute>,
    /// Why a step failed, once one has.
    failure: Option<String>,
    /// Running mean, in tokens per second.
    speed: f64,
}

impl<B: Backend> Thread<B> {
    fn run(mut self) {
        while self.receive() {
            self.resume_readers();
            if self.engine.has_work() {
                self.step();
            }
            self.dispatch();
            self.publish();
        }
    }

    /// Takes what is in the inbox; waits for a command only when there is nothing to compute. False when nobody can
    /// send any more.
    fn receive(&mut self) -> bool {
        if !self.engine.has_work() {
            match self.inbox.blocking_recv() {
                Some(command) => self.handle(command),
                None => return false,
            }
        }
        // Bounded, so that a flood of commands cannot keep steps from being computed.
        for _ in 0..COMMANDS_MAX {
            match self.inbox.try_recv() {
                Ok(command) => self.handle(command),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => return false,
            }
        }
        true
    }

    fn step(&mut self) {
        let before = self.engine.load().prefill_queue_tokens;
        let begun = Instant::now();
        let stepped = {
            let _running = self.steps.step();
            self.engine.step(self.transport.as_mut())
        };
        if let Err(error) = stepped {
            tracing::error!(%error, "a step failed; this worker takes no new work");
            let message = error.to_string();
            self.status.send_if_modified(|status| {
                let healthy = *status == EngineStatus::Healthy;
                if healthy {
                    *status = EngineStatus::Failed(message.clone());
                }
                healthy
            });
            self.failure = Some(message);
            return;
        }
        let computed = before.saturating_sub(self.engine.load().prefill_queue_tokens);
        if computed > 0 {
            let now = computed as f64 / begun.elapsed().as_secs_f64().max(1e-6);
            self.speed = if self.speed == 0.0 { now } else { self.speed + SPEED_WEIGHT * (now - self.speed) };
        }
    }

    fn publish(&mut self) {
        self.kv_log.append(self.engine.take_kv_events());
        let load = Load { engine: self.engine.load(), prefill_tokens_per_second: self.speed };
        self.load.send_if_modified(|last| {
            let changed = *last != load;
            *last = load;
            changed
        });
    }

    /// An answer nobody waits for any more is dropped; work that was taken for it is undone.
    fn handle(&mut self, command: Command) {
        match command {
            Command::Overlap { prompt, cache_salt, reply } => {
                let _ = reply.send(self.engine.overlap_tokens(&prompt, &cache_salt));
            }
            Command::Submit { request, reply } => self.submit(request, reply),
            Command::Reserve { request, reply } => self.reserve(request, reply),
            Command::Activate { sequence, first_tokens, reply } => {
                let _ = reply.send(self.engine.activate(sequence, first_tokens));
            }
            Command::FallBack { sequence, reply } => {
                let _ = reply.send(self.engine.fall_back(sequence));
            }
            Command::Cancel { sequence, blocks } => {
                self.engine.cancel(sequence, blocks);
            }
            Command::EndQuarantine { sequence } => self.engine.end_quarantine(sequence),
            Command::SubmitPrefill { prefill, reply } => self.submit_prefill(prefill, reply),
            Command::CancelPrefill { handoff, reply } => {
                self.prefills.remove(&handoff);
                let _ = reply.send(self.engine.cancel_prefill(handoff));
            }
            Command::PushDrained { handoff } => self.engine.push_drained(handoff),
            Command::KvSnapshot { reply } => {
                self.kv_log.append(self.engine.take_kv_events());
                let events = self.engine.kv_snapshot();
                let _ = reply.send(KvSnapshot { last_event: self.kv_log.last(), events });
            }
            // Having woken up is all: `resume_readers` comes next.
            Command::CaughtUp => {}
        }
    }

    fn refuse_if_failed(&self) -> Result<(), SubmitError> {
        self.failure.as_ref().map_or(Ok(()), |message| Err(SubmitError::Failed(message.clone())))
    }

    fn submit(&mut self, request: Request, reply: Reply<Result<Submitted, SubmitError>>) {
        let (events, receiver) = reader::channel(&request, self.commands.clone());
        let choices = request.choices;
        let taken = self.refuse_if_failed().and_then(|()| {
            let overlap_tokens = self.engine.overlap_tokens(&request.prompt, &request.cache_salt);
            Ok((self.engine.submit(request)?, overlap_tokens))
        });
        let answer = taken.map(|(sequence, overlap_tokens)| {
            self.sequences.insert(sequence, SequenceRoute { events, open_choices: choices });
            Submitted { sequence, overlap_tokens, events: receiver }
        });
        if let Err(Ok(unwanted)) = reply.send(answer) {
            self.engine.cancel(unwanted.sequence, BlockFate::Free);
        }
    }

    fn reserve(&mut self, request: Request, reply: Reply<Result<Reserved, SubmitError>>) {
        let (events, receiver) = reader::channel(&request, self.commands.clone());
        let choices = request.choices;
        let taken = self.refuse_if_failed().and_then(|()| Ok(self.engine.reserve(request)?));
        let answer = taken.map(|reservation| {
            self.sequences.insert(reservation.sequence, SequenceRoute { events, open_choices: choices });
            Reserved { reservation, events: receiver }
        });
        if let Err(Ok(unwanted)) = reply.send(answer) {
            // Nobody has heard of these blocks yet, so nobody can write them.
            self.engine.cancel(unwanted.reservation.sequence, BlockFate::Free);
        }
    }

    fn submit_prefill(
        &mut self,
        prefill: disagg_engine::engine::RemotePrefill,
        reply: Reply<Result<PrefillSubmitted, SubmitError>>,
    ) {
        let handoff = prefill.handoff;
        let taken = self.refuse_if_failed().and_then(|()| Ok(self.engine.submit_prefill(prefill)?));
        let answer = taken.map(|overlap_tokens| {
            let (computed_tokens, computed_receiver) = watch::channel(overlap_tokens);
            let (done, done_receiver) = oneshot::channel();
            self.prefills.insert(handoff, PrefillRoute { computed_tokens, done });
            PrefillSubmitted {
                overlap_tokens,
                events: PrefillEvents { computed_tokens: computed_receiver, done: done_receiver },
            }
        });
        if let Err(Ok(_unwanted)) = reply.send(answer) {
            // No step has run since, so no push is under way.
            self.prefills.remove(&handoff);
            self.engine.cancel_prefill(handoff);
            self.engine.push_drained(handoff);
        }
    }

    fn dispatch(&mut self) {
        for event in self.engine.take_events() {
            match event {
                EngineEvent::Tokens { sequence, choice, tokens } => {
                    self.send(sequence, SequenceEvent::Tokens { choice, tokens });
                }
                EngineEvent::Finished { sequence, choice, reason } => {
                    let message = (reason == FinishReason::Error).then(|| {
                        self.failure.clone().unwrap_or_else(|| "the sequence could not go on".into())
                    });
                    self.send(sequence, SequenceEvent::Finished { choice, reason, message });
                    self.choice_ended(sequence);
                }
                EngineEvent::PrefillProgress { handoff, computed_tokens } => {
                    if let Some(route) = self.prefills.get(&handoff) {
                        route.computed_tokens.send_replace(computed_tokens);
                    }
                }
                EngineEvent::PrefillDone { handoff, first_tokens } => {
                    if let Some(route) = self.prefills.remove(&handoff) {
                        let _ = route.done.send(Ok(first_tokens));
                    }
                }
                EngineEvent::PrefillFailed { handoff } => {
                    let message =
                        self.failure.clone().unwrap_or_else(|| "the prefill could not go on".to_owned());
                    if let Some(route) = self.prefills.remove(&handoff) {
                        let _ = route.done.send(Err(PrefillFailed { message }));
                    }
                }
            }
        }
    }

    fn send(&mut self, sequence: SequenceId, event: SequenceEvent) {
        let Some(route) = self.sequences.get(&sequence) else { return };
        let Err(why) = route.events.send(event) else {
            if route.events.is_behind() && self.paused.insert(sequence) {
                self.engine.pause(sequence);
            }
            return;
        };
        if why == NotTaken::Full {
            // There is room for all that comes after a pause, so this is a bug. The reader sees the end of its channel
            // without a `Finished` and reports that.
            tracing::error!(?sequence, "a paused request produced more events than it can; it is cancelled");
        }
        self.forget(sequence);
        self.engine.cancel(sequence, BlockFate::Free);
    }

    /// Lets requests go on whose reader was behind and has caught up.
    fn resume_readers(&mut self) {
        let Self { engine, sequences, paused, .. } = self;
        paused.retain(|sequence| {
            let behind = sequences.get(sequence).is_some_and(|route| !route.events.has_caught_up());
            if !behind {
                engine.resume(*sequence);
            }
            behind
        });
    }

    fn forget(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
        self.paused.remove(&sequence);
    }

    fn choice_ended(&mut self, sequence: SequenceId) {
        if let Some(route) = self.sequences.get_mut(&sequence) {
            route.open_choices = route.open_choices.saturating_sub(1);
            if route.open_choices == 0 {
                self.forget(sequence);
            }
        }
    }
}
