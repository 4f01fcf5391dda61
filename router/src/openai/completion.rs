//! `POST /v1/completions`.

use serde::Deserialize;

use super::fields::Fields;
use super::params::{Params, TOP_LOGPROBS_MAX, stream};
use super::{ApiError, Endpoint, Input, Request};

const PROMPT_RULE: &str = "a string or a list of token ids, alone or in a list of one";

/// The forms of a prompt. Lists of several prompts would need several answers and are refused.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts([String; 1]),
    TokenLists([Vec<u32>; 1]),
}

pub(super) fn parse(fields: &mut Fields<'_>) -> Result<Request, ApiError> {
    let model = model(fields)?;
    let input = match fields.take("prompt", PROMPT_RULE)? {
        None => return Err(ApiError::missing("prompt", PROMPT_RULE)),
        Some(Prompt::Text(text) | Prompt::Texts([text])) => Input::Text(text),
        Some(Prompt::Tokens(ids) | Prompt::TokenLists([ids])) => {
            if ids.is_empty() {
                return Err(ApiError::bad_value("prompt", "[]", "at least one token"));
            }
            Input::Tokens(ids)
        }
    };
    fields.unsupported("best_of", &["1"])?;
    fields.unsupported("echo", &["false"])?;
    fields.unsupported("suffix", &["\"\""])?;
    let mut params = Params::take(fields)?;
    params.max_tokens = fields.count("max_tokens", 1)?;
    let logprobs = fields.integer("logprobs", 0, TOP_LOGPROBS_MAX.into())?;
    params.top_logprobs = logprobs.and_then(|count| count.try_into().ok());
    let (stream, include_usage) = stream(fields)?;
    Ok(Request { endpoint: Endpoint::Completions, model, input, params, stream, include_usage })
}

/// Takes the model's name.
pub(super) fn model(fields: &mut Fields<'_>) -> Result<String, ApiError> {
    let rule = "the name of a model that GET /v1/models lists";
    fields.take("model", rule)?.ok_or_else(|| ApiError::missing("model", rule))
}
