//! A backend for tests whose output shows every wrong block, slot or byte.
//!
//! Its model is a hash in place of a network. It has layers like a transformer: what layer 0 stores for a token
//! depends on the token and its position, what layer 1 stores depends on all that layer 0 has stored before it, and
//! the logits depend on all that layer 1 has stored. All of it is read back from the KV memory through the block
//! table. So a block of another sequence, a stale one, one that never arrived or one shared after a different
//! prefix each changes the tokens, and [`FakeModel::generate`], which uses no memory at all, tells.
//!
//! It also asserts that batches keep the contract of [`Batch`], and can be told to fail.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use disagg_core::{BlockId, HandoffId};

use crate::backend::{Backend, BackendError, Batch, SampleRow, SampledToken, StepTokens, TokenInput};
use crate::kv::{KvAccessError, KvDtype, KvLayout, KvMemory, KvPush, KvTransport};
use crate::request::{FinishReason, Request, SamplingParams};
use crate::sampling::{has_penalties, sample};

const LAYERS: u32 = 2;

/// The model, as pure functions.
#[derive(Clone, Copy, Debug)]
pub struct FakeModel {
    /// Tokens it knows.
    pub vocab_size: u32,
}

impl FakeModel {
    /// What layer 0 keeps for a token.
    fn embed(token: u32, position: u32) -> u64 {
        mix(u64::from(token) << 32 | u64::from(position))
    }

    /// Output of a layer for the last of the tokens whose values it has kept.
    fn attend(kept: impl Iterator<Item = u64>) -> u64 {
        kept.fold(1, |sum, value| mix(sum ^ value))
    }

    fn logits(self, hidden: u64) -> Vec<f32> {
        let logit = |token: u32| (mix(hidden ^ u64::from(token)) >> 40) as f32 / (1u64 << 21) as f32;
        (0..self.vocab_size).map(logit).collect()
    }

    /// Logits after `tokens`, without any memory.
    pub fn logits_after(self, tokens: &[u32]) -> Vec<f32> {
        let embedded = tokens.iter().zip(0..).map(|(token, position)| Self::embed(*token, position));
        let mut sum = 1;
        let attended = embedded.map(|value| {
            sum = mix(sum ^ value);
            sum
        });
        self.logits(Self::attend(attended))
    }

    /// What an engine with sequences of at most `max_len` tokens must answer: tokens and end of each choice.
    pub fn generate(self, request: &Request, max_len: usize) -> Vec<(Vec<SampledToken>, FinishReason)> {
        (0..request.choices).map(|choice| self.generate_choice(request, choice, max_len)).collect()
    }

    fn generate_choice(
        self,
        request: &Request,
        choice: u32,
        max_len: usize,
    ) -> (Vec<SampledToken>, FinishReason) {
        let stop = &request.stop;
        let mut ends: Vec<u32> = stop.stop_token_ids.clone();
        if !stop.ignore_eos {
            ends.extend(&stop.eos_token_ids);
        }
        let mut history = request.prompt.clone();
        let mut output = Vec::new();
        loop {
            let row = SampleRow {
                row: 0,
                params: &request.sampling,
                choices: 0..1,
                position: history.len() as u32,
                history: &history,
                prompt_len: request.prompt.len(),
                forbidden: if output.len() < stop.min_tokens as usize { &ends } else { &[] },
            };
            let Ok(sampled) = sample(&self.logits_after(&history), &row, choice) else {
                return (output, FinishReason::Error);
            };
            let token = sampled.token;
            history.push(token);
            output.push(sampled);
            if ends.contains(&token) {
                return (output, FinishReason::Stop(token));
            }
            if output.len() >= stop.max_tokens as usize || history.len() >= max_len {
                return (output, FinishReason::Length);
            }
        }
    }
}

/// splitmix64's output function (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}

/// KV memory of a [`FakeBackend`]: real bytes, filled with noise at first.
#[derive(Debug)]
pub struct FakeMemory {
    layout: KvLayout,
    num_blocks: u32,
    /// `[layer][block]`.
    blocks: Mutex<Vec<Vec<u8>>>,
}

impl FakeMemory {
    fn new(layout: KvLayout, num_blocks: u32) -> Self {
        let block = vec![0xA5; layout.layer_block_bytes()];
        Self { layout, num_blocks, blocks: Mutex::new(vec![block; (layout.layers * num_blocks) as usize]) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self, layer: u32, block: BlockId) -> Result<usize, KvAccessError> {
        let (layers, blocks) = (self.layout.layers, self.num_blocks);
        if layer < layers && block.0 < blocks {
            Ok((layer * blocks + block.0) as usize)
        } else {
            Err(KvAccessError::OutOfRange { layer, block: block.0, layers, blocks })
        }
    }

    /// Bytes of a slot's K and of its V within its block.
    fn halves(&self, offset: usize) -> [Range<usize>; 2] {
        let half = self.layout.half_elements() * 4;
        [offset * 4..offset * 4 + 4, half + offset * 4..half + offset * 4 + 4]
    }

    fn set(&self, layer: u32, slot: u32, value: u64) {
        let size = self.layout.block_size;
        let index = self.index(layer, BlockId(slot / size)).expect("a slot of the pool");
        let bytes = &mut self.lock()[index];
        let [k, v] = self.halves((slot % size) as usize);
        bytes[k].copy_from_slice(&(value as u32).to_le_bytes());
        bytes[v].copy_from_slice(&((value >> 32) as u32).to_le_bytes());
    }

    /// Values of the first `count` tokens of a block table.
    fn context(&self, layer: u32, table: &[BlockId], count: usize) -> Vec<u64> {
        let size = self.layout.block_size as usize;
        let blocks = self.lock();
        let value = |position: usize| {
            let index = self.index(layer, table[position / size]).expect("a block of the pool");
            let [k, v] = self.halves(position % size);
            let word = |range: Range<usize>| {
                blocks[index][range].iter().rev().fold(0, |sum, b| sum << 8 | u64::from(*b))
            };
            word(v) << 32 | word(k)
        };
        (0..count).map(value).collect()
    }
}

impl KvMemory for FakeMemory {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn num_blocks(&self) -> u32 {
        self.num_blocks
    }

    fn read(&self, layer: u32, block: BlockId, out: &mut Vec<u8>) -> Result<(), KvAccessError> {
        let index = self.index(layer, block)?;
        out.extend_from_slice(&self.lock()[index]);
        Ok(())
    }

    fn write(&self, layer: u32, block: BlockId, bytes: &[u8]) -> Result<(), KvAccessError> {
        let index = self.index(layer, block)?;
        let want = self.layout.layer_block_bytes();
        if bytes.len() != want {
            return Err(KvAccessError::WrongSize { got: bytes.len(), want });
        }
        self.lock()[index].copy_from_slice(bytes);
        Ok(())
    }
}

/// Remote control of a [`FakeBackend`] that an engine owns.
#[derive(Debug, Default)]
pub struct FakeControl {
    /// The next launch fails.
    pub fail_launch: AtomicBool,
    /// The next collect fails.
    pub fail_collect: AtomicBool,
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
        Self {
            model,
            memory: Arc::new(FakeMemory::new(layout, num_blocks)),
            depth,
            control: Arc::default(),
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
                let before = FakeModel::attend(context[..first].iter().copied());
                let mut sum = before;
                for (index, value) in tokens.zip(&context[first..]) {
                    sum = mix(sum ^ value);
                    hidden[index] = sum;
                }
            }
        }
        let draw = |sample: &OwnedSample| -> Vec<SampledToken> {
            let row = SampleRow {
                row: sample.row,
                params: &sample.params,
                choices: sample.choices.clone(),
                position: sample.position,
                history: &sample.history,
                prompt_len: sample.prompt_len,
                forbidden: &sample.forbidden,
            };
            let logits = self.model.logits(hidden[batch.cu_seqlens[sample.row as usize + 1] as usize - 1]);
            sample
                .choices
                .clone()
                .map_while(|choice| crate::sampling::sample(&logits, &row, choice).ok())
                .collect()
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
        let owned = Owned {
            input_ids: batch.input_ids.to_vec(),
            positions: batch.positions.to_vec(),
            cu_seqlens: batch.cu_seqlens.to_vec(),
            slot_mapping: batch.slot_mapping.to_vec(),
            block_tables: batch.block_tables.iter().map(|table| table.to_vec()).collect(),
            samples: batch.samples.iter().map(OwnedSample::new).collect(),
        };
        if batch.pushes.is_empty() {
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

    fn collect(&mut self) -> Result<StepTokens, BackendError> {
        if FakeControl::take(&self.control.fail_collect) {
            // A step that has not run yet never will: what it should have stored is not there.
            self.launched.pop_front();
            self.last_drawn.clear();
            return Err(Self::error("told to fail a collect"));
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

/// A transport that notes every push, and lets the test decide when its bytes travel.
pub struct FakeTransport {
    source: Arc<dyn KvMemory>,
    /// What was pushed and has not been taken, in order.
    pub pushed: Vec<PushedBlock>,
}

/// One block of one layer on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PushedBlock {
    /// Whose.
    pub handoff: HandoffId,
    /// Layer.
    pub layer: u32,
    /// Position among the blocks the receiver reserved.
    pub position: u32,
    source: BlockId,
    bytes: Vec<u8>,
}

impl FakeTransport {
    /// Carries blocks out of `source`.
    pub fn new(source: Arc<dyn KvMemory>) -> Self {
        Self { source, pushed: Vec::new() }
    }

    /// Reads a pushed block as late as a real transport may. Asserts that it is what it was when it was pushed.
    pub fn read(&self, pushed: &PushedBlock) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.source.read(pushed.layer, pushed.source, &mut bytes).expect("a block of the pool");
        assert_eq!(bytes, pushed.bytes, "a block changed before its push had drained");
        bytes
    }
}

impl KvTransport for FakeTransport {
    fn push_layer(&mut self, layer: u32, pushes: &[KvPush]) {
        for push in pushes {
            assert!(!push.blocks.is_empty(), "an empty push");
            for (&source, position) in push.blocks.iter().zip(push.first..) {
                let mut bytes = Vec::new();
                self.source.read(layer, source, &mut bytes).expect("a block of the pool");
                self.pushed.push(PushedBlock { handoff: push.handoff, layer, position, source, bytes });
            }
        }
    }
}
