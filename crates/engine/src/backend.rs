//! What computes a step. Narrow on purpose: the engine decides everything, a backend leaves no choices open.

use disagg_core::BlockId;

use crate::kv::{KvLayout, KvMemory, KvPush, KvTransport};
use crate::request::SamplingParams;
use std::sync::Arc;

/// One step's work: a flat batch of the tokens of several sequences ("rows"), prefill chunks and decodes mixed.
///
/// With `T` tokens and `R` rows in the batch. Row `r` owns tokens `cu_seqlens[r]..cu_seqlens[r + 1]`.
#[derive(Debug)]
pub struct Batch<'a> {
    /// `[T]` token ids.
    pub input_ids: &'a [TokenInput],
    /// `[T]` position of each token in its sequence, from 0.
    pub positions: &'a [u32],
    /// `[R + 1]` prefix sums of the rows' lengths.
    pub cu_seqlens: &'a [u32],
    /// `[T]` where the token's keys and values go: `block * block_size + offset`.
    pub slot_mapping: &'a [u32],
    /// `[R]` blocks of each row's whole context, in order.
    pub block_tables: &'a [&'a [BlockId]],
    /// Rows whose last token is followed by a sampled one, in row order.
    pub samples: &'a [SampleRow<'a>],
    /// Blocks that this step completes for handoffs.
    pub pushes: &'a [KvPush],
}

/// An input token of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenInput {
    /// Known when the step was scheduled.
    Id(u32),
    /// Sampled by the step before, which may still be running: entry of its `samples`, first choice. Only scheduled
    /// for backends whose [`Backend::pipeline_depth`] is over 1.
    Sampled(u32),
}

/// Draw the next token after one row's last token.
#[derive(Clone, Debug)]
pub struct SampleRow<'a> {
    /// Row in the batch.
    pub row: u32,
    /// How.
    pub params: &'a SamplingParams,
    /// Choices to draw, from the same logits: one, but for the first token of a request with `n` over 1.
    pub choices: std::ops::Range<u32>,
    /// Position in the sequence that the drawn token will have; the counter of the random stream.
    pub position: u32,
    /// All tokens of the sequence so far, prompt first; penalties look at them. A row whose input is
    /// [`TokenInput::Sampled`] lacks that token here; rows with penalties are never scheduled so.
    pub history: &'a [u32],
    /// How many of `history` are prompt.
    pub prompt_len: usize,
    /// Tokens that must not be drawn here: end-of-sequence and stop tokens before `min_tokens`.
    pub forbidden: &'a [u32],
}

/// One drawn token.
#[derive(Clone, PartialEq, Debug)]
pub struct SampledToken {
    /// The token.
    pub token: u32,
    /// Natural log of its probability, when asked for.
    pub logprob: Option<f32>,
    /// The most likely tokens with theirs, most likely first.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// What a step drew: for each entry of [`Batch::samples`], one token per choice. An entry with fewer tokens says that
/// this row's logits could not be drawn from; the engine ends that request with an error and the others go on.
pub type StepTokens = Vec<Vec<SampledToken>>;

/// A step could not be computed. The engine fails the sequences of the batch and the worker turns unready.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("backend {backend}: {message}")]
pub struct BackendError {
    /// Name of the backend.
    pub backend: &'static str,
    /// What failed, and what to do if there is something to do.
    pub message: String,
}

/// Computes steps and owns the KV pool.
///
/// A step is `launch`, then `collect`; at most [`Self::pipeline_depth`] steps are launched and not yet collected, and
/// they are collected in order. A backend of depth 2 lets the engine schedule the next step while one runs.
pub trait Backend: Send {
    /// Name in errors and status, for example `cpu`.
    fn name(&self) -> &'static str;

    /// What computes, for people: the name, and on a GPU which one.
    fn description(&self) -> String {
        self.name().to_owned()
    }

    /// Shape of the KV pool.
    fn layout(&self) -> KvLayout;

    /// Blocks in the KV pool.
    fn num_blocks(&self) -> u32;

    /// The pool, for transports.
    fn memory(&self) -> Arc<dyn KvMemory>;

    /// Steps that may be under way at once.
    fn pipeline_depth(&self) -> usize {
        1
    }

    /// Starts a step. When `batch.pushes` is not empty, `transport.push_layer` is called once for every layer, in order:
    /// here, as layers are computed, or in [`Self::collect`] by a backend that computes while the engine goes on.
    fn launch(&mut self, batch: &Batch<'_>, transport: &mut dyn KvTransport) -> Result<(), BackendError>;

    /// Waits for the oldest step under way. What [`Self::launch`] has not pushed of that step is pushed here.
    fn collect(&mut self, transport: &mut dyn KvTransport) -> Result<StepTokens, BackendError>;
}

/// So that the choice of a backend can be made at run time.
impl<B: Backend + ?Sized> Backend for Box<B> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn description(&self) -> String {
        (**self).description()
    }

    fn layout(&self) -> KvLayout {
        (**self).layout()
    }

    fn num_blocks(&self) -> u32 {
        (**self).num_blocks()
    }

    fn memory(&self) -> Arc<dyn KvMemory> {
        (**self).memory()
    }

    fn pipeline_depth(&self) -> usize {
        (**self).pipeline_depth()
    }

    fn launch(&mut self, batch: &Batch<'_>, transport: &mut dyn KvTransport) -> Result<(), BackendError> {
        (**self).launch(batch, transport)
    }

    fn collect(&mut self, transport: &mut dyn KvTransport) -> Result<StepTokens, BackendError> {
        (**self).collect(transport)
    }
}
