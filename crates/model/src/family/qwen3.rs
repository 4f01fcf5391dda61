//! Qwen 3, the dense models.
//!
//! Yang et al., "Qwen3 Technical Report" (2025): the biases of Qwen2 are gone, and each head of q and k goes through a
//! norm of its own before it is rotated (QK-Norm). `head_dim` is independent of `hidden_size`.

use super::table::Table;
use super::{Definition, window};
use crate::config::Config;
use crate::error::ModelError;
use crate::spec::{LayerSpec, Slot};

pub(super) const QWEN3: Definition =
    Definition { architecture: "Qwen3ForCausalLM", model_type: "qwen3", head_dim: Some(HEAD_DIM), layer };

/// The default of transformers' configuration class, whatever the hidden size.
const HEAD_DIM: u64 = 128;

fn layer(config: &Config<'_>, index: usize) -> Result<LayerSpec, ModelError> {
    let hidden = config.hidden_size;

    let mut table = Table::of_layer(index);
    attention(config, &mut table);
    table.norm(Slot::MlpNorm, "post_attention_layernorm", hidden);
    let mlp = table.gated_mlp(config, config.intermediate_size()?, false);
    Ok(LayerSpec { window: window::of_layer(config, index)?, mlp, tensors: table.finish() })
}

/// The attention's tensors, which the mixtures of experts have too.
pub(super) fn attention(config: &Config<'_>, table: &mut Table) {
    let (hidden, head_dim) = (config.hidden_size, config.head_dim);
    let q = config.q_size();
    let bias = config.raw.attention_bias.unwrap_or(false);
    table.norm(Slot::InputNorm, "input_layernorm", hidden);
    table.qkv(config, bias);
    table.norm(Slot::QNorm, "self_attn.q_norm", head_dim);
    table.norm(Slot::KNorm, "self_attn.k_norm", head_dim);
    table.linear(Slot::AttentionOutput, "self_attn.o_proj", [hidden, q], bias);
}
