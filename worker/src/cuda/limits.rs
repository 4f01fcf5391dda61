//! What the kernels can compute, and how much of it fits into the GPU's memory.

use disagg_engine::KvLayout;

use super::CudaError;
use super::backend::{ADJUSTS_MAX, BLOCK_SIZE};
use super::device::Device;
use super::forward::{Capacity, DECODE_ROWS_MAX, TILE};
use super::lists::Draw;
use crate::model::{MlpSpec, ModelSpec, Slot};

/// Elements of a row that the norm kernel keeps in registers: 1024 threads of 4 pieces of 8.
const HIDDEN_MAX: usize = 32_768;

/// Why a model with experts is refused.
pub(super) const NO_EXPERTS: &str =
    "layers with experts (mixture of experts) are not supported on CUDA yet; use --device cpu";

/// Refuses what the kernels cannot compute.
pub(super) fn check_model(spec: &ModelSpec, sequences: u32) -> Result<(), CudaError> {
    let refuse =
        |cause: String| Err(CudaError { doing: "checking the model against the GPU".to_owned(), cause });
    check_config(spec)?;
    if sequences > DECODE_ROWS_MAX {
        return refuse(format!(
            "--max-num-seqs is {sequences}; up to {DECODE_ROWS_MAX} is possible on a GPU"
        ));
    }
    Ok(())
}

/// Refuses models of a shape that the kernels do not take, on any GPU.
pub fn check_config(spec: &ModelSpec) -> Result<(), CudaError> {
    let refuse =
        |cause: String| Err(CudaError { doing: "checking the model against the GPU".to_owned(), cause });
    if spec.layers.iter().any(|layer| matches!(layer.mlp, MlpSpec::Experts(_))) {
        return refuse(NO_EXPERTS.to_owned());
    }
    if ![64, 128].contains(&spec.head_dim) {
        return refuse(format!("head_dim is {}; the CUDA kernels take 64 and 128", spec.head_dim));
    }
    let group = spec.num_heads / spec.num_kv_heads;
    if group > 8 {
        return refuse(format!("{group} query heads share a KV head; the CUDA kernels take up to 8"));
    }
    if [spec.hidden_size, spec.mlp_width(), spec.vocab_size].iter().any(|size| size % 8 != 0) {
        return refuse("hidden_size, intermediate_size and vocab_size must be multiples of 8".to_owned());
    }
    if [Slot::AttentionOutput, Slot::GateUp, Slot::Down].into_iter().any(|slot| spec.has_bias(slot)) {
        return refuse(
            "biases on the attention output or in the MLP are not supported on CUDA yet".to_owned(),
        );
    }
    if spec.hidden_size > HIDDEN_MAX {
        return refuse(format!(
            "hidden_size is {}; the CUDA kernels take up to {HIDDEN_MAX}",
            spec.hidden_size
        ));
    }
    Ok(())
}

/// Refuses weights that do not fit, before any are loaded. `utilization` is the share of the GPU's memory that bounds
/// this process, if one does.
pub(super) fn check_weights(
    device: &Device,
    spec: &ModelSpec,
    utilization: Option<f64>,
) -> Result<(), CudaError> {
    device.memory()?.check_weights(weights_bytes(spec), utilization).map_err(|why| CudaError {
        doing: "checking the model against the GPU".to_owned(),
        cause: why.to_string(),
    })
}

/// Two bytes a number in either format.
fn weights_bytes(spec: &ModelSpec) -> u64 {
    2 * spec.parameters()
}

/// KV blocks that fit beside everything else.
pub(super) fn fitting_blocks(
    device: &Device,
    spec: &ModelSpec,
    layout: &KvLayout,
    capacity: Capacity,
    utilization: f64,
) -> Result<u32, CudaError> {
    let memory = device.memory()?;
    let tokens = u64::from(capacity.tokens);
    let widths = 2 * spec.hidden_size + 2 * spec.q_size() + 2 * spec.kv_size() + 3 * spec.mlp_width();
    let inputs = 4 * input_words(capacity, layout.blocks_for(capacity.model_len)) as u64;
    let activations = tokens * 2 * widths as u64 + u64::from(capacity.sequences) * 4 * spec.vocab_size as u64;
    // What cublasLt, graphs and the driver take besides.
    let reserve = 1_u64 << 30;
    let rest = activations + inputs + reserve;
    let needed = u64::from(layout.blocks_for(capacity.model_len));
    let blocks = memory
        .kv_blocks(utilization, rest, layout.block_bytes() as u64, needed, capacity.model_len)
        .map_err(|why| CudaError { doing: "sizing the KV pool".to_owned(), cause: why.to_string() })?;
    if memory.is_crowded(utilization) {
        tracing::warn!(%memory, utilization, "less is free than --gpu-memory-utilization allows: KV takes what there is");
    }
    Ok(blocks.min(u64::from(u32::MAX / BLOCK_SIZE / 2)) as u32)
}

/// Words of input that the largest step has, with room for alignment and adjustments.
pub(super) fn input_words(capacity: Capacity, table_stride: u32) -> usize {
    let (tokens, sequences) = (capacity.tokens as usize, capacity.sequences as usize);
    let tables = sequences * table_stride as usize;
    // Every sequence may adjust each token that it has had, and those of its bias.
    let adjusts = 6 * (sequences * (capacity.model_len as usize + 1024)).min(ADJUSTS_MAX);
    let tiles = 4 * tokens.div_ceil(TILE as usize);
    let draws = (size_of::<Draw>() / 4) * capacity.draws as usize;
    3 * tokens + tiles + 24 * sequences + draws + tables + adjusts + 4096
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn experts_are_refused_by_name() {
        let config = r#"{"architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 1024, "hidden_size": 256,
            "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 128,
            "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
            "max_position_embeddings": 8192}"#;
        let spec = ModelSpec::parse(Path::new("config.json"), config.as_bytes()).expect("valid");
        let refusal = check_config(&spec).expect_err("experts").to_string();
        assert!(refusal.contains("mixture of experts") && refusal.contains("--device cpu"), "{refusal}");
    }

    #[test]
    fn weights_take_two_bytes_a_number() {
        // 80 layers of this shape are a model of 70 billion parameters.
        let config = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 8192,
            "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
            "max_position_embeddings": 8192}"#;
        let spec = ModelSpec::parse(Path::new("config.json"), config.as_bytes()).expect("valid");
        let gib = weights_bytes(&spec) as f64 / f64::from(1 << 30);
        assert_eq!(format!("{gib:.1}"), "131.4");
    }
}
