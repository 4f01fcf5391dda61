//! Mistral 7B and its successors.
//!
//! Jiang et al., "Mistral 7B" (2023): Llama without biases, in which a query sees the last `sliding_window` tokens only.
//! Later models of the family have `sliding_window: null`, and see everything.

use super::Definition;
use super::table::Table;
use crate::config::Config;
use crate::error::ModelError;
use crate::spec::{LayerSpec, Slot};

pub(super) const MISTRAL: Definition =
    Definition { architecture: "MistralForCausalLM", model_type: "mistral", head_dim: None, layer };

fn layer(config: &Config<'_>, index: usize) -> Result<LayerSpec, ModelError> {
    let hidden = config.hidden_size;
    let q = config.q_size();

    let mut table = Table::of_layer(index);
    table.norm(Slot::InputNorm, "input_layernorm", hidden);
    table.qkv(config, false);
    table.linear(Slot::AttentionOutput, "self_attn.o_proj", [hidden, q], false);
    table.norm(Slot::MlpNorm, "post_attention_layernorm", hidden);
    let mlp = table.gated_mlp(config, config.intermediate_size()?, false);
    Ok(LayerSpec { window: config.sliding_window()?, mlp, tensors: table.finish() })
}
