//! The layers of any step, on every GPU: nine launches a layer, the products through cublasLt.

use super::super::CudaError;
use super::super::blas::{Blas, Shape};
use super::super::device::{Arg, Buffer, Device};
use super::super::format::Bits;
use super::super::step::Step;
use super::super::weights::{Layer, Linear, dense};
use super::{Activations, Model, PRODUCTS, window_arg};

impl Model {
    /// Norm, qkv, RoPE with append, attention (one launch for rows of one token, one for others), output, norm,
    /// gate_up, SiLU·mul, down. Output and down add to the residual stream. The first `count` layers.
    ///
    /// Nobody reads what comes behind the last layer's keys and values but where a token is drawn, so that layer goes on
    /// with those rows alone, in order. `normed` then holds them alone too.
    pub(super) fn layers(
        &mut self,
        step: &Step,
        count: usize,
        mut after_layer: impl FnMut(&Device, u32) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let last = self.weights.layers.len() - 1;
        for index in 0..count {
            let (tokens, a) = (step.tokens, &self.activations);
            let (normed, qkv, residual) = (a.normed.address(), a.qkv.address(), a.residual.address());
            self.norm(tokens, residual, &self.weights.layers[index].input_norm)?;
            self.weights.layers[index].qkv.apply(&mut self.blas, &self.device, tokens, normed, qkv)?;
            self.rope_append(step, index)?;
            let drawn_alone = index == last && step.samples < tokens;
            if !drawn_alone {
                self.attention(step, index)?;
                self.behind_attention(index, tokens, self.activations.attention.address(), residual)?;
            } else if step.samples > 0 {
                self.attention(step, index)?;
                // Queries, keys and values have been read.
                let (attention, width) = (qkv, self.spec.q_size());
                self.gather(step, self.activations.attention.address(), attention, width)?;
                let drawn = self.activations.last.address();
                self.gather(step, residual, drawn, self.spec.hidden_size)?;
                self.behind_attention(index, step.samples, attention, drawn)?;
            }
            after_layer(&self.device, index as u32)?;
        }
        if step.samples == 0 {
            return Ok(());
        }
        let a = &self.activations;
        let residual = if step.samples < step.tokens { a.last.address() } else { a.residual.address() };
        self.norm(step.samples, residual, &self.weights.norm)
    }

    /// Output, norm and the MLP, of `tokens` rows of attention and of the residual stream.
    fn behind_attention(
        &mut self,
        index: usize,
        tokens: u32,
        attention: u64,
        residual: u64,
    ) -> Result<(), CudaError> {
        let layer = &self.weights.layers[index];
        layer.attention_output.add(&mut self.blas, &self.device, tokens, attention, residual)?;
        self.norm(tokens, residual, &layer.mlp_norm)?;
        let (a, layer) = (&self.activations, &self.weights.layers[index]);
        let (normed, gate_up) = (a.normed.address(), a.gate_up.address());
        dense(layer).gate_up.apply(&mut self.blas, &self.device, tokens, normed, gate_up)?;
        let width = dense(layer).down.inputs;
        let pieces = u64::from(tokens) * u64::from(width) / 8;
        let grid = pieces.div_ceil(256).min(u64::from(self.device.multiprocessors) * 16) as u32;
        let args = [
            Arg::Address(a.activated.address()),
            Arg::Address(gate_up),
            Arg::Int(tokens as i32),
            Arg::Int(width as i32),
        ];
        // SAFETY: see `Model::step`.
        unsafe { self.kernels.silu_mul.launch(&self.device, (grid, 1), 256, &args)? };
        dense(layer).down.add(&mut self.blas, &self.device, tokens, a.activated.address(), residual)
    }

    /// Rows of `width` numbers in which tokens are drawn, from `x` to `out`.
    fn gather(&self, step: &Step, x: u64, out: u64, width: usize) -> Result<(), CudaError> {
        let args =
            [Arg::Address(out), Arg::Address(x), Arg::Address(step.sample_rows), Arg::Int(width as i32)];
        // SAFETY: see `Model::step`.
        unsafe { self.kernels.gather_rows.launch(&self.device, (step.samples, 1), 256, &args) }
    }

    /// `normed` = `residual`, normalised.
    fn norm(&self, tokens: u32, residual: u64, weight: &Buffer<Bits>) -> Result<(), CudaError> {
        // SAFETY: see `Model::step`.
        unsafe {
            self.kernels.rms_norm.launch(
                &self.device,
                (tokens, 1),
                self.norm_block(),
                &[
                    Arg::Address(self.activations.normed.address()),
                    Arg::Address(residual),
                    Arg::Address(weight.address()),
                    Arg::Int(self.spec.hidden_size as i32),
                    Arg::Float(self.spec.rms_norm_eps),
                ],
            )
        }
    }

    fn rope_append(&self, step: &Step, index: usize) -> Result<(), CudaError> {
        let Self { device, spec, kernels, activations: a, .. } = self;
        let layer = &self.weights.layers[index];
        let (heads, kv_heads) = (spec.num_heads as i32, spec.num_kv_heads as i32);
        let layer_pool = self.layer_pool(index).1;
        let items = step.tokens * (heads + 2 * kv_heads) as u32;
        // SAFETY: see `Model::step`.
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
                    Arg::optional(&layer.q_norm),
                    Arg::optional(&layer.k_norm),
                    Arg::Int(step.tokens as i32),
                    Arg::Int(heads),
                    Arg::Int(kv_heads),
                    Arg::Float(spec.rms_norm_eps),
                ],
            )
        }
    }

    /// Of rows of one token, then of others.
    fn attention(&self, step: &Step, index: usize) -> Result<(), CudaError> {
        if step.decode_rows > 0 {
            let args = self.decode_attention(step, index);
            let grid = (self.decode_ctas(step), 1);
            // SAFETY: see `Model::step`.
            unsafe { self.kernels.decode.launch(&self.device, grid, 128, &args)? };
        }
        self.prefill_attention(step, index)
    }

    /// Attention of the rows with several tokens.
    fn prefill_attention(&self, step: &Step, index: usize) -> Result<(), CudaError> {
        let Self { device, spec, kernels, activations: a, .. } = self;
        let (heads, kv_heads) = (spec.num_heads as i32, spec.num_kv_heads as i32);
        let (pool_start, layer_pool) = self.layer_pool(index);
        // SAFETY: see `Model::step`.
        unsafe {
            if let (Some(kernel), Some((map_q, map_kv))) = (&kernels.prefill_sm90, self.maps) {
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
                        Arg::Int((pool_start / spec.head_dim) as i32),
                        Arg::Int(step.table_stride as i32),
                        Arg::Float(self.scale_log2()),
                        window_arg(spec.layers[index].window),
                    ],
                )
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
                        Arg::Int((heads + 2 * kv_heads) * spec.head_dim as i32),
                        Arg::Int(step.table_stride as i32),
                        Arg::Float(self.scale_log2()),
                        window_arg(spec.layers[index].window),
                    ],
                )
            }
        }
    }
}

/// A layer's products: weight, input, output, and whether the result is added to what is there.
pub(super) fn products<'a>(layer: &'a Layer, a: &Activations) -> [(&'a Linear, u64, u64, bool); PRODUCTS] {
    let (normed, residual) = (a.normed.address(), a.residual.address());
    let mlp = dense(layer);
    [
        (&layer.qkv, normed, a.qkv.address(), false),
        (&layer.attention_output, a.attention.address(), residual, true),
        (&mlp.gate_up, normed, a.gate_up.address(), false),
        (&mlp.down, a.activated.address(), residual, true),
    ]
}

impl Linear {
    pub(super) fn shape(&self, m: u32, accumulate: bool) -> Shape {
        let bias = self.bias.is_some();
        Shape { m, n: self.outputs, k: self.inputs, bias, float_out: false, accumulate }
    }

    /// As a link of a decode chain: float, and what follows adds the bias.
    pub(super) fn parts_shape(&self, m: u32) -> Shape {
        Shape { m, n: self.outputs, k: self.inputs, bias: false, float_out: true, accumulate: false }
    }

    pub(super) fn bias_address(&self) -> u64 {
        self.bias.as_ref().map_or(0, Buffer::address)
    }

    fn apply(&self, blas: &mut Blas, device: &Device, m: u32, x: u64, out: u64) -> Result<(), CudaError> {
        let shape = self.shape(m, false);
        blas.multiply(device, shape, self.weight.address(), self.bias_address(), x, out)
    }

    fn add(&self, blas: &mut Blas, device: &Device, m: u32, x: u64, out: u64) -> Result<(), CudaError> {
        let shape = self.shape(m, true);
        blas.multiply(device, shape, self.weight.address(), self.bias_address(), x, out)
    }
}
