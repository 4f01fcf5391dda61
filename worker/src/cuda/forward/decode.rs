//! The layers of a step of few tokens on Hopper: a chain of kernels of which each may start while the one before it still
//! runs, so that weights stream in without a gap from one product to the next.

use super::super::CudaError;
use super::super::compile::{self, Target};
use super::super::device::{Arg, Buffer, Device, Kernel, TensorMap};
use super::super::step::Step;
use super::super::weights::{Bf16, DecodeProduct, Weights};
use super::{Activations, Model};
use crate::model::ModelConfig;

/// Tokens that each form of the product takes, and stages of its ring; see `matmul_decode.cu`.
const FORMS: [(u32, u32, &str); 4] = [
    (8, 6, "matmul_decode_8"),
    (16, 6, "matmul_decode_16"),
    (32, 5, "matmul_decode_32"),
    (64, 4, "matmul_decode_64"),
];
/// Threads of a product's CTA.
const PRODUCT_BLOCK: u32 = 288;

/// Kernels and maps of the chain.
pub(super) struct DecodeKernels {
    forms: Vec<Form>,
    rms_norm: Kernel,
    rope_append: Kernel,
    silu_mul: Kernel,
    /// `[planes, tokens, n]` of the product under way.
    parts: Buffer<f32>,
}

/// The product for up to so many tokens, and maps over what it multiplies.
struct Form {
    tokens: u32,
    kernel: Kernel,
    normed: TensorMap,
    attention: TensorMap,
    activated: TensorMap,
}

impl DecodeKernels {
    /// `None`: a weight of this model cannot be read by these kernels.
    pub(super) fn load(
        device: &Device,
        target: &Target,
        config: &ModelConfig,
        weights: &Weights,
        activations: &Activations,
    ) -> Result<Option<Self>, CudaError> {
        let layer = &weights.layers[0];
        let mut elements = 0;
        for linear in [&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down] {
            let Some(product) = &linear.decode else { return Ok(None) };
            elements = elements.max(product.split.planes() * linear.outputs);
        }
        let products = device.load(compile::MATMUL_DECODE, target)?;
        let elementwise = device.load(compile::ELEMENTWISE_DECODE, target)?;
        let mut forms = Vec::new();
        for (tokens, stages, name) in FORMS {
            // A stage has 128 rows of weights and the tokens, 128 bytes each; then barriers and alignment.
            let shared = stages * (128 + tokens) * 128 + 16 * stages + 1024;
            let map = |buffer: &Buffer<Bf16>, width: usize| {
                let rows = buffer.len() / width;
                TensorMap::new(buffer.address(), rows as u64, width as u64, width as u64, tokens)
            };
            forms.push(Form {
                tokens,
                kernel: Kernel::new(&products, name, shared)?,
                normed: map(&activations.normed, config.hidden_size)?,
                attention: map(&activations.attention, config.q_size())?,
                activated: map(&activations.activated, config.intermediate_size)?,
            });
        }
        let most = FORMS[FORMS.len() - 1].0;
        Ok(Some(Self {
            forms,
            rms_norm: Kernel::new(&elementwise, "rms_norm_parts", 0)?,
            rope_append: Kernel::new(&elementwise, "rope_append_parts", 0)?,
            silu_mul: Kernel::new(&elementwise, "silu_mul_parts", 0)?,
            parts: device.buffer(elements as usize * most as usize)?,
        }))
    }

    /// Whether a step of so many tokens fits.
    pub(super) fn takes(&self, tokens: u32) -> bool {
        self.form(tokens).is_some()
    }

    fn form(&self, tokens: u32) -> Option<&Form> {
        self.forms.iter().find(|form| form.tokens >= tokens)
    }
}

/// What the kernel behind a product needs to know to add up its parts.
fn split_args(product: &DecodeProduct) -> [Arg; 3] {
    let split = product.split;
    [Arg::Int(split.k_blocks as i32), Arg::Int(split.units as i32), Arg::Int(split.ctas as i32)]
}

impl Model {
    /// Norm, qkv, RoPE with append, attention, output, norm, gate_up, SiLU·mul, down; norms, RoPE and SiLU·mul add up
    /// the parts of the product before them.
    pub(super) fn decode_layers(
        &self,
        step: &Step,
        mut after_layer: impl FnMut(&Device, u32) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let Self { device, config, weights, activations: a, .. } = self;
        let Some((chain, form)) =
            self.kernels.decode_chain.as_ref().and_then(|chain| Some((chain, chain.form(step.tokens)?)))
        else {
            return refuse_step(step);
        };
        let (tokens, heads, kv_heads) = (step.tokens, config.num_heads as i32, config.num_kv_heads as i32);
        let parts = Arg::Address(chain.parts.address());
        let optional =
            |vector: &Option<Buffer<Bf16>>| Arg::Address(vector.as_ref().map_or(0, Buffer::address));
        let product = |linear: &super::super::weights::Linear, x: TensorMap| {
            let Some(product) = linear.decode else { return refuse_step(step) };
            let args = [
                parts,
                Arg::Map(product.map),
                Arg::Map(x),
                Arg::Int(tokens as i32),
                Arg::Int(linear.outputs as i32),
                Arg::Int(product.split.k_blocks as i32),
                Arg::Int(product.split.units as i32),
            ];
            // SAFETY: see `Model::step`; the parts have room for every product's planes.
            unsafe { form.kernel.launch_dependent(device, (product.split.ctas, 1), PRODUCT_BLOCK, &args) }
        };
        // After no product, the norm is the chain's first link: it waits for everything before it as usual.
        let norm = |before: Option<&DecodeProduct>, weight: &Buffer<Bf16>| {
            let [k_blocks, units, ctas] = before.map_or([Arg::Int(1); 3], split_args);
            let args = [
                Arg::Address(a.normed.address()),
                Arg::Address(a.residual.address()),
                if before.is_some() { parts } else { Arg::Address(0) },
                Arg::Address(weight.address()),
                Arg::Int(config.hidden_size as i32),
                Arg::Float(config.rms_norm_eps),
                k_blocks,
                units,
                ctas,
            ];
            // A piece of 8 a thread where that is possible: there are few rows, and each waits for memory.
            let block = (config.hidden_size as u32 / 8).next_multiple_of(32).clamp(128, 1024);
            let grid = (tokens, 1);
            // SAFETY: see `Model::step`.
            unsafe {
                match before {
                    Some(_) => chain.rms_norm.launch_dependent(device, grid, block, &args),
                    None => chain.rms_norm.launch(device, grid, block, &args),
                }
            }
        };
        let mut before: Option<&DecodeProduct> = None;
        for (index, layer) in weights.layers.iter().enumerate() {
            let (Some(qkv), Some(output), Some(gate_up)) =
                (&layer.qkv.decode, &layer.attention_output.decode, &layer.gate_up.decode)
            else {
                return refuse_step(step);
            };
            norm(before, &layer.input_norm)?;
            product(&layer.qkv, form.normed)?;
            let items = tokens * (heads + 2 * kv_heads) as u32;
            let [k_blocks, units, ctas] = split_args(qkv);
            // SAFETY: see `Model::step`.
            unsafe {
                chain.rope_append.launch_dependent(
                    device,
                    (items.div_ceil(4), 1),
                    128,
                    &[
                        Arg::Address(a.qkv.address()),
                        Arg::Address(self.layer_pool(index).1),
                        parts,
                        optional(&layer.qkv.bias),
                        Arg::Address(step.positions),
                        Arg::Address(step.slots),
                        Arg::Address(self.rope.address()),
                        optional(&layer.q_norm),
                        optional(&layer.k_norm),
                        Arg::Int(tokens as i32),
                        Arg::Int(heads),
                        Arg::Int(kv_heads),
                        Arg::Float(config.rms_norm_eps),
                        k_blocks,
                        units,
                        ctas,
                    ],
                )?;
                let grid = (self.decode_ctas(step), 1);
                let args = self.decode_attention(step, index);
                self.kernels.decode.launch_dependent(device, grid, 128, &args)?;
            }
            product(&layer.attention_output, form.attention)?;
            norm(Some(output), &layer.mlp_norm)?;
            product(&layer.gate_up, form.normed)?;
            let pieces = tokens * config.intermediate_size as u32 / 8;
            let [k_blocks, units, ctas] = split_args(gate_up);
            // SAFETY: see `Model::step`.
            unsafe {
                chain.silu_mul.launch_dependent(
                    device,
                    (pieces.div_ceil(128), 1),
                    128,
                    &[
                        Arg::Address(a.activated.address()),
                        parts,
                        Arg::Int(tokens as i32),
                        Arg::Int(config.intermediate_size as i32),
                        k_blocks,
                        units,
                        ctas,
                    ],
                )?;
            }
            product(&layer.down, form.activated)?;
            before = layer.down.decode.as_ref();
            after_layer(device, index as u32)?;
        }
        norm(before, &weights.final_norm)
    }
}

fn refuse_step<T>(step: &Step) -> Result<T, CudaError> {
    Err(CudaError {
        doing: "computing a decode step".to_owned(),
        cause: format!("no product of our own takes {} tokens", step.tokens),
    })
}
