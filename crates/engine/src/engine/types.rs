//! What the engine is told, what it answers, and why it refuses.

use disagg_core::{BlockId, HandoffId, ModelFingerprint, SequenceId};

use crate::backend::SampledToken;
use crate::request::{FinishReason, Request};

/// Bounds and switches of an engine. Checked by [`crate::Engine::new`].
#[derive(Clone, PartialEq, Debug)]
pub struct EngineConfig {
    /// Roots the identity of cached blocks.
    pub fingerprint: ModelFingerprint,
    /// Prompt and output together, in tokens.
    pub max_model_len: u32,
    /// Sequences in one step: running slots, which requests share evenly when they are short.
    pub max_num_seqs: u32,
    /// Tokens in one step.
    pub max_num_batched_tokens: u32,
    /// Requests none of whose choices runs; more are refused. A request counts once, however many choices it has.
    pub max_waiting: u32,
    /// Remote prefills queued or running; more are refused.
    pub max_prefill_queue: u32,
    /// Split prompts over steps. Without it a prompt must fit `max_num_batched_tokens`.
    pub enable_chunked_prefill: bool,
    /// Reuse blocks of earlier prompts.
    pub enable_prefix_caching: bool,
}

/// What happened. Per sequence events are in order, and exactly one `Finished` ends each choice.
#[derive(Clone, PartialEq, Debug)]
pub enum EngineEvent {
    /// Tokens of one choice, the one that ends it included.
    Tokens {
        /// The request, by the id its submission returned.
        sequence: SequenceId,
        /// From 0.
        choice: u32,
        /// At least one.
        tokens: Vec<SampledToken>,
    },
    /// The choice ended; nothing follows for it.
    Finished {
        /// The request, by the id its submission returned.
        sequence: SequenceId,
        /// From 0.
        choice: u32,
        /// Why.
        reason: FinishReason,
    },
    /// A prefill for another worker has come this far.
    PrefillProgress {
        /// Which.
        handoff: HandoffId,
        /// Tokens of the prompt in the pool.
        computed_tokens: u32,
    },
    /// A prefill for another worker is computed and all its pushes are with the transport. Its blocks stay until
    /// [`crate::Engine::push_drained`].
    PrefillDone {
        /// Which.
        handoff: HandoffId,
        /// The first token of each choice.
        first_tokens: Vec<SampledToken>,
    },
    /// A prefill for another worker cannot be finished. What it has pushed so far may still be on its way: its blocks
    /// stay until [`crate::Engine::push_drained`].
    PrefillFailed {
        /// Which.
        handoff: HandoffId,
    },
}

/// Why a request was not taken. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AdmitError {
    /// As many requests wait as may.
    #[error("{waiting} requests are waiting, as many as allowed")]
    QueueFull {
        /// Requests that wait.
        waiting: u32,
    },
    /// Not enough free blocks; only for work that must have all its blocks at once.
    #[error("{needed} KV blocks are needed and {available} may be taken")]
    NoBlocks {
        /// Blocks the prompt needs beyond what is cached.
        needed: u32,
        /// Blocks that may be taken for this purpose now.
        available: u32,
    },
    /// The prompt can never run here.
    #[error("the prompt has {tokens} tokens; this worker takes at most {limit}")]
    PromptTooLong {
        /// Tokens in the prompt.
        tokens: u32,
        /// The most that can run: by length limit, pool size or step budget.
        limit: u32,
    },
    /// A prompt without tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The handoff is known already, alive or not yet drained.
    #[error("handoff {0} is known already")]
    DuplicateHandoff(HandoffId),
}

/// A decode worker's promise of memory for a prompt that another worker prefills.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reservation {
    /// The sequence, in state awaiting KV.
    pub sequence: SequenceId,
    /// Prompt tokens already here, a multiple of the block size; less than the prompt.
    pub overlap_tokens: u32,
    /// Index of the first block the prefill worker has to send.
    pub first_block: u32,
    /// The blocks to be written, in prompt order from `first_block`.
    pub blocks: Vec<BlockId>,
}

/// A prefill for another worker.
#[derive(Clone, PartialEq, Debug)]
pub struct RemotePrefill {
    /// Names the transfer.
    pub handoff: HandoffId,
    /// The whole request; only its first tokens are drawn here.
    pub request: Request,
    /// Index of the first block the decode worker lacks.
    pub first_block: u32,
}

/// Load in the terms that routing uses.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct EngineLoad {
    /// Sequences in the running batch.
    pub running: u32,
    /// Sequences that wait to run, preempted ones included.
    pub waiting: u32,
    /// Sequences whose reader is behind.
    pub paused: u32,
    /// Sequences whose KV is on its way here.
    pub awaiting_kv: u32,
    /// Blocks in the pool.
    pub blocks_total: u32,
    /// Blocks held by sequences, handoffs or quarantine.
    pub blocks_used: u32,
    /// Of these, in quarantine.
    pub blocks_quarantined: u32,
    /// Remote prefills queued or running.
    pub prefill_queue: u32,
    /// Their tokens still to be computed.
    pub prefill_queue_tokens: u64,
}

/// What becomes of a cancelled sequence's blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockFate {
    /// Nobody else can write them: free at once.
    Free,
    /// A peer may still write them: keep until [`crate::Engine::end_quarantine`].
    Quarantine,
}

/// The named sequence is not there, or not in the state the call needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("sequence {0:?} is not awaiting KV")]
pub struct NotAwaitingKv(pub SequenceId);

/// A configuration that cannot work.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {message}")]
pub struct ConfigError {
    /// The flag, as users know it.
    pub field: &'static str,
    /// What is wrong and what is allowed.
    pub message: String,
}
