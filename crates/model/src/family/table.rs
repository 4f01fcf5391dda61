//! What a family's file writes its table with.

use crate::spec::{Slot, TensorSpec};

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

    fn add(&mut self, slot: Slot, name: &str, kind: &str, shape: Vec<usize>) {
        let name = format!("model.layers.{}.{name}.{kind}", self.layer);
        self.tensors.push(TensorSpec { name, shape, slot });
    }

    pub(super) fn finish(self) -> Vec<TensorSpec> {
        self.tensors
    }
}
