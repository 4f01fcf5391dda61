//! `POST /v1/chat/completions`.

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::completion::model;
use super::fields::Fields;
use super::params::{Params, TOP_LOGPROBS_MAX, n, stream};
use super::{ApiError, Conversation, Endpoint, Input, Request};
use crate::model::{FUNCTIONS, TemplateValue};

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
    let rule = "a list of at least one message";
    let messages: Vec<&RawValue> = fields
        .take_if("messages", rule, |messages: &Vec<_>| !messages.is_empty())?
        .ok_or_else(|| ApiError::missing("messages", rule))?;
    let messages =
        messages.into_iter().enumerate().map(|(at, raw)| message(at, raw)).collect::<Result<_, _>>()?;
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
    let kwargs = template_kwargs(fields)?;
    let add_generation_prompt = fields.take("add_generation_prompt", "true or false")?.unwrap_or(true);
    let inputs = vec![Input::Conversation(Conversation { messages, add_generation_prompt, kwargs })];
    let (stream, include_usage) = stream(fields)?;
    let echo = false;
    Ok(Request { endpoint: Endpoint::Chat, model, inputs, n, echo, params, stream, include_usage })
}

/// Variables of the chat template that have a field of their own, or that come from the model.
const OWN_VARIABLES: &[&str] = &[
    "messages",
    "add_generation_prompt",
    "tools",
    "documents",
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
];
/// What transformers' `apply_chat_template` takes under these names is no variable, and would have no effect as one.
const NO_VARIABLES: &[&str] = &[
    "conversation",
    "chat_template",
    "continue_final_message",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
    "sanitize_control_tokens",
];
/// Names that Jinja itself gives a meaning.
const JINJA_NAMES: &[&str] = &[
    "true", "false", "none", "True", "False", "None", "loop", "self", "super", "caller", "varargs", "kwargs",
];

/// `chat_template_kwargs`: variables of the template. Each acts, or is refused by name.
fn template_kwargs(fields: &mut Fields<'_>) -> Result<IndexMap<String, TemplateValue>, ApiError> {
    let rule = "an object of variables for the chat template";
    let kwargs =
        fields.take_if("chat_template_kwargs", rule, |kwargs: &TemplateValue| kwargs.fields().is_some())?;
    let kwargs = kwargs.and_then(|kwargs| kwargs.fields()).unwrap_or_default();
    for name in kwargs.keys() {
        let is_in = |names: &[&str]| names.contains(&name.as_str());
        let rule = if is_in(OWN_VARIABLES) {
            "absent: it has a field of its own or comes from the model"
        } else if is_in(NO_VARIABLES) {
            "absent: it is no variable of templates"
        } else if is_in(FUNCTIONS) || is_in(JINJA_NAMES) {
            "absent: Jinja or a function of templates has this name"
        } else if name.is_empty() || name.starts_with('_') || name.contains('.') {
            let rule = "an object whose names begin with a letter and have no dots";
            return Err(ApiError::bad_value("chat_template_kwargs", name, rule));
        } else {
            continue;
        };
        return Err(ApiError::bad_value(format!("chat_template_kwargs.{name}"), name, rule));
    }
    Ok(kwargs)
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

/// One message, as the object that templates see: its fields in the order in which they came.
fn message(at: usize, raw: &RawValue) -> Result<TemplateValue, ApiError> {
    let name = format!("messages[{at}]");
    let mut fields = Fields::nested(&name, raw)?;
    let order = fields.names();
    let rule = format!("one of {}", ROLES.join(", "));
    let role: String = fields
        .take_if("role", &rule, |role: &String| ROLES.contains(&role.as_str()))?
        .ok_or_else(|| ApiError::missing(fields.name("role"), &rule))?;
    let mut object = vec![("role", TemplateValue::from(role)), ("content", content(&mut fields)?.into())];
    if let Some(name) = fields.take::<String>("name", "a string")? {
        object.push(("name", name.into()));
    }
    for unsupported in ["tool_calls", "tool_call_id", "function_call", "audio", "refusal"] {
        fields.unsupported(unsupported, &["[]"])?;
    }
    fields.finish()?;
    object.sort_by_key(|(name, _)| order.iter().position(|other| other == name));
    Ok(TemplateValue::object(object))
}

/// Content is a string, or a list of text parts, which are joined by line ends as vLLM does.
fn content(fields: &mut Fields<'_>) -> Result<String, ApiError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Content {
        Text(String),
        Parts(Vec<Part>),
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Part {
        r#type: String,
        text: String,
    }
    let rule = "a string or a list of parts of type text";
    let allowed = |content: &Content| match content {
        Content::Text(_) => true,
        Content::Parts(parts) => !parts.is_empty() && parts.iter().all(|part| part.r#type == "text"),
    };
    match fields.take_if("content", rule, allowed)? {
        None => Err(ApiError::missing(fields.name("content"), rule)),
        Some(Content::Text(text)) => Ok(text),
        Some(Content::Parts(parts)) => {
            Ok(parts.into_iter().map(|part| part.text).collect::<Vec<_>>().join("\n"))
        }
    }
}
