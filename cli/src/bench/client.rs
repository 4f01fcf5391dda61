//! One request to the server: what is sent, and when what came back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use disagg_worker::https::causes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::args::Endpoint;
use super::sse::Events;

/// Bytes of a refusal that are read.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// Fields of a request that not every server takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Dialect {
    /// Name of the limit of output tokens: `max_tokens` or `max_completion_tokens`.
    pub(super) limit: &'static str,
    /// `min_tokens` and `ignore_eos`: together they make answers of an exact length.
    pub(super) min_tokens: bool,
    pub(super) ignore_eos: bool,
    /// `stream_options.include_usage`: the server counts the tokens of a stream.
    pub(super) stream_usage: bool,
}

/// The server under load.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) http: reqwest::Client,
    /// Address of the server, without `/v1`.
    pub(super) base: String,
    pub(super) api_key: Option<String>,
    pub(super) model: String,
    pub(super) endpoint: Endpoint,
    pub(super) timeout: Duration,
    /// Fields that the user adds.
    pub(super) more: Map<String, Value>,
    pub(super) dialect: Dialect,
}

/// An entry of `/v1/models`.
#[derive(Deserialize, Clone, Debug)]
pub(super) struct Model {
    pub(super) id: String,
    /// vLLM's and ours.
    pub(super) max_model_len: Option<u64>,
}

/// How the server counts tokens.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(default)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    /// Read by [`Self::cached_tokens`].
    pub(super) prompt_tokens_details: Option<PromptTokens>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(default)]
pub(super) struct PromptTokens {
    cached_tokens: Option<u64>,
}

impl Usage {
    pub(super) fn cached_tokens(&self) -> Option<u64> {
        self.prompt_tokens_details?.cached_tokens
    }
}

/// A streamed answer that came to its end.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// From the sending of the request to each chunk with text. Chunks that came in one read have one time.
    pub(super) chunks: Vec<Duration>,
    /// From the sending of the request to the end of the stream.
    pub(super) whole: Duration,
    /// If the server sent it.
    pub(super) usage: Option<Usage>,
    /// The header `x-disagg-placement`, which only disagg sends.
    pub(super) placement: Option<String>,
}

/// Why a request failed. The text is what errors are counted by; `message` is an example of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    pub(super) kind: String,
    pub(super) message: String,
    /// The HTTP status, when it is the failure.
    pub(super) status: Option<u16>,
}

impl Failure {
    fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind: kind.into(), message: message.into(), status: None }
    }

    fn transport(error: &reqwest::Error) -> Self {
        let kind = if error.is_timeout() {
            "timeout"
        } else if error.is_connect() {
            "no connection"
        } else {
            "connection broke off"
        };
        Self::new(kind, causes(error))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

impl std::error::Error for Failure {}

/// A chunk of either endpoint, as far as it matters here.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    /// Models that think aloud stream tokens here first.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
}

impl Choice {
    fn has_text(&self) -> bool {
        let delta = self.delta.as_ref();
        let texts = [
            self.text.as_deref(),
            delta.and_then(|delta| delta.content.as_deref()),
            delta.and_then(|delta| delta.reasoning_content.as_deref()),
            delta.and_then(|delta| delta.reasoning.as_deref()),
        ];
        texts.into_iter().flatten().any(|text| !text.is_empty())
    }
}

impl Server {
    /// The models it serves.
    pub(super) async fn models(&self) -> anyhow::Result<Vec<Model>> {
        #[derive(Deserialize)]
        struct Models {
            data: Vec<Model>,
        }
        let url = format!("{}/v1/models", self.base);
        let response = self.authorized(self.http.get(&url)).send().await;
        let response = response.with_context(|| format!("no server answers at {}", self.base))?;
        if !response.status().is_success() {
            bail!("{}", refusal(response).await);
        }
        let models: Models = response
            .json()
            .await
            .with_context(|| format!("{url} answers something else; is it an OpenAI-compatible server?"))?;
        Ok(models.data)
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    fn body(&self, prompt: &str, output_tokens: u32, stream: bool) -> Value {
        let mut body = json!({ "model": self.model });
        match self.endpoint {
            Endpoint::Chat => body["messages"] = json!([{ "role": "user", "content": prompt }]),
            Endpoint::Completions => body["prompt"] = prompt.into(),
        }
        body[self.dialect.limit] = output_tokens.into();
        if self.dialect.min_tokens {
            body["min_tokens"] = output_tokens.into();
        }
        if self.dialect.ignore_eos {
            body["ignore_eos"] = true.into();
        }
        if stream {
            body["stream"] = true.into();
            if self.dialect.stream_usage {
                body["stream_options"] = json!({ "include_usage": true });
            }
        }
        for (name, value) in &self.more {
            body[name] = value.clone();
        }
        body
    }

    async fn post(
        &self,
        prompt: &str,
        output_tokens: u32,
        stream: bool,
    ) -> Result<reqwest::Response, Failure> {
        let path = match self.endpoint {
            Endpoint::Chat => "/v1/chat/completions",
            Endpoint::Completions => "/v1/completions",
        };
        let request = self.http.post(format!("{}{path}", self.base)).timeout(self.timeout);
        let request = self.authorized(request).json(&self.body(prompt, output_tokens, stream));
        let response = request.send().await.map_err(|error| Failure::transport(&error))?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    /// How many tokens the server finds in `prompt`.
    pub(super) async fn count(&self, prompt: &str) -> Result<u64, Failure> {
        #[derive(Deserialize)]
        struct Counted {
            usage: Usage,
        }
        let answer = self.post(prompt, 1, false).await?.bytes().await;
        let answer = answer.map_err(|error| Failure::transport(&error))?;
        let counted: Counted = serde_json::from_slice(&answer)
            .map_err(|error| Failure::new("malformed answer", format!("no usage: {error}")))?;
        Ok(counted.usage.prompt_tokens)
    }

    /// Streams one answer to its end.
    pub(super) async fn stream(&self, prompt: &str, output_tokens: u32) -> Result<Answer, Failure> {
        let sent = Instant::now();
        let mut response = self.post(prompt, output_tokens, true).await?;
        let placement = response.headers().get("x-disagg-placement");
        let placement = placement.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut answer = Answer { chunks: Vec::new(), whole: Duration::ZERO, usage: None, placement };
        let (mut parser, mut events) = (Events::default(), Vec::new());
        let mut finished = false;
        'body: while let Some(piece) = response.chunk().await.map_err(|error| Failure::transport(&error))? {
            let now = sent.elapsed();
            let malformed =
                |error: &dyn std::error::Error| Failure::new("malformed answer", error.to_string());
            parser.push(&piece, &mut events).map_err(|error| malformed(&error))?;
            for event in events.drain(..) {
                if event == "[DONE]" {
                    finished = true;
                    break 'body;
                }
                let chunk: Chunk = serde_json::from_str(&event).map_err(|error| malformed(&error))?;
                if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
                    return Err(Failure::new("error in the stream", message_of(&error)));
                }
                if chunk.choices.iter().any(Choice::has_text) {
                    answer.chunks.push(now);
                }
                if let Some(choice) = chunk.choices.iter().find(|choice| choice.finish_reason.is_some()) {
                    if choice.finish_reason.as_deref() == Some("error") {
                        return Err(Failure::new("error in the stream", "finish_reason is error"));
                    }
                    finished = true;
                }
                answer.usage = chunk.usage.or(answer.usage);
                answer.whole = now;
            }
        }
        answer.whole = answer.whole.max(sent.elapsed());
        match (finished, answer.chunks.is_empty()) {
            (false, _) => Err(Failure::new("incomplete answer", "the stream ends without an end")),
            (true, true) => Err(Failure::new("empty answer", "the stream has no text")),
            (true, false) => Ok(answer),
        }
    }
}

/// What the server says when it does not serve.
async fn refusal(mut response: reqwest::Response) -> Failure {
    let status = response.status();
    let mut body = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        body.extend_from_slice(&piece);
        if body.len() > REFUSAL_BYTES_MAX {
            break;
        }
    }
    let message = match serde_json::from_slice::<Value>(&body) {
        Ok(value) => message_of(&value["error"]),
        Err(_) => String::from_utf8_lossy(&body).chars().take(300).collect(),
    };
    Failure { status: Some(status.as_u16()), ..Failure::new(format!("HTTP {}", status.as_u16()), message) }
}

/// The `message` of an error in OpenAI's shape, or all of it.
fn message_of(error: &Value) -> String {
    error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned)
}
