//! What a family's file writes its table with.

use crate::config::Config;
use crate::spec::{MlpSpec, Slot, TensorSpec};

/// The tensors of one layer.
pub(super) struct Table {
    layer: usize,
    tensors: Vec<TensorSpec>,
}

impl Table {
    pub(super) fn of_layer(layer: usize) -> Self {
        Self { layer, tensors: Vec::new() }
    }

    /// A norm's weights, `[size]`.
    pub(super) fn norm(&mut self, slot: Slot, name: &str, size: usize) {
        self.add(slot, name, "weight", vec![size]);
    }

    /// A matrix `[out, in]`, and a bias `[out]` if it has one.
    pub(super) fn linear(&mut self, slot: Slot, name: &str, shape: [usize; 2], bias: bool) {
        self.add(slot, name, "weight", shape.to_vec());
        if bias {
            self.add(slot, name, "bias", shape[..1].to_vec());
        }
    }

    /// The projections to queries, keys and values.
    pub(super) fn qkv(&mut self, config: &Config<'_>, bias: bool) {
        let (q, kv, hidden) = (config.q_size(), config.kv_size(), config.hidden_size);
        self.linear(Slot::Qkv, "self_attn.q_proj", [q, hidden], bias);
        self.linear(Slot::Qkv, "self_attn.k_proj", [kv, hidden], bias);
        self.linear(Slot::Qkv, "self_attn.v_proj", [kv, hidden], bias);
    }

    /// A dense MLP, `width` elements between its two halves, of which the first has a gate.
    pub(super) fn gated_mlp(&mut self, config: &Config<'_>, width: usize, bias: bool) -> MlpSpec {
        let hidden = config.hidden_size;
        self.linear(Slot::GateUp, "mlp.gate_proj", [width, hidden], bias);
        self.linear(Slot::GateUp, "mlp.up_proj", [width, hidden], bias);
        self.linear(Slot::Down, "mlp.down_proj", [hidden, width], bias);
        MlpSpec::Dense { width }
    }

    fn add(&mut self, slot: Slot, name: &str, kind: &str, shape: Vec<usize>) {
        let name = format!("model.layers.{}.{name}.{kind}", self.layer);
        self.tensors.push(TensorSpec { name, shape, slot });
    }

    pub(super) fn finish(self) -> Vec<TensorSpec> {
        self.tensors
    }
}
