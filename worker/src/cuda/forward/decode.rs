//! The layers of a step of few tokens on Hopper: a chain of kernels of which each may start while the one before it still
//! runs, so that weights stream in without a gap from one product to the next.

use super::super::CudaError;
use super::super::compile::{self, Target};
use super::super::device::{Arg, Buffer, Device, Kernel, TensorMap};
use super::super::format::Bits;
use super::super::split::Split;
use super::super::step::Step;
use super::super::weights::{DecodeProduct, Layer, Linear, Weights, dense};
use super::{Activations, Model, PRODUCTS};
use crate::model::ModelSpec;

/// Tokens that each width of the product takes, stages of its ring, and the kernel; see `matmul_decode.cu`.
pub const PRODUCT_WIDTHS: [(u32, u32, &str); 4] = [
    (8, 7, "matmul_decode_8"),
    (16, 7, "matmul_decode_16"),
    (32, 6, "matmul_decode_32"),
    (64, 5, "matmul_decode_64"),
];

/// Dynamic shared memory of a product, in bytes: a stage has 128 rows of weights and the tokens, 128 bytes each; then
/// barriers and alignment.
pub const fn ring_bytes(tokens: u32, stages: u32) -> u32 {
    stages * (128 + tokens) * 128 + 16 * stages + 1024
}

/// Threads of a product's CTA.
const PRODUCT_BLOCK: u32 = 288;

/// Kernels and maps of the chain.
pub(super) struct DecodeKernels {
    widths: Vec<Width>,
    rms_norm: Kernel,
    rope_append: Kernel,
    silu_mul: Kernel,
    /// `[planes, tokens, n]` of the product under way.
    pub(super) parts: Buffer<f32>,
}

/// The product for up to so many tokens, and maps over what it multiplies.
struct Width {
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
        spec: &ModelSpec,
        weights: &Weights,
        activations: &Activations,
    ) -> Result<Option<Self>, CudaError> {
        let layer = &weights.layers[0];
        let mlp = dense(layer);
        let mut elements = 0;
        for linear in [&layer.qkv, &layer.attention_output, &mlp.gate_up, &mlp.down] {
            let Some(product) = &linear.decode else { return Ok(None) };
            elements = elements.max(product.split.planes() * linear.outputs);
        }
        let products = device.load(compile::MATMUL_DECODE, target)?;
        let elementwise = device.load(compile::ELEMENTWISE_DECODE, target)?;
        let mut widths = Vec::new();
        for (tokens, stages, name) in PRODUCT_WIDTHS {
            let map = |buffer: &Buffer<Bits>, width: usize| {
                let rows = buffer.len() / width;
                TensorMap::new(
                    target.format,
                    buffer.address(),
                    rows as u64,
                    width as u64,
                    width as u64,
                    tokens,
                )
            };
            widths.push(Width {
                tokens,
                kernel: Kernel::new(&products, name, ring_bytes(tokens, stages))?,
                normed: map(&activations.normed, spec.hidden_size)?,
                attention: map(&activations.attention, spec.q_size())?,
                activated: map(&activations.activated, spec.mlp_width())?,
            });
        }
        let most = PRODUCT_WIDTHS[PRODUCT_WIDTHS.len() - 1].0;
        Ok(Some(Self {
            widths,
            rms_norm: Kernel::new(&elementwise, "rms_norm_parts", 0)?,
            rope_append: Kernel::new(&elementwise, "rope_append_parts", 0)?,
            silu_mul: Kernel::new(&elementwise, "silu_mul_parts", 0)?,
            parts: device.buffer(elements as usize * most as usize)?,
        }))
    }

    /// Whether a step of so many tokens fits.
    pub(super) fn takes(&self, tokens: u32) -> bool {
        self.width(tokens).is_some()
    }

    fn width(&self, tokens: u32) -> Option<&Width> {
        self.widths.iter().find(|width| width.tokens >= tokens)
    }
}

/// A product of a chain as it was computed: by whom, and so in how many parts.
#[derive(Clone, Copy)]
struct Computed<'a> {
    linear: &'a Linear,
    library: bool,
}

impl Computed<'_> {
    /// What the kernel behind it needs to know to add up its parts.
    fn args(&self) -> [Arg; 3] {
        let [k_blocks, units, ctas] = match self.linear.decode {
            Some(DecodeProduct { split, .. }) if !self.library => [split.k_blocks, split.units, split.ctas],
            // One plane: each tile is a unit of its own, with its own owner.
            _ => [1, Split::tiles(self.linear.outputs), Split::tiles(self.linear.outputs)],
        };
        [k_blocks, units, ctas].map(|value| Arg::Int(value as i32))
    }
}

/// The steps of one chain.
struct Chain<'a> {
    model: &'a Model,
    kernels: &'a DecodeKernels,
    width: &'a Width,
    step: &'a Step,
}

impl Model {
    /// Norm, qkv, RoPE with append, attention, output, norm, gate_up, SiLU·mul, down; norms, RoPE and SiLU·mul add up
    /// the parts of the product before them. The first `count` layers; `library` says which products cublasLt computes.
    pub(super) fn decode_layers(
        &self,
        step: &Step,
        count: usize,
        library: [bool; PRODUCTS],
        mut after_layer: impl FnMut(&Device, u32) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let found = self
            .kernels
            .decode_chain
            .as_ref()
            .and_then(|kernels| kernels.width(step.tokens).map(|width| (kernels, width)));
        let Some((kernels, width)) = found else { return refuse_step(step) };
        let chain = Chain { model: self, kernels, width, step };
        let a = &self.activations;
        let mut before = None;
        for (index, layer) in self.weights.layers[..count].iter().enumerate() {
            let computed = |at: usize, linear| Computed { linear, library: library[at] };
            let qkv = computed(0, &layer.qkv);
            let output = computed(1, &layer.attention_output);
            let mlp = dense(layer);
            let gate_up = computed(2, &mlp.gate_up);
            let down = computed(3, &mlp.down);
            chain.norm(before, &layer.input_norm)?;
            chain.product(qkv, width.normed, a.normed.address())?;
            chain.rope_append(index, layer, qkv)?;
            chain.attention(index)?;
            chain.product(output, width.attention, a.attention.address())?;
            chain.norm(Some(output), &layer.mlp_norm)?;
            chain.product(gate_up, width.normed, a.normed.address())?;
            chain.silu_mul(gate_up)?;
            chain.product(down, width.activated, a.activated.address())?;
            before = Some(down);
            after_layer(&self.device, index as u32)?;
        }
        chain.norm(before, &self.weights.norm)
    }
}

// SAFETY, for all launches: see `Model::step`; the parts have room for every product's planes.
impl Chain<'_> {
    /// `x` is what is multiplied, as a map and as an address.
    fn product(&self, product: Computed<'_>, map: TensorMap, x: u64) -> Result<(), CudaError> {
        let (device, linear, tokens) = (&self.model.device, product.linear, self.step.tokens);
        if product.library {
            let shape = linear.parts_shape(tokens);
            let (weight, parts) = (linear.weight.address(), self.kernels.parts.address());
            return self.model.blas.multiply_prepared(device, shape, weight, x, parts);
        }
        let Some(DecodeProduct { map: weight, split }) = linear.decode else {
            return refuse_step(self.step);
        };
        let args = [
            self.parts(),
            Arg::Map(weight),
            Arg::Map(map),
            Arg::Int(tokens as i32),
            Arg::Int(linear.outputs as i32),
            Arg::Int(split.k_blocks as i32),
            Arg::Int(split.units as i32),
        ];
        // SAFETY: see above.
        unsafe { self.width.kernel.launch_dependent(device, (split.ctas, 1), PRODUCT_BLOCK, &args) }
    }

    /// After no product, the norm is the chain's first link: it waits for everything before it as usual.
    fn norm(&self, before: Option<Computed<'_>>, weight: &Buffer<Bits>) -> Result<(), CudaError> {
        let (a, spec) = (&self.model.activations, &self.model.spec);
        let [k_blocks, units, ctas] = before.map_or([Arg::Int(1); 3], |product| product.args());
        let args = [
            Arg::Address(a.normed.address()),
            Arg::Address(a.residual.address()),
            if before.is_some() { self.parts() } else { Arg::Address(0) },
            Arg::Address(weight.address()),
            Arg::Int(spec.hidden_size as i32),
            Arg::Float(spec.rms_norm_eps),
            k_blocks,
            units,
            ctas,
        ];
        // A piece of 8 a thread where that is possible: there are few rows, and each waits for memory.
        let block = (spec.hidden_size as u32 / 8).next_multiple_of(32).clamp(128, 1024);
        let (device, grid) = (&self.model.device, (self.step.tokens, 1));
        // SAFETY: see above.
        unsafe {
            match before {
                Some(_) => self.kernels.rms_norm.launch_dependent(device, grid, block, &args),
                None => self.kernels.rms_norm.launch(device, grid, block, &args),
            }
        }
    }

    fn rope_append(&self, index: usize, layer: &Layer, qkv: Computed<'_>) -> Result<(), CudaError> {
        let (model, step) = (self.model, self.step);
        let (heads, kv_heads) = (model.spec.num_heads as i32, model.spec.num_kv_heads as i32);
        let items = step.tokens * (heads + 2 * kv_heads) as u32;
        let [k_blocks, units, ctas] = qkv.args();
        let args = [
            Arg::Address(model.activations.qkv.address()),
            Arg::Address(model.layer_pool(index).1),
            self.parts(),
            Arg::optional(&layer.qkv.bias),
            Arg::Address(step.positions),
            Arg::Address(step.slots),
            Arg::Address(model.rope.address()),
            Arg::optional(&layer.q_norm),
            Arg::optional(&layer.k_norm),
            Arg::Int(step.tokens as i32),
            Arg::Int(heads),
            Arg::Int(kv_heads),
            Arg::Float(model.spec.rms_norm_eps),
            k_blocks,
            units,
            ctas,
        ];
        // SAFETY: see above.
        unsafe {
            self.kernels.rope_append.launch_dependent(&model.device, (items.div_ceil(4), 1), 128, &args)
        }
    }

    fn attention(&self, index: usize) -> Result<(), CudaError> {
        let (model, grid) = (self.model, (self.model.decode_ctas(self.step), 1));
        let args = model.decode_attention(self.step, index);
        // SAFETY: see above.
        unsafe { model.kernels.decode.launch_dependent(&model.device, grid, 128, &args) }
    }

    fn silu_mul(&self, gate_up: Computed<'_>) -> Result<(), CudaError> {
        let (model, tokens) = (self.model, self.step.tokens);
        let width = gate_up.linear.outputs / 2;
        let pieces = tokens * width / 8;
        let [k_blocks, units, ctas] = gate_up.args();
        let args = [
            Arg::Address(model.activations.activated.address()),
            self.parts(),
            Arg::Int(tokens as i32),
            Arg::Int(width as i32),
            k_blocks,
            units,
            ctas,
        ];
        let grid = (pieces.div_ceil(128), 1);
        // SAFETY: see above.
        unsafe { self.kernels.silu_mul.launch_dependent(&model.device, grid, 128, &args) }
    }

    fn parts(&self) -> Arg {
        Arg::Address(self.kernels.parts.address())
    }
}

fn refuse_step<T>(step: &Step) -> Result<T, CudaError> {
    Err(CudaError {
        doing: "computing a decode step".to_owned(),
        cause: format!("no product of our own takes {} tokens", step.tokens),
    })
}

#[cfg(test)]
mod tests {
    use super::super::decode_attention_bytes;
    use super::*;

    /// Shared memory of a multiprocessor of compute capability 9.0, and what the system takes of it for every CTA.
    const MULTIPROCESSOR: u32 = 228 * 1024;
    const RESERVED: u32 = 1024;

    #[test]
    fn a_multiprocessor_has_room_for_one_product_and_decode_attention_beside_it() {
        for (tokens, stages, name) in PRODUCT_WIDTHS {
            let product = ring_bytes(tokens, stages) + RESERVED;
            // The attention kernel's static shared memory is below 512 bytes.
            let attention = decode_attention_bytes(128) + 512 + RESERVED;
            assert!(2 * product > MULTIPROCESSOR, "{name}");
            assert!(product + attention <= MULTIPROCESSOR, "{name}");
        }
    }
}
