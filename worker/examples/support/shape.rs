//! Shapes that figures are measured with, as their `config.json` has them.

use std::path::Path;

use disagg_worker::model::ModelSpec;
use serde_json::{Value, json};

/// Llama-3.1-8B with `layers` layers, and some keys changed.
pub(crate) fn llama_8b(layers: usize, changes: &Value) -> ModelSpec {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256, "hidden_size": 4096,
        "intermediate_size": 14_336, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "max_position_embeddings": 20_000, "torch_dtype": "bfloat16",
    });
    let keys = config.as_object_mut().expect("an object");
    keys.extend(changes.as_object().expect("an object").clone());
    ModelSpec::parse(Path::new("config.json"), config.to_string().as_bytes()).expect("a model")
}
