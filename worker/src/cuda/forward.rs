//! One step of the model as a list of launches on the device's stream.
//!
//! Nine launches a layer: norm, qkv, RoPE with append, attention (one or two), output, norm, gate_up, SiLU·mul, down.

use std::sync::Arc;

use super::blas::{Blas, Shape};
use super::compile::{self, Target};
use super::device::{Arg, Buffer, Device, Kernel, TensorMap};
use super::lists::RawRow;
use super::rope::rope_table;
use super::step::Step;
use super::weights::{Bf16, Linear, Weights};
use super::{CudaError, Doing};
use crate::model::ModelConfig;

/// Queries a tile of prefill attention takes.
pub const TILE: u32 = 128;
/// Sequences one decode launch takes.
pub const DECODE_ROWS_MAX: u32 = 1024;

/// CTAs that adjust logits; each takes 256 entries at a time.
const ADJUST_CTAS: u32 = 8;

struct Kernels {
    embed: Kernel,
    rms_norm: Kernel,
    rope_append: Kernel,
    silu_mul: Kernel,
    gather_rows: Kernel,
    plan_decode: Kernel,
    decode: Kernel,
    prefill: Kernel,
    prefill_sm90: Option<Kernel>,
    raw_logprobs: Kernel,
    adjust: Kernel,
    draw: Kernel,
}

/// Intermediate results, sized for the largest step.
struct Activations {
    residual: Buffer<Bf16>,
    normed: Buffer<Bf16>,
    qkv: Buffer<Bf16>,
    attention: Buffer<Bf16>,
    projected: Buffer<Bf16>,
    gate_up: Buffer<Bf16>,
    activated: Buffer<Bf16>,
    last: Buffer<Bf16>,
    logits: Buffer<f32>,
    log_sums: Buffer<f32>,
    unit_ends: Buffer<u32>,
    partials: Buffer<f32>,
    counters: Buffer<u32>,
}

/// A model on a GPU.
pub struct Model {
    /// The GPU.
    pub device: Device,
    /// Matrix products.
    pub blas: Blas,
    /// Shapes and constants.
    pub config: ModelConfig,
    /// KV pool: `[layer][block][K|V][kv_head][block_size][head_dim]`.
    pub pool: Arc<Buffer<Bf16>>,
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
    block_size: u32,
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
        config: ModelConfig,
        weights: Weights,
        target: &Target,
        capacity: Capacity,
    ) -> Result<Self, CudaError> {
        let blas = Blas::new(&device)?;
        let (tokens, sequences) = (capacity.tokens as usize, capacity.sequences as usize);
        let (hidden, head_dim, kv_heads) = (config.hidden_size, config.head_dim, config.num_kv_heads);
        let qkv_size = config.q_size() + 2 * config.kv_size();
        let decode_ctas = device.multiprocessors * 2;
        let activations = Activations {
            residual: device.buffer(tokens * hidden)?,
            normed: device.buffer(tokens * hidden)?,
            qkv: device.buffer(tokens * qkv_size)?,
            attention: device.buffer(tokens * config.q_size())?,
            projected: device.buffer(tokens * hidden)?,
            gate_up: device.buffer(tokens * 2 * config.intermediate_size)?,
            activated: device.buffer(tokens * config.intermediate_size)?,
            last: device.buffer(sequences * hidden)?,
            logits: device.buffer(sequences * config.vocab_size)?,
            log_sums: device.buffer(sequences)?,
            unit_ends: device.buffer(DECODE_ROWS_MAX as usize)?,
            partials: device.buffer(decode_ctas as usize * 2 * 8 * (head_dim + 2))?,
            counters: device.buffer(DECODE_ROWS_MAX as usize * kv_heads)?,
        };
        zero(&device, &activations.counters)?;
        let pool_elements = config.num_layers
            * capacity.blocks as usize
            * 2
            * kv_heads
            * target.block_size as usize
            * head_dim;
        let pool = device.buffer(pool_elements)?;
        zero(&device, &pool)?;
        let rope = rope_table(&device, &config, capacity.model_len)?;
        let kernels = Kernels::load(&device, target)?;
        let maps = if kernels.prefill_sm90.is_some() {
            Some((
                TensorMap::new(activations.qkv.address(), tokens as u64, qkv_size as u64, qkv_size as u64)?,
                TensorMap::new(
                    pool.address(),
                    (pool_elements / head_dim) as u64,
                    head_dim as u64,
                    head_dim as u64,
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
            block_size: target.block_size,
            config,
            device,
        })
    }

    /// Times the algorithms of every product of a decode step of `rows` sequences.
    pub fn tune(&mut self, rows: u32, flush: &Buffer<u8>) -> Result<(), CudaError> {
        let a = &self.activations;
        let (hidden, vocab) = (self.config.hidden_size as u32, self.config.vocab_size as u32);
        let layer = &self.weights.layers[0];
        for (linear, x, out) in [
            (&layer.qkv, &a.normed, &a.qkv),
            (&layer.attention_output, &a.attention, &a.projected),
            (&layer.gate_up, &a.normed, &a.gate_up),
            (&layer.down, &a.activated, &a.projected),
        ] {
            let shape = linear.shape(rows);
            if !shape.bias {
                self.blas.tune(
                    &self.device,
                    shape,
                    linear.weight.address(),
                    x.address(),
                    out.address(),
                    flush,
                )?;
            }
        }
        let shape = Shape { m: rows, n: vocab, k: hidden, bias: false, float_out: true };
        let head = self.weights.lm_head.as_ref().unwrap_or(&self.weights.embedding);
        self.blas.tune(&self.device, shape, head.address(), a.normed.address(), a.logits.address(), flush)
    }

    /// Issues a whole step. `after_layer` is called when a layer's launches are issued (not done).
    pub fn step(
        &mut self,
        step: &Step,
        mut after_layer: impl FnMut(&Device, u32) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let Self { device, blas, config, weights, kernels, activations: a, .. } = self;
        let (tokens, hidden) = (step.tokens, config.hidden_size as i32);
        let (heads, kv_heads) = (config.num_heads as i32, config.num_kv_heads as i32);
        let head_dim = config.head_dim as i32;
        let qkv_stride = (heads + 2 * kv_heads) * head_dim;
        let scale_log2 = std::f32::consts::LOG2_E / (config.head_dim as f32).sqrt();
        let layer_elements =
            self.blocks as usize * 2 * config.num_kv_heads * self.block_size as usize * config.head_dim;
        let eps = Arg::Float(config.rms_norm_eps);
        let norm_block =
            (config.hidden_size as u32 / 8).div_ceil(4).next_multiple_of(32).clamp(32, 1024).max(128);
        // SAFETY, for all launches below: buffers were made for a step of this size, inputs were staged by the caller
        // as `Step` says, and the arguments follow each kernel's header.
        unsafe {
            kernels.embed.launch(
                device,
                (tokens, 1),
                256,
                &[
                    Arg::Address(a.residual.address()),
                    Arg::Address(weights.embedding.address()),
                    Arg::Address(step.ids),
                    Arg::Address(self.sampled.address()),
                    Arg::Int(hidden),
                    Arg::Uint(config.vocab_size as u32),
                ],
            )?;
            if step.decode_rows > 0 {
                kernels.plan_decode.launch(
                    device,
                    (1, 1),
                    1024,
                    &[
                        Arg::Address(a.unit_ends.address()),
                        Arg::Address(step.context_lens),
                        Arg::Int(step.decode_rows as i32),
                        Arg::Int(kv_heads),
                    ],
                )?;
            }
        }
        let norm = |add: u64, weight: &Buffer<Bf16>| unsafe {
            kernels.rms_norm.launch(
                device,
                (tokens, 1),
                norm_block,
                &[
                    Arg::Address(a.normed.address()),
                    Arg::Address(a.residual.address()),
                    Arg::Address(add),
                    Arg::Address(weight.address()),
                    Arg::Int(hidden),
                    eps,
                ],
            )
        };
        for (index, layer) in weights.layers.iter().enumerate() {
            let layer_pool = self.pool.at(index * layer_elements);
            norm(if index == 0 { 0 } else { a.projected.address() }, &layer.input_norm)?;
            layer.qkv.apply(blas, device, tokens, a.normed.address(), a.qkv.address())?;
            let items = tokens * (heads + 2 * kv_heads) as u32;
            let address =
                |norm: &Option<Buffer<Bf16>>| Arg::Address(norm.as_ref().map_or(0, Buffer::address));
            unsafe {
                kernels.rope_append.launch(
                    device,
                    (items.div_ceil(8), 1),
                    256,
                    &[
                        Arg::Address(a.qkv.address()),
                        Arg::Address(layer_pool),
                        Arg::Address(step.positions),
                        Arg::Address(step.slots),
                        Arg::Address(self.rope.address()),
                        address(&layer.q_norm),
                        address(&layer.k_norm),
                        Arg::Int(tokens as i32),
                        Arg::Int(heads),
                        Arg::Int(kv_heads),
                        eps,
                    ],
                )?;
                if step.decode_rows > 0 {
                    kernels.decode.launch(
                        device,
                        (self.decode_ctas, 1),
                        128,
                        &[
                            Arg::Address(a.attention.address()),
                            Arg::Address(a.qkv.address()),
                            Arg::Address(layer_pool),
                            Arg::Address(step.q_rows),
                            Arg::Address(step.decode_tables),
                            Arg::Address(step.context_lens),
                            Arg::Address(a.unit_ends.address()),
                            Arg::Address(a.partials.address()),
                            Arg::Address(a.counters.address()),
                            Arg::Int(step.decode_rows as i32),
                            Arg::Int(heads),
                            Arg::Int(kv_heads),
                            Arg::Int(qkv_stride),
                            Arg::Int(step.table_stride as i32),
                            Arg::Float(scale_log2),
                        ],
                    )?;
                }
                if let (Some(kernel), Some((map_q, map_kv)), true) =
                    (&kernels.prefill_sm90, self.maps, step.tiles > 0)
                {
                    kernel.launch(
                        device,
                        (heads as u32, step.tiles),
                        384,
                        &[
                            Arg::Address(a.attention.address()),
                            Arg::Map(map_q),
                            Arg::Map(map_kv),
                            Arg::Address(step.tile_list),
                            Arg::Address(step.row_lens),
                            Arg::Address(step.prefill_tables),
                            Arg::Int(heads),
                            Arg::Int(kv_heads),
                            Arg::Int((index * layer_elements / config.head_dim) as i32),
                            Arg::Int(step.table_stride as i32),
                            Arg::Float(scale_log2),
                        ],
                    )?;
                } else {
                    kernels.prefill.launch(
                        device,
                        (step.tiles, heads as u32),
                        256,
                        &[
                            Arg::Address(a.attention.address()),
                            Arg::Address(a.qkv.address()),
                            Arg::Address(layer_pool),
                            Arg::Address(step.tile_list),
                            Arg::Address(step.row_lens),
                            Arg::Address(step.prefill_tables),
                            Arg::Int(heads),
                            Arg::Int(kv_heads),
                            Arg::Int(qkv_stride),
                            Arg::Int(step.table_stride as i32),
                            Arg::Float(scale_log2),
                        ],
                    )?;
                }
            }
            layer.attention_output.apply(
                blas,
                device,
                tokens,
                a.attention.address(),
                a.projected.address(),
            )?;
            norm(a.projected.address(), &layer.mlp_norm)?;
            layer.gate_up.apply(blas, device, tokens, a.normed.address(), a.gate_up.address())?;
            let pieces = u64::from(tokens) * config.intermediate_size as u64 / 8;
            let grid = pieces.div_ceil(256).min(u64::from(device.multiprocessors) * 16) as u32;
            unsafe {
                kernels.silu_mul.launch(
                    device,
                    (grid, 1),
                    256,
                    &[
                        Arg::Address(a.activated.address()),
                        Arg::Address(a.gate_up.address()),
                        Arg::Int(tokens as i32),
                        Arg::Int(config.intermediate_size as i32),
                    ],
                )?;
            }
            layer.down.apply(blas, device, tokens, a.activated.address(), a.projected.address())?;
            after_layer(device, index as u32)?;
        }
        if step.samples == 0 {
            return Ok(());
        }
        norm(a.projected.address(), &weights.final_norm)?;
        // SAFETY: as above.
        unsafe {
            kernels.gather_rows.launch(
                device,
                (step.samples, 1),
                256,
                &[
                    Arg::Address(a.last.address()),
                    Arg::Address(a.normed.address()),
                    Arg::Address(step.sample_rows),
                    Arg::Int(hidden),
                ],
            )?;
        }
        let head = weights.lm_head.as_ref().unwrap_or(&weights.embedding);
        let shape = Shape {
            m: step.samples,
            n: config.vocab_size as u32,
            k: hidden as u32,
            bias: false,
            float_out: true,
        };
        blas.multiply(device, shape, head.address(), 0, a.last.address(), a.logits.address())?;
        // SAFETY: as above.
        unsafe {
            kernels.raw_logprobs.launch(
                device,
                (step.samples, 1),
                1024,
                &[
                    Arg::Address(a.log_sums.address()),
                    Arg::Address(self.top_ids.address()),
                    Arg::Address(self.top_logprobs.address()),
                    Arg::Address(a.logits.address()),
                    Arg::Address(step.raw_list),
                    Arg::Int(config.vocab_size as i32),
                ],
            )?;
            kernels.adjust.launch(
                device,
                (ADJUST_CTAS, 1),
                256,
                &[
                    Arg::Address(a.logits.address()),
                    Arg::Address(step.adjust_list),
                    Arg::Address(step.adjust_count),
                    Arg::Int(config.vocab_size as i32),
                ],
            )?;
            kernels.draw.launch(
                device,
                (step.draws, 1),
                1024,
                &[
                    Arg::Address(self.sampled.address()),
                    Arg::Address(self.logprobs.address()),
                    Arg::Address(a.logits.address()),
                    Arg::Address(a.log_sums.address()),
                    Arg::Address(step.draw_list),
                    Arg::Address(step.adjust_list),
                    Arg::Address(step.adjust_count),
                    Arg::Int(config.vocab_size as i32),
                ],
            )
        }
    }

    /// `[samples, vocab]` of the last step, adjusted.
    pub fn logits(&self) -> &Buffer<f32> {
        &self.activations.logits
    }
}

impl Kernels {
    fn load(device: &Device, target: &Target) -> Result<Self, CudaError> {
        let element = device.load(compile::ELEMENTWISE, target)?;
        let decode = device.load(compile::ATTENTION_DECODE, target)?;
        let prefill = device.load(compile::ATTENTION_PREFILL, target)?;
        let sample = device.load(compile::SAMPLE, target)?;
        let head_bytes = target.head_dim * 2;
        // 4 warps × 3 stages × keys and values of 16 tokens.
        let decode_shared = 4 * 3 * 2 * 16 * head_bytes;
        // 2 stages × keys and values of 64 tokens.
        let prefill_shared = 2 * 2 * 64 * head_bytes;
        let prefill_sm90 = if target.capability == (9, 0) && target.head_dim == 128 {
            // Queries, 2 stages × keys and values of 128 tokens, barriers, alignment.
            let shared = 5 * 128 * head_bytes + 128 + 1024;
            let module = device.load(compile::ATTENTION_PREFILL_SM90, target)?;
            Some(Kernel::new(&module, "prefill_attention_sm90", shared)?)
        } else {
            None
        };
        Ok(Self {
            embed: Kernel::new(&element, "embed", 0)?,
            rms_norm: Kernel::new(&element, "rms_norm", 0)?,
            rope_append: Kernel::new(&element, "rope_append", 0)?,
            silu_mul: Kernel::new(&element, "silu_mul", 0)?,
            gather_rows: Kernel::new(&element, "gather_rows", 0)?,
            plan_decode: Kernel::new(&decode, "plan_decode", 0)?,
            decode: Kernel::new(&decode, "decode_attention", decode_shared)?,
            prefill: Kernel::new(&prefill, "prefill_attention", prefill_shared)?,
            prefill_sm90,
            raw_logprobs: Kernel::new(&sample, "raw_logprobs", 0)?,
            adjust: Kernel::new(&sample, "adjust_logits", 0)?,
            draw: Kernel::new(&sample, "draw_tokens", 0)?,
        })
    }
}

impl Linear {
    fn shape(&self, m: u32) -> Shape {
        Shape { m, n: self.outputs, k: self.inputs, bias: self.bias.is_some(), float_out: false }
    }

    fn apply(&self, blas: &mut Blas, device: &Device, m: u32, x: u64, out: u64) -> Result<(), CudaError> {
        let bias = self.bias.as_ref().map_or(0, Buffer::address);
        blas.multiply(device, self.shape(m), self.weight.address(), bias, x, out)
    }
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
