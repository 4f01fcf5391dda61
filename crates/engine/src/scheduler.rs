//! Which sequences take part in the next step, and with how many tokens.
//!
//! Rules, in this order:
//! - Order of arrival decides everywhere. The oldest sequence that is not waiting for a peer always gets on, so every
//!   request ends: nothing that arrives later can hold what it needs for ever.
//! - A running sequence first gets the block for its next token. If none is free, the latest arrived sequence that
//!   holds blocks is preempted: it gives up its blocks and is computed again later. Sequences awaiting KV and
//!   prefills for other workers are never preempted; they need no more memory to come to their end.
//! - Decodes (one token each) come before prefill chunks, which share what is left of the step's token budget. Without
//!   chunked prefill, whole prompts come first, or they would never find room; the number of running sequences
//!   bounds how long decodes stand back.
//! - A waiting sequence is admitted when blocks for all its tokens can be had. If the oldest can not have them, none
//!   after it takes blocks; those that hold all they need still go on, and [`Scheduler::is_blocked`] tells the engine
//!   to promise no more memory to anyone.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::pool::BlockPool;
use crate::sequence::{Kind, Sequence, SequenceKey, State};

/// All sequences of an engine, in order of arrival.
pub(crate) type Sequences = BTreeMap<SequenceKey, Sequence>;

/// Bounds of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Sequences that run at once.
    pub(crate) sequences: usize,
    /// Tokens of one step.
    pub(crate) tokens: usize,
    /// Prompts may be split over steps.
    pub(crate) chunked_prefill: bool,
    /// Prompt and output of one sequence.
    pub(crate) max_len: usize,
}

/// One sequence's part of a step: its tokens `start..start + len`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    pub(crate) key: SequenceKey,
    pub(crate) start: usize,
    pub(crate) len: usize,
    /// These are its last known tokens: the next one is drawn.
    pub(crate) sample: bool,
}

/// Queue and running batch. Holds no sequences itself.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    waiting: BTreeSet<SequenceKey>,
    running: BTreeSet<SequenceKey>,
    blocked: bool,
}

/// Preemption is needed and a step is under way, whose rows hold what would be given up.
struct StepUnderWay;

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, waiting: BTreeSet::new(), running: BTreeSet::new(), blocked: false }
    }

    /// Puts a waiting sequence in its place in the queue.
    pub(crate) fn enqueue(&mut self, key: SequenceKey) {
        self.waiting.insert(key);
    }

    /// Forgets a sequence.
    pub(crate) fn remove(&mut self, key: SequenceKey) {
        self.waiting.remove(&key);
        self.running.remove(&key);
    }

    /// Sequences that wait, in order of arrival.
    pub(crate) fn waiting(&self) -> &BTreeSet<SequenceKey> {
        &self.waiting
    }

    /// Sequences that run, in order of arrival.
    pub(crate) fn running(&self) -> &BTreeSet<SequenceKey> {
        &self.running
    }

    /// In the last step the oldest waiting sequence did not get the blocks it needs.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked && !self.waiting.is_empty()
    }

    /// The next step. Blocks are allocated; sequences change state only between waiting and running. `under_way` says
    /// that a step is launched and not collected: then nobody is preempted. If somebody has to be, the plan is empty
    /// and the caller collects first.
    pub(crate) fn schedule(
        &mut self,
        sequences: &mut Sequences,
        pool: &mut BlockPool,
        under_way: bool,
    ) -> Vec<Row> {
        if self.grow(sequences, pool, under_way).is_err() {
            return Vec::new();
        }
        let mut step = Step { rows: Vec::new(), budget: self.limits.tokens, limits: self.limits };
        if self.limits.chunked_prefill {
            self.plan_running(sequences, &mut step, |remaining| remaining == 1);
            self.plan_running(sequences, &mut step, |remaining| remaining > 1);
            self.admit(sequences, pool, &mut step);
        } else {
            self.plan_running(sequences, &mut step, |remaining| remaining > 1);
            self.admit(sequences, pool, &mut step);
            self.plan_running(sequences, &mut step, |remaining| remaining == 1);
        }
        step.rows
    }

    /// Gives every running sequence the block for its next token, oldest first. One that gets none although nobody
    /// younger is left to take it from steps aside: it waits with what it has, and leaves its place in the batch to
    /// those that need no more memory. Without that, a prefill for another worker could wait for a place that is
    /// held by a sequence waiting for that prefill's blocks.
    fn grow(
        &mut self,
        sequences: &mut Sequences,
        pool: &mut BlockPool,
        under_way: bool,
    ) -> Result<(), StepUnderWay> {
        let mut cursor = Bound::Unbounded;
        while let Some(&key) = self.running.range((cursor, Bound::Unbounded)).next() {
            cursor = Bound::Excluded(key);
            let sequence = &sequences[&key];
            if !sequence.can_launch(self.limits.max_len) {
                continue;
            }
            let missing = sequence.missing_blocks();
            if missing > pool.free() && under_way {
                return Err(StepUnderWay);
            }
            while missing > pool.free() {
                let Some(victim) = self.youngest_holder(sequences, key) else { break };
                self.preempt(victim, sequences, pool);
            }
            let blocks = pool.allocate(missing);
            let Some(sequence) = sequences.get_mut(&key) else { continue };
            match blocks {
                Some(blocks) => sequence.blocks.extend(blocks),
                None => self.step_aside(sequence),
            }
        }
        Ok(())
    }

    /// The latest arrived sequence after `key` whose blocks may be taken.
    fn youngest_holder(&self, sequences: &Sequences, key: SequenceKey) -> Option<SequenceKey> {
        let after = (Bound::Excluded(key), Bound::Unbounded);
        let holds = |key: &&SequenceKey| {
            let sequence = &sequences[*key];
            sequence.kind == Kind::Generate && !sequence.blocks.is_empty()
        };
        let running = self.running.range(after).rev().find(holds);
        let waiting = self.waiting.range(after).rev().find(holds);
        running.max(waiting).copied()
    }

    /// Takes a sequence's blocks; it will be computed again.
    fn preempt(&mut self, key: SequenceKey, sequences: &mut Sequences, pool: &mut BlockPool) {
        let Some(sequence) = sequences.get_mut(&key) else { return };
        pool.release(&sequence.take_blocks());
        if sequence.state() == State::Running {
            self.step_aside(sequence);
        }
    }

    /// From the batch back to the queue.
    fn step_aside(&mut self, sequence: &mut Sequence) {
        debug_assert_eq!(sequence.in_flight, 0, "a launched step has a row of {:?}", sequence.key);
        sequence.set_state(State::Waiting);
        self.running.remove(&sequence.key);
        self.waiting.insert(sequence.key);
    }

    /// Adds the rows of running sequences with so many tokens to compute.
    fn plan_running(&self, sequences: &mut Sequences, step: &mut Step, wanted: impl Fn(usize) -> bool) {
        for key in &self.running {
            let sequence = &sequences[key];
            let ready = sequence.can_launch(self.limits.max_len);
            if ready && wanted(sequence.remaining()) && !step.has(*key) && !step.add(sequence) {
                break;
            }
        }
    }

    /// Moves waiting sequences to the running ones while sequences, budget and blocks last.
    fn admit(&mut self, sequences: &mut Sequences, pool: &mut BlockPool, step: &mut Step) {
        self.blocked = false;
        let mut cursor = Bound::Unbounded;
        while let Some(&key) = self.waiting.range((cursor, Bound::Unbounded)).next() {
            cursor = Bound::Excluded(key);
            if self.running.len() >= self.limits.sequences || step.budget == 0 {
                break;
            }
            let Some(sequence) = sequences.get_mut(&key) else { continue };
            let needs_blocks = sequence.missing_blocks() > 0;
            if needs_blocks && self.blocked {
                continue;
            }
            let cached = if sequence.blocks.is_empty() { sequence.find_cached(pool) } else { Vec::new() };
            let missing = sequence.missing_blocks() - cached.len();
            let remaining = sequence.remaining() - cached.len() * sequence.block_size();
            if step.share(remaining) == 0 {
                break;
            }
            if needs_blocks && !self.make_room(key, missing, &cached, sequences, pool) {
                self.blocked = true;
                continue;
            }
            let Some(sequence) = sequences.get_mut(&key) else { continue };
            if sequence.blocks.is_empty() {
                pool.hold(&cached);
                sequence.take_cached(cached);
            }
            // There is room: `make_room` said so, and what was cached is held.
            let Some(blocks) = pool.allocate(missing) else { continue };
            sequence.blocks.extend(blocks);
            sequence.set_state(State::Running);
            step.add(sequence);
            self.waiting.remove(&key);
            self.running.insert(key);
        }
    }

    /// Whether `missing` blocks can be allocated after `cached` ones are held. The first waiting sequence that lacks
    /// some takes back what younger waiting ones hold without being able to run.
    fn make_room(
        &mut self,
        key: SequenceKey,
        missing: usize,
        cached: &[disagg_core::BlockId],
        sequences: &mut Sequences,
        pool: &mut BlockPool,
    ) -> bool {
        loop {
            if missing + pool.count_free(cached) <= pool.free() {
                return true;
            }
            let stuck = |key: &&SequenceKey| {
                let sequence = &sequences[*key];
                let prefill = sequence.kind != Kind::Generate;
                !prefill && !sequence.blocks.is_empty() && sequence.missing_blocks() > 0
            };
            let after = (Bound::Excluded(key), Bound::Unbounded);
            let Some(&victim) = self.waiting.range(after).rev().find(stuck) else { return false };
            self.preempt(victim, sequences, pool);
        }
    }
}

/// A step in the making.
struct Step {
    rows: Vec<Row>,
    /// Tokens that may still be added.
    budget: usize,
    limits: Limits,
}

impl Step {
    /// How many of `remaining` tokens may be added now.
    fn share(&self, remaining: usize) -> usize {
        // Without chunking too, a preempted sequence may have outgrown the budget of a step.
        let may_split = self.limits.chunked_prefill || remaining > self.limits.tokens;
        if may_split || remaining <= self.budget { remaining.min(self.budget) } else { 0 }
    }

    /// Adds as much of a sequence as may be; false if that is nothing.
    fn add(&mut self, sequence: &Sequence) -> bool {
        let len = self.share(sequence.remaining());
        if len > 0 {
            let start = sequence.computed;
            self.budget -= len;
            self.rows.push(Row { key: sequence.key, start, len, sample: start + len == sequence.known() });
        }
        len > 0
    }

    fn has(&self, key: SequenceKey) -> bool {
        self.rows.iter().any(|row| row.key == key)
    }
}
