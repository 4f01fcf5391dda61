//! Answers in OpenAI's shapes, whole and as chunks of a stream.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::error::ErrorBody;
use super::{ApiError, Endpoint};
use crate::generation::FinishReason;
use crate::text::{Delta, TokenText};

/// What every part of one answer repeats.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Decides the shape.
    pub endpoint: Endpoint,
    /// `cmpl-…` or `chatcmpl-…`.
    pub id: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// Changes when the model does.
    pub system_fingerprint: String,
    /// Chunks have a `usage`, `null` except in the last.
    pub include_usage: bool,
}

/// Tokens of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    total_tokens: u32,
    pub(crate) prompt_tokens_details: PromptTokens,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct PromptTokens {
    pub(crate) cached_tokens: u32,
}

impl Usage {
    /// `cached_tokens` of the prompt were not computed anew.
    pub(crate) fn new(prompt_tokens: u32, completion_tokens: u32, cached_tokens: u32) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: PromptTokens { cached_tokens },
        }
    }

    /// The same prompt with another number of completion tokens.
    pub(crate) fn with_completion(self, completion_tokens: u32) -> Self {
        Self::new(self.prompt_tokens, completion_tokens, self.prompt_tokens_details.cached_tokens)
    }

    /// Of several prompts together.
    pub(crate) fn sum(of: impl IntoIterator<Item = Self>) -> Self {
        of.into_iter().fold(Self::new(0, 0, 0), |sum, one| {
            Self::new(
                sum.prompt_tokens.saturating_add(one.prompt_tokens),
                sum.completion_tokens.saturating_add(one.completion_tokens),
                sum.prompt_tokens_details
                    .cached_tokens
                    .saturating_add(one.prompt_tokens_details.cached_tokens),
            )
        })
    }
}

/// The field `usage`.
#[derive(Serialize)]
#[serde(untagged)]
enum UsageField {
    /// Not there.
    Absent,
    /// `null`: a later chunk has it.
    Pending,
    Known(Usage),
}

impl UsageField {
    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

#[derive(Serialize)]
struct Envelope<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [C],
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    usage: UsageField,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a ErrorBody>,
}

#[derive(Serialize)]
struct CompletionChoice {
    index: u32,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct ChatChoice {
    index: u32,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

#[derive(Serialize)]
struct ChatChunkChoice {
    index: u32,
    delta: ChatDelta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize, Default)]
struct ChatDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// Logprobs of completions: columns.
#[derive(Serialize)]
struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<BTreeMap<String, f32>>,
    text_offset: Vec<usize>,
}

/// Logprobs of chat completions: rows.
#[derive(Serialize)]
struct ChatLogprobs {
    content: Vec<ChatLogprob>,
    refusal: Option<String>,
}

#[derive(Serialize)]
struct ChatLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<ChatLogprob>>,
}

impl Answer {
    /// The chunk before any text of a choice: chat has one, with the role.
    pub(crate) fn first_chunk(&self, index: u32) -> Option<String> {
        (self.endpoint == Endpoint::Chat).then(|| {
            let delta = ChatDelta { role: Some("assistant"), content: Some(String::new()) };
            let choice = ChatChunkChoice { index, delta, logprobs: None, finish_reason: None };
            json(&self.envelope(true, &[choice], self.usage_of_chunk(), None))
        })
    }

    /// A chunk with some text of a choice.
    pub(crate) fn delta_chunk(&self, index: u32, delta: Delta) -> String {
        self.chunk([(index, delta, None)], None)
    }

    /// The chunk that ends the text of a choice, with what was still held back.
    pub(crate) fn finish_chunk(&self, index: u32, rest: Delta, reason: FinishReason) -> String {
        self.chunk([(index, rest, Some(reason.as_str()))], None)
    }

    /// The event that ends an answer that cannot be finished: `unfinished` are the choices that had not ended.
    pub(crate) fn error_chunk(&self, unfinished: impl IntoIterator<Item = u32>, error: &ApiError) -> String {
        let ended = unfinished.into_iter().map(|index| (index, Delta::default(), Some("error")));
        self.chunk(ended, Some(&error.body))
    }

    /// The chunk after the end, for those who asked for it.
    pub(crate) fn usage_chunk(&self, usage: Usage) -> Option<String> {
        self.include_usage.then(|| json(&self.envelope::<()>(true, &[], UsageField::Known(usage), None)))
    }

    /// The whole answer at once: each choice with its end, in order.
    pub(crate) fn whole(&self, choices: Vec<(Delta, FinishReason)>, usage: Usage) -> String {
        let usage = UsageField::Known(usage);
        let choices = (0..).zip(choices);
        match self.endpoint {
            Endpoint::Completions => {
                let choices: Vec<_> = choices
                    .map(|(index, (output, reason))| completion_choice(index, output, Some(reason.as_str())))
                    .collect();
                json(&self.envelope(false, &choices, usage, None))
            }
            Endpoint::Chat => {
                let choices: Vec<_> = choices
                    .map(|(index, (output, reason))| ChatChoice {
                        index,
                        message: Message { role: "assistant", content: output.text, refusal: None },
                        logprobs: chat_logprobs(output.logprobs),
                        finish_reason: Some(reason.as_str()),
                    })
                    .collect();
                json(&self.envelope(false, &choices, usage, None))
            }
        }
    }

    fn chunk(
        &self,
        deltas: impl IntoIterator<Item = (u32, Delta, Option<&'static str>)>,
        error: Option<&ErrorBody>,
    ) -> String {
        let deltas = deltas.into_iter();
        match self.endpoint {
            Endpoint::Completions => {
                let choices: Vec<_> = deltas
                    .map(|(index, delta, finish_reason)| completion_choice(index, delta, finish_reason))
                    .collect();
                json(&self.envelope(true, &choices, self.usage_of_chunk(), error))
            }
            Endpoint::Chat => {
                let choices: Vec<_> = deltas
                    .map(|(index, delta, finish_reason)| ChatChunkChoice {
                        index,
                        delta: ChatDelta {
                            role: None,
                            content: (!delta.text.is_empty()).then_some(delta.text),
                        },
                        logprobs: chat_logprobs(delta.logprobs),
                        finish_reason,
                    })
                    .collect();
                json(&self.envelope(true, &choices, self.usage_of_chunk(), error))
            }
        }
    }

    fn usage_of_chunk(&self) -> UsageField {
        if self.include_usage { UsageField::Pending } else { UsageField::Absent }
    }

    fn envelope<'a, C>(
        &'a self,
        chunk: bool,
        choices: &'a [C],
        usage: UsageField,
        error: Option<&'a ErrorBody>,
    ) -> Envelope<'a, C> {
        let object = match (self.endpoint, chunk) {
            (Endpoint::Completions, _) => "text_completion",
            (Endpoint::Chat, false) => "chat.completion",
            (Endpoint::Chat, true) => "chat.completion.chunk",
        };
        Envelope {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.system_fingerprint,
            choices,
            usage,
            error,
        }
    }
}

fn json<C: Serialize>(envelope: &Envelope<'_, C>) -> String {
    // Only maps with keys that are no strings, and failing writers, cannot be serialized.
    serde_json::to_string(envelope).unwrap_or_default()
}

fn completion_choice(index: u32, delta: Delta, finish_reason: Option<&'static str>) -> CompletionChoice {
    CompletionChoice { index, text: delta.text, logprobs: completion_logprobs(delta.logprobs), finish_reason }
}

fn completion_logprobs(tokens: Vec<TokenText>) -> Option<CompletionLogprobs> {
    if tokens.is_empty() {
        return None;
    }
    let mut columns = CompletionLogprobs {
        tokens: Vec::with_capacity(tokens.len()),
        token_logprobs: Vec::with_capacity(tokens.len()),
        top_logprobs: Vec::with_capacity(tokens.len()),
        text_offset: Vec::with_capacity(tokens.len()),
    };
    for token in tokens {
        columns.top_logprobs.push(alternatives(&token));
        columns.token_logprobs.push(token.logprob);
        columns.text_offset.push(token.offset);
        columns.tokens.push(spelled(&token));
    }
    Some(columns)
}

/// The token itself and the most likely ones at its place, by their text. Different tokens may have equal text, as the
/// letter and the byte of SentencePiece do: the less likely one is then called by its id, as vLLM writes it.
fn alternatives(token: &TokenText) -> BTreeMap<String, f32> {
    let mut by_text = BTreeMap::new();
    let others = token.top.iter().filter(|other| other.id != token.id);
    for one in std::iter::once(token).chain(others) {
        let mut key = spelled(one);
        if by_text.contains_key(&key) {
            key = format!("token_id:{}", one.id);
        }
        by_text.insert(key, one.logprob);
    }
    by_text
}

/// A token's text, or its bytes in OpenAI's spelling if they are no text, such as `bytes: \xf0\x9f`: as Python shows
/// bytes.
fn spelled(token: &TokenText) -> String {
    if std::str::from_utf8(&token.bytes).is_ok() {
        return token.text.clone();
    }
    let mut out = "bytes:".to_owned();
    for byte in &token.bytes {
        match byte {
            b'\\' => out.push_str("\\\\"),
            b' '..=b'~' => out.push(char::from(*byte)),
            _ => {
                // Writing to a string does not fail.
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
    }
    out
}

fn chat_logprobs(tokens: Vec<TokenText>) -> Option<ChatLogprobs> {
    let row = |token: TokenText, top| ChatLogprob {
        token: token.text,
        logprob: token.logprob,
        bytes: token.bytes,
        top_logprobs: top,
    };
    let rows = tokens.into_iter().map(|mut token| {
        let top = std::mem::take(&mut token.top).into_iter().map(|top| row(top, None)).collect();
        row(token, Some(top))
    });
    let content: Vec<ChatLogprob> = rows.collect();
    (!content.is_empty()).then_some(ChatLogprobs { content, refusal: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, bytes: &[u8], logprob: f32) -> TokenText {
        let text = String::from_utf8_lossy(bytes).into_owned();
        TokenText { id, text, bytes: bytes.to_vec(), logprob, top: Vec::new(), offset: 0 }
    }

    #[test]
    fn no_alternative_is_lost_to_another_of_equal_text() {
        let drawn = TokenText {
            top: vec![
                token(7, b"\xe2\x82", -0.5),
                token(8, b" \xf0\x9f", -1.0),
                token(9, b"\xe2", -1.5),
                token(1, b"a", -2.0),
                token(2, b"a", -3.0),
            ],
            ..token(7, b"\xe2\x82", -0.5)
        };
        let logprobs = completion_logprobs(vec![drawn, token(3, b"b\\\xff", -4.0)]).unwrap();
        assert_eq!(logprobs.tokens, [r"bytes:\xe2\x82", r"bytes:b\\\xff"]);
        let expected = [
            (r"bytes:\xe2\x82", -0.5),
            (r"bytes: \xf0\x9f", -1.0),
            (r"bytes:\xe2", -1.5),
            ("a", -2.0),
            ("token_id:2", -3.0),
        ];
        let expected: BTreeMap<String, f32> =
            expected.map(|(text, logprob)| (text.to_owned(), logprob)).into();
        assert_eq!(logprobs.top_logprobs[0], expected);
    }
}
