//! OpenAI's HTTP interface as types: requests parsed once into what is valid, answers and errors in its shapes.

mod answer;
mod bounded;
mod chat;
mod completion;
mod content;
mod error;
mod fields;
mod memory;
mod params;
mod prompt;

pub(crate) use answer::{Answer, Usage};
pub(crate) use error::ApiError;
pub(crate) use params::Params;

use indexmap::IndexMap;

use crate::model::TemplateValue;

/// Which endpoint a request came to; it decides the shape of the answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Endpoint {
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/chat/completions`
    Chat,
}

/// What the model is to go on from.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Input {
    /// Text to be tokenized.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
    /// A conversation for the model's chat template.
    Conversation(Conversation),
}

/// Input of the chat template.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Conversation {
    /// Objects with `role`, `content` and perhaps more, in the order of the request: see `chat::message`.
    pub messages: Vec<TemplateValue>,
    /// End with the beginning of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Variables for the template.
    pub kwargs: IndexMap<String, TemplateValue>,
}

/// A request whose every field has been checked, as far as that can be done without the model.
#[derive(Clone, PartialEq, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches, as in the body")]
pub(crate) struct Request {
    /// Decides the shape of the answer.
    pub endpoint: Endpoint,
    /// Name of the model.
    pub model: String,
    /// The prompts, in some form: one or, for completions, several.
    pub inputs: Vec<Input>,
    /// Choices for each of them.
    pub n: u32,
    /// Begin the text of each choice with its prompt.
    pub echo: bool,
    /// Have the tokenizer add what its model begins texts with. Rendered chat templates write such tokens themselves.
    pub add_special_tokens: bool,
    /// How to draw and when to stop.
    pub params: Params,
    /// Answer in server-sent events.
    pub stream: bool,
    /// End the stream with a chunk that has the usage.
    pub include_usage: bool,
}

impl Request {
    /// Name of one of the inputs, for errors.
    pub(crate) fn input_name(&self, input: usize) -> String {
        match self.endpoint {
            Endpoint::Chat => "messages".to_owned(),
            Endpoint::Completions if self.inputs.len() > 1 => format!("prompt[{input}]"),
            Endpoint::Completions => "prompt".to_owned(),
        }
    }

    /// Parses a request body. Every field is checked; a field that is unknown or not supported is refused by name.
    pub(crate) fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = fields::Fields::parse(body)?;
        let request = match endpoint {
            Endpoint::Completions => completion::parse(&mut fields)?,
            Endpoint::Chat => chat::parse(&mut fields)?,
        };
        fields.finish()?;
        Ok(request)
    }
}

impl Endpoint {
    /// Name as a metric label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Completions => "completions",
            Self::Chat => "chat_completions",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAMES: [&str; 8] =
        ["model", "prompt", "messages", "stop", "stream", "stream_options", "logit_bias", "temperature"];

    proptest! {
        #[test]
        fn no_body_panics(body in "(?s).{0,100}") {
            for endpoint in [Endpoint::Completions, Endpoint::Chat] {
                let _ = Request::parse(endpoint, body.as_bytes());
            }
        }

        #[test]
        fn no_value_panics_and_errors_name_a_field(
            values in proptest::collection::vec(
                (0..NAMES.len(), prop_oneof![
                    "-?[0-9]{1,25}", "-?[0-9]\\.[0-9]{1,5}(e[0-9]{1,3})?", "\"[a-z]{0,4}\"", "\\[[0-9,]{0,6}\\]",
                    Just("null".to_owned()), Just("true".to_owned()), Just("{}".to_owned()),
                    Just("[[]]".to_owned()), Just("[{\"role\":\"user\"}]".to_owned()),
                ]),
                0..6,
            ),
        ) {
            let fields: Vec<String> =
                values.iter().map(|(name, value)| format!("\"{}\":{value}", NAMES[*name])).collect();
            let body = format!("{{{}}}", fields.join(","));
            for endpoint in [Endpoint::Completions, Endpoint::Chat] {
                if let Err(error) = Request::parse(endpoint, body.as_bytes()) {
                    prop_assert_eq!(error.status.as_u16(), 400);
                    prop_assert!(error.body.param.is_some() || error.body.code == Some("invalid_json"), "{}", body);
                }
            }
        }
    }
}
