//! `POST /v1/chat/completions`.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::completion::model;
use super::fields::{self, Fields};
use super::params::{Params, TOP_LOGPROBS_MAX, n, stream};
use super::{ApiError, Conversation, Endpoint, Input, Request};

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
    let rule = "an object of variables for the chat template";
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
    // Before the content, which is null beside tool calls: they are what cannot be served.
    for (unsupported, harmless) in UNSUPPORTED_OF_MESSAGE {
        fields.unsupported(unsupported, harmless)?;
    }
    let content = content(&mut fields)?;
    let mut object = serde_json::json!({ "role": role, "content": content });
    for name in TEXTS_OF_MESSAGE {
        if let Some(text) = fields.take::<String>(name, "a string")? {
            object[name] = text.into();
        }
    }
    fields.finish()?;
    Ok(object)
}

/// Content is a string, or a list of text parts, which are joined by line ends as vLLM does.
fn content(fields: &mut Fields<'_>) -> Result<String, ApiError> {
    let rule = "a string or a list of parts of type text";
    let name = fields.name("content");
    let raw: &RawValue = fields.take("content", rule)?.ok_or_else(|| ApiError::missing(&name, rule))?;
    if !raw.get().starts_with('[') {
        return fields::parse(name, raw, rule);
    }
    let parts: Vec<&RawValue> = fields::parse(name.clone(), raw, rule)?;
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
    use serde_json::{Value, json};

    use super::super::{Endpoint, Input, Request};

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
        assert_eq!(Value::from(conversation.messages.clone()), expected);
    }
}
