//! Llama 2, 3 and the many models that copy them.
//!
//! Touvron et al., "LLaMA: Open and Efficient Foundation Language Models" (2023): norms in front of attention and MLP
//! (RMSNorm), rotary positions, and a gated MLP (SwiGLU). Keys and values have fewer heads than queries (GQA).
//!
//! ```text
//! x += o(attention(rope(q(norm(x))), rope(k(norm(x))), v(norm(x))))
//! x += down(silu(gate(norm(x))) * up(norm(x)))
//! ```

use super::Definition;
use super::table::Table;
use crate::config::Config;
use crate::error::ModelError;
use crate::spec::{LayerSpec, Slot};

pub(super) const LLAMA: Definition =
    Definition { architecture: "LlamaForCausalLM", model_type: "llama", head_dim: None, layer };

fn layer(config: &Config<'_>, index: usize) -> Result<LayerSpec, ModelError> {
    let hidden = config.hidden_size;
    let q = config.q_size();
    // On all four projections of the attention, and on all three of the MLP.
    let attention_bias = config.raw.attention_bias.unwrap_or(false);
    let mlp_bias = config.raw.mlp_bias.unwrap_or(false);

    let mut table = Table::of_layer(index);
    table.norm(Slot::InputNorm, "input_layernorm", hidden);
    table.qkv(config, attention_bias);
    table.linear(Slot::AttentionOutput, "self_attn.o_proj", [hidden, q], attention_bias);
    table.norm(Slot::MlpNorm, "post_attention_layernorm", hidden);
    let mlp = table.gated_mlp(config, config.intermediate_size()?, mlp_bias);
    Ok(LayerSpec { window: None, mlp, tensors: table.finish() })
}
