//! `config.json`, checked.

use std::path::{Path, PathBuf};

use disagg_engine::{KvDtype, KvLayout};
use serde::Deserialize;
use serde_json::Value;

use super::error::{ModelError, read_bounded};
use super::rope::{self, RawRope, RopeScaling};

/// Name of the file.
pub const CONFIG_FILE: &str = "config.json";

/// No real configuration is near this.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Model families: one decoder architecture with small differences.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// Llama 2, 3 and all that copy it.
    Llama,
    /// Llama without biases, in some models with a sliding window.
    Mistral,
    /// Llama with biases on q, k and v.
    Qwen2,
    /// Llama with a norm on each head of q and k, and a head size of its own.
    Qwen3,
}

/// Number format of stored weights. `config.json` names the one to compute in; each tensor on disk has its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WeightFormat {
    /// 32-bit float, or nothing is said.
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit float.
    F16,
}

impl WeightFormat {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// Shapes and constants of a model. Every value has been checked.
#[derive(Clone, PartialEq, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "independent switches, as in config.json")]
pub struct ModelConfig {
    /// Which family it is of.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Elements of a head; even. `num_heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Added under the root of RMS norms.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// How they are stretched.
    pub rope_scaling: RopeScaling,
    /// The output matrix is the embedding.
    pub tie_word_embeddings: bool,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// The attention's output projection has a bias.
    pub attention_output_bias: bool,
    /// The MLP's matrices have biases.
    pub mlp_bias: bool,
    /// q and k go through a norm per head.
    pub qk_norm: bool,
    /// Longest sequence in tokens: `max_position_embeddings`, or the sliding window if that is shorter. Up to the
    /// window's length full attention and sliding-window attention are the same.
    pub max_model_len: u32,
    /// What it is published in.
    pub weight_format: WeightFormat,
}

/// Of transformers' configuration classes, for a key that is not there.
#[expect(clippy::unnecessary_wraps, reason = "serde takes the field's type")]
fn default_window() -> Option<u64> {
    Some(4096)
}

/// The same for `max_window_layers`, the first layer that has a window.
const WINDOW_LAYERS_FROM_DEFAULT: u64 = 28;

/// The keys that are looked at, as they come.
#[derive(Deserialize)]
struct RawConfig {
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
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    /// `null` is no window; a key that is not there is transformers' default.
    #[serde(default = "default_window")]
    sliding_window: Option<u64>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<u64>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
    torch_dtype: Option<String>,
    /// The same since transformers 5.
    dtype: Option<String>,
}

impl ModelConfig {
    /// Reads and checks `config.json` in the model's folder.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join(CONFIG_FILE);
        Self::parse(&path, &read_bounded(&path, CONFIG_BYTES_MAX)?)
    }

    /// Checks the bytes of a `config.json`; `path` is for errors.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        let raw: RawConfig = serde_json::from_slice(bytes)
            .map_err(|source| ModelError::Json { path: path.to_owned(), source })?;
        Checker { path }.check(&raw)
    }

    /// Shape of a KV pool for this model.
    pub fn kv_layout(&self, block_size: u32, dtype: KvDtype) -> KvLayout {
        KvLayout {
            layers: self.num_layers as u32,
            kv_heads: self.num_kv_heads as u32,
            head_dim: self.head_dim as u32,
            block_size,
            dtype,
        }
    }

    /// Numbers that the model consists of.
    pub fn parameters(&self) -> u64 {
        let (hidden, mlp, layers) =
            (self.hidden_size as u64, self.intermediate_size as u64, self.num_layers as u64);
        let (q, kv) = (self.q_size() as u64, self.kv_size() as u64);
        let either = |is: bool, count: u64| if is { count } else { 0 };
        let layer = hidden * (2 * q + 2 * kv + 3 * mlp + 2)
            + either(self.qkv_bias, q + 2 * kv)
            + either(self.attention_output_bias, hidden)
            + either(self.mlp_bias, 2 * mlp + hidden)
            + either(self.qk_norm, 2 * self.head_dim as u64);
        let embeddings = if self.tie_word_embeddings { 1 } else { 2 };
        // Far below 2^64: every size is bounded when the configuration is read.
        embeddings * self.vocab_size as u64 * hidden + layers * layer + hidden
    }

    /// Rows of the query projection.
    pub fn q_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Rows of the key (or value) projection.
    pub fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }
}

/// Carries the path for errors.
pub(super) struct Checker<'a> {
    path: &'a Path,
}

impl Checker<'_> {
    pub(super) fn refuse(&self, key: &str, message: impl Into<String>) -> ModelError {
        ModelError::Config { path: PathBuf::from(self.path), key: key.to_owned(), message: message.into() }
    }

    /// A required whole number in `1..=max`.
    pub(super) fn size(&self, key: &str, value: Option<u64>, max: u64) -> Result<usize, ModelError> {
        match value {
            Some(value) if (1..=max).contains(&value) => Ok(value as usize),
            Some(value) => Err(self.refuse(key, format!("{value} is not in 1..={max}"))),
            None => Err(self.refuse(key, "missing")),
        }
    }

    pub(super) fn positive(&self, key: &str, value: Option<f64>) -> Result<f32, ModelError> {
        match value {
            Some(value) if value > 0.0 && (value as f32).is_finite() => Ok(value as f32),
            Some(value) => Err(self.refuse(key, format!("{value} is not a number over 0"))),
            None => Err(self.refuse(key, "missing")),
        }
    }

    fn check(&self, raw: &RawConfig) -> Result<ModelConfig, ModelError> {
        let family = self.family(raw)?;
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
        if raw.head_dim.is_none() && family != Family::Qwen3 && !hidden_size.is_multiple_of(num_heads) {
            return Err(self.refuse(
                "num_attention_heads",
                format!("{num_heads} does not divide hidden_size, {hidden_size}, and there is no head_dim"),
            ));
        }
        // The default of Qwen3's own configuration class is 128, whatever the hidden size.
        let default_head_dim = if family == Family::Qwen3 { 128 } else { hidden_size / num_heads };
        let head_dim = self.size("head_dim", Some(raw.head_dim.unwrap_or(default_head_dim as u64)), 512)?;
        if !head_dim.is_multiple_of(2) {
            return Err(self.refuse("head_dim", format!("{head_dim} is odd; rotary embedding needs pairs")));
        }
        let ropes = [("rope_scaling", &raw.rope_scaling), ("rope_parameters", &raw.rope_parameters)];
        let (rope_theta, rope_scaling) = rope::read(self, raw.rope_theta, ropes)?;
        let attention_bias = raw.attention_bias.unwrap_or(false);
        let (qkv_bias, attention_output_bias) = match family {
            Family::Llama | Family::Qwen3 => (attention_bias, attention_bias),
            Family::Qwen2 => (true, false),
            Family::Mistral => (false, false),
        };
        Ok(ModelConfig {
            family,
            vocab_size: self.size("vocab_size", raw.vocab_size, 1 << 22)?,
            hidden_size,
            intermediate_size: self.size("intermediate_size", raw.intermediate_size, 1 << 18)?,
            num_layers: self.size("num_hidden_layers", raw.num_hidden_layers, 1024)?,
            num_heads,
            num_kv_heads,
            head_dim,
            rms_norm_eps: self.positive("rms_norm_eps", Some(raw.rms_norm_eps.unwrap_or(1e-6)))?,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            qkv_bias,
            attention_output_bias,
            mlp_bias: family == Family::Llama && raw.mlp_bias.unwrap_or(false),
            qk_norm: family == Family::Qwen3,
            max_model_len: self.max_model_len(raw, family)?,
            weight_format: match raw.dtype.as_deref().or(raw.torch_dtype.as_deref()) {
                Some("float16" | "half") => WeightFormat::F16,
                Some("bfloat16") => WeightFormat::Bf16,
                _ => WeightFormat::F32,
            },
        })
    }

    fn family(&self, raw: &RawConfig) -> Result<Family, ModelError> {
        let (key, name) = match (raw.architectures.as_deref(), &raw.model_type) {
            (Some([name, ..]), _) => ("architectures", name),
            (_, Some(name)) => ("model_type", name),
            _ => return Err(self.refuse("architectures", "missing, and so is model_type")),
        };
        match name.as_str() {
            "LlamaForCausalLM" | "llama" => Ok(Family::Llama),
            "MistralForCausalLM" | "mistral" => Ok(Family::Mistral),
            "Qwen2ForCausalLM" | "qwen2" => Ok(Family::Qwen2),
            "Qwen3ForCausalLM" | "qwen3" => Ok(Family::Qwen3),
            other => Err(self.refuse(
                key,
                format!(
                    "{other:?} is not supported; LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and \
                     Qwen3ForCausalLM are"
                ),
            )),
        }
    }

    fn max_model_len(&self, raw: &RawConfig, family: Family) -> Result<u32, ModelError> {
        let max = self.size("max_position_embeddings", raw.max_position_embeddings, 1 << 24)? as u32;
        let Some(window) = raw.sliding_window.filter(|_| Self::has_sliding_layers(raw, family)) else {
            return Ok(max);
        };
        let window = self.size("sliding_window", Some(window), 1 << 24)? as u32;
        if window < max {
            tracing::info!(window, max, "sequences end at the sliding window; beyond it is not supported");
        }
        Ok(max.min(window))
    }

    /// Whether any layer looks at no more than the sliding window.
    fn has_sliding_layers(raw: &RawConfig, family: Family) -> bool {
        match family {
            Family::Llama => false,
            Family::Mistral => true,
            Family::Qwen2 | Family::Qwen3 => {
                let from = raw.max_window_layers.unwrap_or(WINDOW_LAYERS_FROM_DEFAULT);
                raw.use_sliding_window.unwrap_or(false)
                    && match &raw.layer_types {
                        Some(types) => types.iter().any(|kind| kind == "sliding_attention"),
                        None => raw.num_hidden_layers.is_some_and(|layers| layers > from),
                    }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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

    fn parse(changes: &Value) -> Result<ModelConfig, String> {
        let config = with(base(), changes);
        ModelConfig::parse(Path::new("m/config.json"), config.to_string().as_bytes())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_those_of_the_family() {
        let llama = parse(&json!({})).expect("valid");
        assert_eq!((llama.head_dim, llama.qkv_bias, llama.qk_norm), (16, false, false));
        assert_eq!(llama.rope_scaling, RopeScaling::None);
        let qwen2 = parse(&json!({"architectures": ["Qwen2ForCausalLM"]})).expect("valid");
        assert_eq!((qwen2.qkv_bias, qwen2.attention_output_bias), (true, false));
        let qwen3 = parse(&json!({"architectures": null, "model_type": "qwen3"})).expect("valid");
        assert_eq!((qwen3.head_dim, qwen3.qk_norm), (128, true));
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
    fn a_sliding_window_shortens_the_longest_sequence() {
        let mistral = |changes: Value| with(json!({"architectures": ["MistralForCausalLM"]}), &changes);
        // As `layer_types` and `sliding_window` of transformers' configurations, of a model of two layers.
        let qwen = |changes: Value| {
            let on = json!({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": true});
            with(on, &changes)
        };
        let long = json!({"max_position_embeddings": 8192});
        for (changes, longest) in [
            (mistral(json!({"sliding_window": 1024})), 1024),
            (mistral(json!({"sliding_window": null})), 2048),
            (with(mistral(json!({})), &long), 4096),
            (with(json!({}), &long), 8192),
            (qwen(json!({"use_sliding_window": false, "sliding_window": 64, "max_window_layers": 0})), 2048),
            (qwen(json!({"sliding_window": 64, "max_window_layers": 1})), 64),
            (with(qwen(json!({"max_window_layers": 0})), &long), 4096),
            (qwen(json!({"sliding_window": 64, "max_window_layers": 2})), 2048),
            (qwen(json!({"sliding_window": 64})), 2048),
            (qwen(json!({"sliding_window": null, "max_window_layers": 0})), 2048),
            (
                qwen(
                    json!({"sliding_window": 64, "max_window_layers": 0, "layer_types": ["full_attention"]}),
                ),
                2048,
            ),
            (qwen(json!({"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]})), 64),
        ] {
            assert_eq!(parse(&changes).expect("valid").max_model_len, longest, "{changes}");
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
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
            (json!({"rms_norm_eps": -1.0}), "rms_norm_eps: -1 is not a number over 0"),
        ] {
            let error = parse(&changes).expect_err(want);
            assert!(error.contains(want), "{error}");
        }
    }
}
