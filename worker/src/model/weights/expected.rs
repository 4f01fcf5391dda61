//! The tensors that a model has by its configuration, and whether a folder has just these.
//!
//! Checked before anything large is read. A tensor too many matters as much as one too few: a bias that nobody adds
//! gives wrong answers without a word. Tensors of other parts than the decoder, such as the head of a classifier, change
//! no answer; they are told of in one line of the log.

use std::collections::HashMap;

use super::{SafetensorsFolder, TensorSource};
use crate::model::config::ModelConfig;
use crate::model::error::ModelError;

/// Tensors of layers begin with this.
const LAYERS: &str = "model.layers.";
/// Everything that answers depend on begins with one of these.
const DECODER: [&str; 2] = ["model.", "lm_head."];
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
/// Names of tensors that the log shows.
const NAMES_SHOWN: usize = 5;

/// Computed from the configuration; some old files have it all the same.
const NOT_NEEDED: &str = ".rotary_emb.inv_freq";

/// Names and shapes.
pub(crate) fn expected_tensors(config: &ModelConfig) -> HashMap<String, Vec<usize>> {
    let (hidden, mlp) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.q_size(), config.kv_size());
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize]| tensors.insert(name, shape.to_vec());
    add(EMBEDDING.to_owned(), &[config.vocab_size, hidden]);
    add("model.norm.weight".to_owned(), &[hidden]);
    if !config.tie_word_embeddings {
        add(HEAD.to_owned(), &[config.vocab_size, hidden]);
    }
    let linears = [
        ("self_attn.q_proj", q, hidden, config.qkv_bias),
        ("self_attn.k_proj", kv, hidden, config.qkv_bias),
        ("self_attn.v_proj", kv, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, q, config.attention_output_bias),
        ("mlp.gate_proj", mlp, hidden, config.mlp_bias),
        ("mlp.up_proj", mlp, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, mlp, config.mlp_bias),
    ];
    for layer in 0..config.num_layers {
        for name in ["input_layernorm", "post_attention_layernorm"] {
            add(format!("{LAYERS}{layer}.{name}.weight"), &[hidden]);
        }
        if config.qk_norm {
            for name in ["self_attn.q_norm", "self_attn.k_norm"] {
                add(format!("{LAYERS}{layer}.{name}.weight"), &[config.head_dim]);
            }
        }
        for (name, rows, columns, bias) in linears {
            add(format!("{LAYERS}{layer}.{name}.weight"), &[rows, columns]);
            if bias {
                add(format!("{LAYERS}{layer}.{name}.bias"), &[rows]);
            }
        }
    }
    tensors
}

impl SafetensorsFolder {
    /// Refuses a folder that lacks a tensor, has one of another shape or dtype, or has one in a layer that the
    /// configuration does not know.
    pub(crate) fn check(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let expected = expected_tensors(config);
        // In order of their names, so that the same folder always gives the same message.
        let mut names: Vec<&String> = expected.keys().collect();
        names.sort();
        for name in names {
            self.format(name, &expected[name])?;
        }
        // Of a tied head that is equal to the embedding nothing is lost.
        let unused = |name: &&String| !expected.contains_key(name.as_str()) && name.as_str() != HEAD;
        let mut unused: Vec<&String> = self.names().filter(unused).collect();
        unused.sort();
        let strange = |name: &&&String| {
            DECODER.iter().any(|part| name.starts_with(part)) && !name.ends_with(NOT_NEEDED)
        };
        if let Some(name) = unused.iter().find(strange) {
            let layers = config.num_layers;
            let message = format!(
                "config.json does not ask for it ({layers} layers, biases and norms as this architecture has them): \
                 the model would be computed without it"
            );
            return Err(self.refuse(name, message));
        }
        if !unused.is_empty() {
            let names: Vec<&str> = unused.iter().take(NAMES_SHOWN).map(|name| name.as_str()).collect();
            tracing::info!(
                tensors = unused.len(),
                ?names,
                "the files have tensors that this model does not use"
            );
        }
        Ok(())
    }

    /// Unties the head from the embedding if the files have a head of its own, as transformers does: the file knows
    /// better than `tie_word_embeddings`. Reads both, up to their first difference, if both are there.
    pub(crate) fn settle_tie(&self, config: &mut ModelConfig) -> Result<(), ModelError> {
        if config.tie_word_embeddings
            && self.has(HEAD)
            && self.has(EMBEDDING)
            && !self.equal(HEAD, EMBEDDING)?
        {
            tracing::warn!(
                "config.json: tie_word_embeddings is true, but the files have an {HEAD} that differs from {EMBEDDING}: \
                 it is used"
            );
            config.tie_word_embeddings = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use parking_lot::Mutex;
    use serde_json::json;

    use super::*;
    use crate::model::config::WeightFormat;
    use crate::model::weights::Weights;

    /// Notes what is asked for.
    #[derive(Default)]
    struct Asked(Mutex<HashMap<String, Vec<usize>>>);

    impl TensorSource for Asked {
        fn format(&self, name: &str, shape: &[usize]) -> Result<WeightFormat, ModelError> {
            self.0.lock().insert(name.to_owned(), shape.to_vec());
            Ok(WeightFormat::F32)
        }

        fn read(&self, _: &str, _: usize, _: &mut [u8]) -> Result<(), ModelError> {
            Ok(())
        }
    }

    #[test]
    fn what_is_expected_is_what_is_read() {
        for changes in [
            json!({"architectures": ["LlamaForCausalLM"]}),
            json!({"architectures": ["LlamaForCausalLM"], "attention_bias": true, "mlp_bias": true}),
            json!({"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": true}),
            json!({"architectures": ["Qwen3ForCausalLM"], "head_dim": 4}),
        ] {
            let mut config = json!({
                "vocab_size": 12, "hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
            });
            let fields = config.as_object_mut().expect("an object");
            fields.extend(changes.as_object().expect("an object").clone());
            let config = ModelConfig::parse(Path::new("c"), config.to_string().as_bytes()).expect("valid");
            let asked = Asked::default();
            Weights::build(&config, &asked).expect("zeros");
            let expected = expected_tensors(&config);
            assert_eq!(asked.0.into_inner(), expected, "{changes}");
            let elements: usize = expected.values().map(|shape| shape.iter().product::<usize>()).sum();
            assert_eq!(config.parameters(), elements as u64, "{changes}");
        }
    }
}
