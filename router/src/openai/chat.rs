//! `POST /v1/chat/completions`.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::bounded::List;
use super::completion::model;
use super::content::Content;
use super::fields::Fields;
use super::params::{Params, TOP_LOGPROBS_MAX, n, stream};
use super::{ApiError, Conversation, Endpoint, Input, Request};

/// Messages of one conversation. Each is an object of its own for the chat template, whatever little it says.
pub(super) const MESSAGES_MAX: usize = 16_384;
/// JSON text of the template's variables, which can be thirty times as much in memory.
pub(super) const KWARGS_BYTES_MAX: usize = 64 * 1024;

const ROLES: [&str; 5] = ["developer", "system", "user", "assistant", "tool"];

/// Fields of OpenAI's, then of vLLM's, that are not implemented, each with the values that ask for nothing.
const UNSUPPORTED: &[(&str, &[&str])] = &[
    ("tools", &["[]"]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("parallel_tool_calls", &["true", "false"]),
    ("functions", &["[]"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("modalities", &[r#"["text"]"#]),
    ("audio", &[]),
    ("prediction", &[]),
    ("reasoning_effort", &["\"none\""]),
    ("verbosity", &["\"medium\""]),
    ("web_search_options", &[]),
    ("store", &["false"]),
    ("metadata", &["{}"]),
    ("prompt_cache_retention", &["\"in_memory\"", "\"in-memory\""]),
    ("best_of", &["1"]),
    ("echo", &["false"]),
    ("continue_final_message", &["false"]),
    ("add_special_tokens", &["false"]),
    ("documents", &["[]"]),
    ("chat_template", &[]),
    ("mm_processor_kwargs", &["{}"]),
    ("include_reasoning", &["true"]),
    ("thinking_token_budget", &[]),
];

pub(super) fn parse(fields: &mut Fields<'_>) -> Result<Request, ApiError> {
    let model = model(fields)?;
    let rule = "a list of 1 to 16384 messages";
    let messages: List<&RawValue, MESSAGES_MAX> = fields
        .take_if("messages", rule, |messages: &List<_, MESSAGES_MAX>| !messages.0.is_empty())?
        .ok_or_else(|| ApiError::missing("messages", rule))?;
    let messages =
        messages.0.into_iter().enumerate().map(|(at, raw)| message(at, raw)).collect::<Result<_, _>>()?;
    for (name, harmless) in UNSUPPORTED {
        fields.unsupported(name, harmless)?;
    }
    for name in ["safety_identifier", "prompt_cache_key"] {
        // Hints that change no answer: who asks, and which prompts begin alike, which is found by their content.
        fields.take::<String>(name, "a string")?;
    }
    let n = n(fields)?;
    let mut params = Params::take(fields)?;
    params.max_tokens = max_tokens(fields)?;
    params.top_logprobs = top_logprobs(fields)?;
    let rule = "an object of variables for the chat template, of at most 65536 bytes";
    fields.at_most("chat_template_kwargs", KWARGS_BYTES_MAX, rule)?;
    let kwargs: BTreeMap<String, serde_json::Value> =
        fields.take("chat_template_kwargs", rule)?.unwrap_or_default();
    if let Some(name) =
        kwargs.keys().find(|name| matches!(name.as_str(), "messages" | "add_generation_prompt"))
    {
        let rule = "variables other than those with a field of their own";
        return Err(ApiError::bad_value("chat_template_kwargs", name, rule));
    }
    let add_generation_prompt = fields.take("add_generation_prompt", "true or false")?.unwrap_or(true);
    let inputs = vec![Input::Conversation(Conversation { messages, add_generation_prompt, kwargs })];
    let (stream, include_usage) = stream(fields)?;
    let echo = false;
    Ok(Request { endpoint: Endpoint::Chat, model, inputs, n, echo, params, stream, include_usage })
}

/// `max_completion_tokens`, or `max_tokens`, its former name.
fn max_tokens(fields: &mut Fields<'_>) -> Result<Option<u32>, ApiError> {
    let (old, new) = (fields.count("max_tokens", 1)?, fields.count("max_completion_tokens", 1)?);
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let rule = "absent, or equal to 'max_completion_tokens'";
            Err(ApiError::bad_value("max_tokens", &old.to_string(), rule))
        }
        _ => Ok(new.or(old)),
    }
}

fn top_logprobs(fields: &mut Fields<'_>) -> Result<Option<u32>, ApiError> {
    let logprobs = fields.flag("logprobs")?;
    let top = fields.integer("top_logprobs", 0, TOP_LOGPROBS_MAX.into())?;
    match (logprobs, top) {
        (true, top) => Ok(Some(top.and_then(|top| top.try_into().ok()).unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(top)) => {
            Err(ApiError::bad_value("top_logprobs", &top.to_string(), "absent unless 'logprobs' is true"))
        }
    }
}

/// One message, as the object that templates see.
fn message(at: usize, raw: &RawValue) -> Result<serde_json::Value, ApiError> {
    let name = format!("messages[{at}]");
    let mut fields = Fields::nested(&name, raw)?;
    let rule = format!("one of {}", ROLES.join(", "));
    let role: String = fields
        .take_if("role", &rule, |role: &String| ROLES.contains(&role.as_str()))?
        .ok_or_else(|| ApiError::missing(fields.name("role"), &rule))?;
    let content = content(&mut fields)?;
    let mut object = serde_json::json!({ "role": role, "content": content });
    if let Some(name) = fields.take::<String>("name", "a string")? {
        object["name"] = name.into();
    }
    for unsupported in ["tool_calls", "tool_call_id", "function_call", "audio", "refusal"] {
        fields.unsupported(unsupported, &["[]"])?;
    }
    fields.finish()?;
    Ok(object)
}

/// A string, or a list of text parts.
fn content(fields: &mut Fields<'_>) -> Result<String, ApiError> {
    let rule = "a string or a list of parts of type text";
    let content: Option<Content> = fields.take("content", rule)?;
    content.map(|content| content.0).ok_or_else(|| ApiError::missing(fields.name("content"), rule))
}
