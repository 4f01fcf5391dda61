//! A backend for tests whose output shows every wrong block, slot or byte.
//!
//! Its model is a hash in place of a network. It has layers like a transformer: what layer 0 stores for a token
//! depends on the token and its position, what layer 1 stores depends on all that layer 0 has stored before it, and
//! the logits depend on all that layer 1 has stored. All of it is read back from the KV memory through the block
//! table. So a block of another sequence, a stale one, one that never arrived or one shared after a different
//! prefix each changes the tokens, and [`FakeModel::generate`], which uses no memory at all, tells.
//!
//! It also asserts that batches keep the contract of [`Batch`], and can be told to fail.

mod memory;
mod model;
mod transport;

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use disagg_core::BlockId;

use crate::backend::{Backend, BackendError, Batch, SampleRow, SampledToken, StepTokens, TokenInput};
use crate::kv::{KvDtype, KvLayout, KvMemory, KvPush, KvTransport};
use crate::request::SamplingParams;
use crate::sampling::{has_penalties, sample};
use model::mix;

pub use memory::FakeMemory;
pub use model::FakeModel;
pub use transport::{FakeTransport, PushedBlock};

const LAYERS: u32 = 2;

/// What a device that is gone answers to everything.
const LOST: &str = "the device is lost";

/// Remote control of a [`FakeBackend`] that an engine owns.
#[derive(Debug, Default)]
pub struct FakeControl {
    /// The next launch fails.
    pub fail_launch: AtomicBool,
    /// The next collect fails.
    pub fail_collect: AtomicBool,
    /// While this step runs, counted from 1, the device goes for good: the step and all that are launched later fail,
    /// and nobody can reach its memory. 0 is never.
    pub lose_at_step: AtomicU32,
    /// The device is gone.
    pub lost: AtomicBool,
    /// The first row of the next collected step can not be drawn.
    pub fail_sample: AtomicBool,
    /// Most tokens a step has had.
    pub most_tokens: AtomicU32,
    /// Most rows a step has had.
    pub most_rows: AtomicU32,
    /// Steps launched.
    pub steps: AtomicU32,
    /// Input tokens that the step before had drawn.
    pub ran_ahead: AtomicU32,
}

impl FakeControl {
    fn take(flag: &AtomicBool) -> bool {
        flag.swap(false, Ordering::SeqCst)
    }
}

/// A batch that outlives its launch.
struct Owned {
    input_ids: Vec<TokenInput>,
    positions: Vec<u32>,
    cu_seqlens: Vec<u32>,
    slot_mapping: Vec<u32>,
    block_tables: Vec<Vec<BlockId>>,
    samples: Vec<OwnedSample>,
}

struct OwnedSample {
    row: u32,
    params: SamplingParams,
    choices: Range<u32>,
    position: u32,
    history: Vec<u32>,
    prompt_len: usize,
    forbidden: Vec<u32>,
}

enum Launched {
    /// Runs as late as it may, so that whoever touches its blocks too early is found out.
    Waiting(Owned),
    Done(StepTokens),
}

/// See the module.
pub struct FakeBackend {
    model: FakeModel,
    memory: Arc<FakeMemory>,
    depth: usize,
    control: Arc<FakeControl>,
    launched: VecDeque<Launched>,
    /// First choices of the step that ran last.
    last_drawn: Vec<u32>,
}

impl FakeBackend {
    /// A pool of `num_blocks` blocks of `block_size` tokens; `depth` steps may be under way.
    pub fn new(model: FakeModel, num_blocks: u32, block_size: u32, depth: usize) -> Self {
        let layout = KvLayout { layers: LAYERS, kv_heads: 1, head_dim: 1, block_size, dtype: KvDtype::F32 };
        let control = Arc::<FakeControl>::default();
        Self {
            model,
            memory: Arc::new(FakeMemory::new(layout, num_blocks, Arc::clone(&control))),
            depth,
            control,
            launched: VecDeque::new(),
            last_drawn: Vec::new(),
        }
    }

    /// Stays valid when an engine owns the backend.
    pub fn control(&self) -> Arc<FakeControl> {
        Arc::clone(&self.control)
    }

    fn error(message: &str) -> BackendError {
        BackendError { backend: "fake", message: message.to_owned() }
    }

    /// Asserts the contract of [`Batch`].
    fn check(&self, batch: &Batch<'_>) {
        let size = self.memory.layout.block_size;
        let rows = batch.block_tables.len();
        assert!(rows > 0 && batch.cu_seqlens.len() == rows + 1 && batch.cu_seqlens[0] == 0);
        assert_eq!(batch.cu_seqlens[rows] as usize, batch.input_ids.len());
        assert_eq!(batch.positions.len(), batch.input_ids.len());
        assert_eq!(batch.slot_mapping.len(), batch.input_ids.len());
        for (row, table) in batch.block_tables.iter().enumerate() {
            let tokens = batch.cu_seqlens[row] as usize..batch.cu_seqlens[row + 1] as usize;
            assert!(!tokens.is_empty(), "a row has tokens");
            let first = batch.positions[tokens.start];
            for (index, position) in tokens.clone().zip(first..) {
                assert_eq!(batch.positions[index], position, "positions of a row follow one another");
                let block = table[(position / size) as usize];
                assert_eq!(
                    batch.slot_mapping[index],
                    block.0 * size + position % size,
                    "slot and table agree"
                );
            }
            let end = batch.positions[tokens.end - 1] + 1;
            assert_eq!(table.len() as u32, end.div_ceil(size), "a table covers its context");
        }
        let slots: HashSet<_> = batch.slot_mapping.iter().collect();
        assert_eq!(slots.len(), batch.slot_mapping.len(), "no slot is written twice");
        for sample in batch.samples {
            let last = batch.cu_seqlens[sample.row as usize + 1] as usize - 1;
            assert_eq!(sample.position, batch.positions[last] + 1);
            let unseen = usize::from(matches!(batch.input_ids[last], TokenInput::Sampled(_)));
            assert_eq!(sample.history.len() + unseen, sample.position as usize);
            assert!(unseen == 0 || !has_penalties(sample.params), "penalties need the whole history");
        }
        assert!(self.launched.len() < self.depth, "no more steps under way than the pipeline is deep");
    }

    fn count(&self, batch: &Batch<'_>) {
        let control = &self.control;
        control.steps.fetch_add(1, Ordering::SeqCst);
        control.most_tokens.fetch_max(batch.input_ids.len() as u32, Ordering::SeqCst);
        control.most_rows.fetch_max(batch.block_tables.len() as u32, Ordering::SeqCst);
        let ahead =
            batch.input_ids.iter().filter(|input| matches!(input, TokenInput::Sampled(_))).count() as u32;
        assert!(ahead == 0 || self.depth > 1);
        control.ran_ahead.fetch_add(ahead, Ordering::SeqCst);
    }

    /// Runs every launched step that still waits.
    fn run_launched(&mut self) {
        for index in 0..self.launched.len() {
            if let Launched::Waiting(batch) = &self.launched[index] {
                let (drawn, first) = self.run(batch, |_| ());
                self.last_drawn = first;
                self.launched[index] = Launched::Done(drawn);
            }
        }
    }

    /// Computes a step. Returns what it drew, and the first choice of each sample.
    fn run(&self, batch: &Owned, mut layer_done: impl FnMut(u32)) -> (StepTokens, Vec<u32>) {
        let token = |input: &TokenInput| match input {
            TokenInput::Id(token) => *token,
            // Nothing is there if that step failed; then nobody looks at this one either.
            TokenInput::Sampled(index) => self.last_drawn.get(*index as usize).copied().unwrap_or_default(),
        };
        let embed = |(input, position): (&TokenInput, &u32)| FakeModel::embed(token(input), *position);
        let mut hidden: Vec<u64> = batch.input_ids.iter().zip(&batch.positions).map(embed).collect();
        for layer in 0..LAYERS {
            for (slot, value) in batch.slot_mapping.iter().zip(&hidden) {
                self.memory.set(layer, *slot, *value);
            }
            layer_done(layer);
            for (row, table) in batch.block_tables.iter().enumerate() {
                let tokens = batch.cu_seqlens[row] as usize..batch.cu_seqlens[row + 1] as usize;
                let first = batch.positions[tokens.start] as usize;
                let context = self.memory.context(layer, table, first + tokens.len());
                let mut sum = FakeModel::attend(context[..first].iter().copied());
                for (index, value) in tokens.zip(&context[first..]) {
                    sum = mix(sum ^ value);
                    hidden[index] = sum;
                }
            }
        }
        let draw = |wanted: &OwnedSample| -> Vec<SampledToken> {
            let row = SampleRow {
                row: wanted.row,
                params: &wanted.params,
                choices: wanted.choices.clone(),
                position: wanted.position,
                history: &wanted.history,
                prompt_len: wanted.prompt_len,
                forbidden: &wanted.forbidden,
            };
            let logits = self.model.logits(hidden[batch.cu_seqlens[wanted.row as usize + 1] as usize - 1]);
            wanted.choices.clone().map_while(|choice| sample(&logits, &row, choice).ok()).collect()
        };
        let drawn: StepTokens = batch.samples.iter().map(draw).collect();
        let first = drawn.iter().map(|tokens| tokens.first().map_or(0, |sampled| sampled.token)).collect();
        (drawn, first)
    }
}

impl Backend for FakeBackend {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn layout(&self) -> KvLayout {
        self.memory.layout
    }

    fn num_blocks(&self) -> u32 {
        self.memory.num_blocks
    }

    fn memory(&self) -> Arc<dyn KvMemory> {
        Arc::<FakeMemory>::clone(&self.memory)
    }

    fn pipeline_depth(&self) -> usize {
        self.depth
    }

    fn launch(&mut self, batch: &Batch<'_>, transport: &mut dyn KvTransport) -> Result<(), BackendError> {
        self.check(batch);
        self.count(batch);
        if FakeControl::take(&self.control.fail_launch) {
            return Err(Self::error("told to fail a launch"));
        }
        if self.control.lost.load(Ordering::SeqCst) {
            return Err(Self::error(LOST));
        }
        if self.control.steps.load(Ordering::SeqCst) == self.control.lose_at_step.load(Ordering::SeqCst) {
            // As on a GPU: the launch is fine, and what waits for the step hears of it.
            self.control.lost.store(true, Ordering::SeqCst);
        }
        let owned = Owned {
            input_ids: batch.input_ids.to_vec(),
            positions: batch.positions.to_vec(),
            cu_seqlens: batch.cu_seqlens.to_vec(),
            slot_mapping: batch.slot_mapping.to_vec(),
            block_tables: batch.block_tables.iter().map(|table| table.to_vec()).collect(),
            samples: batch.samples.iter().map(OwnedSample::new).collect(),
        };
        if batch.pushes.is_empty() || self.control.lost.load(Ordering::SeqCst) {
            self.launched.push_back(Launched::Waiting(owned));
        } else {
            // A push needs the bytes to be there.
            self.run_launched();
            let pushes: &[KvPush] = batch.pushes;
            let (drawn, first) = self.run(&owned, |layer| transport.push_layer(layer, pushes));
            self.last_drawn = first;
            self.launched.push_back(Launched::Done(drawn));
        }
        Ok(())
    }

    fn collect(&mut self, _transport: &mut dyn KvTransport) -> Result<StepTokens, BackendError> {
        if FakeControl::take(&self.control.fail_collect) {
            // A step that has not run yet never will: what it should have stored is not there.
            self.launched.pop_front();
            self.last_drawn.clear();
            return Err(Self::error("told to fail a collect"));
        }
        if self.control.lost.load(Ordering::SeqCst) {
            self.launched.pop_front();
            return Err(Self::error(LOST));
        }
        if let Some(Launched::Waiting(batch)) = self.launched.front() {
            let (drawn, first) = self.run(batch, |_| ());
            self.last_drawn = first;
            self.launched[0] = Launched::Done(drawn);
        }
        let Some(Launched::Done(mut drawn)) = self.launched.pop_front() else {
            return Err(Self::error("no step is under way"));
        };
        if !drawn.is_empty() && FakeControl::take(&self.control.fail_sample) {
            drawn[0].clear();
        }
        Ok(drawn)
    }
}

impl OwnedSample {
    fn new(row: &SampleRow<'_>) -> Self {
        Self {
            row: row.row,
            params: row.params.clone(),
            choices: row.choices.clone(),
            position: row.position,
            history: row.history.to_vec(),
            prompt_len: row.prompt_len,
            forbidden: row.forbidden.to_vec(),
        }
    }
}
