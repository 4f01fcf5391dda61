//! Weights on the device: where each tensor of a model's tables goes. Fused matrices are one buffer.

use std::convert::Infallible;
use std::sync::Arc;

use cudarc::driver::CudaModule;
use parking_lot::Mutex;

use super::CudaError;
use super::compile::{self, Target};
use super::device::{Arg, Buffer, Device, Kernel, TensorMap};
use super::format::{Bits, Format};
use super::limits::NO_EXPERTS;
use super::split::Split;
use super::upload::{Piece, Upload};
use crate::model::load::{self, Dense, Mlp, Product, Sink, Storage};
use crate::model::{DummyWeights, ExpertsSpec, LayerSpec, ModelError, ModelSpec, TensorSource, TensorSpec};

/// A matrix `[out, in]` and perhaps a bias `[out]`.
pub struct Linear {
    /// `[out, in]`.
    pub weight: Buffer<Bits>,
    /// `[out]`.
    pub bias: Option<Buffer<Bits>>,
    /// Output features.
    pub outputs: u32,
    /// Input features.
    pub inputs: u32,
    /// For our own product of decode steps, on GPUs that have it.
    pub decode: Option<DecodeProduct>,
}

/// What `matmul_decode` needs to know of a weight.
#[derive(Clone, Copy)]
pub struct DecodeProduct {
    /// Over the weight, 128 rows at a time.
    pub map: TensorMap,
    /// How it is cut among CTAs.
    pub split: Split,
}

/// What this backend keeps weights as.
#[derive(Clone, Copy, Debug)]
pub struct Gpu;

impl Storage for Gpu {
    type Linear = Linear;
    type Vector = Buffer<Bits>;
    type Table = Buffer<Bits>;
    /// `None`: the embedding.
    type Head = Option<Buffer<Bits>>;
    /// `check_config` refuses them.
    type Experts = Infallible;
}

/// All weights of a model.
pub type Weights = load::Weights<Gpu>;
/// One decoder layer.
pub type Layer = load::Layer<Gpu>;

/// The MLP of a layer; there is no other kind on a GPU.
pub(super) fn dense(layer: &Layer) -> &Dense<Gpu> {
    match &layer.mlp {
        Mlp::Dense(dense) => dense,
        Mlp::Experts(never) => match *never {},
    }
}

/// Where the numbers come from.
pub enum Origin<'a> {
    /// Files, or anything else that gives tensors by name.
    Tensors(&'a dyn TensorSource),
    /// Random numbers, made on the device; the same as on the CPU but for rounding.
    Dummy(DummyWeights),
}

/// Gives tensors their places on the device.
struct Loader<'a> {
    device: &'a Device,
    origin: Origin<'a>,
    format: Format,
    hopper: bool,
    uniform: Kernel,
    constant: Kernel,
    /// Tensors that have their place on the device and are still to be read.
    pieces: Mutex<Vec<Piece>>,
}

/// Brings every tensor of `spec` to the device.
pub fn load_weights(
    device: &Device,
    spec: &ModelSpec,
    target: &Target,
    origin: Origin<'_>,
) -> Result<Weights, CudaError> {
    let module: Arc<CudaModule> = device.load(compile::INIT, target)?;
    let loader = Loader {
        device,
        origin,
        format: target.format,
        hopper: target.hopper(),
        uniform: Kernel::new(&module, "fill_uniform", 0)?,
        constant: Kernel::new(&module, "fill_constant", 0)?,
        pieces: Mutex::default(),
    };
    let weights = Weights::load(spec, &loader)?;
    // Memory is there, and dummy weights are made, once the stream has come so far.
    device.synchronize()?;
    if let Origin::Tensors(source) = loader.origin {
        Upload::new(device, &module, target.format, source)?.run(&loader.pieces.into_inner())?;
    }
    Ok(weights)
}

impl Sink for Loader<'_> {
    type Storage = Gpu;
    type Error = CudaError;

    fn linear(&self, product: &Product<'_>) -> Result<Linear, CudaError> {
        let (outputs, inputs) = (product.outputs(), product.inputs());
        let weight = self.stack(&product.weights)?;
        let decode = if self.hopper {
            let (rows, columns) = (outputs as u64, inputs as u64);
            Some(DecodeProduct {
                map: TensorMap::new(self.format, weight.address(), rows, columns, columns, 128)?,
                split: Split::new(outputs as u32, inputs as u32, self.device.multiprocessors),
            })
        } else {
            None
        };
        let bias = match product.biases.as_slice() {
            [] => None,
            biases => Some(self.stack(biases)?),
        };
        Ok(Linear { weight, bias, outputs: outputs as u32, inputs: inputs as u32, decode })
    }

    fn vector(&self, tensor: &TensorSpec) -> Result<Buffer<Bits>, CudaError> {
        self.stack(&[tensor])
    }

    fn table(&self, tensor: &TensorSpec) -> Result<Buffer<Bits>, CudaError> {
        self.stack(&[tensor])
    }

    fn head(
        &self,
        tensor: Option<&TensorSpec>,
        _embedding: &Buffer<Bits>,
    ) -> Result<Option<Buffer<Bits>>, CudaError> {
        tensor.map(|tensor| self.stack(&[tensor])).transpose()
    }

    fn experts(&self, _layer: &LayerSpec, _shape: ExpertsSpec) -> Result<Infallible, CudaError> {
        Err(CudaError { doing: "loading weights".to_owned(), cause: NO_EXPERTS.to_owned() })
    }
}

impl Loader<'_> {
    /// Room for tensors one below the other, each made there or noted to be read.
    fn stack(&self, parts: &[&TensorSpec]) -> Result<Buffer<Bits>, CudaError> {
        let device = self.device;
        let buffer = device.buffer::<Bits>(parts.iter().map(|part| part.elements()).sum())?;
        let mut at = 0;
        for part in parts {
            let (name, elements) = (&part.name, part.elements());
            match &self.origin {
                Origin::Dummy(dummy) => {
                    let (address, n) = (Arg::Address(buffer.at(at)), Arg::Long(elements as u64));
                    let grid = (device.multiprocessors * 8, 1);
                    // SAFETY: the buffer has `elements` from `at` on; arguments as the kernels take them.
                    unsafe {
                        if name.ends_with("norm.weight") {
                            self.constant.launch(device, grid, 256, &[address, n, Arg::Float(1.0)])?;
                        } else {
                            let seed = Arg::Long(dummy.stream(name));
                            let width = Arg::Float(dummy.width());
                            self.uniform.launch(device, grid, 256, &[address, n, seed, width])?;
                        }
                    }
                }
                Origin::Tensors(source) => {
                    let format =
                        source.format(name, &part.shape).map_err(|error| unreadable(name, &error))?;
                    let piece = Piece { name: name.clone(), format, address: buffer.at(at), elements };
                    self.pieces.lock().push(piece);
                }
            }
            at += elements;
        }
        Ok(buffer)
    }
}

/// A tensor that its source does not give.
pub(super) fn unreadable(name: &str, error: &ModelError) -> CudaError {
    CudaError { doing: format!("reading {name}"), cause: error.to_string() }
}
