//! One step of the model as a list of launches on the device's stream: embedding, layers, head, drawing of tokens.
//!
//! Layers come in two forms. [`layers`] takes any step and every GPU: products through cublasLt. [`decode`] takes steps
//! of few tokens on Hopper: products of our own and kernels that start before those in front of them have ended.

mod decode;
mod forms;
mod head;
mod kernels;
mod layers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use disagg_engine::KvLayout;

use self::decode::DecodeKernels;
pub use self::decode::{PRODUCT_WIDTHS, ring_bytes};
pub use self::forms::DecodeForm;
use self::kernels::Kernels;
pub use self::kernels::decode_attention_bytes;
use self::layers::products;
use super::blas::{Blas, Shape};
use super::compile::Target;
use super::device::{Arg, Buffer, Device, TensorMap};
use super::format::Bits;
use super::lists::RawRow;
use super::rope::rope_table;
use super::step::Step;
use super::weights::Weights;
use super::{CudaError, Doing};
use crate::model::ModelSpec;

/// Rows that the head's product has at least; those behind the step's own are computed in vain. cublasLt takes longer
/// for one row of so wide a product than for four.
const HEAD_ROWS_MIN: u32 = 4;

/// Products of a layer: qkv, output, gate_up, down.
const PRODUCTS: usize = 4;

/// Queries a tile of prefill attention takes.
pub const TILE: u32 = 128;
/// Sequences one decode launch takes.
pub const DECODE_ROWS_MAX: u32 = 1024;

/// Sequences up to which decode attention gets one CTA a multiprocessor, which leaves room for the product behind it to
/// start early; with more, two are needed to keep memory busy.
const DECODE_ROWS_SINGLE: u32 = 8;

/// Intermediate results, sized for the largest step.
struct Activations {
    residual: Buffer<Bits>,
    normed: Buffer<Bits>,
    qkv: Buffer<Bits>,
    attention: Buffer<Bits>,
    gate_up: Buffer<Bits>,
    activated: Buffer<Bits>,
    last: Buffer<Bits>,
    logits: Buffer<f32>,
    log_sums: Buffer<f32>,
    /// How decode attention is cut, for each window that layers have.
    plans: Vec<Plan>,
    partials: Buffer<f32>,
    counters: Buffer<u32>,
}

/// How the decode attention of some layers is cut among CTAs.
struct Plan {
    /// Of these layers; `None`: every token before it.
    window: Option<u32>,
    /// `[sequences]`, written by each step.
    unit_ends: Buffer<u32>,
}

/// A model on a GPU.
pub struct Model {
    /// The GPU.
    pub device: Device,
    /// Matrix products.
    pub blas: Blas,
    /// Shapes and constants.
    pub spec: ModelSpec,
    /// KV pool: `[layer][block][K|V][kv_head][block_size][head_dim]`.
    pub pool: Arc<Buffer<Bits>>,
    /// Blocks in the pool.
    pub blocks: u32,
    /// `[draws]` tokens drawn by the last step.
    pub sampled: Buffer<u32>,
    /// `[draws]` their log-probabilities, where wanted.
    pub logprobs: Buffer<f32>,
    /// `[samples, RawRow::TOP_MAX]` most likely tokens, where wanted.
    pub top_ids: Buffer<u32>,
    /// `[samples, RawRow::TOP_MAX]` their log-probabilities.
    pub top_logprobs: Buffer<f32>,
    weights: Weights,
    kernels: Kernels,
    activations: Activations,
    rope: Buffer<f32>,
    maps: Option<(TensorMap, TensorMap)>,
    decode_ctas: u32,
    layout: KvLayout,
    /// Forms of decode steps, by rows, where they are not [`DecodeForm::OWN`].
    forms: BTreeMap<u32, DecodeForm>,
}

/// Sizes that a model's buffers are made for.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Tokens in one step.
    pub tokens: u32,
    /// Sequences in one step.
    pub sequences: u32,
    /// Tokens drawn in one step: more than sequences where requests ask for several choices.
    pub draws: u32,
    /// Tokens in one sequence.
    pub model_len: u32,
    /// Blocks in the KV pool.
    pub blocks: u32,
}

impl Model {
    /// Makes buffers and loads kernels.
    pub fn new(
        device: Device,
        spec: ModelSpec,
        weights: Weights,
        target: &Target,
        capacity: Capacity,
    ) -> Result<Self, CudaError> {
        let blas = Blas::new(&device, target.format)?;
        let (tokens, sequences) = (capacity.tokens as usize, capacity.sequences as usize);
        let (hidden, head_dim, kv_heads) = (spec.hidden_size, spec.head_dim, spec.num_kv_heads);
        let qkv_size = spec.q_size() + 2 * spec.kv_size();
        let decode_ctas = device.multiprocessors * 2;
        let activations = Activations {
            residual: device.buffer(tokens * hidden)?,
            normed: device.buffer(tokens.max(HEAD_ROWS_MIN as usize) * hidden)?,
            qkv: device.buffer(tokens * qkv_size)?,
            attention: device.buffer(tokens * spec.q_size())?,
            gate_up: device.buffer(tokens * 2 * spec.mlp_width())?,
            activated: device.buffer(tokens * spec.mlp_width())?,
            last: device.buffer(sequences * hidden)?,
            logits: device.buffer(sequences.max(HEAD_ROWS_MIN as usize) * spec.vocab_size)?,
            log_sums: device.buffer(sequences)?,
            plans: plans(&device, &spec)?,
            partials: device.buffer(decode_ctas as usize * 2 * 8 * (head_dim + 4))?,
            counters: device.buffer(DECODE_ROWS_MAX as usize * kv_heads)?,
        };
        zero(&device, &activations.counters)?;
        let layout = spec.kv_layout(target.block_size, target.format.kv());
        let pool_elements = spec.layers.len() * layer_elements(&layout, capacity.blocks);
        let pool = device.buffer(pool_elements)?;
        zero(&device, &pool)?;
        let rope = rope_table(&device, &spec, capacity.model_len)?;
        let mut kernels = Kernels::load(&device, target)?;
        if target.hopper() {
            kernels.decode_chain = DecodeKernels::load(&device, target, &spec, &weights, &activations)?;
        }
        let maps = if kernels.prefill_sm90.is_some() {
            Some((
                TensorMap::new(
                    target.format,
                    activations.qkv.address(),
                    tokens as u64,
                    qkv_size as u64,
                    qkv_size as u64,
                    64,
                )?,
                TensorMap::new(
                    target.format,
                    pool.address(),
                    (pool_elements / head_dim) as u64,
                    head_dim as u64,
                    head_dim as u64,
                    64,
                )?,
            ))
        } else {
            None
        };
        Ok(Self {
            blas,
            pool: Arc::new(pool),
            blocks: capacity.blocks,
            sampled: device.buffer(capacity.draws as usize)?,
            logprobs: device.buffer(capacity.draws as usize)?,
            top_ids: device.buffer(sequences * RawRow::TOP_MAX)?,
            top_logprobs: device.buffer(sequences * RawRow::TOP_MAX)?,
            weights,
            kernels,
            activations,
            rope,
            maps,
            decode_ctas,
            layout,
            forms: BTreeMap::new(),
            spec,
            device,
        })
    }

    /// Times the algorithms of every product of a layer, for a step of `rows` tokens.
    pub fn tune(&mut self, rows: u32, flush: &Buffer<u8>) -> Result<(), CudaError> {
        for (linear, x, out, accumulate) in products(&self.weights.layers[0], &self.activations) {
            let shape = linear.shape(rows, accumulate);
            let bias = linear.bias_address();
            self.blas.tune(&self.device, shape, linear.weight.address(), bias, x, out, flush)?;
        }
        Ok(())
    }

    /// Times the algorithms of the head's product for `rows` rows.
    pub fn tune_head(&mut self, rows: u32, flush: &Buffer<u8>) -> Result<(), CudaError> {
        let (shape, a) = (self.head_shape(rows), &self.activations);
        let head = self.weights.head.as_ref().unwrap_or(&self.weights.embedding).address();
        self.blas.tune(&self.device, shape, head, 0, a.normed.address(), a.logits.address(), flush)
    }

    /// Whether steps of `rows` sequences with one token each can take products of our own.
    pub fn has_decode_chain(&self, rows: u32) -> bool {
        self.kernels.decode_chain.as_ref().is_some_and(|chain| chain.takes(rows))
    }

    /// Takes cublasLt for every product from now on, to compare.
    pub fn without_decode_chain(&mut self) {
        self.kernels.decode_chain = None;
    }

    /// Address of the embedding, `[vocab, hidden]`: numbers to measure with.
    pub fn some_weights(&self) -> u64 {
        self.weights.embedding.address()
    }

    /// Issues a whole step. `after_layer` is called when a layer's launches are issued (not done).
    pub fn step(
        &mut self,
        step: &Step,
        after_layer: impl FnMut(&Device, u32) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        self.begin(step)?;
        let layers = self.weights.layers.len();
        match self.decode_form(step.tokens) {
            // The chain leaves every row behind, so every row has to be drawn from.
            DecodeForm::Chain(library) if step.tiles == 0 && step.samples == step.tokens => {
                self.decode_layers(step, layers, library, after_layer)?;
            }
            _ => self.layers(step, layers, after_layer)?,
        }
        self.head(step)
    }

    /// The first layers of a decode step in a given form, to be timed.
    fn some_layers(&mut self, step: &Step, form: DecodeForm, most: usize) -> Result<(), CudaError> {
        let count = most.min(self.weights.layers.len());
        match form {
            DecodeForm::Chain(library) => self.decode_layers(step, count, library, |_, _| Ok(())),
            DecodeForm::General => self.layers(step, count, |_, _| Ok(())),
        }
    }

    /// What comes before the layers: the embedding, and how decode attention is cut.
    fn begin(&self, step: &Step) -> Result<(), CudaError> {
        let (device, kernels, a) = (&self.device, &self.kernels, &self.activations);
        // SAFETY, for all launches of a step: buffers were made for a step of this size, inputs were staged by the
        // caller as `Step` says, and the arguments follow each kernel's header.
        unsafe {
            kernels.embed.launch(
                device,
                (step.tokens, 1),
                256,
                &[
                    Arg::Address(a.residual.address()),
                    Arg::Address(self.weights.embedding.address()),
                    Arg::Address(step.ids),
                    Arg::Address(self.sampled.address()),
                    Arg::Int(self.spec.hidden_size as i32),
                    Arg::Uint(self.spec.vocab_size as u32),
                ],
            )?;
            for Plan { window, unit_ends } in a.plans.iter().filter(|_| step.decode_rows > 0) {
                kernels.plan_decode.launch(
                    device,
                    (1, 1),
                    1024,
                    &[
                        Arg::Address(unit_ends.address()),
                        Arg::Address(step.context_lens),
                        Arg::Int(step.decode_rows as i32),
                        Arg::Int(self.spec.num_kv_heads as i32),
                        window_arg(*window),
                    ],
                )?;
            }
        }
        Ok(())
    }

    /// `[samples, vocab]` of the last step, adjusted.
    pub fn logits(&self) -> &Buffer<f32> {
        &self.activations.logits
    }

    /// Address of a layer's part of the KV pool, in elements from its start and as an address.
    fn layer_pool(&self, layer: usize) -> (usize, u64) {
        let elements = layer_elements(&self.layout, self.blocks);
        (layer * elements, self.pool.at(layer * elements))
    }

    /// CTAs of decode attention.
    fn decode_ctas(&self, step: &Step) -> u32 {
        if step.decode_rows <= DECODE_ROWS_SINGLE { self.decode_ctas / 2 } else { self.decode_ctas }
    }

    /// Arguments of decode attention over one layer.
    fn decode_attention(&self, step: &Step, layer: usize) -> [Arg; 16] {
        let (a, spec) = (&self.activations, &self.spec);
        let window = spec.layers[layer].window;
        let plan = a.plans.iter().find(|plan| plan.window == window);
        // `plans` has one for every window.
        let unit_ends = plan.map_or(0, |plan| plan.unit_ends.address());
        let (heads, kv_heads) = (spec.num_heads as i32, spec.num_kv_heads as i32);
        [
            Arg::Address(a.attention.address()),
            Arg::Address(a.qkv.address()),
            Arg::Address(self.layer_pool(layer).1),
            Arg::Address(step.q_rows),
            Arg::Address(step.decode_tables),
            Arg::Address(step.context_lens),
            Arg::Address(unit_ends),
            Arg::Address(a.partials.address()),
            Arg::Address(a.counters.address()),
            Arg::Int(step.decode_rows as i32),
            Arg::Int(heads),
            Arg::Int(kv_heads),
            Arg::Int((heads + 2 * kv_heads) * spec.head_dim as i32),
            Arg::Int(step.table_stride as i32),
            Arg::Float(self.scale_log2()),
            window_arg(window),
        ]
    }

    /// Factor of the scores, for exponentials of base 2.
    fn scale_log2(&self) -> f32 {
        std::f32::consts::LOG2_E / (self.spec.head_dim as f32).sqrt()
    }

    /// Threads of a norm's CTA.
    fn norm_block(&self) -> u32 {
        (self.spec.hidden_size as u32 / 8).div_ceil(4).next_multiple_of(32).clamp(32, 1024).max(128)
    }

    fn head_shape(&self, rows: u32) -> Shape {
        let (n, k) = (self.spec.vocab_size as u32, self.spec.hidden_size as u32);
        Shape { m: rows.max(HEAD_ROWS_MIN), n, k, bias: false, float_out: true, accumulate: false }
    }
}

/// One for each window that layers have.
fn plans(device: &Device, spec: &ModelSpec) -> Result<Vec<Plan>, CudaError> {
    let windows: BTreeSet<Option<u32>> = spec.layers.iter().map(|layer| layer.window).collect();
    let plan = |window| Ok(Plan { window, unit_ends: device.buffer(DECODE_ROWS_MAX as usize)? });
    windows.into_iter().map(plan).collect()
}

/// A window as kernels take it; 0: none.
fn window_arg(window: Option<u32>) -> Arg {
    Arg::Int(window.unwrap_or(0) as i32)
}

/// Elements of one layer's part of the KV pool.
fn layer_elements(layout: &KvLayout, blocks: u32) -> usize {
    2 * layout.half_elements() * blocks as usize
}

fn zero<T>(device: &Device, buffer: &Buffer<T>) -> Result<(), CudaError> {
    // SAFETY: the buffer is that long, and all-zero bits are a value of every type used here.
    unsafe {
        cudarc::driver::result::memset_d8_async(
            buffer.address(),
            0,
            buffer.len() * size_of::<T>(),
            device.stream.cu_stream(),
        )
    }
    .doing("clearing memory")
}
