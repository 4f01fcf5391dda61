//! The decoder: one pass over a flat batch.

use disagg_engine::{Batch, KvTransport};

use super::attention::PagedAttention;
use super::linear::{linear, multiply};
use super::rows::{Heads, RotaryTable, add, rms_norm, rotary_frequencies, silu_mul};
use super::simd::Isa;
use crate::backend::pool::{PagedPool, Rows};
use crate::model::weights::LayerWeights;
use crate::model::{ModelConfig, Weights};

/// Llama, Mistral, Qwen2 or Qwen3.
pub(super) struct Decoder {
    config: ModelConfig,
    weights: Weights,
    frequencies: Vec<f32>,
    isa: Isa,
}

impl Decoder {
    pub(super) fn new(config: ModelConfig, weights: Weights, isa: Isa) -> Self {
        Self { frequencies: rotary_frequencies(&config), config, weights, isa }
    }

    pub(super) fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Computes the batch (`input_ids` are its tokens), stores its keys and values in the pool, and gives the logits
    /// of the rows to be sampled: `[samples, vocab]`.
    pub(super) fn forward(
        &self,
        batch: &Batch<'_>,
        input_ids: &[u32],
        pool: &PagedPool,
        transport: &mut dyn KvTransport,
    ) -> Vec<f32> {
        let mut hidden = self.weights.embedding.rows(input_ids);
        let rotary = RotaryTable::new(&self.frequencies, batch.positions);
        let mut space = Activations::new(&self.config, input_ids.len());
        for (index, layer) in self.weights.layers.iter().enumerate() {
            let index = index as u32;
            self.norm(&hidden, &layer.input_norm, &mut space.normed);
            self.project(layer, &mut space, &rotary, index, batch, pool);
            if !batch.pushes.is_empty() {
                transport.push_layer(index, batch.pushes);
            }
            let attention = PagedAttention {
                isa: self.isa,
                pool,
                layer: index,
                batch,
                head_dim: self.config.head_dim,
                kv_heads: self.config.num_kv_heads,
                block_size: pool.block_size(),
            };
            let q_size = self.config.q_size();
            attention.apply(Rows::dense(&space.queries, q_size), &mut space.attended);
            let attended = Rows::dense(&space.attended, q_size);
            linear(self.isa, attended, &layer.attention_output, &mut space.output);
            add(&mut hidden, &space.output);

            self.norm(&hidden, &layer.mlp_norm, &mut space.normed);
            let (hidden_size, mlp_size) = (self.config.hidden_size, self.config.intermediate_size);
            linear(self.isa, Rows::dense(&space.normed, hidden_size), &layer.gate_up, &mut space.gate_up);
            silu_mul(self.isa, Rows::dense(&space.gate_up, 2 * mlp_size), &mut space.activated);
            linear(self.isa, Rows::dense(&space.activated, mlp_size), &layer.down, &mut space.output);
            add(&mut hidden, &space.output);
        }
        self.logits(batch, &hidden)
    }

    /// Queries, keys and values of a layer, from what is normed; keys and values go to the pool.
    fn project(
        &self,
        layer: &LayerWeights,
        space: &mut Activations,
        table: &RotaryTable,
        index: u32,
        batch: &Batch<'_>,
        pool: &PagedPool,
    ) {
        let (q_size, kv_size) = (self.config.q_size(), self.config.kv_size());
        let normed = Rows::dense(&space.normed, self.config.hidden_size);
        linear(self.isa, normed, &layer.qkv, &mut space.qkv);
        let stride = q_size + 2 * kv_size;
        let part = |start, width| Rows { data: &space.qkv[start..], stride, width, count: normed.count };
        let eps = self.config.rms_norm_eps;
        let heads = |norm| Heads { norm, eps, table };
        heads(layer.q_norm.as_deref()).apply(self.isa, part(0, q_size), &mut space.queries);
        heads(layer.k_norm.as_deref()).apply(self.isa, part(q_size, kv_size), &mut space.keys);
        let values = part(q_size + kv_size, kv_size);
        pool.store(index, batch.slot_mapping, Rows::dense(&space.keys, kv_size), values);
    }

    /// Only the last tokens of the rows to be sampled go through the output matrix.
    fn logits(&self, batch: &Batch<'_>, hidden: &[f32]) -> Vec<f32> {
        let size = self.config.hidden_size;
        let last = |row: u32| batch.cu_seqlens[row as usize + 1] as usize - 1;
        let hidden: Vec<f32> = batch
            .samples
            .iter()
            .flat_map(|sample| &hidden[last(sample.row) * size..][..size])
            .copied()
            .collect();
        let mut normed = vec![0.0; hidden.len()];
        self.norm(&hidden, &self.weights.final_norm, &mut normed);
        let mut logits = vec![0.0; batch.samples.len() * self.config.vocab_size];
        multiply(self.isa, Rows::dense(&normed, size), &self.weights.lm_head, &mut logits);
        logits
    }

    /// Norms `[tokens, hidden]`.
    fn norm(&self, x: &[f32], weight: &[f32], out: &mut [f32]) {
        let x = Rows::dense(x, self.config.hidden_size);
        rms_norm(self.isa, x, weight, self.config.rms_norm_eps, out);
    }
}

/// What is between the operations of a layer, `[tokens, ...]` each; all layers of a step use the same memory. Taken anew for
/// every operation, much of a step's time would go into getting pages from the system and giving them back.
struct Activations {
    /// `hidden`.
    normed: Vec<f32>,
    /// Queries, then keys, then values.
    qkv: Vec<f32>,
    /// `heads * head_dim`.
    queries: Vec<f32>,
    /// `kv_heads * head_dim`.
    keys: Vec<f32>,
    /// `heads * head_dim`.
    attended: Vec<f32>,
    /// `hidden`: what attention or MLP adds to the residual stream.
    output: Vec<f32>,
    /// Gate, then up.
    gate_up: Vec<f32>,
    /// Width of the MLP.
    activated: Vec<f32>,
}

impl Activations {
    fn new(config: &ModelConfig, tokens: usize) -> Self {
        let (q_size, kv_size) = (config.q_size(), config.kv_size());
        let space = |width: usize| vec![0.0; tokens * width];
        Self {
            normed: space(config.hidden_size),
            qkv: space(q_size + 2 * kv_size),
            queries: space(q_size),
            keys: space(kv_size),
            attended: space(q_size),
            output: space(config.hidden_size),
            gate_up: space(2 * config.intermediate_size),
            activated: space(config.intermediate_size),
        }
    }
}
