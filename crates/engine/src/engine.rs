//! The engine: owns sequences, pool, scheduler and backend, and turns requests into events one step at a time.
//!
//! Here is what every request needs; `step` computes, `handoff` is the part that two workers play together.

#[cfg(test)]
mod faults;
mod handoff;
mod step;
mod types;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use disagg_core::hash::BlockHasher;
use disagg_core::{HandoffId, KvEvent, SequenceId};

use crate::backend::Backend;
use crate::kv::KvMemory;
use crate::pool::BlockPool;
use crate::request::{FinishReason, Request};
use crate::scheduler::{Limits, Row, Scheduler, Turn};
use crate::sequence::{Kind, Sequence, SequenceKey, State};
use crate::sequences::Sequences;
use handoff::AwaitingKv;

pub use types::{
    AdmitError, BlockFate, ConfigError, EngineConfig, EngineEvent, EngineLoad, NotAwaitingKv, RemotePrefill,
    Reservation,
};

/// Owns everything a worker computes with. Lives on one thread.
pub struct Engine<B: Backend> {
    config: EngineConfig,
    backend: B,
    pool: BlockPool,
    scheduler: Scheduler,
    sequences: Sequences,
    /// Choices that each sequence still owes a `Finished`; those of requests for this worker's own callers. What has
    /// been told its end is not in here, so no choice can end twice, and none is forgotten.
    unfinished: BTreeMap<SequenceKey, Range<u32>>,
    /// Sequences whose prompt another worker prefills.
    awaiting: AwaitingKv,
    /// Prefills for other workers whose blocks are still needed.
    handoffs: HashMap<HandoffId, SequenceKey>,
    /// Steps launched and not collected, oldest first.
    launched: VecDeque<Vec<Row>>,
    events: Vec<EngineEvent>,
    next_id: u64,
    block_size: usize,
    /// Most tokens of a sequence, prompt and output: by the model, and by what the pool can hold.
    max_len: usize,
    /// The last step found nothing that could be computed, and nothing has changed since.
    stalled: bool,
}

impl<B: Backend> Engine<B> {
    /// Checks `config` against the backend.
    pub fn new(config: EngineConfig, backend: B) -> Result<Self, ConfigError> {
        let layout = backend.layout();
        check_config(&config, layout.block_size, backend.num_blocks())?;
        let slots = backend.num_blocks() * layout.block_size;
        let max_len = config.max_model_len.min(slots) as usize;
        let limits = Limits {
            sequences: config.max_num_seqs as usize,
            tokens: config.max_num_batched_tokens as usize,
            chunked_prefill: config.enable_chunked_prefill,
            max_len,
        };
        Ok(Self {
            pool: BlockPool::new(backend.num_blocks(), layout.block_size),
            scheduler: Scheduler::new(limits),
            sequences: Sequences::default(),
            unfinished: BTreeMap::new(),
            awaiting: AwaitingKv::default(),
            handoffs: HashMap::new(),
            launched: VecDeque::new(),
            events: Vec::new(),
            next_id: 1,
            block_size: layout.block_size as usize,
            max_len,
            stalled: false,
            config,
            backend,
        })
    }

    /// The KV pool, for transports.
    pub fn memory(&self) -> Arc<dyn KvMemory> {
        self.backend.memory()
    }

    /// Prompt tokens that are cached here, without touching anything: a multiple of the block size, and less than the
    /// prompt, whose last token is always computed.
    pub fn overlap_tokens(&self, prompt: &[u32], cache_salt: &str) -> u32 {
        if prompt.is_empty() || !self.config.enable_prefix_caching {
            return 0;
        }
        let full = (prompt.len() - 1) / self.block_size * self.block_size;
        let hashes = self.hasher(cache_salt).hash_blocks(&prompt[..full]);
        (self.pool.lookup(&hashes, prompt).len() * self.block_size) as u32
    }

    /// Takes a request to prefill and decode here.
    pub fn submit(&mut self, request: Request) -> Result<SequenceId, AdmitError> {
        self.check_prompt(&request)?;
        self.check_queue()?;
        let sequence = self.new_sequence(request, Kind::Generate, State::Waiting);
        let key = sequence.key;
        self.insert(sequence);
        self.enqueue(key);
        Ok(key.request)
    }

    /// The reader of a request is behind: nothing is computed for it, and it holds no running slot, until
    /// [`Engine::resume`]. It keeps its blocks until others need them. A step under way still brings its tokens, so at
    /// most that many more events follow. Unknown requests are ignored: it may have ended.
    pub fn pause(&mut self, sequence: SequenceId) {
        if self.live_choices(sequence).next().is_some() {
            self.stalled = false;
            self.scheduler.pause(sequence, &mut self.sequences);
        }
    }

    /// The reader of a paused request has caught up: it goes on when it is its turn.
    pub fn resume(&mut self, sequence: SequenceId) {
        self.stalled = false;
        self.scheduler.resume(sequence, &mut self.sequences);
    }

    /// Choices of a request for this worker's own callers that have not ended.
    fn live_choices(&self, request: SequenceId) -> impl Iterator<Item = SequenceKey> + '_ {
        let first = SequenceKey { request, choice: 0 };
        let last = SequenceKey { request, choice: u32::MAX };
        let live =
            |sequence: &Sequence| sequence.kind == Kind::Generate && sequence.state() != State::Finished;
        self.sequences.range(first..=last).filter(move |(_, sequence)| live(sequence)).map(|(key, _)| *key)
    }

    /// Ends a request with [`FinishReason::Cancelled`] for every choice that has not ended. False if unknown.
    ///
    /// `blocks` matters only while the sequence awaits KV: after that nobody else writes its blocks.
    pub fn cancel(&mut self, sequence: SequenceId, blocks: BlockFate) -> bool {
        let keys: Vec<_> = self.live_choices(sequence).collect();
        for key in &keys {
            self.leave_awaiting(*key, blocks);
            self.finish(*key, FinishReason::Cancelled);
        }
        !keys.is_empty()
    }

    /// Frees the blocks that `cancel` put into quarantine for this sequence.
    pub fn end_quarantine(&mut self, sequence: SequenceId) {
        self.stalled = false;
        self.pool.end_quarantine(sequence);
    }

    /// Whether [`Engine::step`] would compute something. False also when every sequence waits for memory that only
    /// a peer's answer can free; any call that changes something makes it true again.
    pub fn has_work(&self) -> bool {
        let turns = self.scheduler.turns();
        let ready = !turns.running().is_empty() || !turns.waiting().is_empty();
        !self.launched.is_empty() || (ready && !self.stalled) || self.sequences.has_lost()
    }

    /// What has happened since the last call, in order.
    pub fn take_events(&mut self) -> Vec<EngineEvent> {
        std::mem::take(&mut self.events)
    }

    /// Changes of the prefix cache since the last call, in order.
    pub fn take_kv_events(&mut self) -> Vec<KvEvent> {
        self.pool.take_events()
    }

    /// The prefix cache as it is: parents before children. Deltas that were not yet taken are part of it, so take and
    /// drop them before.
    pub fn kv_snapshot(&self) -> Vec<KvEvent> {
        self.pool.snapshot()
    }

    /// Load now.
    pub fn load(&self) -> EngineLoad {
        let turns = self.scheduler.turns();
        let is_prefill = |turn: &&Turn| {
            self.sequences.held(turn.key).is_some_and(|sequence| sequence.kind != Kind::Generate)
        };
        let prefills = || turns.waiting().iter().chain(turns.running()).filter(is_prefill);
        let to_compute = |turn: &Turn| {
            let left =
                |sequence: &Sequence| sequence.prompt_len().saturating_sub(sequence.num_computed_tokens);
            self.sequences.held(turn.key).map_or(0, left) as u64
        };
        EngineLoad {
            running: turns.running().len() as u32,
            waiting: turns.waiting().iter().filter(|turn| !is_prefill(turn)).count() as u32,
            paused: turns.paused().len() as u32,
            awaiting_kv: self.awaiting.sequences() as u32,
            blocks_total: self.pool.total() as u32,
            blocks_used: self.pool.used() as u32,
            blocks_quarantined: self.pool.quarantined() as u32,
            prefill_queue: prefills().count() as u32,
            prefill_queue_tokens: prefills().map(to_compute).sum(),
        }
    }

    /// Requests that wait or are paused and of which nothing runs, without prefills for others.
    fn waiting_requests(&self) -> usize {
        let own = |key: SequenceKey| {
            self.sequences.held(key).is_some_and(|sequence| sequence.kind == Kind::Generate)
        };
        let sequences: Vec<_> = self.scheduler.turns().by_request().filter(|(key, _)| own(*key)).collect();
        let requests = sequences.chunk_by(|(one, _), (other, _)| one.request == other.request);
        requests.filter(|choices| !choices.iter().any(|(_, runs)| *runs)).count()
    }

    fn check_prompt(&self, request: &Request) -> Result<(), AdmitError> {
        let tokens = request.prompt.len();
        let mut limit = self.max_len - 1;
        if !self.config.enable_chunked_prefill {
            limit = limit.min(self.config.max_num_batched_tokens as usize);
        }
        if tokens == 0 {
            Err(AdmitError::EmptyPrompt)
        } else if tokens > limit {
            Err(AdmitError::PromptTooLong { tokens: tokens as u32, limit: limit as u32 })
        } else {
            Ok(())
        }
    }

    /// Bounds all that may come to wait: sequences awaiting KV will.
    fn check_queue(&self) -> Result<(), AdmitError> {
        let waiting = (self.waiting_requests() + self.awaiting.sequences()) as u32;
        if waiting >= self.config.max_waiting { Err(AdmitError::QueueFull { waiting }) } else { Ok(()) }
    }

    fn hasher(&self, cache_salt: &str) -> BlockHasher {
        BlockHasher::new(self.config.fingerprint, self.block_size as u32, cache_salt)
    }

    /// A sequence under the next id; the id is used up by [`Self::insert`].
    fn new_sequence(&self, request: Request, kind: Kind, state: State) -> Sequence {
        let hasher = self.hasher(&request.cache_salt);
        let id = SequenceId(self.next_id);
        Sequence::new(id, Arc::new(request), kind, state, hasher, self.config.enable_prefix_caching)
    }

    fn insert(&mut self, sequence: Sequence) {
        self.stalled = false;
        self.next_id += 1;
        self.add(sequence);
    }

    /// Adds a sequence, and what it owes.
    fn add(&mut self, sequence: Sequence) -> &mut Sequence {
        if sequence.kind == Kind::Generate {
            self.unfinished.insert(sequence.key, sequence.choices.clone());
        }
        self.sequences.insert(sequence)
    }

    /// Puts a sequence that was just inserted into the queue.
    fn enqueue(&mut self, key: SequenceKey) {
        if let Some(sequence) = self.sequences.held_mut(key) {
            self.scheduler.enqueue(sequence);
        }
    }

    /// Ends a sequence and each choice it stands for.
    fn finish(&mut self, key: SequenceKey, reason: FinishReason) {
        let Some(sequence) = self.sequences.held_mut(key) else { return };
        sequence.set_state(State::Finished);
        self.scheduler.remove(key);
        if let Kind::Prefill(push) = &sequence.kind {
            self.events.push(EngineEvent::PrefillFailed { handoff: push.handoff });
        }
        self.tell_end(key, reason);
        self.drop_if_unused(key);
    }

    /// The last event of each choice that a sequence stands for.
    fn tell_end(&mut self, key: SequenceKey, reason: FinishReason) {
        let choices = self.unfinished.remove(&key).unwrap_or_default();
        let ended = |choice| EngineEvent::Finished { sequence: key.request, choice, reason };
        self.events.extend(choices.map(ended));
    }

    /// Ends what was found to have no sequence any more, so that nobody waits for it. Its blocks, which only the sequence
    /// knew, stay used.
    fn end_lost(&mut self) {
        for key in self.sequences.take_lost() {
            self.scheduler.remove(key);
            self.awaiting.forget(key);
            let of_key = |(handoff, of): (&HandoffId, &SequenceKey)| (*of == key).then_some(*handoff);
            if let Some(handoff) = self.handoffs.iter().find_map(of_key) {
                self.handoffs.remove(&handoff);
                self.events.push(EngineEvent::PrefillFailed { handoff });
            }
            self.tell_end(key, FinishReason::Error);
        }
    }

    /// Frees the blocks of a sequence that has ended, once no step under way and no push uses them.
    fn drop_if_unused(&mut self, key: SequenceKey) {
        let Some(sequence) = self.sequences.held_mut(key) else { return };
        if sequence.state() != State::Finished || sequence.in_flight > 0 {
            return;
        }
        if let Kind::Prefill(push) = &sequence.kind {
            if !push.drained {
                return;
            }
            self.handoffs.remove(&push.handoff);
        }
        self.stalled = false;
        self.pool.release(&sequence.take_blocks());
        self.sequences.remove(key);
    }

    /// Panics if an invariant of the pool does not hold, or if sequences and pool disagree about who holds what.
    /// Linear in the pool and the sequences: for tests.
    pub fn check(&self) {
        self.pool.check();
        let mut held: Vec<_> = self.sequences.iter().flat_map(|(_, sequence)| &sequence.blocks).collect();
        held.sort_unstable();
        held.dedup();
        assert_eq!(
            held.len() + self.pool.quarantined(),
            self.pool.used(),
            "a block is held by nobody, or lost"
        );
        for (key, sequence) in self.sequences.iter() {
            let owes = sequence.kind == Kind::Generate && sequence.state() != State::Finished;
            let choices = owes.then_some(&sequence.choices);
            assert_eq!(self.unfinished.get(key), choices, "{key:?} and what it owes its caller");
            let turns = self.scheduler.turns();
            let turn = turns.turn(*key);
            let waits = turn.is_some_and(|turn| turns.waiting().contains(&turn));
            let runs = turn.is_some_and(|turn| turns.running().contains(&turn));
            assert_eq!(waits, sequence.state() == State::Waiting, "{key:?}");
            assert_eq!(runs, sequence.state() == State::Running, "{key:?}");
            assert_eq!(turns.paused().contains(key), sequence.state() == State::Paused, "{key:?}");
        }
        for row in self.launched.iter().flatten() {
            let blocks = self.sequences.held(row.key).map_or(0, |sequence| sequence.blocks.len());
            let covers = row.start + row.len <= blocks * self.block_size;
            assert!(covers, "a step under way uses blocks that {:?} no longer holds", row.key);
        }
        assert!(self.scheduler.turns().running().len() <= self.config.max_num_seqs as usize);
    }
}

fn check_config(config: &EngineConfig, block_size: u32, num_blocks: u32) -> Result<(), ConfigError> {
    let at_least = |field, value: u32, least: u32, why: &str| {
        if value >= least {
            return Ok(());
        }
        Err(ConfigError { field, message: format!("{value} is too small: at least {least}, {why}") })
    };
    at_least("block-size", block_size, 1, "a block holds tokens")?;
    at_least("num-blocks", num_blocks, 1, "the pool needs memory")?;
    at_least("max-model-len", config.max_model_len, 2, "one token in and one out")?;
    at_least("max-num-seqs", config.max_num_seqs, 1, "or nothing ever runs")?;
    at_least("max-waiting", config.max_waiting, 1, "every request waits before it runs")?;
    let why = "max-num-seqs, so that every running sequence gets a token in every step";
    at_least("max-num-batched-tokens", config.max_num_batched_tokens, config.max_num_seqs, why)?;
    if num_blocks.checked_mul(block_size).is_none() {
        let message = format!("{num_blocks} blocks of {block_size} tokens are more than 32 bits can count");
        return Err(ConfigError { field: "num-blocks", message });
    }
    Ok(())
}
