//! `POST /v1/completions`.

use super::fields::Fields;
use super::params::{Params, alternatives, n, stream};
use super::prompt::{PROMPTS_MAX, Prompts};
use super::{ApiError, Endpoint, Input, Request};

/// Choices of all prompts of a request together.
const TOTAL_CHOICES_MAX: usize = 256;

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
    params.top_logprobs = alternatives(fields, "logprobs")?;
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
    let rule = format!("a string, a list of token ids, or a list of 1 to {PROMPTS_MAX} of either");
    let Some(Prompts(inputs)) = fields.take("prompt", &rule)? else {
        return Err(ApiError::missing("prompt", &rule));
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
