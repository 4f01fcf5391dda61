//! Weights on the device, with the matrices that read the same input fused: q, k and v; gate and up.

use std::cell::RefCell;
use std::sync::Arc;

use cudarc::driver::CudaModule;

use super::CudaError;
use super::compile::{self, Target};
use super::device::{Arg, Buffer, Device, Kernel, TensorMap};
use super::format::{Bits, Format};
use super::split::Split;
use super::upload::{Piece, Upload};
use crate::model::weights::{DummyWeights, TensorSource};
use crate::model::{ModelConfig, ModelError};

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

/// One decoder layer.
pub struct Layer {
    /// `[hidden]`, before attention.
    pub input_norm: Buffer<Bits>,
    /// Rows of q, then k, then v.
    pub qkv: Linear,
    /// `[head_dim]`, for every head of q.
    pub q_norm: Option<Buffer<Bits>>,
    /// `[head_dim]`, for every head of k.
    pub k_norm: Option<Buffer<Bits>>,
    /// From the heads back to the residual stream.
    pub attention_output: Linear,
    /// `[hidden]`, before the MLP.
    pub mlp_norm: Buffer<Bits>,
    /// Rows of gate, then up.
    pub gate_up: Linear,
    /// Back to the residual stream.
    pub down: Linear,
}

/// All weights of a model.
pub struct Weights {
    /// `[vocab, hidden]`.
    pub embedding: Buffer<Bits>,
    /// In order.
    pub layers: Vec<Layer>,
    /// `[hidden]`, after the last layer.
    pub final_norm: Buffer<Bits>,
    /// `[vocab, hidden]`; `None`: the embedding.
    pub lm_head: Option<Buffer<Bits>>,
}

/// Where the numbers come from.
pub enum Origin<'a> {
    /// Files, or anything else that gives tensors by name.
    Tensors(&'a dyn TensorSource),
    /// Random numbers, made on the device; the same as on the CPU but for rounding.
    Dummy(DummyWeights),
}

/// One fused tensor: the names of its parts and the rows of each, and how long a row is (`None`: a vector).
struct Part<'a> {
    names: Vec<(String, usize)>,
    columns: Option<usize>,
    loader: &'a Loader<'a>,
}

struct Loader<'a> {
    device: &'a Device,
    origin: Origin<'a>,
    format: Format,
    hopper: bool,
    uniform: Kernel,
    constant: Kernel,
    /// Tensors that have their place on the device and are still to be read.
    pieces: RefCell<Vec<Piece>>,
}

impl Weights {
    /// Brings every tensor that `config` asks for to the device.
    pub fn load(
        device: &Device,
        config: &ModelConfig,
        target: &Target,
        origin: Origin<'_>,
    ) -> Result<Self, CudaError> {
        let module: Arc<CudaModule> = device.load(compile::INIT, target)?;
        let loader = Loader {
            device,
            origin,
            format: target.format,
            hopper: target.hopper(),
            uniform: Kernel::new(&module, "fill_uniform", 0)?,
            constant: Kernel::new(&module, "fill_constant", 0)?,
            pieces: RefCell::default(),
        };
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = loader.tensor(&[("model.embed_tokens.weight", vocab)], Some(hidden))?;
        let lm_head = if config.tie_word_embeddings {
            None
        } else {
            Some(loader.tensor(&[("lm_head.weight", vocab)], Some(hidden))?)
        };
        let layers =
            (0..config.num_layers).map(|layer| loader.layer(config, layer)).collect::<Result<_, _>>()?;
        let final_norm = loader.tensor(&[("model.norm.weight", hidden)], None)?;
        // Memory is there, and dummy weights are made, once the stream has come so far.
        device.synchronize()?;
        if let Origin::Tensors(source) = loader.origin {
            Upload::new(device, &module, target.format, source)?.run(&loader.pieces.take())?;
        }
        Ok(Self { embedding, layers, final_norm, lm_head })
    }
}

impl Loader<'_> {
    fn tensor(&self, names: &[(&str, usize)], columns: Option<usize>) -> Result<Buffer<Bits>, CudaError> {
        let names = names.iter().map(|&(name, rows)| (name.to_owned(), rows)).collect();
        Part { names, columns, loader: self }.load()
    }

    fn layer(&self, config: &ModelConfig, layer: usize) -> Result<Layer, CudaError> {
        let hidden = config.hidden_size;
        let (q, kv, mlp) = (config.q_size(), config.kv_size(), config.intermediate_size);
        let name = |name: &str| format!("model.layers.{layer}.{name}");
        let norm = |part: &str, size| self.tensor(&[(&name(&format!("{part}.weight")), size)], None);
        let linear = |parts: &[(&str, usize)], inputs: usize, bias: bool| -> Result<Linear, CudaError> {
            let part = |kind: &str, columns| {
                let names =
                    parts.iter().map(|&(part, rows)| (name(&format!("{part}.{kind}")), rows)).collect();
                Part { names, columns, loader: self }.load()
            };
            let weight = part("weight", Some(inputs))?;
            let outputs = parts.iter().map(|&(_, rows)| rows).sum::<usize>();
            let decode = if self.hopper {
                let (rows, columns) = (outputs as u64, inputs as u64);
                Some(DecodeProduct {
                    map: TensorMap::new(self.format, weight.address(), rows, columns, columns, 128)?,
                    split: Split::new(outputs as u32, inputs as u32, self.device.multiprocessors),
                })
            } else {
                None
            };
            Ok(Linear {
                weight,
                bias: if bias { Some(part("bias", None)?) } else { None },
                outputs: outputs as u32,
                inputs: inputs as u32,
                decode,
            })
        };
        let head_norm =
            |part: &str| if config.qk_norm { norm(part, config.head_dim).map(Some) } else { Ok(None) };
        Ok(Layer {
            input_norm: norm("input_layernorm", hidden)?,
            qkv: linear(
                &[("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)],
                hidden,
                config.qkv_bias,
            )?,
            q_norm: head_norm("self_attn.q_norm")?,
            k_norm: head_norm("self_attn.k_norm")?,
            attention_output: linear(&[("self_attn.o_proj", hidden)], q, config.attention_output_bias)?,
            mlp_norm: norm("post_attention_layernorm", hidden)?,
            gate_up: linear(&[("mlp.gate_proj", mlp), ("mlp.up_proj", mlp)], hidden, config.mlp_bias)?,
            down: linear(&[("mlp.down_proj", hidden)], mlp, config.mlp_bias)?,
        })
    }
}

impl Part<'_> {
    fn load(&self) -> Result<Buffer<Bits>, CudaError> {
        let device = self.loader.device;
        let columns = self.columns.unwrap_or(1);
        let rows: usize = self.names.iter().map(|&(_, rows)| rows).sum();
        let buffer = device.buffer::<Bits>(rows * columns)?;
        let mut at = 0;
        for (name, rows) in &self.names {
            let elements = rows * columns;
            match &self.loader.origin {
                Origin::Dummy(dummy) => {
                    let (address, n) = (Arg::Address(buffer.at(at)), Arg::Long(elements as u64));
                    let grid = (device.multiprocessors * 8, 1);
                    // SAFETY: the buffer has `elements` from `at` on; arguments as the kernels take them.
                    unsafe {
                        if name.ends_with("norm.weight") {
                            self.loader.constant.launch(device, grid, 256, &[address, n, Arg::Float(1.0)])?;
                        } else {
                            let seed = Arg::Long(dummy.stream(name));
                            let width = Arg::Float(dummy.width());
                            self.loader.uniform.launch(device, grid, 256, &[address, n, seed, width])?;
                        }
                    }
                }
                Origin::Tensors(source) => {
                    let shape: &[usize] = if self.columns.is_some() { &[*rows, columns] } else { &[*rows] };
                    let format = source.format(name, shape).map_err(|error| unreadable(name, &error))?;
                    let piece = Piece { name: name.clone(), format, address: buffer.at(at), elements };
                    self.loader.pieces.borrow_mut().push(piece);
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
