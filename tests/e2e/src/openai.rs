//! Answers of the OpenAI API, read strictly: a field that is missing or unknown fails the test.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::Response;
use serde::Deserialize;
use serde_json::Value;

use crate::router::PlacementHeader;
use crate::sse::SseBody;

/// Longest time of one stream.
const STREAM: Duration = Duration::from_mins(2);

/// `usage`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of all choices.
    pub completion_tokens: u32,
    /// Their sum.
    pub total_tokens: u32,
    /// Of the prompt, already cached.
    pub prompt_tokens_details: Option<PromptTokensDetails>,
}

/// `usage.prompt_tokens_details`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptTokensDetails {
    /// Tokens found in the prefix cache.
    pub cached_tokens: u32,
}

/// `object: "text_completion"`, whole or one piece of a stream.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Completion {
    /// `cmpl-…`
    pub id: String,
    /// `text_completion`
    pub object: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// As asked for.
    pub model: String,
    /// In a stream: one or none.
    pub choices: Vec<CompletionChoice>,
    /// In a stream: in the last piece, if asked for.
    pub usage: Option<Usage>,
    /// Not promised.
    pub system_fingerprint: Option<String>,
}

/// One choice of it.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompletionChoice {
    /// From 0.
    pub index: u32,
    /// The text.
    pub text: String,
    /// `null` here: none are asked for.
    pub logprobs: Option<Value>,
    /// `stop` or `length`; in a stream `null` until the last piece.
    pub finish_reason: Option<String>,
    /// vLLM's: the stop string or token.
    pub stop_reason: Option<Value>,
}

/// `object: "chat.completion"`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatCompletion {
    /// `chatcmpl-…`
    pub id: String,
    /// `chat.completion`
    pub object: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// As asked for.
    pub model: String,
    /// One for each `n`.
    pub choices: Vec<ChatChoice>,
    /// Always there.
    pub usage: Usage,
    /// Not promised.
    pub system_fingerprint: Option<String>,
}

/// One choice of it.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatChoice {
    /// From 0.
    pub index: u32,
    /// What the model says.
    pub message: ChatMessage,
    /// `null` here.
    pub logprobs: Option<Value>,
    /// `stop` or `length`.
    pub finish_reason: Option<String>,
    /// vLLM's: the stop string or token.
    pub stop_reason: Option<Value>,
}

/// `message`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    /// `assistant`
    pub role: String,
    /// The text.
    pub content: Option<String>,
    /// `null` here.
    pub refusal: Option<Value>,
}

/// `object: "chat.completion.chunk"`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatChunk {
    /// The same in all pieces.
    pub id: String,
    /// `chat.completion.chunk`
    pub object: String,
    /// The same in all pieces.
    pub created: u64,
    /// As asked for.
    pub model: String,
    /// One, or none in the piece with `usage`.
    pub choices: Vec<ChatChunkChoice>,
    /// In the last piece, if asked for.
    pub usage: Option<Usage>,
    /// Not promised.
    pub system_fingerprint: Option<String>,
}

/// One choice of it.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatChunkChoice {
    /// From 0.
    pub index: u32,
    /// What is new.
    pub delta: ChatDelta,
    /// `null` here.
    pub logprobs: Option<Value>,
    /// `null` until the last piece.
    pub finish_reason: Option<String>,
    /// vLLM's: the stop string or token.
    pub stop_reason: Option<Value>,
}

/// `delta`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatDelta {
    /// In the first piece.
    pub role: Option<String>,
    /// New text.
    pub content: Option<String>,
}

/// `{"error": …}`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorDetail {
    /// For people.
    pub message: String,
    /// For example `invalid_request_error`.
    pub r#type: String,
    /// The field at fault.
    pub param: Option<String>,
    /// A stable name, or the HTTP status in some servers.
    pub code: Option<Value>,
}

/// One choice's text, whichever way it came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Text {
    /// All of it.
    pub text: String,
    /// Why it ended.
    pub finish_reason: String,
    /// If it was sent.
    pub usage: Option<Usage>,
    /// How it was prefilled.
    pub placement: PlacementHeader,
}

/// Reads a body that must be this type, with status 200.
pub async fn json<T: serde::de::DeserializeOwned>(response: Response) -> T {
    let status = response.status();
    let text = response.text().await.expect("a whole body");
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Reads an error: status and body.
pub async fn error(response: Response) -> (u16, ErrorDetail) {
    let status = response.status().as_u16();
    let text = response.text().await.expect("a whole body");
    assert!(status >= 400, "status {status}: {text}");
    let body: ErrorBody = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(!body.error.message.is_empty());
    (status, body.error)
}

/// A whole completion with one choice.
pub async fn completion(response: Response) -> Text {
    let placement = placement_of_success(&response);
    let body: Completion = json(response).await;
    assert_eq!(body.object, "text_completion");
    let [choice] = body.choices.as_slice() else { panic!("{} choices", body.choices.len()) };
    let usage = body.usage.expect("usage of a whole answer");
    assert_eq!(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
    Text {
        text: choice.text.clone(),
        finish_reason: choice.finish_reason.clone().expect("finish_reason"),
        usage: Some(usage),
        placement,
    }
}

/// A whole chat completion with one choice.
pub async fn chat(response: Response) -> Text {
    let placement = placement_of_success(&response);
    let body: ChatCompletion = json(response).await;
    assert_eq!(body.object, "chat.completion");
    let [choice] = body.choices.as_slice() else { panic!("{} choices", body.choices.len()) };
    assert_eq!(choice.message.role, "assistant");
    assert_eq!(body.usage.total_tokens, body.usage.prompt_tokens + body.usage.completion_tokens);
    Text {
        text: choice.message.content.clone().expect("content"),
        finish_reason: choice.finish_reason.clone().expect("finish_reason"),
        usage: Some(body.usage),
        placement,
    }
}

/// A streamed completion with one choice.
pub async fn completion_stream(response: Response) -> Text {
    let placement = placement_of_success(&response);
    let mut pieces = Pieces::default();
    for (_, event) in SseBody::new(response).collect(STREAM).await {
        let piece: Completion =
            serde_json::from_str(&event).unwrap_or_else(|error| panic!("{error}: {event}"));
        assert_eq!(piece.object, "text_completion");
        pieces.head(piece.id, piece.created, piece.model);
        let choice = piece.choices.into_iter().next().map(|choice| (choice.text, choice.finish_reason));
        pieces.take(choice, piece.usage);
    }
    pieces.end(placement)
}

/// A streamed chat completion with one choice.
pub async fn chat_stream(response: Response) -> Text {
    let placement = placement_of_success(&response);
    let mut pieces = Pieces::default();
    let mut first = true;
    for (_, event) in SseBody::new(response).collect(STREAM).await {
        let piece: ChatChunk =
            serde_json::from_str(&event).unwrap_or_else(|error| panic!("{error}: {event}"));
        assert_eq!(piece.object, "chat.completion.chunk");
        pieces.head(piece.id, piece.created, piece.model);
        let choice = piece.choices.into_iter().next();
        if let Some(choice) = &choice {
            let role = choice.delta.role.as_deref();
            assert_eq!(role, first.then_some("assistant"), "the role comes in the first piece only");
            first = false;
        }
        pieces.take(
            choice.map(|choice| (choice.delta.content.unwrap_or_default(), choice.finish_reason)),
            piece.usage,
        );
    }
    pieces.end(placement)
}

fn placement_of_success(response: &Response) -> PlacementHeader {
    assert_eq!(response.status(), 200);
    PlacementHeader::of(response)
}

/// Puts a stream together and checks what must hold over all its pieces.
#[derive(Default)]
struct Pieces {
    heads: BTreeSet<(String, u64, String)>,
    text: String,
    with_text: u32,
    finish_reason: Option<String>,
    usage: Option<Usage>,
}

impl Pieces {
    fn head(&mut self, id: String, created: u64, model: String) {
        self.heads.insert((id, created, model));
        assert_eq!(self.heads.len(), 1, "id, created and model are the same in all pieces: {:?}", self.heads);
    }

    fn take(&mut self, choice: Option<(String, Option<String>)>, usage: Option<Usage>) {
        assert!(self.usage.is_none(), "a piece after usage");
        if let Some((text, finish_reason)) = choice {
            assert!(self.finish_reason.is_none(), "a piece after the finish reason");
            self.with_text += u32::from(!text.is_empty());
            self.text += &text;
            self.finish_reason = finish_reason;
        } else {
            assert!(self.finish_reason.is_some() && usage.is_some(), "a piece with nothing");
        }
        self.usage = usage;
    }

    fn end(self, placement: PlacementHeader) -> Text {
        assert!(self.with_text > 1, "a stream of several tokens came in {} pieces", self.with_text);
        let finish_reason = self.finish_reason.expect("a finish reason");
        Text { text: self.text, finish_reason, usage: self.usage, placement }
    }
}
