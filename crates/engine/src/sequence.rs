//! A sequence: one choice of one request, or a prompt that is prefilled for another worker.

use std::ops::Range;
use std::sync::Arc;

use disagg_core::hash::BlockHasher;
use disagg_core::{BlockHash, BlockId, HandoffId, SequenceId};

use crate::pool::BlockPool;
use crate::request::{FinishReason, Request};
use crate::sampling::has_penalties;

/// Names a sequence within an engine. Ids of requests count up, so this is also the order of arrival.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct SequenceKey {
    pub(crate) request: SequenceId,
    pub(crate) choice: u32,
}

/// `Waiting → (AwaitingKv →) Running → Finished`; `Running → Waiting` when memory runs out or others have a right to
/// its slot; `Waiting | Running → Paused → Waiting` while its reader is behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// In the scheduler's queue. May hold blocks: a prefill for another worker, a choice that shares its prompt, a
    /// sequence whose KV has arrived, or one that could not get the block for its next token.
    Waiting,
    /// Its prompt's blocks are being written by another worker. Never preempted, only cancelled.
    AwaitingKv,
    /// In the batch of every step until it ends or gives way.
    Running,
    /// Its reader is behind, so nothing is computed for it. May hold blocks, which others may take.
    Paused,
    /// Ended. Still there only while a step under way, or a push, uses its blocks.
    Finished,
}

/// What a sequence is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Generates here.
    Generate,
    /// Prefills for another worker. Has all its blocks from the start and is never preempted.
    Prefill(Push),
}

/// How far a prefill for another worker has handed its blocks to the transport.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Push {
    pub(crate) handoff: HandoffId,
    /// The first block the other worker lacks: positions of pushes count from here.
    pub(crate) first_block: usize,
    /// The next block to push.
    pub(crate) next_block: usize,
    /// The transport has nothing under way any more.
    pub(crate) drained: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) key: SequenceKey,
    pub(crate) request: Arc<Request>,
    pub(crate) kind: Kind,
    /// Choices that this sequence stands for: all of the request's until the first tokens are drawn, then one.
    pub(crate) choices: Range<u32>,
    /// Prompt, then output.
    pub(crate) tokens: Vec<u32>,
    /// Blocks it holds, from the head of the sequence.
    pub(crate) blocks: Vec<BlockId>,
    /// Tokens whose KV is in the pool once all launched steps have run.
    pub(crate) num_computed_tokens: usize,
    /// Launched steps that have a row of it.
    pub(crate) in_flight: u32,
    /// Its entry among the samples of a launched step: one token beyond `tokens` will come.
    pub(crate) pending: Option<u32>,
    /// Tokens that end it.
    pub(crate) stop_tokens: Arc<[u32]>,
    state: State,
    hasher: BlockHasher,
    /// Of its full blocks, as far as they have been needed.
    hashes: Vec<BlockHash>,
    /// Blocks from the head that the prefix cache knows.
    published: usize,
    /// Cleared when one of its blocks could not be published: none after it can be found.
    publishable: bool,
}

impl Sequence {
    pub(crate) fn new(
        id: SequenceId,
        request: Arc<Request>,
        kind: Kind,
        state: State,
        hasher: BlockHasher,
        prefix_caching: bool,
    ) -> Self {
        let stop = &request.stop;
        let eos: &[u32] = if stop.ignore_eos { &[] } else { &stop.eos_token_ids };
        let hashes = if prefix_caching { hasher.hash_blocks(&request.prompt) } else { Vec::new() };
        Self {
            key: SequenceKey { request: id, choice: 0 },
            kind,
            choices: 0..request.choices.max(1),
            tokens: request.prompt.clone(),
            blocks: Vec::new(),
            num_computed_tokens: 0,
            in_flight: 0,
            pending: None,
            stop_tokens: eos.iter().chain(&stop.stop_token_ids).copied().collect(),
            state,
            hasher,
            hashes,
            published: 0,
            publishable: prefix_caching,
            request,
        }
    }

    /// Another choice of a request whose first tokens have just been drawn. `shared` are the prompt's full blocks, held
    /// for it by the caller; what follows them is computed again.
    pub(crate) fn fork(&self, choice: u32, first_token: u32, shared: Vec<BlockId>) -> Self {
        let mut tokens = self.request.prompt.clone();
        tokens.push(first_token);
        Self {
            key: SequenceKey { choice, ..self.key },
            request: Arc::clone(&self.request),
            kind: Kind::Generate,
            choices: choice..choice + 1,
            tokens,
            num_computed_tokens: shared.len() * self.block_size(),
            published: self.published.min(shared.len()),
            publishable: self.publishable,
            blocks: shared,
            in_flight: 0,
            pending: None,
            stop_tokens: Arc::clone(&self.stop_tokens),
            state: State::Waiting,
            hasher: self.hasher,
            hashes: self.hashes.clone(),
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Goes to another state. A transition that the state machine lacks is a bug of the engine.
    pub(crate) fn set_state(&mut self, next: State) {
        let legal = match (self.state, next) {
            (State::Waiting, State::Running | State::Finished)
            | (State::AwaitingKv | State::Paused, State::Waiting | State::Finished)
            | (State::Running, State::Finished) => true,
            (State::Running, State::Waiting) | (State::Waiting | State::Running, State::Paused) => {
                matches!(self.kind, Kind::Generate)
            }
            _ => false,
        };
        debug_assert!(legal, "{:?}: {:?} to {next:?}", self.key, self.state);
        self.state = next;
    }

    pub(crate) fn prompt_len(&self) -> usize {
        self.request.prompt.len()
    }

    /// Tokens there are or will be once launched steps have run.
    pub(crate) fn num_tokens(&self) -> usize {
        self.tokens.len() + usize::from(self.pending.is_some())
    }

    /// Output tokens there are or will be.
    pub(crate) fn num_output_tokens(&self) -> usize {
        self.num_tokens() - self.prompt_len()
    }

    /// Known tokens that no step has been launched for.
    pub(crate) fn num_uncomputed_tokens(&self) -> usize {
        self.num_tokens() - self.num_computed_tokens
    }

    /// Blocks it lacks for all its known tokens.
    pub(crate) fn missing_blocks(&self) -> usize {
        self.num_tokens().div_ceil(self.block_size()).saturating_sub(self.blocks.len())
    }

    /// Whether a step may be launched for it now, given the most tokens a sequence may have. False only while a token
    /// is pending: when that token is known to be the last, when penalties need to see it, or when it completes a
    /// prefill for another worker.
    pub(crate) fn can_launch(&self, max_len: usize) -> bool {
        self.pending.is_none()
            || (self.kind == Kind::Generate
                && !has_penalties(&self.request.sampling)
                && self.num_output_tokens() < self.request.stop.max_tokens as usize
                && self.num_tokens() < max_len)
    }

    /// Why it ends after its last token, if it does.
    pub(crate) fn finish_reason(&self, max_len: usize) -> Option<FinishReason> {
        let last = *self.tokens.last()?;
        let num_output_tokens = self.tokens.len() - self.prompt_len();
        if num_output_tokens == 0 {
            None
        } else if self.stop_tokens.contains(&last) {
            Some(FinishReason::Stop(last))
        } else if num_output_tokens >= self.request.stop.max_tokens as usize || self.tokens.len() >= max_len {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Tokens that must not be drawn as its next.
    pub(crate) fn forbidden(&self) -> &[u32] {
        if self.num_output_tokens() < self.request.stop.min_tokens as usize { &self.stop_tokens } else { &[] }
    }

    /// Published blocks that its known tokens begin with. One token at least is left to compute.
    pub(crate) fn find_cached(&mut self, pool: &BlockPool) -> Vec<BlockId> {
        if !self.publishable {
            return Vec::new();
        }
        let full = (self.tokens.len() - 1) / self.block_size();
        self.extend_hashes(full);
        pool.lookup(&self.hashes[..full], &self.tokens)
    }

    /// Takes blocks that [`Self::find_cached`] found and that are held for it.
    pub(crate) fn take_cached(&mut self, cached: Vec<BlockId>) {
        debug_assert!(self.blocks.is_empty());
        self.num_computed_tokens = cached.len() * self.block_size();
        self.published = cached.len();
        self.blocks = cached;
    }

    /// Tells the prefix cache of the full blocks among the first `computed` tokens, whose steps have been collected and
    /// from whose KV a token has been drawn.
    pub(crate) fn publish(&mut self, computed: usize, pool: &mut BlockPool) {
        let full = computed / self.block_size();
        self.extend_hashes(full);
        while self.publishable && self.published < full {
            let index = self.published;
            let parent = index.checked_sub(1).map(|parent| self.blocks[parent]);
            let tokens = &self.tokens[index * self.block_size()..(index + 1) * self.block_size()];
            // Refused only when hashes collide: the sequence goes on, its further blocks are not shared.
            self.publishable = pool.publish(parent, self.blocks[index], self.hashes[index], tokens).is_ok();
            self.published += usize::from(self.publishable);
        }
    }

    /// Gives up its blocks and all that was computed.
    pub(crate) fn take_blocks(&mut self) -> Vec<BlockId> {
        self.num_computed_tokens = 0;
        self.published = 0;
        std::mem::take(&mut self.blocks)
    }

    pub(crate) fn block_size(&self) -> usize {
        self.hasher.block_size() as usize
    }

    fn extend_hashes(&mut self, full: usize) {
        if !self.publishable {
            return;
        }
        while self.hashes.len() < full {
            let index = self.hashes.len();
            let tokens = &self.tokens[index * self.block_size()..(index + 1) * self.block_size()];
            self.hashes.push(self.hasher.child(self.hashes.last().copied(), tokens));
        }
    }
}
