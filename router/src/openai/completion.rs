//! `POST /v1/completions`.

use serde::Deserialize;

use super::fields::Fields;
use super::params::{Params, TOP_LOGPROBS_MAX, n, stream};
use super::{ApiError, Endpoint, Input, Request};

/// Choices of all prompts of a request together.
const TOTAL_CHOICES_MAX: usize = 256;

const PROMPT_RULE: &str = "a string, a list of token ids, or a list of at least one of either";

/// The forms of a prompt, and of several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

pub(super) fn parse(fields: &mut Fields<'_>) -> Result<Request, ApiError> {
    let model = model(fields)?;
    let inputs = inputs(fields)?;
    let n = n(fields)?;
    let choices = inputs.len().saturating_mul(n as usize);
    if choices > TOTAL_CHOICES_MAX {
        let rule = format!("such that prompts times 'n' is at most {TOTAL_CHOICES_MAX}");
        return Err(ApiError::bad_value("n", &format!("{n} for {} prompts", inputs.len()), &rule));
    }
    let best_of = fields.count("best_of", 1)?;
    if best_of.is_some_and(|best_of| best_of != n) {
        return Err(ApiError::unsupported_parameter("best_of", ", except with the value of 'n'"));
    }
    let echo = fields.flag("echo")?;
    fields.unsupported("suffix", &["\"\""])?;
    let add_special_tokens = fields.take("add_special_tokens", "true or false")?.unwrap_or(true);
    let mut params = Params::take(fields)?;
    params.max_tokens = fields.count("max_tokens", 1)?;
    let logprobs = fields.integer("logprobs", 0, TOP_LOGPROBS_MAX.into())?;
    params.top_logprobs = logprobs.and_then(|count| count.try_into().ok());
    if echo && params.top_logprobs.is_some() {
        // It would have to tell those of the prompt, which workers do not compute.
        return Err(ApiError::unsupported_parameter("logprobs", " together with 'echo'"));
    }
    let (stream, include_usage) = stream(fields)?;
    Ok(Request {
        endpoint: Endpoint::Completions,
        model,
        inputs,
        n,
        echo,
        add_special_tokens,
        params,
        stream,
        include_usage,
    })
}

fn inputs(fields: &mut Fields<'_>) -> Result<Vec<Input>, ApiError> {
    let inputs: Vec<Input> = match fields.take("prompt", PROMPT_RULE)? {
        None => return Err(ApiError::missing("prompt", PROMPT_RULE)),
        Some(Prompt::Text(text)) => vec![Input::Text(text)],
        Some(Prompt::Tokens(ids)) => vec![Input::Tokens(ids)],
        Some(Prompt::Texts(texts)) => texts.into_iter().map(Input::Text).collect(),
        Some(Prompt::TokenLists(lists)) => lists.into_iter().map(Input::Tokens).collect(),
    };
    let empty = inputs.iter().position(|input| matches!(input, Input::Tokens(ids) if ids.is_empty()));
    match empty {
        Some(at) if inputs.len() > 1 => {
            Err(ApiError::bad_value(format!("prompt[{at}]"), "[]", "at least one token"))
        }
        Some(_) => Err(ApiError::bad_value("prompt", "[]", "at least one token")),
        None => Ok(inputs),
    }
}

/// Takes the model's name.
pub(super) fn model(fields: &mut Fields<'_>) -> Result<String, ApiError> {
    let rule = "the name of a model that GET /v1/models lists";
    fields.take("model", rule)?.ok_or_else(|| ApiError::missing("model", rule))
}
