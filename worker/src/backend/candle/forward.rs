//! The decoder: one pass over a flat batch.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use disagg_engine::{Batch, KvTransport};

use super::attention::PagedAttention;
use super::experts;
use super::linear::{linear, multiply};
use super::rows::{RmsNorm, Rotary, RotaryTable, SiluMul};
use super::simd::Isa;
use super::tensors::with_rows;
use super::weights::{Cpu, Weights};
use crate::backend::pool::PagedPool;
use crate::model::ModelSpec;
use crate::model::load::{Dense, Layer, Mlp};

/// A model of any family.
pub(super) struct Decoder {
    spec: ModelSpec,
    weights: Arc<Weights>,
    frequencies: Vec<f32>,
    isa: Isa,
}

impl Decoder {
    pub(super) fn new(spec: ModelSpec, weights: Arc<Weights>, isa: Isa) -> Self {
        let frequencies = spec.rope.frequencies(spec.head_dim).into_iter().map(|f| f as f32).collect();
        Self { spec, weights, frequencies, isa }
    }

    pub(super) fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Computes the batch (`input_ids` are its tokens), stores its keys and values in the pool, and gives the logits
    /// of the rows to be sampled: `[samples, vocab]`. `None` if there are none.
    pub(super) fn forward(
        &self,
        batch: &Batch<'_>,
        input_ids: &[u32],
        pool: &PagedPool,
        transport: &mut dyn KvTransport,
    ) -> Result<Option<Tensor>> {
        let mut hidden = self.weights.embedding.rows(input_ids)?;
        let rotary = RotaryTable::new(&self.frequencies, batch.positions);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            let index = index as u32;
            let normed = self.norm(&hidden, &layer.input_norm)?;
            let queries = self.project(layer, &normed, &rotary, index, batch, pool)?;
            if !batch.pushes.is_empty() {
                transport.push_layer(index, batch.pushes);
            }
            let attention = PagedAttention {
                isa: self.isa,
                pool,
                layer: index,
                batch,
                head_dim: self.spec.head_dim,
                kv_heads: self.spec.num_kv_heads,
                block_size: pool.block_size(),
                window: self.spec.layers[index as usize].window,
            };
            let attended = queries.apply_op1_no_bwd(&attention)?;
            hidden = (hidden + linear(self.isa, &attended, &layer.attention_output)?)?;

            let normed = self.norm(&hidden, &layer.mlp_norm)?;
            let out = match &layer.mlp {
                Mlp::Dense(mlp) => self.mlp(mlp, &normed)?,
                Mlp::Experts(experts) => {
                    let scores = linear(self.isa, &normed, &experts.router)?;
                    experts::apply(experts, &normed, &scores, |mlp, rows| self.mlp(mlp, rows))?
                }
            };
            hidden = (hidden + out)?;
        }
        self.logits(batch, &hidden)
    }

    fn mlp(&self, mlp: &Dense<Cpu>, normed: &Tensor) -> Result<Tensor> {
        let gate_up = linear(self.isa, normed, &mlp.gate_up)?;
        let activated = gate_up.apply_op1_no_bwd(&SiluMul { isa: self.isa })?;
        linear(self.isa, &activated, &mlp.down)
    }

    /// Queries, keys and values of a layer; keys and values go to the pool.
    fn project(
        &self,
        layer: &Layer<Cpu>,
        normed: &Tensor,
        table: &RotaryTable,
        index: u32,
        batch: &Batch<'_>,
        pool: &PagedPool,
    ) -> Result<Tensor> {
        let (q_size, kv_size) = (self.spec.q_size(), self.spec.kv_size());
        let qkv = linear(self.isa, normed, &layer.qkv)?;
        let part = |start, size, norm: &Option<Tensor>| -> Result<Tensor> {
            let part = qkv.narrow(1, start, size)?;
            let part = match norm {
                Some(weight) => self.norm_heads(&part, weight)?,
                None => part,
            };
            part.apply_op1_no_bwd(&Rotary { table })
        };
        let queries = part(0, q_size, &layer.q_norm)?;
        let keys = part(q_size, kv_size, &layer.k_norm)?;
        let values = qkv.narrow(1, q_size + kv_size, kv_size)?;
        with_rows(&keys, &values, |keys, values| pool.store(index, batch.slot_mapping, keys, values))?;
        Ok(queries)
    }

    /// Only the last tokens of the rows to be sampled go through the output matrix.
    fn logits(&self, batch: &Batch<'_>, hidden: &Tensor) -> Result<Option<Tensor>> {
        if batch.samples.is_empty() {
            return Ok(None);
        }
        let last: Vec<u32> =
            batch.samples.iter().map(|sample| batch.cu_seqlens[sample.row as usize + 1] - 1).collect();
        let hidden = hidden.index_select(&Tensor::new(last, &Device::Cpu)?, 0)?;
        let hidden = self.norm(&hidden, &self.weights.norm)?;
        multiply(self.isa, &hidden, &self.weights.head).map(Some)
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        x.apply_op2_no_bwd(weight, &RmsNorm { isa: self.isa, eps: self.spec.rms_norm_eps })
    }

    /// `[tokens, heads * head_dim]`, each head by itself.
    fn norm_heads(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let shape = x.shape();
        let heads = x.contiguous()?.reshape(((), self.spec.head_dim))?;
        self.norm(&heads, weight)?.reshape(shape)
    }
}
