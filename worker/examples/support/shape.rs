//! The shape that figures are measured with.

use disagg_worker::model::{Family, ModelConfig, RopeScaling, WeightFormat};

/// Llama-3.1-8B with `layers` layers.
pub(crate) fn llama_8b(layers: usize) -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        vocab_size: 128_256,
        hidden_size: 4096,
        intermediate_size: 14336,
        num_layers: layers,
        num_heads: 32,
        num_kv_heads: 8,
        head_dim: 128,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: false,
        qkv_bias: false,
        attention_output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        max_model_len: 20_000,
        weight_format: WeightFormat::Bf16,
    }
}
