//! Weights in main memory: matrices in the format of their files, vectors in f32.

use std::sync::Arc;

use rayon::prelude::*;

use super::matrix::Matrix;
use crate::model::load::{self, Experts, Product, Sink, Storage};
use crate::model::weights::read_f32;
use crate::model::{ExpertsSpec, LayerSpec, ModelError, ModelSpec, TensorSource, TensorSpec};

/// What the CPU backend keeps weights as.
#[derive(Clone, Copy, Debug)]
pub struct Cpu;

impl Storage for Cpu {
    type Linear = Linear;
    type Vector = Arc<[f32]>;
    type Table = Matrix;
    /// Shares memory with the embedding when they are tied.
    type Head = Matrix;
    type Experts = Experts<Self>;
}

/// All weights of a model.
pub type Weights = load::Weights<Cpu>;

/// A matrix `[out, in]` and perhaps a bias `[out]`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Matrix,
    /// `[out]`.
    pub bias: Option<Arc<[f32]>>,
}

/// Reads every tensor of `spec`; layers in parallel.
pub fn load_weights(spec: &ModelSpec, source: &dyn TensorSource) -> Result<Weights, ModelError> {
    Weights::load(spec, &Reader { source })
}

/// Packs matrices as they are read.
struct Reader<'a> {
    source: &'a dyn TensorSource,
}

impl Reader<'_> {
    /// Matrices one below the other.
    fn matrix(&self, parts: &[&TensorSpec]) -> Result<Matrix, ModelError> {
        let inputs = parts.first().map_or(0, |part| part.shape[1]);
        let parts: Vec<_> = parts.iter().map(|part| (part.name.as_str(), part.shape[0])).collect();
        Matrix::read(self.source, inputs, &parts)
    }

    /// Vectors, one behind the other. Each is read to its place.
    fn vectors(&self, parts: &[&TensorSpec]) -> Result<Arc<[f32]>, ModelError> {
        let mut data = vec![0.0; parts.iter().map(|part| part.elements()).sum()];
        let mut rest = data.as_mut_slice();
        for part in parts {
            let (out, behind) = rest.split_at_mut(part.elements());
            read_f32(self.source, &part.name, &part.shape, out)?;
            rest = behind;
        }
        Ok(data.into())
    }
}

impl Sink for Reader<'_> {
    type Storage = Cpu;
    type Error = ModelError;

    fn linear(&self, product: &Product<'_>) -> Result<Linear, ModelError> {
        let bias = match product.biases.as_slice() {
            [] => None,
            biases => Some(self.vectors(biases)?),
        };
        Ok(Linear { weight: self.matrix(&product.weights)?, bias })
    }

    fn vector(&self, tensor: &TensorSpec) -> Result<Arc<[f32]>, ModelError> {
        self.vectors(&[tensor])
    }

    fn table(&self, tensor: &TensorSpec) -> Result<Matrix, ModelError> {
        self.matrix(&[tensor])
    }

    fn head(&self, tensor: Option<&TensorSpec>, embedding: &Matrix) -> Result<Matrix, ModelError> {
        tensor.map_or_else(|| Ok(embedding.clone()), |tensor| self.matrix(&[tensor]))
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
