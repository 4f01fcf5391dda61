//! Mistral 7B and its successors.
//!
//! Jiang et al., "Mistral 7B" (2023): Llama without biases, in which a query sees the last `sliding_window` tokens only.
//! Later models of the family have `sliding_window: null`, and see everything.

use super::Definition;
use super::table::Table;
use crate::config::Config;
use crate::error::ModelError;
use crate::spec::{LayerSpec, MlpSpec, Slot};

pub(super) const MISTRAL: Definition =
    Definition { architecture: "MistralForCausalLM", model_type: "mistral", head_dim: None, layer };

fn layer(config: &Config<'_>, index: usize) -> Result<LayerSpec, ModelError> {
    let (hidden, mlp) = (config.hidden_size, config.intermediate_size()?);
    let (q, kv) = (config.q_size(), config.kv_size());

    let mut table = Table::of_layer(index);
    table.norm(Slot::InputNorm, "input_layernorm", hidden);
    table.linear(Slot::Qkv, "self_attn.q_proj", [q, hidden], false);
    table.linear(Slot::Qkv, "self_attn.k_proj", [kv, hidden], false);
    table.linear(Slot::Qkv, "self_attn.v_proj", [kv, hidden], false);
    table.linear(Slot::AttentionOutput, "self_attn.o_proj", [hidden, q], false);
    table.norm(Slot::MlpNorm, "post_attention_layernorm", hidden);
    table.linear(Slot::GateUp, "mlp.gate_proj", [mlp, hidden], false);
    table.linear(Slot::GateUp, "mlp.up_proj", [mlp, hidden], false);
    table.linear(Slot::Down, "mlp.down_proj", [hidden, mlp], false);
    Ok(LayerSpec {
        window: config.sliding_window()?,
        mlp: MlpSpec::Dense { width: mlp },
        tensors: table.finish(),
    })
}
