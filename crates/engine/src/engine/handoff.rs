//! The two parts of a handoff. On the decode worker a sequence awaits KV in blocks reserved for it; on the prefill
//! worker a prompt is computed for somebody else and its blocks stay until they have been sent.

use std::collections::{BTreeSet, HashMap};

use disagg_core::{BlockId, HandoffId, SequenceId};

use crate::backend::{Backend, SampledToken};
use crate::engine::{AdmitError, BlockFate, Engine, NotAwaitingKv, RemotePrefill, Reservation};
use crate::request::{FinishReason, Request};
use crate::sequence::{Kind, Push, SequenceKey, State};

/// Sequences awaiting KV, and the blocks they hold together.
#[derive(Debug, Default)]
pub(super) struct AwaitingKv {
    sequences: BTreeSet<SequenceKey>,
    /// How many of them hold each block: cached ones may be shared.
    blocks: HashMap<BlockId, u32>,
}

impl AwaitingKv {
    pub(super) fn sequences(&self) -> usize {
        self.sequences.len()
    }

    fn add(&mut self, key: SequenceKey, blocks: &[BlockId]) {
        self.sequences.insert(key);
        for block in blocks {
            *self.blocks.entry(*block).or_default() += 1;
        }
    }

    pub(super) fn contains(&self, key: SequenceKey) -> bool {
        self.sequences.contains(&key)
    }

    /// Of a sequence that is lost, and the number of whose blocks nobody knows.
    pub(super) fn forget(&mut self, key: SequenceKey) {
        self.sequences.remove(&key);
    }

    /// Of a sequence that is here, with the blocks it came with.
    fn remove(&mut self, key: SequenceKey, blocks: &[BlockId]) {
        self.sequences.remove(&key);
        for block in blocks {
            if let Some(holders) = self.blocks.get_mut(block) {
                *holders -= 1;
                if *holders == 0 {
                    self.blocks.remove(block);
                }
            }
        }
    }
}

/// On the decode worker.
impl<B: Backend> Engine<B> {
    /// Takes a request whose prompt another worker prefills, and reserves all its prompt's blocks. Sequences
    /// awaiting KV hold at most half of the pool; beyond that this refuses with [`AdmitError::NoBlocks`].
    ///
    /// Cached blocks at the head of the prompt are held by the reservation. The last block is never among them: it
    /// is sent, so there is always at least one. Beside the prompt's, the block of the first drawn token is held, so
    /// that the sequence can go on as soon as it is activated.
    pub fn reserve(&mut self, request: Request) -> Result<Reservation, AdmitError> {
        self.check_prompt(&request)?;
        self.check_queue()?;
        let mut sequence = self.new_sequence(request, Kind::Generate, State::AwaitingKv);
        let prompt_blocks = sequence.prompt_len().div_ceil(self.block_size);
        let cached = sequence.find_cached(&self.pool);
        let needed = (sequence.prompt_len() + 1).div_ceil(self.block_size) - cached.len();
        if needed <= self.share_to_await(&cached) {
            self.take_from_paused(needed, &cached);
        }
        let available = self.available_to_await(&cached);
        let blocks = if needed <= available { self.pool_after_holding(&cached, needed) } else { None };
        let Some(blocks) = blocks else {
            return Err(AdmitError::NoBlocks { needed: needed as u32, available: available as u32 });
        };
        let first_block = cached.len();
        sequence.take_cached(cached);
        sequence.blocks.extend(blocks);
        let key = sequence.key;
        self.awaiting.add(key, &sequence.blocks);
        let reservation = Reservation {
            sequence: key.request,
            overlap_tokens: sequence.num_computed_tokens as u32,
            first_block: first_block as u32,
            blocks: sequence.blocks[first_block..prompt_blocks].to_vec(),
        };
        self.insert(sequence);
        Ok(reservation)
    }

    /// Every reserved block has landed and the first token of each choice is known: the sequence joins the running
    /// batch at the next step. The first tokens come out as events of the next [`Engine::take_events`].
    ///
    /// With fewer first tokens than choices the request ends with an error.
    pub fn activate(
        &mut self,
        sequence: SequenceId,
        first_tokens: Vec<SampledToken>,
    ) -> Result<(), NotAwaitingKv> {
        let key = self.requeue_awaiting(sequence)?;
        let Some(sequence) = self.sequences.held_mut(key) else { return Ok(()) };
        if first_tokens.len() < sequence.choices.len() {
            self.finish(key, FinishReason::Error);
            return Ok(());
        }
        // What has landed is published with the next draw, which is the first that this worker makes from it.
        sequence.num_computed_tokens = sequence.prompt_len();
        self.accept(key, first_tokens);
        Ok(())
    }

    /// The remote prefill will not come: prefill here, in the blocks already reserved. The caller has made sure that
    /// nobody writes them any more.
    pub fn fall_back(&mut self, sequence: SequenceId) -> Result<(), NotAwaitingKv> {
        self.requeue_awaiting(sequence).map(drop)
    }

    /// Gives a reservation up and the request back, to be submitted or reserved anew. No event follows.
    pub fn abandon(&mut self, sequence: SequenceId, blocks: BlockFate) -> Result<Request, NotAwaitingKv> {
        let key = SequenceKey { request: sequence, choice: 0 };
        if !self.leave_awaiting(key, blocks) {
            return Err(NotAwaitingKv(sequence));
        }
        let mut sequence = self.sequences.remove(key).ok_or(NotAwaitingKv(sequence))?;
        // The caller has the request back and needs no event.
        self.unfinished.remove(&key);
        self.scheduler.remove(key);
        self.pool.release(&sequence.take_blocks());
        Ok(Request::clone(&sequence.request))
    }

    /// Ends the wait for KV, if it waits. Blocks that a peer may still write go to quarantine; the sequence keeps the
    /// others.
    pub(super) fn leave_awaiting(&mut self, key: SequenceKey, fate: BlockFate) -> bool {
        if !self.awaiting.contains(key) {
            return false;
        }
        let Some(sequence) = self.sequences.held_mut(key) else { return false };
        self.awaiting.remove(key, &sequence.blocks);
        self.stalled = false;
        if fate == BlockFate::Quarantine {
            let reserved = sequence.blocks.split_off(sequence.num_computed_tokens / self.block_size);
            self.pool.quarantine(key.request, reserved);
        }
        true
    }

    /// From awaiting KV to the queue, with all its blocks.
    fn requeue_awaiting(&mut self, sequence: SequenceId) -> Result<SequenceKey, NotAwaitingKv> {
        let key = SequenceKey { request: sequence, choice: 0 };
        if !self.leave_awaiting(key, BlockFate::Free) {
            return Err(NotAwaitingKv(sequence));
        }
        if let Some(sequence) = self.sequences.held_mut(key) {
            sequence.set_state(State::Waiting);
            self.scheduler.enqueue(sequence);
        }
        Ok(key)
    }

    /// Blocks that one more sequence awaiting KV may take beside the `cached` ones.
    fn available_to_await(&self, cached: &[BlockId]) -> usize {
        self.share_to_await(cached).min(self.available_at_once(cached))
    }

    /// What is left for one more of the half of the pool that sequences awaiting KV may hold.
    fn share_to_await(&self, cached: &[BlockId]) -> usize {
        // Quarantined blocks wait for a peer too.
        let held = self.awaiting.blocks.len() + self.pool.quarantined();
        let joining = cached.iter().filter(|block| !self.awaiting.blocks.contains_key(block)).count();
        (self.pool.total() / 2).saturating_sub(held + joining)
    }

    /// Takes blocks from paused sequences, as far as `needed` ones are not free beside the `cached` ones.
    fn take_from_paused(&mut self, needed: usize, cached: &[BlockId]) {
        while !self.scheduler.is_blocked() && self.available_at_once(cached) < needed {
            if !self.scheduler.preempt_paused(&mut self.sequences, &mut self.pool) {
                return;
            }
        }
    }

    /// Free blocks for work that takes all of them at once, beside the `cached` ones. None while a request that came
    /// before waits for memory.
    fn available_at_once(&self, cached: &[BlockId]) -> usize {
        if self.scheduler.is_blocked() { 0 } else { self.pool.free() - self.pool.count_free(cached) }
    }

    /// Holds the cached blocks and allocates `count` more.
    fn pool_after_holding(&mut self, cached: &[BlockId], count: usize) -> Option<Vec<BlockId>> {
        self.pool.hold(cached);
        let blocks = self.pool.allocate(count);
        if blocks.is_none() {
            self.pool.release(cached);
        }
        blocks
    }
}

/// On the prefill worker.
impl<B: Backend> Engine<B> {
    /// Takes a prefill for another worker and all blocks it needs, or refuses.
    /// Returns the prompt tokens that are cached here and need no computing.
    pub fn submit_prefill(&mut self, prefill: RemotePrefill) -> Result<u32, AdmitError> {
        let RemotePrefill { handoff, request, first_block } = prefill;
        self.check_prompt(&request)?;
        if self.handoffs.contains_key(&handoff) {
            return Err(AdmitError::DuplicateHandoff(handoff));
        }
        let queued = self.load().prefill_queue;
        if queued >= self.config.max_prefill_queue {
            return Err(AdmitError::QueueFull { waiting: queued });
        }
        let first_block = first_block as usize;
        let push = Push { handoff, first_block, next_block: first_block, drained: false };
        let mut sequence = self.new_sequence(request, Kind::Prefill(push), State::Waiting);
        let cached = sequence.find_cached(&self.pool);
        let needed = sequence.missing_blocks() - cached.len();
        self.take_from_paused(needed, &cached);
        let available = self.available_at_once(&cached);
        let blocks = if needed <= available { self.pool_after_holding(&cached, needed) } else { None };
        let Some(blocks) = blocks else {
            return Err(AdmitError::NoBlocks { needed: needed as u32, available: available as u32 });
        };
        sequence.take_cached(cached);
        sequence.blocks.extend(blocks);
        let (key, overlap) = (sequence.key, sequence.num_computed_tokens);
        self.handoffs.insert(handoff, key);
        self.insert(sequence);
        self.enqueue(key);
        Ok(overlap as u32)
    }

    /// Stops a prefill for another worker. Its blocks stay until [`Engine::push_drained`]. No event follows.
    /// False if it is not known or already done.
    pub fn cancel_prefill(&mut self, handoff: HandoffId) -> bool {
        let Some(key) = self.handoffs.get(&handoff).copied() else { return false };
        let Some(sequence) = self.sequences.held_mut(key) else { return false };
        if sequence.state() == State::Finished {
            return false;
        }
        self.stalled = false;
        sequence.set_state(State::Finished);
        self.scheduler.remove(key);
        true
    }

    /// No push of this handoff is under way any more: its source blocks may be reused. The prefill is done, has failed
    /// or was cancelled; of one that still computes this is ignored, since more pushes are to come.
    pub fn push_drained(&mut self, handoff: HandoffId) {
        let Some(key) = self.handoffs.get(&handoff).copied() else { return };
        let Some(sequence) = self.sequences.held_mut(key) else { return };
        if let (State::Finished, Kind::Prefill(push)) = (sequence.state(), &mut sequence.kind) {
            push.drained = true;
            self.drop_if_unused(key);
        }
    }
}
