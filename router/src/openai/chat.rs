//! `POST /v1/chat/completions`.

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::bounded::List;
use super::completion::model;
use super::content::Content;
use super::fields::{self, Fields};
use super::params::{Params, alternatives, n, stream};
use super::{ApiError, Conversation, Endpoint, Input, Request};
use crate::model::{FUNCTIONS, TemplateValue};

/// Fields of a message that are not implemented, each with the values that ask for nothing. Answers of OpenAI's client
/// and of vLLM have them all when they are sent back as history.
const UNSUPPORTED_OF_MESSAGE: &[(&str, &[&str])] = &[
    ("tool_calls", &["[]"]),
    ("function_call", &[]),
    ("refusal", &[]),
    ("audio", &[]),
    ("annotations", &["[]"]),
];
/// Fields of a message that templates see as they come. `tool_call_id` and `name` say which call a message of the role
/// `tool` answers; the others are what a reasoning model thought in an earlier turn.
const TEXTS_OF_MESSAGE: [&str; 4] = ["name", "tool_call_id", "reasoning_content", "reasoning"];
/// Messages of one conversation. Each is an object of its own for the chat template, whatever little it says.
pub(super) const MESSAGES_MAX: usize = 16_384;
/// Parts of one message that say more than their text.
const PARTS_MAX: usize = 4096;
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
    let kwargs = template_kwargs(fields)?;
    let add_generation_prompt = fields.take("add_generation_prompt", "true or false")?.unwrap_or(true);
    let inputs = vec![Input::Conversation(Conversation { messages, add_generation_prompt, kwargs })];
    let add_special_tokens = fields.flag("add_special_tokens")?;
    let (stream, include_usage) = stream(fields)?;
    Ok(Request {
        endpoint: Endpoint::Chat,
        model,
        inputs,
        n,
        echo: false,
        add_special_tokens,
        params,
        stream,
        include_usage,
    })
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
    let rule = "an object of variables for the chat template, of at most 65536 bytes";
    fields.at_most("chat_template_kwargs", KWARGS_BYTES_MAX, rule)?;
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
    let top = alternatives(fields, "top_logprobs")?;
    match (logprobs, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
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
    // Before the content, which is null beside tool calls: they are what cannot be served.
    for (unsupported, harmless) in UNSUPPORTED_OF_MESSAGE {
        fields.unsupported(unsupported, harmless)?;
    }
    let mut object = vec![("role", TemplateValue::from(role)), ("content", content(&mut fields)?.into())];
    for name in TEXTS_OF_MESSAGE {
        if let Some(text) = fields.take::<String>(name, "a string")? {
            object.push((name, text.into()));
        }
    }
    fields.finish()?;
    object.sort_by_key(|(name, _)| order.iter().position(|other| other == name));
    Ok(TemplateValue::object(object))
}

/// A string, or a list of text parts.
fn content(fields: &mut Fields<'_>) -> Result<String, ApiError> {
    let rule = "a string or a list of parts of type text";
    let name = fields.name("content");
    let raw: &RawValue = fields.take("content", rule)?.ok_or_else(|| ApiError::missing(&name, rule))?;
    if !raw.get().starts_with('[') {
        return fields::parse(name, raw, rule);
    }
    // In one pass, unless a part has more to it or is refused.
    if let Ok(Content(text)) = serde_json::from_str(raw.get()) {
        return Ok(text);
    }
    let List::<&RawValue, PARTS_MAX>(parts) = fields::parse(name.clone(), raw, rule)?;
    if parts.is_empty() {
        return Err(ApiError::bad_value(name, raw.get(), rule));
    }
    let texts = parts.into_iter().enumerate().map(|(at, part)| text_part(&format!("{name}[{at}]"), part));
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// `{"type": "text", "text": …}`
fn text_part(name: &str, raw: &RawValue) -> Result<String, ApiError> {
    let mut fields = Fields::nested(name, raw)?;
    let rule = "\"text\": no other kind of content is supported";
    let kind: Option<String> = fields.take_if("type", rule, |kind: &String| kind == "text")?;
    kind.ok_or_else(|| ApiError::missing(fields.name("type"), rule))?;
    let text =
        fields.take("text", "a string")?.ok_or_else(|| ApiError::missing(fields.name("text"), "a string"))?;
    fields.unsupported("annotations", &["[]"])?;
    fields.finish()?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Endpoint, Input, Request};
    use super::TemplateValue;

    #[test]
    fn templates_see_who_says_what_about_which_call_and_nothing_else() {
        let full = json!([
            {"role": "user", "content": "u", "name": "me"},
            {"role": "assistant", "content": "a", "reasoning_content": "r", "reasoning": "s", "tool_calls": []},
            {"role": "tool", "content": [{"type": "text", "text": "4"}], "tool_call_id": "call_1", "name": "add"},
        ]);
        let body = json!({"model": "m", "messages": full});
        let request = Request::parse(Endpoint::Chat, body.to_string().as_bytes()).unwrap();
        let [Input::Conversation(conversation)] = request.inputs.as_slice() else { panic!("a conversation") };
        let mut expected = full;
        expected[1].as_object_mut().unwrap().remove("tool_calls");
        expected[2]["content"] = "4".into();
        let expected: Vec<TemplateValue> = serde_json::from_value(expected).unwrap();
        assert_eq!(conversation.messages, expected);
    }
}
