//! What a model's own configuration says where a request is silent.

use disagg_proto::limits::STOP_TOKENS_MAX;
use serde_json::Value;

/// Sampling parameters of `generation_config.json`. Values out of range count as absent.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct SamplingDefaults {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

impl SamplingDefaults {
    pub(crate) fn from_generation_config(config: Option<&Value>) -> Self {
        let Some(config) = config else { return Self::default() };
        let number = |name: &str, allowed: fn(f32) -> bool| {
            config.get(name).and_then(Value::as_f64).map(|value| value as f32).filter(|value| allowed(*value))
        };
        Self {
            temperature: number("temperature", |value| (0.0..=2.0).contains(&value)),
            top_p: number("top_p", |value| value > 0.0 && value <= 1.0),
            top_k: config.get("top_k").and_then(Value::as_u64).and_then(|value| value.try_into().ok()),
            min_p: number("min_p", |value| (0.0..=1.0).contains(&value)),
            repetition_penalty: number("repetition_penalty", |value| value > 0.0 && value <= 10.0),
        }
    }
}

/// The model's end-of-sequence tokens: those of `generation_config.json` (of `config.json` if it names none), and the
/// tokenizer's own, which chat models end their turns with. A model cannot say those from `vocab_size` on.
pub(crate) fn eos_token_ids(
    generation: Option<&Value>,
    config: Option<&Value>,
    tokenizer: Option<u32>,
    vocab_size: u32,
) -> Vec<u32> {
    let mut ids = ids_of(generation);
    if ids.is_empty() {
        ids = ids_of(config);
    }
    ids.extend(tokenizer);
    ids.retain(|id| *id < vocab_size);
    ids.sort_unstable();
    ids.dedup();
    ids.truncate(STOP_TOKENS_MAX as usize);
    ids
}

/// `eos_token_id` is a number or a list of them.
fn ids_of(config: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match config.and_then(|config| config.get("eos_token_id")) {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn eos_ids_come_from_all_that_name_them() {
        let (one, list) = (json!({"eos_token_id": 2}), json!({"eos_token_id": [7, 5, 7]}));
        assert_eq!(eos_token_ids(Some(&list), Some(&one), Some(9), 10), [5, 7, 9]);
        assert_eq!(eos_token_ids(Some(&json!({})), Some(&one), Some(2), 10), [2]);
        assert_eq!(eos_token_ids(None, Some(&json!({"eos_token_id": null})), None, 10), Vec::<u32>::new());
        assert_eq!(
            eos_token_ids(Some(&list), None, Some(9), 7),
            [5],
            "a tokenizer may be larger than the model"
        );
    }

    #[test]
    fn defaults_out_of_range_count_as_absent() {
        let config =
            json!({"temperature": 0.6, "top_p": 0.0, "top_k": 20, "min_p": 3, "repetition_penalty": null});
        let expected =
            SamplingDefaults { temperature: Some(0.6), top_k: Some(20), ..SamplingDefaults::default() };
        assert_eq!(SamplingDefaults::from_generation_config(Some(&config)), expected);
    }
}
