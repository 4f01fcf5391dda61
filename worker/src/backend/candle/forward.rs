//! The decoder: one pass over a flat batch.

use std::sync::Arc;

use disagg_engine::{Batch, KvTransport};

use super::attention::PagedAttention;
use super::experts;
use super::linear::{linear, multiply};
use super::rows::{Heads, RotaryTable, add, rms_norm, silu_mul};
use super::simd::Isa;
use super::weights::{Cpu, Weights};
use crate::backend::pool::{PagedPool, Rows};
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
        let mut space = Activations::new(&self.spec, input_ids.len());
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
                head_dim: self.spec.head_dim,
                kv_heads: self.spec.num_kv_heads,
                block_size: pool.block_size(),
                window: self.spec.layers[index as usize].window,
            };
            let q_size = self.spec.q_size();
            attention.apply(Rows::dense(&space.queries, q_size), &mut space.attended);
            let attended = Rows::dense(&space.attended, q_size);
            linear(self.isa, attended, &layer.attention_output, &mut space.output);
            add(&mut hidden, &space.output);

            self.norm(&hidden, &layer.mlp_norm, &mut space.normed);
            self.mlp(&layer.mlp, &mut space);
            add(&mut hidden, &space.output);
        }
        self.logits(batch, &hidden)
    }

    /// What a layer's MLP adds to the residual stream, from what is normed.
    fn mlp(&self, mlp: &Mlp<Cpu>, space: &mut Activations) {
        let Activations { normed, gate_up, activated, output, .. } = space;
        let normed = Rows::dense(normed, self.spec.hidden_size);
        match mlp {
            Mlp::Dense(dense) => self.gated(dense, normed, gate_up, activated, output),
            Mlp::Experts(experts) => {
                let mut scores = vec![0.0; normed.count * experts.shape.count];
                linear(self.isa, normed, &experts.router, &mut scores);
                experts::apply(experts, normed, &scores, output, |expert, rows, out| {
                    self.gated(expert, rows, gate_up, activated, out);
                });
            }
        }
    }

    /// A gated MLP of some rows. `gate_up` and `activated` have room for what is between its products.
    fn gated(
        &self,
        mlp: &Dense<Cpu>,
        x: Rows<'_>,
        gate_up: &mut [f32],
        activated: &mut [f32],
        out: &mut [f32],
    ) {
        let width = mlp.down.weight.inputs();
        let (gate_up, activated) = (&mut gate_up[..x.count * 2 * width], &mut activated[..x.count * width]);
        linear(self.isa, x, &mlp.gate_up, gate_up);
        silu_mul(self.isa, Rows::dense(gate_up, 2 * width), activated);
        linear(self.isa, Rows::dense(activated, width), &mlp.down, out);
    }

    /// Queries, keys and values of a layer, from what is normed; keys and values go to the pool.
    fn project(
        &self,
        layer: &Layer<Cpu>,
        space: &mut Activations,
        table: &RotaryTable,
        index: u32,
        batch: &Batch<'_>,
        pool: &PagedPool,
    ) {
        let (q_size, kv_size) = (self.spec.q_size(), self.spec.kv_size());
        let normed = Rows::dense(&space.normed, self.spec.hidden_size);
        linear(self.isa, normed, &layer.qkv, &mut space.qkv);
        let stride = q_size + 2 * kv_size;
        let part = |start, width| Rows { data: &space.qkv[start..], stride, width, count: normed.count };
        let eps = self.spec.rms_norm_eps;
        let heads = |norm| Heads { norm, eps, table };
        heads(layer.q_norm.as_deref()).apply(self.isa, part(0, q_size), &mut space.queries);
        heads(layer.k_norm.as_deref()).apply(self.isa, part(q_size, kv_size), &mut space.keys);
        let values = part(q_size + kv_size, kv_size);
        pool.store(index, batch.slot_mapping, Rows::dense(&space.keys, kv_size), values);
    }

    /// Only the last tokens of the rows to be sampled go through the output matrix.
    fn logits(&self, batch: &Batch<'_>, hidden: &[f32]) -> Vec<f32> {
        let size = self.spec.hidden_size;
        let last = |row: u32| batch.cu_seqlens[row as usize + 1] as usize - 1;
        let hidden: Vec<f32> = batch
            .samples
            .iter()
            .flat_map(|sample| &hidden[last(sample.row) * size..][..size])
            .copied()
            .collect();
        let mut normed = vec![0.0; hidden.len()];
        self.norm(&hidden, &self.weights.norm, &mut normed);
        let mut logits = vec![0.0; batch.samples.len() * self.spec.vocab_size];
        multiply(self.isa, Rows::dense(&normed, size), &self.weights.head, &mut logits);
        logits
    }

    /// Norms `[tokens, hidden]`.
    fn norm(&self, x: &[f32], weight: &[f32], out: &mut [f32]) {
        let x = Rows::dense(x, self.spec.hidden_size);
        rms_norm(self.isa, x, weight, self.spec.rms_norm_eps, out);
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
    /// Width of the widest MLP.
    activated: Vec<f32>,
}

impl Activations {
    fn new(spec: &ModelSpec, tokens: usize) -> Self {
        let (q_size, kv_size) = (spec.q_size(), spec.kv_size());
        let space = |width: usize| vec![0.0; tokens * width];
        Self {
            normed: space(spec.hidden_size),
            qkv: space(q_size + 2 * kv_size),
            queries: space(q_size),
            keys: space(kv_size),
            attended: space(q_size),
            output: space(spec.hidden_size),
            gate_up: space(2 * spec.mlp_width()),
            activated: space(spec.mlp_width()),
        }
    }
}
