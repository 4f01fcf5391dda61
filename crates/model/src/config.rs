//! `config.json`, checked.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::error::{ModelError, read_bounded};
use crate::family::Family;
use crate::rope::{self, RawRope};
use crate::spec::{ModelSpec, Slot, TensorSpec};
use crate::weights::WeightFormat;

/// Name of the file.
pub const CONFIG_FILE: &str = "config.json";

/// No real configuration is near this.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Longest context that is accepted, in tokens.
const TOKENS_MAX: u64 = 1 << 24;

/// The default of transformers' configuration classes for a key that is not there.
#[expect(clippy::unnecessary_wraps, reason = "serde takes the field's type")]
fn default_window() -> Option<u64> {
    Some(4096)
}

/// The keys that are looked at, as they come.
#[derive(Deserialize)]
pub(crate) struct RawConfig {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    vocab_size: Option<u64>,
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    max_position_embeddings: Option<u64>,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    /// Since transformers 5: both of the above in one.
    rope_parameters: Option<RawRope>,
    tie_word_embeddings: Option<bool>,
    pub(crate) attention_bias: Option<bool>,
    pub(crate) mlp_bias: Option<bool>,
    /// `null` is no window; a key that is not there is transformers' default.
    #[serde(default = "default_window")]
    sliding_window: Option<u64>,
    pub(crate) use_sliding_window: Option<bool>,
    pub(crate) max_window_layers: Option<u64>,
    pub(crate) layer_types: Option<Vec<String>>,
    pub(crate) decoder_sparse_step: Option<u64>,
    pub(crate) mlp_only_layers: Option<Vec<u64>>,
    pub(crate) num_experts: Option<u64>,
    pub(crate) num_local_experts: Option<u64>,
    pub(crate) num_experts_per_tok: Option<u64>,
    pub(crate) moe_intermediate_size: Option<u64>,
    pub(crate) norm_topk_prob: Option<bool>,
    quantization_config: Option<Value>,
    torch_dtype: Option<String>,
    /// The same since transformers 5.
    dtype: Option<String>,
}

/// A configuration on its way to a [`ModelSpec`]: what all families have in common is checked, and each family's file
/// reads its own keys from [`Self::raw`].
pub(crate) struct Config<'a> {
    path: &'a Path,
    pub(crate) raw: RawConfig,
    pub(crate) hidden_size: usize,
    pub(crate) num_layers: usize,
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    max_model_len: u32,
}

impl ModelSpec {
    /// Reads and checks `config.json` in the model's folder.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join(CONFIG_FILE);
        Self::parse(&path, &read_bounded(&path, CONFIG_BYTES_MAX)?)
    }

    /// Checks the bytes of a `config.json`; `path` is for errors.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        let raw: RawConfig = serde_json::from_slice(bytes)
            .map_err(|source| ModelError::Json { path: path.to_owned(), source })?;
        let checker = Checker { path };
        let family = checker.family(&raw)?;
        checker.supported(&raw)?;
        let config = checker.shape(raw, family)?;
        let raw = &config.raw;

        let ropes = [("rope_scaling", &raw.rope_scaling), ("rope_parameters", &raw.rope_parameters)];
        let rope = rope::read(&checker, raw.rope_theta, ropes)?;
        let vocab_size = checker.size("vocab_size", raw.vocab_size, 1 << 22)?;
        let rms_norm_eps = checker.positive("rms_norm_eps", Some(raw.rms_norm_eps.unwrap_or(1e-6)))?;
        let layer = family.definition().layer;
        let layers = (0..config.num_layers).map(|index| layer(&config, index)).collect::<Result<_, _>>()?;
        let tensor = |name: &str, shape: &[usize], slot| TensorSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
            slot,
        };
        let mut spec = Self {
            family,
            vocab_size,
            hidden_size: config.hidden_size,
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            rms_norm_eps,
            rope,
            max_model_len: config.max_model_len,
            weight_format: match raw.dtype.as_deref().or(raw.torch_dtype.as_deref()) {
                Some("float16" | "half") => WeightFormat::F16,
                Some("bfloat16") => WeightFormat::Bf16,
                _ => WeightFormat::F32,
            },
            embedding: tensor(
                "model.embed_tokens.weight",
                &[vocab_size, config.hidden_size],
                Slot::Embedding,
            ),
            layers,
            norm: tensor("model.norm.weight", &[config.hidden_size], Slot::Norm),
            head: None,
        };
        if !raw.tie_word_embeddings.unwrap_or(false) {
            spec.head = Some(spec.own_head());
        }
        Ok(spec)
    }

    /// The output matrix, where it is not the embedding.
    pub(crate) fn own_head(&self) -> TensorSpec {
        TensorSpec {
            name: "lm_head.weight".to_owned(),
            shape: vec![self.vocab_size, self.hidden_size],
            slot: Slot::Head,
        }
    }
}

/// What families ask of it.
impl Config<'_> {
    /// Rows of the query projection.
    pub(crate) fn q_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Rows of the key (or value) projection.
    pub(crate) fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Width of a dense MLP.
    pub(crate) fn intermediate_size(&self) -> Result<usize, ModelError> {
        self.size("intermediate_size", self.raw.intermediate_size, 1 << 18)
    }

    /// `sliding_window`; `None` also if it is as long as the longest sequence, which then sees everything.
    pub(crate) fn sliding_window(&self) -> Result<Option<u32>, ModelError> {
        let Some(window) = self.raw.sliding_window else { return Ok(None) };
        let window = self.size("sliding_window", Some(window), TOKENS_MAX)? as u32;
        Ok(Some(window).filter(|&window| window < self.max_model_len))
    }

    /// A required whole number in `1..=max`.
    pub(crate) fn size(&self, key: &str, value: Option<u64>, max: u64) -> Result<usize, ModelError> {
        self.checker().size(key, value, max)
    }

    pub(crate) fn refuse(&self, key: &str, message: impl Into<String>) -> ModelError {
        self.checker().refuse(key, message)
    }

    fn checker(&self) -> Checker<'_> {
        Checker { path: self.path }
    }
}

/// Carries the path for errors.
pub(crate) struct Checker<'a> {
    path: &'a Path,
}

impl<'a> Checker<'a> {
    pub(crate) fn refuse(&self, key: &str, message: impl Into<String>) -> ModelError {
        ModelError::Config { path: PathBuf::from(self.path), key: key.to_owned(), message: message.into() }
    }

    /// A required whole number in `1..=max`.
    pub(crate) fn size(&self, key: &str, value: Option<u64>, max: u64) -> Result<usize, ModelError> {
        match value {
            Some(value) if (1..=max).contains(&value) => Ok(value as usize),
            Some(value) => Err(self.refuse(key, format!("{value} is not in 1..={max}"))),
            None => Err(self.refuse(key, "missing")),
        }
    }

    pub(crate) fn positive(&self, key: &str, value: Option<f64>) -> Result<f32, ModelError> {
        match value {
            Some(value) if value > 0.0 && (value as f32).is_finite() => Ok(value as f32),
            Some(value) => Err(self.refuse(key, format!("{value} is not a number over 0"))),
            None => Err(self.refuse(key, "missing")),
        }
    }

    fn family(&self, raw: &RawConfig) -> Result<Family, ModelError> {
        let (key, name) = match (raw.architectures.as_deref(), &raw.model_type) {
            (Some([name, ..]), _) => ("architectures", name),
            (_, Some(name)) => ("model_type", name),
            _ => return Err(self.refuse("architectures", "missing, and so is model_type")),
        };
        Family::named(name).ok_or_else(|| {
            self.refuse(key, format!("{name:?} is not supported; {} are", Family::supported()))
        })
    }

    /// Refuses what no family of ours has.
    fn supported(&self, raw: &RawConfig) -> Result<(), ModelError> {
        if raw.quantization_config.as_ref().is_some_and(|value| !value.is_null()) {
            return Err(self.refuse(
                "quantization_config",
                "quantized weights are not supported; use the model's float32, bfloat16 or float16 weights",
            ));
        }
        if let Some(act) = raw.hidden_act.as_deref()
            && !matches!(act, "silu" | "swish")
        {
            return Err(self.refuse("hidden_act", format!("{act:?} is not supported; silu is")));
        }
        Ok(())
    }

    /// The sizes that all families have.
    fn shape(&self, raw: RawConfig, family: Family) -> Result<Config<'a>, ModelError> {
        let hidden_size = self.size("hidden_size", raw.hidden_size, 1 << 16)?;
        let num_heads = self.size("num_attention_heads", raw.num_attention_heads, 1024)?;
        let kv_heads = raw.num_key_value_heads.or(raw.num_attention_heads);
        let num_kv_heads = self.size("num_key_value_heads", kv_heads, 1024)?;
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(self.refuse(
                "num_key_value_heads",
                format!("{num_kv_heads} does not divide num_attention_heads, {num_heads}"),
            ));
        }
        let head_dim = raw.head_dim.or(family.definition().head_dim);
        if head_dim.is_none() && !hidden_size.is_multiple_of(num_heads) {
            return Err(self.refuse(
                "num_attention_heads",
                format!("{num_heads} does not divide hidden_size, {hidden_size}, and there is no head_dim"),
            ));
        }
        let head_dim = head_dim.unwrap_or((hidden_size / num_heads) as u64);
        let head_dim = self.size("head_dim", Some(head_dim), 512)?;
        if !head_dim.is_multiple_of(2) {
            return Err(self.refuse("head_dim", format!("{head_dim} is odd; rotary embedding needs pairs")));
        }
        let max_model_len = self.size("max_position_embeddings", raw.max_position_embeddings, TOKENS_MAX)?;
        Ok(Config {
            path: self.path,
            hidden_size,
            num_layers: self.size("num_hidden_layers", raw.num_hidden_layers, 1024)?,
            num_heads,
            num_kv_heads,
            head_dim,
            max_model_len: max_model_len as u32,
            raw,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rope::RopeScaling;

    fn base() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 512, "hidden_size": 64,
            "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 2048,
        })
    }

    fn with(mut config: Value, changes: &Value) -> Value {
        for (key, value) in changes.as_object().expect("an object") {
            config[key] = value.clone();
        }
        config
    }

    fn parse(changes: &Value) -> Result<ModelSpec, String> {
        let config = with(base(), changes);
        ModelSpec::parse(Path::new("m/config.json"), config.to_string().as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_those_of_the_family() {
        let llama = parse(&json!({})).expect("valid");
        assert_eq!((llama.head_dim, llama.has_bias(Slot::Qkv)), (16, false));
        assert_eq!(llama.layers[0].slot(Slot::QNorm).count(), 0);
        assert_eq!(llama.rope.scaling, RopeScaling::None);
        let qwen2 = parse(&json!({"architectures": ["Qwen2ForCausalLM"]})).expect("valid");
        assert_eq!((qwen2.has_bias(Slot::Qkv), qwen2.has_bias(Slot::AttentionOutput)), (true, false));
        let qwen3 = parse(&json!({"architectures": null, "model_type": "qwen3"})).expect("valid");
        assert_eq!((qwen3.head_dim, qwen3.layers[0].slot(Slot::QNorm).count()), (128, 1));
    }

    #[test]
    fn the_number_format_is_read_in_both_spellings() {
        for (changes, want) in [
            (json!({}), WeightFormat::F32),
            (json!({"torch_dtype": "float32"}), WeightFormat::F32),
            (json!({"torch_dtype": "bfloat16"}), WeightFormat::Bf16),
            (json!({"torch_dtype": "float16"}), WeightFormat::F16),
            (json!({"dtype": "float16"}), WeightFormat::F16),
            (json!({"dtype": "float16", "torch_dtype": "float16"}), WeightFormat::F16),
        ] {
            assert_eq!(parse(&changes).expect("valid").weight_format, want, "{changes}");
        }
    }

    #[test]
    fn layers_have_the_windows_that_transformers_gives_them() {
        let mistral = |changes: Value| with(json!({"architectures": ["MistralForCausalLM"]}), &changes);
        // As `layer_types` and `sliding_window` of transformers' configurations, of a model of two layers.
        let qwen = |changes: Value| {
            let on = json!({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": true});
            with(on, &changes)
        };
        let long = json!({"max_position_embeddings": 8192});
        for (changes, windows) in [
            (mistral(json!({"sliding_window": 1024})), [Some(1024), Some(1024)]),
            (mistral(json!({"sliding_window": null})), [None, None]),
            (mistral(json!({"sliding_window": 2047})), [Some(2047), Some(2047)]),
            // No sequence is longer than that.
            (mistral(json!({"sliding_window": 2048})), [None, None]),
            (with(mistral(json!({})), &long), [Some(4096), Some(4096)]),
            (with(json!({"sliding_window": 64}), &long), [None, None]),
            (
                qwen(json!({"use_sliding_window": false, "sliding_window": 64, "max_window_layers": 0})),
                [None, None],
            ),
            (qwen(json!({"sliding_window": 64, "max_window_layers": 1})), [None, Some(64)]),
            (with(qwen(json!({"max_window_layers": 0})), &long), [Some(4096), Some(4096)]),
            (qwen(json!({"sliding_window": 64, "max_window_layers": 2})), [None, None]),
            (qwen(json!({"sliding_window": 64})), [None, None]),
            (qwen(json!({"sliding_window": null, "max_window_layers": 0})), [None, None]),
            (
                qwen(json!({"sliding_window": 64, "max_window_layers": 0,
                    "layer_types": ["full_attention", "full_attention"]})),
                [None, None],
            ),
            (
                qwen(json!({"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]})),
                [Some(64), None],
            ),
        ] {
            let spec = parse(&changes).expect("valid");
            let found: Vec<_> = spec.layers.iter().map(|layer| layer.window).collect();
            assert_eq!(found, windows, "{changes}");
            assert_eq!(
                u64::from(spec.max_model_len),
                changes["max_position_embeddings"].as_u64().unwrap_or(2048),
                "a window does not shorten the longest sequence: {changes}"
            );
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let moe = |changes: Value| {
            let base = json!({
                "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 2,
                "moe_intermediate_size": 32,
            });
            with(base, &changes)
        };
        for (changes, want) in [
            (
                json!({"architectures": ["GPT2LMHeadModel"]}),
                "m/config.json: architectures: \"GPT2LMHeadModel\"",
            ),
            (json!({"hidden_act": "gelu"}), "hidden_act: \"gelu\" is not supported; silu is"),
            (json!({"num_key_value_heads": 3}), "num_key_value_heads: 3 does not divide"),
            (json!({"hidden_size": 0}), "hidden_size: 0 is not in 1..=65536"),
            (json!({"vocab_size": null}), "vocab_size: missing"),
            (json!({"rope_scaling": {"type": "yarn"}}), "rope_scaling.rope_type: \"yarn\""),
            (json!({"quantization_config": {"quant_method": "fp8"}}), "quantization_config: quantized"),
            (json!({"head_dim": 15}), "head_dim: 15 is odd"),
            (moe(json!({"num_experts": null})), "num_experts: missing"),
            (moe(json!({"num_experts_per_tok": 9})), "num_experts_per_tok: 9 is not in 1..=8"),
            (
                moe(json!({"num_local_experts": 4})),
                "num_local_experts: 4 contradicts num_experts, 8; keep one of them",
            ),
            (
                moe(json!({"num_hidden_layers": 1024, "num_experts": 65})),
                "num_experts: 65 in each of 1024 layers are more than the 65536 that are accepted",
            ),
            (
                json!({"architectures": ["MistralForCausalLM"], "sliding_window": 0}),
                "sliding_window: 0 is not in 1..=",
            ),
            (
                json!({"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": true,
                    "layer_types": ["full_attention"]}),
                "layer_types: has 1 entries, but num_hidden_layers is 2",
            ),
            (
                json!({"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": true,
                    "layer_types": ["full_attention", "linear_attention"]}),
                "layer_types: \"linear_attention\" is not supported; full_attention and sliding_attention are",
            ),
            (json!({"rms_norm_eps": -1.0}), "rms_norm_eps: -1 is not a number over 0"),
        ] {
            let error = parse(&changes).expect_err(want);
            assert!(error.contains(want), "{error}");
        }
    }
}
