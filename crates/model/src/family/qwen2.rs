//! Qwen 1.5, 2 and 2.5.
//!
//! Yang et al., "Qwen2 Technical Report" (2024): Llama with biases on q, k and v and nowhere else. Some or all layers may
//! have a sliding window.

use super::table::Table;
use super::{Definition, window};
use crate::config::Config;
use crate::error::ModelError;
use crate::spec::{LayerSpec, Slot};

pub(super) const QWEN2: Definition =
    Definition { architecture: "Qwen2ForCausalLM", model_type: "qwen2", head_dim: None, layer };

fn layer(config: &Config<'_>, index: usize) -> Result<LayerSpec, ModelError> {
    let hidden = config.hidden_size;
    let q = config.q_size();

    let mut table = Table::of_layer(index);
    table.norm(Slot::InputNorm, "input_layernorm", hidden);
    table.qkv(config, true);
    table.linear(Slot::AttentionOutput, "self_attn.o_proj", [hidden, q], false);
    table.norm(Slot::MlpNorm, "post_attention_layernorm", hidden);
    let mlp = table.gated_mlp(config, config.intermediate_size()?, false);
    Ok(LayerSpec { window: window::of_layer(config, index)?, mlp, tensors: table.finish() })
}
