//! Qwen 3, the mixtures of experts.
//!
//! Yang et al., "Qwen3 Technical Report" (2025): the attention of Qwen 3, and in place of the MLP many small ones, the
//! experts. A router gives each token a probability for every expert; the token goes through the likeliest few, and their
//! outputs are summed, weighed by these probabilities. Some layers may be dense.

use super::Definition;
use super::qwen3::attention;
use super::table::Table;
use crate::config::Config;
use crate::error::ModelError;
use crate::spec::{ExpertsSpec, LayerSpec, MlpSpec, Slot};

pub(super) const QWEN3_MOE: Definition =
    Definition { architecture: "Qwen3MoeForCausalLM", model_type: "qwen3_moe", head_dim: None, layer };

fn layer(config: &Config<'_>, index: usize) -> Result<LayerSpec, ModelError> {
    let raw = &config.raw;
    let hidden = config.hidden_size;
    let step = config.size("decoder_sparse_step", Some(raw.decoder_sparse_step.unwrap_or(1)), 1024)?;
    let dense_layers = raw.mlp_only_layers.as_deref().unwrap_or_default();
    let is_dense = dense_layers.contains(&(index as u64)) || !(index + 1).is_multiple_of(step);

    let mut table = Table::of_layer(index);
    attention(config, &mut table);
    table.norm(Slot::MlpNorm, "post_attention_layernorm", hidden);
    let mlp = if is_dense {
        table.gated_mlp(config, config.intermediate_size()?, false)
    } else {
        let experts = experts(config)?;
        table.linear(Slot::Router, "mlp.gate", [experts.count, hidden], false);
        for expert in 0..experts.count {
            let name = |name: &str| format!("mlp.experts.{expert}.{name}");
            let (gate_up, down) = (Slot::ExpertGateUp(expert as u32), Slot::ExpertDown(expert as u32));
            table.linear(gate_up, &name("gate_proj"), [experts.width, hidden], false);
            table.linear(gate_up, &name("up_proj"), [experts.width, hidden], false);
            table.linear(down, &name("down_proj"), [hidden, experts.width], false);
        }
        MlpSpec::Experts(experts)
    };
    // In every layer, as transformers has it for this family.
    let slides = raw.use_sliding_window.unwrap_or(false);
    let window = if slides { config.sliding_window()? } else { None };
    Ok(LayerSpec { window, mlp, tensors: table.finish() })
}

fn experts(config: &Config<'_>) -> Result<ExpertsSpec, ModelError> {
    let raw = &config.raw;
    // Published models have the first key, transformers 5 writes the second.
    if let (Some(one), Some(other)) = (raw.num_experts, raw.num_local_experts)
        && one != other
    {
        let message = format!("{other} contradicts num_experts, {one}; keep one of them");
        return Err(config.refuse("num_local_experts", message));
    }
    let count = config.size("num_experts", raw.num_experts.or(raw.num_local_experts), 1024)?;
    if count * config.num_layers > EXPERTS_MAX {
        let message = format!(
            "{count} in each of {} layers are more than the {EXPERTS_MAX} that are accepted in all",
            config.num_layers
        );
        return Err(config.refuse("num_experts", message));
    }
    Ok(ExpertsSpec {
        width: config.size("moe_intermediate_size", raw.moe_intermediate_size, 1 << 18)?,
        count,
        per_token: config.size("num_experts_per_tok", raw.num_experts_per_tok, count as u64)?,
        normalized: raw.norm_topk_prob.unwrap_or(false),
    })
}

/// Of a model: five times those of Qwen3-235B-A22B.
const EXPERTS_MAX: usize = 1 << 16;
