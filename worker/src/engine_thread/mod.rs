//! The engine on a thread of its own, and the handle by which everything else talks to it.
//!
//! Commands go in over one bounded channel. Each request has a bounded channel of its own for what comes out. A slow
//! reader never blocks the engine thread and never loses anything: its request is paused when it is behind, and goes
//! on when it has caught up. A reader that goes away cancels its request.

mod kv_log;
mod reader;
mod thread;
mod watchdog;

use std::sync::Arc;
use std::time::Duration;

use disagg_core::{HandoffId, KvEvent, SequenceId};
use disagg_engine::engine::{
    AdmitError, BlockFate, Engine, EngineLoad, NotAwaitingKv, RemotePrefill, Reservation,
};
use disagg_engine::{Backend, FinishReason, KvMemory, KvTransport, Request, SampledToken};
use tokio::sync::{mpsc, oneshot, watch};

pub use kv_log::{KvEventLog, Lagged};
pub use reader::SequenceEvents;
use watchdog::StepClock;

/// Commands that may wait for the engine thread; new work beyond that is refused.
const COMMANDS_MAX: usize = 1024;

/// What comes out for one request of this worker's own.
#[derive(Clone, PartialEq, Debug)]
pub enum SequenceEvent {
    /// Tokens of one choice, at least one.
    Tokens {
        /// From 0.
        choice: u32,
        /// In order.
        tokens: Vec<SampledToken>,
    },
    /// The end of one choice.
    Finished {
        /// From 0.
        choice: u32,
        /// Why.
        reason: FinishReason,
        /// For [`FinishReason::Error`]: what failed.
        message: Option<String>,
    },
}

/// What comes out for one prefill for another worker.
#[derive(Debug)]
pub struct PrefillEvents {
    /// Tokens of the prompt computed so far.
    pub computed_tokens: watch::Receiver<u32>,
    /// The first token of each choice, or that there will be none. Dropped unanswered when the prefill is cancelled
    /// or the engine thread ends.
    pub done: oneshot::Receiver<Result<Vec<SampledToken>, PrefillFailed>>,
}

/// A prefill for another worker could not be finished.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the prefill failed: {message}")]
pub struct PrefillFailed {
    /// What the engine said.
    pub message: String,
}

/// Load, with what the engine thread itself measures.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Load {
    /// What the engine reports.
    pub engine: EngineLoad,
    /// Recent speed of prefills for other workers; 0 before the first.
    pub prefill_tokens_per_second: f64,
}

/// Whether the engine computes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EngineStatus {
    /// It does.
    Healthy,
    /// A step failed, or does not end: what runs is ended, nothing new is taken. The message says why.
    Failed(String),
    /// The thread is gone: it panicked (the message says how), or nobody held a handle any more.
    Gone(String),
}

/// The engine thread is gone and will not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the engine thread has ended")]
pub struct EngineGone;

/// Why new work was not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubmitError {
    /// The engine refused it.
    #[error(transparent)]
    Refused(#[from] AdmitError),
    /// More commands wait for the engine thread than may.
    #[error("{COMMANDS_MAX} commands wait for the engine thread, as many as allowed")]
    Busy,
    /// The engine has failed.
    #[error("the engine has failed: {0}")]
    Failed(String),
    /// The engine thread is gone.
    #[error(transparent)]
    Gone(#[from] EngineGone),
}

/// A request that was taken.
#[derive(Debug)]
pub struct Submitted {
    /// Its id in the engine.
    pub sequence: SequenceId,
    /// Prompt tokens that were cached.
    pub overlap_tokens: u32,
    /// What comes out. Dropping it cancels the request at its next event.
    pub events: SequenceEvents,
}

/// A request that was taken and waits for its KV.
#[derive(Debug)]
pub struct Reserved {
    /// The memory promised.
    pub reservation: Reservation,
    /// What comes out after activation.
    pub events: SequenceEvents,
}

/// A prefill for another worker that was taken.
#[derive(Debug)]
pub struct PrefillSubmitted {
    /// Prompt tokens that were cached.
    pub overlap_tokens: u32,
    /// What comes out.
    pub events: PrefillEvents,
}

/// What the prefix cache holds.
#[derive(Clone, PartialEq, Debug)]
pub struct KvSnapshot {
    /// Number of the last event that the snapshot includes.
    pub last_event: u64,
    /// One `BlockStored` a block, parents first.
    pub events: Vec<KvEvent>,
}

type Reply<T> = oneshot::Sender<T>;

enum Command {
    Overlap {
        prompt: Vec<u32>,
        cache_salt: String,
        reply: Reply<u32>,
    },
    Submit {
        request: Request,
        reply: Reply<Result<Submitted, SubmitError>>,
    },
    Reserve {
        request: Request,
        reply: Reply<Result<Reserved, SubmitError>>,
    },
    Activate {
        sequence: SequenceId,
        first_tokens: Vec<SampledToken>,
        reply: Reply<Result<(), NotAwaitingKv>>,
    },
    FallBack {
        sequence: SequenceId,
        reply: Reply<Result<(), NotAwaitingKv>>,
    },
    Cancel {
        sequence: SequenceId,
        blocks: BlockFate,
    },
    EndQuarantine {
        sequence: SequenceId,
    },
    SubmitPrefill {
        prefill: RemotePrefill,
        reply: Reply<Result<PrefillSubmitted, SubmitError>>,
    },
    CancelPrefill {
        handoff: HandoffId,
        reply: Reply<bool>,
    },
    PushDrained {
        handoff: HandoffId,
    },
    KvSnapshot {
        reply: Reply<KvSnapshot>,
    },
    /// A reader that was behind may have caught up; the thread looks for itself which.
    CaughtUp,
}

/// Talks to the engine thread. The thread ends when the last clone is dropped.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    load: watch::Receiver<Load>,
    status: watch::Sender<EngineStatus>,
    steps: Arc<StepClock>,
    kv_log: Arc<KvEventLog>,
    memory: Arc<dyn KvMemory>,
}

/// Starts the engine thread.
pub fn spawn<B: Backend + 'static>(
    engine: Engine<B>,
    transport: Box<dyn KvTransport>,
) -> std::io::Result<EngineHandle> {
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let load = watch::Sender::new(Load { engine: engine.load(), prefill_tokens_per_second: 0.0 });
    let status = watch::Sender::new(EngineStatus::Healthy);
    let kv_log = Arc::new(KvEventLog::for_pool(engine.memory().num_blocks()));
    let steps = Arc::new(StepClock::new());
    let handle = EngineHandle {
        commands,
        load: load.subscribe(),
        status: status.clone(),
        steps: Arc::clone(&steps),
        kv_log: Arc::clone(&kv_log),
        memory: engine.memory(),
    };
    let outputs = thread::Outputs { load, status, steps, kv_log, commands: handle.commands.downgrade() };
    std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || thread::run(engine, transport, inbox, outputs))?;
    Ok(handle)
}

impl EngineHandle {
    /// The KV pool.
    pub fn memory(&self) -> Arc<dyn KvMemory> {
        Arc::clone(&self.memory)
    }

    /// Load as of the last step.
    pub fn load(&self) -> watch::Receiver<Load> {
        self.load.clone()
    }

    /// Whether the engine computes.
    pub fn status(&self) -> watch::Receiver<EngineStatus> {
        self.status.subscribe()
    }

    /// Watches the steps until one takes longer than `bound`; the status then says so. To be polled as long as the
    /// engine is used.
    pub async fn watch_steps(&self, bound: Duration) {
        watchdog::watch(&self.steps, &self.status, bound).await;
    }

    /// KV events as they come.
    pub fn kv_log(&self) -> &Arc<KvEventLog> {
        &self.kv_log
    }

    /// Prompt tokens that are cached here.
    pub async fn overlap_tokens(&self, prompt: Vec<u32>, cache_salt: String) -> Result<u32, EngineGone> {
        self.call(|reply| Command::Overlap { prompt, cache_salt, reply }).await
    }

    /// Takes a request to prefill and decode here.
    pub async fn submit(&self, request: Request) -> Result<Submitted, SubmitError> {
        self.new_work(|reply| Command::Submit { request, reply }).await
    }

    /// Takes a request that another worker prefills, and reserves its blocks.
    pub async fn reserve(&self, request: Request) -> Result<Reserved, SubmitError> {
        self.new_work(|reply| Command::Reserve { request, reply }).await
    }

    /// Every reserved block has landed.
    pub async fn activate(
        &self,
        sequence: SequenceId,
        first_tokens: Vec<SampledToken>,
    ) -> Result<Result<(), NotAwaitingKv>, EngineGone> {
        self.call(|reply| Command::Activate { sequence, first_tokens, reply }).await
    }

    /// The remote prefill will not come; nobody writes the reserved blocks any more.
    pub async fn fall_back(&self, sequence: SequenceId) -> Result<Result<(), NotAwaitingKv>, EngineGone> {
        self.call(|reply| Command::FallBack { sequence, reply }).await
    }

    /// Ends a request. Unknown ones are ignored: it may have ended by itself.
    pub async fn cancel(&self, sequence: SequenceId, blocks: BlockFate) {
        // A thread that is gone holds no blocks.
        let _ = self.commands.send(Command::Cancel { sequence, blocks }).await;
    }

    /// Nobody can write the blocks any more that a cancel put into quarantine.
    pub async fn end_quarantine(&self, sequence: SequenceId) {
        let _ = self.commands.send(Command::EndQuarantine { sequence }).await;
    }

    /// Takes a prefill for another worker.
    pub async fn submit_prefill(&self, prefill: RemotePrefill) -> Result<PrefillSubmitted, SubmitError> {
        self.new_work(|reply| Command::SubmitPrefill { prefill, reply }).await
    }

    /// Stops a prefill for another worker. When this returns, no push of it will be given to the transport any more.
    pub async fn cancel_prefill(&self, handoff: HandoffId) -> Result<bool, EngineGone> {
        self.call(|reply| Command::CancelPrefill { handoff, reply }).await
    }

    /// No push of this handoff reads its source blocks any more.
    pub async fn push_drained(&self, handoff: HandoffId) {
        let _ = self.commands.send(Command::PushDrained { handoff }).await;
    }

    /// What the prefix cache holds; deltas follow in [`Self::kv_log`].
    pub async fn kv_snapshot(&self) -> Result<KvSnapshot, EngineGone> {
        self.call(|reply| Command::KvSnapshot { reply }).await
    }

    /// Waits for room: for commands about work that was already taken.
    async fn call<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, EngineGone> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| EngineGone)?;
        answer.await.map_err(|_| EngineGone)
    }

    /// Refuses when there is no room: for new work.
    async fn new_work<T>(
        &self,
        command: impl FnOnce(Reply<Result<T, SubmitError>>) -> Command,
    ) -> Result<T, SubmitError> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(command(reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SubmitError::Busy,
            mpsc::error::TrySendError::Closed(_) => SubmitError::Gone(EngineGone),
        })?;
        answer.await.map_err(|_| EngineGone)?
    }
}
