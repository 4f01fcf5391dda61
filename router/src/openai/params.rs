//! Parameters that both endpoints share: how to draw tokens, and when to stop.

use disagg_proto::limits::{
    BIAS_MAX, CACHE_SALT_BYTES_MAX, CHOICES_MAX, LOGIT_BIAS_MAX, PENALTY_MAX, STOP_TOKENS_MAX,
    TEMPERATURE_MAX, TOP_LOGPROBS_MAX,
};

use super::ApiError;
use super::bounded::{List, Object, OneOrList};
use super::fields::Fields;

/// Stop strings of a request, and bytes of one: each costs time for every token.
const STOPS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 1024;
/// The largest `repetition_penalty` that means anything. The wire contract has no bound of its own.
const REPETITION_PENALTY_MAX: f64 = 10.0;
/// Fields of OpenAI's and vLLM's that neither endpoint implements, each with the values that ask for nothing.
const UNSUPPORTED: &[(&str, &[&str])] = &[
    ("response_format", &[r#"{"type":"text"}"#]),
    ("service_tier", &["\"auto\"", "\"default\""]),
    ("structured_outputs", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("guided_decoding_backend", &[]),
    ("guided_whitespace_pattern", &[]),
    ("use_beam_search", &["false"]),
    ("length_penalty", &["1", "1.0"]),
    ("early_stopping", &["false"]),
    ("prompt_logprobs", &[]),
    ("allowed_token_ids", &[]),
    ("bad_words", &["[]"]),
    ("logits_processors", &["[]"]),
    ("truncate_prompt_tokens", &[]),
    ("spaces_between_special_tokens", &["true"]),
    ("return_tokens_as_token_ids", &["false"]),
    ("return_token_ids", &["false"]),
    ("priority", &["0"]),
    ("request_id", &[]),
    ("kv_transfer_params", &[]),
    ("vllm_xargs", &["{}"]),
];
/// Checked parameters. `None` leaves the choice to the model's own defaults.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Params {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub repetition_penalty: Option<f32>,
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: Option<u64>,
    /// Alternatives to show beside each token's logprob; absent: no logprobs.
    pub top_logprobs: Option<u32>,
    /// Absent: the endpoint's default.
    pub max_tokens: Option<u32>,
    pub min_tokens: u32,
    pub ignore_eos: bool,
    pub stops: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub include_stop: bool,
    pub skip_special: bool,
    pub cache_salt: String,
}

impl Params {
    /// Takes the shared fields. Limits on tokens and logprobs are for the caller, since the endpoints name them
    /// differently.
    pub(super) fn take(fields: &mut Fields<'_>) -> Result<Self, ApiError> {
        for (name, harmless) in UNSUPPORTED {
            fields.unsupported(name, harmless)?;
        }
        // Says who asks; nothing here depends on it.
        fields.take::<String>("user", "a string")?;
        Ok(Self {
            temperature: fields.number("temperature", 0.0, TEMPERATURE_MAX.into())?,
            top_p: positive(fields, "top_p", 1.0)?,
            // vLLM's clients turn it off with -1.
            top_k: fields.integer("top_k", -1, u32::MAX.into())?.map(|k| u32::try_from(k).unwrap_or(0)),
            min_p: fields.number("min_p", 0.0, 1.0)?,
            presence_penalty: penalty(fields, "presence_penalty")?,
            frequency_penalty: penalty(fields, "frequency_penalty")?,
            repetition_penalty: positive(fields, "repetition_penalty", REPETITION_PENALTY_MAX)?,
            logit_bias: logit_bias(fields)?,
            seed: fields.take::<i64>("seed", "a whole number of 64 bits")?.map(i64::cast_unsigned),
            top_logprobs: None,
            max_tokens: None,
            min_tokens: fields.count("min_tokens", 0)?.unwrap_or(0),
            ignore_eos: fields.flag("ignore_eos")?,
            stops: stops(fields)?,
            stop_token_ids: stop_token_ids(fields)?,
            include_stop: fields.flag("include_stop_str_in_output")?,
            skip_special: fields.take("skip_special_tokens", "true or false")?.unwrap_or(true),
            cache_salt: cache_salt(fields)?,
        })
    }
}

/// Takes `n`, the number of choices for each prompt.
pub(super) fn n(fields: &mut Fields<'_>) -> Result<u32, ApiError> {
    let n = fields.integer("n", 1, CHOICES_MAX.into())?;
    Ok(n.and_then(|n| n.try_into().ok()).unwrap_or(1))
}

/// Takes `stream` and `stream_options`: whether to stream, and whether to end with the usage.
pub(super) fn stream(fields: &mut Fields<'_>) -> Result<(bool, bool), ApiError> {
    let stream = fields.flag("stream")?;
    let Some(raw) = fields.raw("stream_options") else { return Ok((stream, false)) };
    if !stream {
        return Err(ApiError::bad_value("stream_options", raw.get(), "absent unless 'stream' is true"));
    }
    let mut options = Fields::nested("stream_options", raw)?;
    let include_usage = options.flag("include_usage")?;
    options.unsupported("include_obfuscation", &["false"])?;
    options.unsupported("continuous_usage_stats", &["false"])?;
    options.finish()?;
    Ok((stream, include_usage))
}

/// Takes the number of alternatives to show beside each token: `top_logprobs` of chats, `logprobs` of completions.
pub(super) fn alternatives(fields: &mut Fields<'_>, name: &str) -> Result<Option<u32>, ApiError> {
    let count = fields.integer(name, 0, TOP_LOGPROBS_MAX.into())?;
    Ok(count.and_then(|count| count.try_into().ok()))
}

fn penalty(fields: &mut Fields<'_>, name: &str) -> Result<f32, ApiError> {
    let max = f64::from(PENALTY_MAX);
    Ok(fields.number(name, -max, max)?.unwrap_or(0.0))
}

/// A number over 0, up to `max`.
fn positive(fields: &mut Fields<'_>, name: &str, max: f64) -> Result<Option<f32>, ApiError> {
    let rule = format!("a number over 0, at most {max}");
    // What is over 0 only beyond the precision of 32 bits is 0 to the workers.
    let allowed = |value: &f64| *value as f32 > 0.0 && *value <= max;
    Ok(fields.take_if::<f64>(name, &rule, allowed)?.map(|value| value as f32))
}

fn logit_bias(fields: &mut Fields<'_>) -> Result<Vec<(u32, f32)>, ApiError> {
    let rule = format!(
        "an object of at most {LOGIT_BIAS_MAX} token ids, each with a number from -{BIAS_MAX} to {BIAS_MAX}"
    );
    let allowed = |map: &Object<f32, { LOGIT_BIAS_MAX as usize }>| {
        map.0.iter().all(|(id, bias)| id.parse::<u32>().is_ok() && (-BIAS_MAX..=BIAS_MAX).contains(bias))
    };
    let map = fields.take_if("logit_bias", &rule, allowed)?.map(|map| map.0).unwrap_or_default();
    Ok(map.into_iter().filter_map(|(id, bias)| Some((id.parse().ok()?, bias))).collect())
}

fn stops(fields: &mut Fields<'_>) -> Result<Vec<String>, ApiError> {
    let rule = format!(
        "a string or a list of at most {STOPS_MAX}, none of them empty or longer than {STOP_BYTES_MAX} bytes"
    );
    let one = |stop: &String| (1..=STOP_BYTES_MAX).contains(&stop.len());
    let allowed = |stops: &OneOrList<STOPS_MAX>| stops.0.iter().all(one);
    Ok(fields.take_if("stop", &rule, allowed)?.map(|stops| stops.0).unwrap_or_default())
}

fn stop_token_ids(fields: &mut Fields<'_>) -> Result<Vec<u32>, ApiError> {
    let rule = format!("a list of at most {STOP_TOKENS_MAX} token ids");
    let ids: Option<List<u32, { STOP_TOKENS_MAX as usize }>> = fields.take("stop_token_ids", &rule)?;
    Ok(ids.map(|ids| ids.0).unwrap_or_default())
}

fn cache_salt(fields: &mut Fields<'_>) -> Result<String, ApiError> {
    let rule = format!("a string of 1 to {CACHE_SALT_BYTES_MAX} bytes");
    let allowed = |salt: &String| (1..=CACHE_SALT_BYTES_MAX).contains(&salt.len());
    Ok(fields.take_if("cache_salt", &rule, allowed)?.unwrap_or_default())
}
