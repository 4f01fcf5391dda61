//! The decoder once more, as the papers have it: plain candle operations in f64 over a whole sequence, with no cache, no
//! blocks and no batch. The backend's logits are compared with these.

use candle_core::{D, DType, Device, Result, Tensor};

use crate::model::weights::read_f32;
use crate::model::{LayerSpec, ModelSpec, Slot, TensorSource, TensorSpec};

/// A dense model of any family, with where its weights come from.
pub(super) struct Reference<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) source: &'a dyn TensorSource,
}

impl Reference<'_> {
    /// The logits after each of `tokens`, `[tokens, vocab]`.
    pub(super) fn logits(&self, tokens: &[u32]) -> Result<Vec<Vec<f64>>> {
        let ids = Tensor::new(tokens, &Device::Cpu)?;
        let embedding = self.tensor(&self.spec.embedding)?;
        let mut hidden = embedding.index_select(&ids, 0)?;
        for layer in &self.spec.layers {
            let normed = self.norm(&hidden, layer, Slot::InputNorm)?;
            hidden = (&hidden + self.attention(layer, &normed)?)?;
            let normed = self.norm(&hidden, layer, Slot::MlpNorm)?;
            let gate_up = self.linear(layer, Slot::GateUp, &normed)?;
            let width = gate_up.dim(1)? / 2;
            let (gate, up) = (gate_up.narrow(1, 0, width)?, gate_up.narrow(1, width, width)?);
            let activated = (gate.silu()? * up)?;
            hidden = (&hidden + self.linear(layer, Slot::Down, &activated)?)?;
        }
        let normed = self.rms_norm(&hidden, &self.tensor(&self.spec.norm)?)?;
        let head = self.spec.head.as_ref().map_or(Ok(embedding), |head| self.tensor(head))?;
        normed.matmul(&head.t()?)?.to_vec2()
    }

    fn attention(&self, layer: &LayerSpec, normed: &Tensor) -> Result<Tensor> {
        let (q_size, kv_size, dim) = (self.spec.q_size(), self.spec.kv_size(), self.spec.head_dim);
        let tokens = normed.dim(0)?;
        let qkv = self.linear(layer, Slot::Qkv, normed)?;
        // `[heads, tokens, head_dim]`
        let heads = |start, size: usize| -> Result<Tensor> {
            qkv.narrow(1, start, size)?.reshape((tokens, size / dim, dim))?.transpose(0, 1)?.contiguous()
        };
        let queries = self.rotate(&self.norm(&heads(0, q_size)?, layer, Slot::QNorm)?)?;
        let keys = self.rotate(&self.norm(&heads(q_size, kv_size)?, layer, Slot::KNorm)?)?;
        let values = heads(q_size + kv_size, kv_size)?;
        // Each key and value head serves as many query heads, side by side.
        let group = self.spec.num_heads / self.spec.num_kv_heads;
        let of_query: Vec<u32> = (0..self.spec.num_heads).map(|head| (head / group) as u32).collect();
        let of_query = Tensor::new(of_query, &Device::Cpu)?;
        let (keys, values) = (keys.index_select(&of_query, 0)?, values.index_select(&of_query, 0)?);

        let window = layer.window.map_or(tokens, |window| window as usize);
        let hidden_from = |query: usize| {
            (0..tokens)
                .map(move |key| if key <= query && query - key < window { 0.0 } else { f64::NEG_INFINITY })
        };
        let mask: Vec<f64> = (0..tokens).flat_map(hidden_from).collect();
        let mask = Tensor::from_vec(mask, (tokens, tokens), &Device::Cpu)?;
        let scores = (queries.matmul(&keys.transpose(1, 2)?.contiguous()?)? / (dim as f64).sqrt())?;
        let scores = scores.broadcast_add(&mask)?;
        let powers = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let shares = powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)?;
        let attended = shares.matmul(&values)?.transpose(0, 1)?.reshape((tokens, q_size))?;
        self.linear(layer, Slot::AttentionOutput, &attended)
    }

    /// Rotary embedding of `[heads, tokens, head_dim]`; the two halves of a head are the pairs' two coordinates.
    fn rotate(&self, heads: &Tensor) -> Result<Tensor> {
        let (_, tokens, dim) = heads.dims3()?;
        let frequencies = self.spec.rope.frequencies(dim);
        let angles =
            (0..tokens).flat_map(|at| frequencies.iter().map(move |frequency| at as f64 * frequency));
        let angles = Tensor::from_vec(angles.collect::<Vec<_>>(), (tokens, dim / 2), &Device::Cpu)?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        let (x, y) = (heads.narrow(2, 0, dim / 2)?, heads.narrow(2, dim / 2, dim / 2)?);
        let turned = [
            (x.broadcast_mul(&cos)? - y.broadcast_mul(&sin)?)?,
            (y.broadcast_mul(&cos)? + x.broadcast_mul(&sin)?)?,
        ];
        Tensor::cat(&turned, 2)
    }

    /// `x` as it is where the layer has no such norm.
    fn norm(&self, x: &Tensor, layer: &LayerSpec, slot: Slot) -> Result<Tensor> {
        match layer.slot(slot).next() {
            Some(weight) => self.rms_norm(x, &self.tensor(weight)?),
            None => Ok(x.clone()),
        }
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(mean + f64::from(self.spec.rms_norm_eps))?.sqrt()?)?.broadcast_mul(weight)
    }

    /// All matrices of a slot, one below the other, and their biases.
    fn linear(&self, layer: &LayerSpec, slot: Slot, x: &Tensor) -> Result<Tensor> {
        let stack = |matrices: bool| -> Result<Vec<Tensor>> {
            layer
                .slot(slot)
                .filter(|tensor| tensor.is_matrix() == matrices)
                .map(|tensor| self.tensor(tensor))
                .collect()
        };
        let y = x.matmul(&Tensor::cat(&stack(true)?, 0)?.t()?)?;
        let biases = stack(false)?;
        if biases.is_empty() { Ok(y) } else { y.broadcast_add(&Tensor::cat(&biases, 0)?) }
    }

    fn tensor(&self, tensor: &TensorSpec) -> Result<Tensor> {
        let mut values = vec![0.0; tensor.elements()];
        read_f32(self.source, &tensor.name, &tensor.shape, &mut values).map_err(candle_core::Error::wrap)?;
        Tensor::from_vec(values, tensor.shape.as_slice(), &Device::Cpu)?.to_dtype(DType::F64)
    }
}
