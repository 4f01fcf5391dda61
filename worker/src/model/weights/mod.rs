//! Weights in memory.

mod digest;
mod digest_cache;
mod dummy;
mod expected;
mod files;
mod source;

use std::sync::Arc;

use rayon::prelude::*;

pub use digest::WeightsDigest;
pub use dummy::DummyWeights;
pub(crate) use expected::expected_tensors;
pub use files::SafetensorsFolder;
pub(crate) use files::{INDEX_FILE, SINGLE_FILE, weight_files};
pub use source::TensorSource;
use source::read_f32;

use super::config::ModelConfig;
use super::error::ModelError;
use crate::backend::candle::Matrix;

/// A matrix `[out, in]` and perhaps a bias `[out]`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Matrix,
    /// `[out]`.
    pub bias: Option<Arc<[f32]>>,
}

/// One decoder layer.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// `[hidden]`, before attention.
    pub input_norm: Arc<[f32]>,
    /// Rows of q, then k, then v.
    pub qkv: Linear,
    /// `[head_dim]`, for every head of q.
    pub q_norm: Option<Arc<[f32]>>,
    /// `[head_dim]`, for every head of k.
    pub k_norm: Option<Arc<[f32]>>,
    /// From the heads back to the residual stream.
    pub attention_output: Linear,
    /// `[hidden]`, before the MLP.
    pub mlp_norm: Arc<[f32]>,
    /// Rows of gate, then up.
    pub gate_up: Linear,
    /// Back to the residual stream.
    pub down: Linear,
}

/// All weights of a model in the CPU's memory: matrices in the format of their files, vectors as f32.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `[vocab, hidden]`.
    pub embedding: Matrix,
    /// In order.
    pub layers: Vec<LayerWeights>,
    /// `[hidden]`, after the last layer.
    pub final_norm: Arc<[f32]>,
    /// `[vocab, hidden]`; shares memory with the embedding when they are tied.
    pub lm_head: Matrix,
}

impl Weights {
    /// Reads every tensor that `config` asks for; layers in parallel.
    pub fn build(config: &ModelConfig, source: &dyn TensorSource) -> Result<Self, ModelError> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = Matrix::read(source, hidden, &[("model.embed_tokens.weight", vocab)])?;
        let lm_head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            Matrix::read(source, hidden, &[("lm_head.weight", vocab)])?
        };
        let layers = (0..config.num_layers)
            .into_par_iter()
            .map(|layer| build_layer(config, source, layer))
            .collect::<Result<_, _>>()?;
        let final_norm = stack(source, &[("model.norm.weight", hidden)])?;
        Ok(Self { embedding, layers, final_norm, lm_head })
    }
}

fn build_layer(
    config: &ModelConfig,
    source: &dyn TensorSource,
    layer: usize,
) -> Result<LayerWeights, ModelError> {
    let hidden = config.hidden_size;
    let (q, kv, mlp) = (config.q_size(), config.kv_size(), config.intermediate_size);
    let norm =
        |name: &str, size: usize| stack(source, &[(&format!("model.layers.{layer}.{name}.weight"), size)]);
    let linear = |parts: &[(&str, usize)], input: usize, bias: bool| -> Result<Linear, ModelError> {
        let names = |kind: &str| -> Vec<String> {
            parts.iter().map(|(name, _)| format!("model.layers.{layer}.{name}.{kind}")).collect()
        };
        let weights = names("weight");
        let weights: Vec<_> = weights.iter().zip(parts).map(|(name, part)| (name.as_str(), part.1)).collect();
        let weight = Matrix::read(source, input, &weights)?;
        if !bias {
            return Ok(Linear { weight, bias: None });
        }
        let biases = names("bias");
        let biases: Vec<_> = biases.iter().zip(parts).map(|(name, part)| (name.as_str(), part.1)).collect();
        Ok(Linear { weight, bias: Some(stack(source, &biases)?) })
    };
    let head_norm = |name: &str| -> Result<Option<Arc<[f32]>>, ModelError> {
        if config.qk_norm { norm(name, config.head_dim).map(Some) } else { Ok(None) }
    };
    Ok(LayerWeights {
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

/// Vectors, one behind the other. Each is read to its place.
fn stack(source: &dyn TensorSource, parts: &[(&str, usize)]) -> Result<Arc<[f32]>, ModelError> {
    let mut data = vec![0.0; parts.iter().map(|(_, size)| size).sum()];
    let mut rest = data.as_mut_slice();
    for &(name, size) in parts {
        let (out, behind) = rest.split_at_mut(size);
        read_f32(source, name, &[size], out)?;
        rest = behind;
    }
    Ok(data.into())
}
