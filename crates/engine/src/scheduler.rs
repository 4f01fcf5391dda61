//! Which sequences take part in the next step, and with how many tokens.
//!
//! Rules, in this order:
//! - **Running slots are shared between requests, not between sequences.** A choice has a rank: the number of older
//!   choices of its request that have not ended. Sequences are served by rank, then by arrival ([`Turn`]). When slots
//!   are short, a waiting sequence takes the slot, and if need be the blocks, of a running one of higher rank. So no
//!   request holds a second slot while another waits for its first, none a third while another waits for its second,
//!   and so on: a request of many choices gets what others leave, and its fair share when there is too little.
//!   Sequences of equal rank never displace each other.
//! - Nobody starves. The first live choice of the oldest request has the first turn and keeps it until it ends;
//!   nothing that arrives later can hold what it needs for ever. When it ends, the next choice moves up.
//! - A sequence that loses its slot to the share of another steps aside with its blocks and goes on when a slot is
//!   free. It is computed again only if its blocks are needed, too.
//! - A request whose reader is behind is **paused**: none of its sequences is in a step, holds a slot or stands in
//!   the way of others. They keep their blocks until somebody lacks blocks; then theirs are the first to go.
//! - A running sequence first gets the block for its next token. If none is free, the sequence with the latest turn
//!   that holds blocks is preempted: it gives up its blocks and is computed again later. Sequences awaiting KV and
//!   prefills for other workers are never preempted; they need no more memory to come to their end.
//! - Decodes (one token each) come before prefill chunks, which share what is left of the step's token budget. Without
//!   chunked prefill, whole prompts come first, or they would never find room; the number of running sequences
//!   bounds how long decodes stand back.
//! - A waiting sequence is admitted when blocks for all its tokens can be had. If the first in turn can not have them,
//!   none after it takes blocks; those that hold all they need still go on, and [`Scheduler::is_blocked`] tells the
//!   engine to promise no more memory to anyone.

mod turns;

use std::collections::BTreeSet;
use std::ops::Bound;

use disagg_core::{BlockId, SequenceId};

use crate::pool::BlockPool;
use crate::sequence::{Kind, Sequence, SequenceKey, State};
use crate::sequences::Sequences;
pub(crate) use turns::{Turn, Turns};

/// Bounds of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Sequences that run at once: the running slots.
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
    turns: Turns,
    /// Requests whose reader is behind. Their sequences are paused, but for those in a step under way, which follow
    /// when it is collected.
    behind: BTreeSet<SequenceId>,
    blocked: bool,
}

/// Somebody has to give way and a step is under way, whose rows hold what would be given up.
#[derive(Debug)]
struct StepUnderWay;

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, turns: Turns::default(), behind: BTreeSet::new(), blocked: false }
    }

    /// Puts a sequence in state waiting in its place in the queue; paused at once if its reader is behind.
    pub(crate) fn enqueue(&mut self, sequence: &mut Sequence) {
        self.turns.add(sequence.key);
        self.pause_if_behind(sequence);
    }

    /// Forgets a sequence.
    pub(crate) fn remove(&mut self, key: SequenceKey) {
        self.turns.remove(key);
        if self.turns.of_request(key.request).next().is_none() {
            self.behind.remove(&key.request);
        }
    }

    /// Who waits, runs and is paused, in order.
    pub(crate) fn turns(&self) -> &Turns {
        &self.turns
    }

    /// In the last step the first waiting sequence did not get the blocks it needs.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked && !self.turns.waiting().is_empty()
    }

    /// The reader of a request is behind: its sequences are in no step until [`Self::resume`].
    pub(crate) fn pause(&mut self, request: SequenceId, sequences: &mut Sequences) {
        self.behind.insert(request);
        let keys: Vec<_> = self.turns.of_request(request).collect();
        for key in keys {
            if let Some(sequence) = sequences.held_mut(key) {
                self.pause_if_behind(sequence);
            }
        }
    }

    /// The reader of a request has caught up.
    pub(crate) fn resume(&mut self, request: SequenceId, sequences: &mut Sequences) {
        if !self.behind.remove(&request) {
            return;
        }
        let keys: Vec<_> = self.turns.of_request(request).collect();
        for key in keys {
            if let Some(sequence) = sequences.held_mut(key)
                && sequence.state() == State::Paused
            {
                sequence.set_state(State::Waiting);
                self.turns.resume(key);
            }
        }
    }

    /// Pauses a sequence whose reader is behind. One that is in a step under way is paused when that is collected.
    pub(crate) fn pause_if_behind(&mut self, sequence: &mut Sequence) {
        let schedulable = matches!(sequence.state(), State::Waiting | State::Running);
        let pausable = schedulable && sequence.in_flight == 0 && sequence.kind == Kind::Generate;
        if pausable && self.behind.contains(&sequence.key.request) {
            sequence.set_state(State::Paused);
            self.turns.pause(sequence.key);
        }
    }

    /// The next step. Blocks are allocated; sequences change state only between waiting and running. `under_way` says
    /// that a step is launched and not collected: then nobody in it has to give way. If somebody has to, the plan is
    /// empty and the caller collects first.
    pub(crate) fn schedule(
        &mut self,
        sequences: &mut Sequences,
        pool: &mut BlockPool,
        under_way: bool,
    ) -> Vec<Row> {
        self.plan(sequences, pool, under_way).unwrap_or_default()
    }

    fn plan(
        &mut self,
        sequences: &mut Sequences,
        pool: &mut BlockPool,
        under_way: bool,
    ) -> Result<Vec<Row>, StepUnderWay> {
        self.grow(sequences, pool, under_way)?;
        let mut step = Step { rows: Vec::new(), budget: self.limits.tokens, limits: self.limits };
        if self.limits.chunked_prefill {
            self.plan_running(sequences, &mut step, |remaining| remaining == 1);
            self.plan_running(sequences, &mut step, |remaining| remaining > 1);
            self.admit(sequences, pool, &mut step)?;
        } else {
            self.plan_running(sequences, &mut step, |remaining| remaining > 1);
            self.admit(sequences, pool, &mut step)?;
            self.plan_running(sequences, &mut step, |remaining| remaining == 1);
        }
        Ok(step.rows)
    }

    /// Whether a step may be launched for a running sequence now.
    fn can_launch(&self, sequence: &Sequence) -> bool {
        sequence.can_launch(self.limits.max_len) && !self.behind.contains(&sequence.key.request)
    }

    /// Gives every running sequence the block for its next token, in turn. One that gets none although nobody with a
    /// later turn is left to take it from steps aside: it waits with what it has, and leaves its place in the batch to
    /// those that need no more memory. Without that, a prefill for another worker could wait for a place that is
    /// held by a sequence waiting for that prefill's blocks.
    fn grow(
        &mut self,
        sequences: &mut Sequences,
        pool: &mut BlockPool,
        under_way: bool,
    ) -> Result<(), StepUnderWay> {
        let mut cursor = Bound::Unbounded;
        while let Some(&turn) = self.turns.running().range((cursor, Bound::Unbounded)).next() {
            cursor = Bound::Excluded(turn);
            let Some(sequence) = sequences.held(turn.key).filter(|sequence| self.can_launch(sequence)) else {
                continue;
            };
            let missing = sequence.missing_blocks();
            while missing > pool.free() {
                if self.preempt_paused(sequences, pool) {
                    continue;
                }
                if under_way {
                    return Err(StepUnderWay);
                }
                let Some(victim) = self.last_holder(sequences, turn) else { break };
                self.preempt(victim, sequences, pool);
            }
            let Some(sequence) = sequences.held_mut(turn.key) else { continue };
            match pool.allocate(missing) {
                Some(blocks) => sequence.blocks.extend(blocks),
                None => self.step_aside(sequence),
            }
        }
        Ok(())
    }

    /// The sequence with the latest turn after `turn` whose blocks may be taken.
    fn last_holder(&self, sequences: &Sequences, turn: Turn) -> Option<SequenceKey> {
        let after = (Bound::Excluded(turn), Bound::Unbounded);
        let holds = |other: &&Turn| sequences.held(other.key).is_some_and(may_be_preempted);
        let running = self.turns.running().range(after).rev().find(holds);
        let waiting = self.turns.waiting().range(after).rev().find(holds);
        running.max(waiting).map(|turn| turn.key)
    }

    /// Takes the blocks of the latest arrived paused sequence that holds some. False if there is none.
    pub(crate) fn preempt_paused(&mut self, sequences: &mut Sequences, pool: &mut BlockPool) -> bool {
        let holds =
            |key: &&SequenceKey| sequences.held(**key).is_some_and(|sequence| !sequence.blocks.is_empty());
        let Some(&victim) = self.turns.paused().iter().rev().find(holds) else { return false };
        self.preempt(victim, sequences, pool);
        true
    }

    /// Takes a sequence's blocks; it will be computed again.
    fn preempt(&mut self, key: SequenceKey, sequences: &mut Sequences, pool: &mut BlockPool) {
        let Some(sequence) = sequences.held_mut(key) else { return };
        pool.release(&sequence.take_blocks());
        if sequence.state() == State::Running {
            self.step_aside(sequence);
        }
    }

    /// From the batch back to the queue.
    fn step_aside(&mut self, sequence: &mut Sequence) {
        debug_assert_eq!(sequence.in_flight, 0, "a launched step has a row of {:?}", sequence.key);
        sequence.set_state(State::Waiting);
        self.turns.step_aside(sequence.key);
    }

    /// Adds the rows of running sequences whose number of tokens to compute is `wanted`.
    fn plan_running(&self, sequences: &mut Sequences, step: &mut Step, wanted: impl Fn(usize) -> bool) {
        for Turn { key, .. } in self.turns.running() {
            let Some(sequence) = sequences.held(*key) else { continue };
            let ready = self.can_launch(sequence);
            if ready && wanted(sequence.num_uncomputed_tokens()) && !step.has(*key) && !step.add(sequence) {
                break;
            }
        }
    }

    /// Moves waiting sequences to the running ones, in turn, while slots, budget and blocks last.
    fn admit(
        &mut self,
        sequences: &mut Sequences,
        pool: &mut BlockPool,
        step: &mut Step,
    ) -> Result<(), StepUnderWay> {
        self.blocked = false;
        let mut cursor = Bound::Unbounded;
        while let Some(&turn) = self.turns.waiting().range((cursor, Bound::Unbounded)).next() {
            cursor = Bound::Excluded(turn);
            let full = self.turns.running().len() >= self.limits.sequences;
            let outranked = if full { self.outranked(turn) } else { None };
            if full && outranked.is_none() {
                break;
            }
            let Some(sequence) = sequences.held_mut(turn.key) else { continue };
            let needs_blocks = sequence.missing_blocks() > 0;
            if needs_blocks && self.blocked {
                continue;
            }
            let cached = if sequence.blocks.is_empty() { sequence.find_cached(pool) } else { Vec::new() };
            let missing = sequence.missing_blocks() - cached.len();
            let remaining = sequence.num_uncomputed_tokens() - cached.len() * sequence.block_size();
            let budget = step.budget + outranked.map_or(0, |key| step.len_of(key));
            if step.share(remaining, budget) == 0 {
                break;
            }
            if needs_blocks && !self.make_room(turn, missing, &cached, sequences, pool, step)? {
                self.blocked = true;
                continue;
            }
            if !self.make_way(turn, sequences, step)? {
                break;
            }
            let Some(sequence) = sequences.held_mut(turn.key) else { continue };
            if sequence.blocks.is_empty() {
                pool.hold(&cached);
                sequence.take_cached(cached);
            }
            // There is room: `make_room` said so, and what was cached is held.
            let Some(blocks) = pool.allocate(missing) else { continue };
            sequence.blocks.extend(blocks);
            sequence.set_state(State::Running);
            step.add(sequence);
            self.turns.start(turn.key);
        }
        Ok(())
    }

    /// The running sequence that has to give its slot to a waiting one of this turn, if slots are short.
    fn outranked(&self, turn: Turn) -> Option<SequenceKey> {
        self.turns.running().last().filter(|last| last.rank > turn.rank).map(|last| last.key)
    }

    /// Makes a slot free for `turn`, at the cost of a sequence of higher rank. False if there is none to be had.
    fn make_way(
        &mut self,
        turn: Turn,
        sequences: &mut Sequences,
        step: &mut Step,
    ) -> Result<bool, StepUnderWay> {
        if self.turns.running().len() < self.limits.sequences {
            return Ok(true);
        }
        let Some(sequence) = self.outranked(turn).and_then(|key| sequences.held_mut(key)) else {
            return Ok(false);
        };
        if sequence.in_flight > 0 {
            return Err(StepUnderWay);
        }
        step.take_back(sequence.key);
        self.step_aside(sequence);
        Ok(true)
    }

    /// Whether `missing` blocks can be allocated after `cached` ones are held. Blocks are taken from paused sequences,
    /// then from those of higher rank, and the first waiting sequence that lacks some also takes back what those
    /// behind it hold without being able to run.
    fn make_room(
        &mut self,
        turn: Turn,
        missing: usize,
        cached: &[BlockId],
        sequences: &mut Sequences,
        pool: &mut BlockPool,
        step: &mut Step,
    ) -> Result<bool, StepUnderWay> {
        while missing + pool.count_free(cached) > pool.free() {
            if self.preempt_paused(sequences, pool) {
                continue;
            }
            let Some(victim) = self.last_giver(sequences, turn) else { return Ok(false) };
            if sequences.held(victim).is_some_and(|sequence| sequence.in_flight > 0) {
                return Err(StepUnderWay);
            }
            step.take_back(victim);
            self.preempt(victim, sequences, pool);
        }
        Ok(true)
    }

    /// The sequence with the latest turn whose blocks a waiting one of `turn` may take.
    fn last_giver(&self, sequences: &Sequences, turn: Turn) -> Option<SequenceKey> {
        let after = (Bound::Excluded(turn), Bound::Unbounded);
        let holds = |other: &&Turn| sequences.held(other.key).is_some_and(may_be_preempted);
        let outranked = |other: &&Turn| other.rank > turn.rank;
        let stuck =
            |other: &&Turn| sequences.held(other.key).is_some_and(|sequence| sequence.missing_blocks() > 0);
        let running = self.turns.running().range(after).rev().take_while(outranked).find(holds);
        let gives = |other: &&Turn| holds(other) && (outranked(other) || stuck(other));
        let waiting = self.turns.waiting().range(after).rev().find(gives);
        running.max(waiting).map(|turn| turn.key)
    }
}

/// Whether there are blocks to be had from a sequence, by computing it again later.
fn may_be_preempted(sequence: &Sequence) -> bool {
    sequence.kind == Kind::Generate && !sequence.blocks.is_empty()
}

/// A step in the making.
struct Step {
    rows: Vec<Row>,
    /// Tokens that may still be added.
    budget: usize,
    limits: Limits,
}

impl Step {
    /// How many of `remaining` tokens may be added to a step with room for `budget`.
    fn share(&self, remaining: usize, budget: usize) -> usize {
        // Without chunking too, a preempted sequence may have outgrown the budget of a step.
        let may_split = self.limits.chunked_prefill || remaining > self.limits.tokens;
        if may_split || remaining <= budget { remaining.min(budget) } else { 0 }
    }

    /// Adds as much of a sequence as may be; false if that is nothing.
    fn add(&mut self, sequence: &Sequence) -> bool {
        let len = self.share(sequence.num_uncomputed_tokens(), self.budget);
        if len > 0 {
            let start = sequence.num_computed_tokens;
            self.budget -= len;
            self.rows.push(Row {
                key: sequence.key,
                start,
                len,
                sample: start + len == sequence.num_tokens(),
            });
        }
        len > 0
    }

    fn has(&self, key: SequenceKey) -> bool {
        self.rows.iter().any(|row| row.key == key)
    }

    /// Tokens of a sequence in this step.
    fn len_of(&self, key: SequenceKey) -> usize {
        self.rows.iter().find(|row| row.key == key).map_or(0, |row| row.len)
    }

    /// Leaves a sequence out after all.
    fn take_back(&mut self, key: SequenceKey) {
        self.budget += self.len_of(key);
        self.rows.retain(|row| row.key != key);
    }
}
