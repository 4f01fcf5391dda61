//! Weights in main memory, in f32.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::model::load::{self, Experts, Product, Sink, Storage};
use crate::model::weights::read_f32;
use crate::model::{ExpertsSpec, LayerSpec, ModelError, ModelSpec, TensorSource, TensorSpec};

/// What the CPU backend keeps weights as.
#[derive(Clone, Copy, Debug)]
pub struct Cpu;

impl Storage for Cpu {
    type Linear = Linear;
    type Vector = Tensor;
    type Table = Tensor;
    /// Shares memory with the embedding when they are tied.
    type Head = Linear;
    type Experts = Experts<Self>;
}

/// All weights of a model.
pub type Weights = load::Weights<Cpu>;

/// A matrix `[out, in]` and perhaps a bias `[out]`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

/// Reads every tensor of `spec`; layers in parallel.
pub fn load_weights(spec: &ModelSpec, source: &dyn TensorSource) -> Result<Weights, ModelError> {
    Weights::load(spec, &Reader { source })
}

/// Converts tensors to f32 as they are read.
struct Reader<'a> {
    source: &'a dyn TensorSource,
}

impl Reader<'_> {
    /// Tensors that differ in their first dimension at most, one below the other. Each is read to its place.
    fn stack(&self, parts: &[&TensorSpec]) -> Result<Tensor, ModelError> {
        let mut shape = parts.first().map(|part| part.shape.clone()).unwrap_or_default();
        shape[0] = parts.iter().map(|part| part.shape[0]).sum();
        let mut data = vec![0.0; shape.iter().product()];
        let mut rest = data.as_mut_slice();
        for part in parts {
            let (out, behind) = rest.split_at_mut(part.elements());
            read_f32(self.source, &part.name, &part.shape, out)?;
            rest = behind;
        }
        Tensor::from_vec(data, shape, &Device::Cpu).map_err(|error| ModelError::Backend(error.to_string()))
    }
}

impl Sink for Reader<'_> {
    type Storage = Cpu;
    type Error = ModelError;

    fn linear(&self, product: &Product<'_>) -> Result<Linear, ModelError> {
        let bias = match product.biases.as_slice() {
            [] => None,
            biases => Some(self.stack(biases)?),
        };
        Ok(Linear { weight: self.stack(&product.weights)?, bias })
    }

    fn vector(&self, tensor: &TensorSpec) -> Result<Tensor, ModelError> {
        self.stack(&[tensor])
    }

    fn table(&self, tensor: &TensorSpec) -> Result<Tensor, ModelError> {
        self.stack(&[tensor])
    }

    fn head(&self, tensor: Option<&TensorSpec>, embedding: &Tensor) -> Result<Linear, ModelError> {
        let weight = tensor.map_or_else(|| Ok(embedding.clone()), |tensor| self.stack(&[tensor]))?;
        Ok(Linear { weight, bias: None })
    }

    fn experts(&self, layer: &LayerSpec, shape: ExpertsSpec) -> Result<Experts<Cpu>, ModelError> {
        Experts::load(layer, shape, self)
    }

    fn layers<T: Send>(
        &self,
        layers: &[LayerSpec],
        load: impl Fn(&LayerSpec) -> Result<T, ModelError> + Sync + Send,
    ) -> Result<Vec<T>, ModelError> {
        layers.par_iter().map(load).collect()
    }
}
