//! What a request takes in memory, before and after it is parsed.

use super::chat::{KWARGS_BYTES_MAX, MESSAGES_MAX};
use super::{Endpoint, Input, Request};
use crate::model::TemplateValue;

/// A request's own fields, and what hangs on them but for the prompt.
const REQUEST_BYTES: usize = 2048;
/// An object of JSON, as a map with room for a handful of entries.
const OBJECT_BYTES: usize = 1024;
/// One byte of JSON can become this many, as in a list of empty lists.
const BYTES_PER_VALUE_BYTE: usize = 32;

impl Request {
    /// The most that parsing `body` takes, the body itself included: its text or its token ids (a byte and a comma
    /// become four bytes), and for a chat an object for each message, and the template's variables.
    pub(crate) fn parse_bytes(endpoint: Endpoint, body: &[u8]) -> usize {
        let flat = REQUEST_BYTES + 3 * body.len();
        match endpoint {
            Endpoint::Completions => flat,
            Endpoint::Chat => {
                let objects = body.split(|byte| *byte == b'{').count().min(MESSAGES_MAX);
                flat + objects * OBJECT_BYTES + body.len().min(KWARGS_BYTES_MAX) * BYTES_PER_VALUE_BYTE
            }
        }
    }

    /// What it takes now.
    pub(crate) fn bytes(&self) -> usize {
        REQUEST_BYTES + self.inputs.iter().map(Input::bytes).sum::<usize>()
    }
}

impl Input {
    /// What it takes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.capacity(),
            Self::Tokens(ids) => ids.capacity() * size_of::<u32>(),
            Self::Conversation(conversation) => {
                let messages = conversation.messages.iter().map(TemplateValue::memory).sum::<usize>();
                let kwargs = conversation.kwargs.iter();
                messages + kwargs.map(|(name, value)| name.len() + value.memory()).sum::<usize>()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bodies that are small as text and large in memory, one for each thing that there can be many of.
    #[test]
    fn what_is_made_of_a_body_was_foreseen() {
        let list = |entry: &str, count: usize| format!("[{}]", vec![entry; count].join(","));
        let message = r#"{"role":"user","content":""}"#;
        let chat = |rest: &str| format!(r#"{{"model":"m",{rest}}}"#);
        for (endpoint, body) in [
            (Endpoint::Completions, chat(&format!(r#""prompt":{}"#, list("0", 100_000)))),
            (Endpoint::Completions, chat(&format!(r#""prompt":{}"#, list("[0]", 256)))),
            (Endpoint::Completions, chat(&format!(r#""prompt":"{}""#, "x".repeat(100_000)))),
            (Endpoint::Chat, chat(&format!(r#""messages":{}"#, list(message, MESSAGES_MAX)))),
            (
                Endpoint::Chat,
                chat(&format!(
                    r#""messages":[{message}],"chat_template_kwargs":{{"a":{}}}"#,
                    list("[]", 21_000)
                )),
            ),
        ] {
            let request = Request::parse(endpoint, body.as_bytes()).unwrap();
            let (foreseen, is) = (Request::parse_bytes(endpoint, body.as_bytes()), request.bytes());
            assert!(
                foreseen >= body.len() + is,
                "{endpoint:?}: {} bytes, {foreseen} foreseen, {is}",
                body.len()
            );
        }
    }

    /// What would take many times its bytes is refused, each by its field's name.
    #[test]
    fn what_there_can_be_many_of_is_bounded() {
        let list = |entry: &str| format!("[{}]", vec![entry; 200_000].join(","));
        let object = |value: &str| {
            let entries: Vec<String> = (0..200_000).map(|n| format!(r#""{n}":{value}"#)).collect();
            format!("{{{}}}", entries.join(","))
        };
        for (endpoint, field, value) in [
            (Endpoint::Completions, "prompt", list("[0]")),
            (Endpoint::Completions, "prompt", list("\"\"")),
            (Endpoint::Chat, "messages", list(r#"{"role":"user","content":""}"#)),
            (Endpoint::Chat, "messages[0]", format!("[{}]", object("1"))),
            (Endpoint::Chat, "chat_template_kwargs", format!(r#"{{"a":{}}}"#, list("[]"))),
            (Endpoint::Completions, "stop", list("\"a\"")),
            (Endpoint::Completions, "logit_bias", object("1")),
            (Endpoint::Completions, "stop_token_ids", list("1")),
        ] {
            let name = field.trim_end_matches("[0]");
            // Of a name that comes twice the last counts.
            let text = format!(
                r#"{{"model":"m","prompt":"p","messages":[{{"role":"user","content":""}}],"{name}":{value}}}"#
            );
            let error = Request::parse(endpoint, text.as_bytes()).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some(field), "{}", error.body.message);
        }
        let error = Request::parse(Endpoint::Chat, object("1").as_bytes()).unwrap_err();
        assert!(error.body.message.contains("more than 256 entries"), "{}", error.body.message);
    }
}
