//! [`Backend`] on a GPU: stages inputs, replays CUDA graphs for decode steps, keeps two steps under way.
//!
//! A step in which every row is one token is padded to the next batch size that has a graph; a graph serves every
//! context length, since lengths are read on the device. Other steps (prompts, or both mixed) are launched kernel by
//! kernel: their matrix products are long enough to hide it. A step's tokens come back through pinned memory behind
//! an event, so that nothing waits for the device but `collect`.

#[cfg(debug_assertions)]
mod fault;
mod stage;
mod times;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, CudaGraph};
use disagg_engine::{
    Backend, BackendError, Batch, KvLayout, KvMemory, KvPush, KvTransport, SampledToken, StepTokens,
};

use parking_lot::Mutex;

pub use self::times::StepTimes;
use self::times::{Around, Clock};
use super::compile::{Target, compile_ahead};
use super::device::{Buffer, Device};
use super::format::Format;
use super::forward::{Capacity, Model};
use super::limits::{check_model, check_weights, fitting_blocks, input_words};
use super::lists::{RawRow, Wanted};
use super::memory::DevicePool;
use super::staging::{Pinned, Staging};
use super::step::Step;
use super::weights::{Origin, load_weights};
use super::{CudaError, Doing};
use crate::model::{ModelSpec, WeightFormat};

const NAME: &str = "cuda";
/// Steps that may be under way.
const DEPTH: usize = 2;
/// Tokens that one row may draw: the most choices that a request may ask for.
const CHOICES_MAX: u32 = 128;
/// Adjusted logits that one step may have at most, for penalties over long histories of many sequences.
pub(super) const ADJUSTS_MAX: usize = 1 << 22;
/// Tokens in a KV block; the attention kernels are written for it.
pub const BLOCK_SIZE: u32 = 64;
/// Batch sizes that get a graph: dense where a padding row costs most.
const GRAPH_ROWS: [u32; 15] = [1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128];
/// Written between timed products to empty the L2 cache; over twice the largest there is.
const FLUSH_BYTES: usize = 256 << 20;

/// Bounds that buffers are made for.
#[derive(Clone, Copy, Debug)]
pub struct CudaOptions {
    /// Which GPU, as CUDA counts those it is shown.
    pub ordinal: usize,
    /// Tokens in one step.
    pub max_num_batched_tokens: u32,
    /// Sequences in one step.
    pub max_num_seqs: u32,
    /// Tokens in one sequence.
    pub max_model_len: u32,
    /// Share of the GPU's whole memory that this process may use in all, over 0 and at most 1.
    pub gpu_memory_utilization: f64,
    /// Blocks in the KV pool; `None`: as many as fit.
    pub num_blocks: Option<u32>,
    /// Sleep until a step has ended. Otherwise the engine's thread looks all the time, which takes a core.
    pub blocking_wait: bool,
}

/// Computes on one GPU.
pub struct CudaBackend {
    // Before the model, whose buffers it reads: fields drop in order.
    graphs: BTreeMap<u32, Graph>,
    model: Model,
    ordinal: usize,
    memory: Arc<DevicePool>,
    layout: KvLayout,
    #[expect(dead_code, reason = "keeps the device side of the slots' staging allocated")]
    inputs: Buffer<u32>,
    slots: [Slot; DEPTH],
    under_way: VecDeque<UnderWay>,
    launched: usize,
    table_stride: u32,
    /// Batch sizes that graphs are made for, up to the most sequences.
    graph_rows: Vec<u32>,
    /// Of the step launched last: where each sample's first draw is.
    first_draws: Vec<u32>,
    blocking_wait: bool,
    /// If steps are to be timed.
    clock: Option<Clock>,
    #[cfg(debug_assertions)]
    fault: Option<fault::Fault>,
}

/// A recorded step.
struct Graph(CudaGraph);

// SAFETY: a graph may be launched from any one thread at a time, and it is used through `&mut CudaBackend` alone.
unsafe impl Send for Graph {}

/// Host memory of one step under way.
struct Slot {
    staging: Staging,
    tokens: Pinned<u32>,
    logprobs: Pinned<f32>,
    top_ids: Pinned<u32>,
    top_logprobs: Pinned<f32>,
}

/// A launched step.
struct UnderWay {
    slot: usize,
    done: CudaEvent,
    around: Option<Around>,
    /// The end of each layer, if there is something to push and the step was no graph.
    layers: Vec<CudaEvent>,
    samples: Vec<Wanted>,
    pushes: Vec<KvPush>,
}

impl CudaBackend {
    /// Opens the GPU, brings the weights there, sizes the KV pool, times algorithms and records graphs.
    pub fn new(spec: ModelSpec, origin: Origin<'_>, options: CudaOptions) -> Result<Self, CudaError> {
        let device = Device::open(options.ordinal)?;
        check_model(&spec, options.max_num_seqs)?;
        // A pool of a size that was asked for is bounded by nothing but what is free.
        let share = options.num_blocks.is_none().then_some(options.gpu_memory_utilization);
        check_weights(&device, &spec, share)?;
        let target = Target {
            capability: device.capability,
            head_dim: spec.head_dim as u32,
            block_size: BLOCK_SIZE,
            format: Format::of(&spec),
        };
        compile_ahead(&target);
        if spec.weight_format == WeightFormat::F32 {
            tracing::info!("config.json names no format of 16 bits: weights are rounded to bf16");
        }
        let weights = load_weights(&device, &spec, &target, origin)?;
        let layout = Self::layout_of(&spec);
        let sequences = options.max_num_seqs;
        let mut capacity = Capacity {
            tokens: options.max_num_batched_tokens.max(sequences),
            sequences,
            draws: sequences * CHOICES_MAX,
            model_len: options.max_model_len,
            blocks: 0,
        };
        capacity.blocks = match options.num_blocks {
            Some(blocks) => blocks,
            None => fitting_blocks(&device, &spec, &layout, capacity, options.gpu_memory_utilization)?,
        };
        let mut model = Model::new(device, spec, weights, &target, capacity)?;
        let memory = DevicePool::new(&model.device, &target, model.pool.clone(), layout, capacity.blocks)?;
        let table_stride = layout.blocks_for(options.max_model_len);
        let words = input_words(capacity, table_stride);
        let inputs = model.device.buffer(words)?;
        let slots =
            [Slot::new(&model.device, &inputs, capacity)?, Slot::new(&model.device, &inputs, capacity)?];
        let mut graph_rows: Vec<u32> = GRAPH_ROWS.into_iter().filter(|&rows| rows < sequences).collect();
        if sequences <= GRAPH_ROWS[GRAPH_ROWS.len() - 1] {
            graph_rows.push(sequences);
        }
        let flush = model.device.buffer(FLUSH_BYTES)?;
        for &rows in &graph_rows {
            model.choose_decode_form(rows, &flush)?;
            model.tune_head(rows, &flush)?;
        }
        // The size of a step while prompts wait.
        model.tune(capacity.tokens, &flush)?;
        model.blas.save();
        model.device.synchronize()?;
        tracing::info!(
            gpu = model.device.context.name().unwrap_or_default(),
            format = ?target.format,
            blocks = capacity.blocks,
            kv_mib = (u64::from(capacity.blocks) * layout.block_bytes() as u64) >> 20,
            "CUDA backend"
        );
        Ok(Self {
            graphs: BTreeMap::new(),
            memory: Arc::new(memory),
            layout,
            inputs,
            slots,
            under_way: VecDeque::new(),
            launched: 0,
            table_stride,
            graph_rows,
            first_draws: Vec::new(),
            ordinal: options.ordinal,
            blocking_wait: options.blocking_wait,
            clock: None,
            #[cfg(debug_assertions)]
            fault: fault::Fault::from_environment(&model.device, &target)?,
            model,
        })
    }

    /// Times steps from now on. The sums grow as steps are collected.
    pub fn time_steps(&mut self) -> Arc<Mutex<StepTimes>> {
        self.clock.get_or_insert_default().sums()
    }

    /// Shape of the KV pool that this backend makes for a model.
    pub fn layout_of(spec: &ModelSpec) -> KvLayout {
        spec.kv_layout(BLOCK_SIZE, Format::of(spec).kv())
    }

    /// Name of the GPU, for status.
    pub fn gpu_name(&self) -> String {
        self.model.device.context.name().unwrap_or_default()
    }

    fn try_launch(&mut self, batch: &Batch<'_>) -> Result<(), CudaError> {
        // The engine's thread is another than the one that made the backend.
        self.model.device.context.bind_to_thread().doing("using the GPU")?;
        let slot = self.launched % DEPTH;
        let rows = batch.block_tables.len() as u32;
        let all_decode = batch.positions.len() == rows as usize && batch.samples.len() == rows as usize;
        let single_choice = batch.samples.iter().all(|sample| sample.choices.len() == 1);
        let graph_rows = if all_decode && single_choice {
            self.graph_rows.iter().copied().find(|&padded| padded >= rows)
        } else {
            None
        };
        self.slots[slot].staging.clear();
        let (step, samples) = match graph_rows {
            Some(padded) => self.stage_decode(slot, batch, padded)?,
            None => self.stage_mixed(slot, batch)?,
        };
        self.slots[slot].staging.send(&self.model.device)?;
        #[cfg(debug_assertions)]
        if let Some(fault) = &self.fault {
            fault.strike(&self.model.device, self.launched)?;
        }
        let kind = if self.blocking_wait {
            CUevent_flags::CU_EVENT_BLOCKING_SYNC
        } else {
            CUevent_flags::CU_EVENT_DISABLE_TIMING
        };
        let mut layers = Vec::new();
        let stream = self.model.device.stream.clone();
        let timed = self.clock.is_some();
        let compute = || match graph_rows {
            Some(padded) => self.replay(padded, &step),
            None => self.model.step(&step, |device, _| {
                if !batch.pushes.is_empty() {
                    layers
                        .push(device.stream.record_event(Some(kind)).doing("recording the end of a layer")?);
                }
                Ok(())
            }),
        };
        let around = Around::issue(&stream, timed, compute)?;
        self.fetch(slot, &step, &samples)?;
        let done = stream.record_event(Some(kind)).doing("recording the end of a step")?;
        self.first_draws = samples.iter().map(|wanted| wanted.draws.start as u32).collect();
        let pushes = batch.pushes.to_vec();
        self.under_way.push_back(UnderWay { slot, done, around, layers, samples, pushes });
        self.launched += 1;
        Ok(())
    }

    /// The graph for `rows` rows, recorded on first use.
    fn replay(&mut self, rows: u32, step: &Step) -> Result<(), CudaError> {
        if !self.graphs.contains_key(&rows) {
            // Once without recording: cublasLt and the driver load what they need, which a recording must not do.
            self.model.step(step, |_, _| Ok(()))?;
            let graph = self.model.record(|model| model.step(step, |_, _| Ok(())))?;
            self.graphs.insert(rows, Graph(graph));
            return Ok(());
        }
        self.graphs[&rows].0.launch().doing("replaying a graph")
    }

    /// Issues the copies of what a step draws.
    fn fetch(&mut self, slot: usize, step: &Step, samples: &[Wanted]) -> Result<(), CudaError> {
        if step.samples == 0 {
            return Ok(());
        }
        let (model, slot) = (&self.model, &mut self.slots[slot]);
        let stream = model.device.stream.cu_stream();
        let draws = step.draws as usize;
        // SAFETY: pinned memory of this slot is read only after the event behind these copies.
        unsafe {
            use cudarc::driver::result::memcpy_dtoh_async as copy;
            copy(&mut slot.tokens.as_mut_slice()[..draws], model.sampled.address(), stream)
                .and_then(|()| {
                    if samples.iter().all(|wanted| wanted.top_logprobs.is_none()) {
                        return Ok(());
                    }
                    let top = samples.len() * RawRow::TOP_MAX;
                    copy(&mut slot.logprobs.as_mut_slice()[..draws], model.logprobs.address(), stream)?;
                    copy(&mut slot.top_ids.as_mut_slice()[..top], model.top_ids.address(), stream)?;
                    copy(&mut slot.top_logprobs.as_mut_slice()[..top], model.top_logprobs.address(), stream)
                })
                .doing("fetching drawn tokens")
        }
    }

    fn take(&self, step: &UnderWay) -> StepTokens {
        let slot = &self.slots[step.slot];
        let (tokens, logprobs) = (slot.tokens.as_slice(), slot.logprobs.as_slice());
        let vocab = self.model.spec.vocab_size as u32;
        let take = |(index, wanted): (usize, &Wanted)| {
            wanted
                .draws
                .clone()
                // A row that cannot be drawn from has no token of the vocabulary.
                .filter(|&draw| tokens[draw] < vocab)
                .map(|draw| SampledToken {
                    token: tokens[draw],
                    logprob: wanted.top_logprobs.map(|_| logprobs[draw]),
                    top_logprobs: (0..wanted.top_logprobs.unwrap_or(0))
                        .map(|n| index * RawRow::TOP_MAX + n)
                        .map(|at| (slot.top_ids.as_slice()[at], slot.top_logprobs.as_slice()[at]))
                        .collect(),
                })
                .collect()
        };
        step.samples.iter().enumerate().map(take).collect()
    }
}

impl Backend for CudaBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn num_blocks(&self) -> u32 {
        self.model.blocks
    }

    fn memory(&self) -> Arc<dyn KvMemory> {
        self.memory.clone()
    }

    fn description(&self) -> String {
        format!("cuda:{} {}", self.ordinal, self.gpu_name())
    }

    fn pipeline_depth(&self) -> usize {
        DEPTH
    }

    fn launch(&mut self, batch: &Batch<'_>, _transport: &mut dyn KvTransport) -> Result<(), BackendError> {
        self.try_launch(batch).map_err(|error| BackendError { backend: NAME, message: error.to_string() })
    }

    fn collect(&mut self, transport: &mut dyn KvTransport) -> Result<StepTokens, BackendError> {
        let error = |message: String| BackendError { backend: NAME, message };
        let Some(mut step) = self.under_way.pop_front() else {
            return Err(error("no step is under way".to_owned()));
        };
        let wait = |event: &CudaEvent| {
            let waited = event.synchronize().doing("computing a step");
            waited.map_err(|cause| error(cause.to_string()))
        };
        if !step.pushes.is_empty() {
            // A layer leaves while those behind it are computed.
            for layer in 0..self.layout.layers {
                wait(step.layers.get(layer as usize).unwrap_or(&step.done))?;
                transport.push_layer(layer, &step.pushes);
            }
        }
        wait(&step.done)?;
        if let (Some(clock), Some(around)) = (&mut self.clock, step.around.take()) {
            clock.collected(around).map_err(|cause| error(cause.to_string()))?;
        }
        Ok(self.take(&step))
    }
}

impl Slot {
    fn new(device: &Device, inputs: &Buffer<u32>, capacity: Capacity) -> Result<Self, CudaError> {
        let (draws, sequences) = (capacity.draws as usize, capacity.sequences as usize);
        Ok(Self {
            staging: Staging::new(device, inputs)?,
            tokens: Pinned::new(device, draws)?,
            logprobs: Pinned::new(device, draws)?,
            top_ids: Pinned::new(device, sequences * RawRow::TOP_MAX)?,
            top_logprobs: Pinned::new(device, sequences * RawRow::TOP_MAX)?,
        })
    }
}
