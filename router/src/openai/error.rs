//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::budget::NoRoom;
use crate::model::TemplateError;

/// An error as the client gets it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub body: ErrorBody,
    /// Seconds after which to try again.
    pub retry_after: Option<u32>,
}

/// The object under `error`.
#[derive(Clone, PartialEq, Serialize, Debug)]
pub(crate) struct ErrorBody {
    pub message: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub param: Option<String>,
    pub code: Option<&'static str>,
}

const INVALID_REQUEST: &str = "invalid_request_error";
const SERVER_ERROR: &str = "server_error";

impl ApiError {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: Option<&'static str>,
        message: impl Into<String>,
    ) -> Self {
        let body = ErrorBody { message: message.into(), kind, param: None, code };
        Self { status, body, retry_after: None }
    }

    fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    fn param(mut self, param: impl Into<String>) -> Self {
        self.body.param = Some(param.into());
        self
    }

    /// 400: the body is not a JSON object.
    pub(crate) fn bad_json(problem: &dyn std::fmt::Display) -> Self {
        let message = format!("The request body is not a valid JSON object: {problem}");
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, Some("invalid_json"), message)
    }

    /// 400: a field's value is not allowed. `rule` follows "It must be".
    pub(crate) fn bad_value(param: impl Into<String>, value: &str, rule: &str) -> Self {
        let param = param.into();
        let message = format!("Invalid value for '{param}': {}. It must be {rule}.", printable(value));
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, Some("invalid_value"), message).param(param)
    }

    /// 400: a field's value is no JSON, which shows only when it is looked into.
    pub(crate) fn bad_json_value(param: impl Into<String>, problem: &serde_json::Error) -> Self {
        let param = param.into();
        let mut problem = problem.to_string();
        if problem.contains("surrogate") || problem.contains("end of hex escape") {
            "it has half of a surrogate pair, such as \\ud83d without \\ude00, which is no character"
                .clone_into(&mut problem);
        }
        let message = format!("Invalid value for '{param}': {problem}.");
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, Some("invalid_json"), message).param(param)
    }

    /// 400: a field that must be there is not.
    pub(crate) fn missing(param: impl Into<String>, rule: &str) -> Self {
        let param = param.into();
        let message = format!("Missing required parameter: '{param}'. It must be {rule}.");
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, Some("missing_required_parameter"), message)
            .param(param)
    }

    /// 400: a field that does not exist.
    pub(crate) fn unknown_parameter(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("Unknown parameter: '{}'.", printable(&param));
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, Some("unknown_parameter"), message).param(param)
    }

    /// 400: a field of OpenAI's that this server does not implement.
    pub(crate) fn unsupported_parameter(param: impl Into<String>, allowed: &str) -> Self {
        let param = param.into();
        let message = format!("Unsupported parameter: '{param}' is not supported by this server{allowed}.");
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, Some("unsupported_parameter"), message)
            .param(param)
    }

    /// What came of rendering the chat template: 400 where the conversation is refused or too much, 500 where the
    /// template itself is wrong.
    pub(crate) fn template(model: &str, error: TemplateError) -> Self {
        let refused = |code, message| {
            Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, Some(code), message).param("messages")
        };
        match error {
            TemplateError::Raised(message) => refused(
                "invalid_messages",
                format!("The model's chat template refused the messages: {message}"),
            ),
            TemplateError::Limit(limit) => refused(
                "chat_template_limit",
                format!("The model's chat template cannot be rendered with these messages: {limit}."),
            ),
            TemplateError::Failed(error) => {
                let message = format!(
                    "The chat template of the model `{model}` has an error: {error}. It is not one of the request."
                );
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    SERVER_ERROR,
                    Some("chat_template_error"),
                    message,
                )
            }
        }
    }

    /// 400: the model has no chat template.
    pub(crate) fn no_template(model: &str) -> Self {
        let message = format!("The model `{model}` has no chat template; use /v1/completions.");
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, Some("no_chat_template"), message)
            .param("messages")
    }

    /// 400: the prompt, or the prompt with the completion, does not fit the model. `message` in OpenAI's wording.
    pub(crate) fn context_length(param: &str, message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, Some("context_length_exceeded"), message)
            .param(param)
    }

    /// 500: the model has a chat template that does not parse. Its makers can mend that, clients cannot.
    pub(crate) fn broken_template(model: &str, problem: &dyn std::fmt::Display) -> Self {
        let message = format!(
            "The chat template of the model `{model}` does not parse: {problem}. /v1/completions works without it."
        );
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER_ERROR, Some("broken_chat_template"), message)
    }

    /// 400: a worker found the request invalid.
    pub(crate) fn refused_by_worker(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, None, message)
    }

    /// 404: no such model.
    pub(crate) fn model_not_found(model: &str) -> Self {
        let message = format!("The model `{}` does not exist.", printable(model));
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, Some("model_not_found"), message).param("model")
    }

    /// 404: no such URL.
    pub(crate) fn unknown_url(method: &http::Method, path: &str) -> Self {
        let message = format!("Unknown request URL: {method} {}.", printable(path));
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, Some("unknown_url"), message)
    }

    /// 405: the URL exists, the method is another.
    pub(crate) fn method_not_allowed(method: &http::Method, path: &str) -> Self {
        let message = format!("Not allowed: {method} {}.", printable(path));
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID_REQUEST, Some("method_not_allowed"), message)
    }

    /// 400: the body broke off.
    pub(crate) fn body_broken(problem: &dyn std::fmt::Display) -> Self {
        let message = format!("The request body could not be read: {problem}");
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, Some("body_broken"), message)
    }

    /// 408: the body did not come, or too slowly.
    pub(crate) fn body_too_slow(within: Duration, bytes_per_second_min: usize) -> Self {
        let message = format!(
            "The request body did not arrive in time; it has to come at {bytes_per_second_min} bytes per second or \
             more, and within {} seconds.",
            within.as_secs()
        );
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID_REQUEST, Some("body_timeout"), message)
    }

    /// 408: the body came slowly while too many others were coming.
    pub(crate) fn body_displaced() -> Self {
        let message = "The request body came slowly and had to make room for others. Try again shortly.";
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID_REQUEST, Some("body_timeout"), message)
    }

    /// 413: the body is too large.
    pub(crate) fn body_too_large(bytes_max: usize) -> Self {
        let message = format!("The request body is too large; at most {bytes_max} bytes are allowed.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST, Some("request_too_large"), message)
    }

    /// 415: the body is not said to be JSON.
    pub(crate) fn unsupported_media_type(given: Option<&str>) -> Self {
        let given = given.map_or("has no Content-Type".to_owned(), |given| {
            format!("has the Content-Type '{}'", printable(given))
        });
        let message = format!("The request {given}. It must be application/json.");
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            INVALID_REQUEST,
            Some("unsupported_content_type"),
            message,
        )
    }

    /// 429: as much is in progress as may be.
    pub(crate) fn too_many_requests(max: u32) -> Self {
        let message = format!(
            "Too many requests: with this one more than {max} choices would be in progress, which is the limit. Try \
             again shortly."
        );
        Self::new(StatusCode::TOO_MANY_REQUESTS, "requests", Some("rate_limit_exceeded"), message)
            .retry_after(1)
    }

    /// 429: as many bodies are being read as may be.
    pub(crate) fn too_many_bodies() -> Self {
        let message = "Too many requests are arriving at once. Try again shortly.";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "requests", Some("rate_limit_exceeded"), message)
            .retry_after(1)
    }

    /// 503: requests and answers hold all the memory that they may. 413: a request would need more than there ever is.
    pub(crate) fn no_room(why: &NoRoom) -> Self {
        match why {
            NoRoom::Now => {
                let message = "The memory for requests and answers is in use. Try again shortly.";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, Some("memory_full"), message)
                    .retry_after(1)
            }
            NoRoom::Ever { needed, max } => {
                let mib = |bytes: &usize| bytes.div_ceil(1024 * 1024);
                let message = format!(
                    "The request is too large: the router would need {} MiB for it, and one request may take {} MiB of \
                     --max-request-memory-mib.",
                    mib(needed),
                    mib(max)
                );
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST, Some("request_too_large"), message)
            }
        }
    }

    /// 429: every worker is at its admission bound.
    pub(crate) fn workers_busy() -> Self {
        let message = "Every worker has as many requests waiting as it takes. Try again shortly.";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "requests", Some("rate_limit_exceeded"), message)
            .retry_after(1)
    }

    /// As [`Self::no_room`], for an answer that grew too large before any of it was sent.
    pub(crate) fn no_room_for_answer(why: &NoRoom) -> Self {
        let NoRoom::Ever { max, .. } = why else { return Self::no_room(why) };
        let message = format!(
            "The answer is too large to be sent as a whole: it may take {} MiB of --max-request-memory-mib. Ask for \
             fewer tokens, choices or logprobs, or stream it.",
            max / (1024 * 1024)
        );
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, Some("answer_too_large"), message)
    }

    /// 503: no worker can serve this now.
    pub(crate) fn no_worker(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, Some("no_worker_ready"), message)
            .retry_after(5)
    }

    /// 503: the prompt needs a prefill worker, and the policy forbids to go on without.
    pub(crate) fn no_prefill(reason: &str) -> Self {
        let message = format!(
            "The prompt needs a prefill worker and none can take it ({reason}); fallbackPolicy is Fail."
        );
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, Some("no_prefill_worker"), message)
            .retry_after(1)
    }

    /// 502: workers failed, and the retry did too.
    pub(crate) fn worker_failed(message: &str) -> Self {
        let message = format!("The worker failed before it could answer: {message}");
        Self::new(StatusCode::BAD_GATEWAY, SERVER_ERROR, Some("worker_failed"), message).retry_after(1)
    }

    /// An answer that had begun and cannot be finished.
    pub(crate) fn interrupted(message: &str) -> Self {
        let message = format!("The answer was interrupted: {message}");
        Self::new(StatusCode::BAD_GATEWAY, SERVER_ERROR, Some("worker_failed"), message)
    }

    /// 504: the whole request took too long.
    pub(crate) fn timeout(seconds: u64) -> Self {
        let message = format!("The request took longer than {seconds} seconds.");
        Self::new(StatusCode::GATEWAY_TIMEOUT, SERVER_ERROR, Some("request_timeout"), message)
    }

    /// 403 or 503: refused before it was looked at, for where it comes from or for how many there are.
    pub(crate) fn of_connection(status: StatusCode, message: String) -> Self {
        let (kind, code) = if status == StatusCode::FORBIDDEN {
            (INVALID_REQUEST, "host_not_allowed")
        } else {
            (SERVER_ERROR, "too_many_connections")
        };
        Self::new(status, kind, Some(code), message)
    }

    /// 500: a defect of this server.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER_ERROR, Some("internal_error"), message)
    }
}

/// What a client sent, as it can be repeated to them: in bounds.
fn printable(value: &str) -> String {
    const CHARS_MAX: usize = 100;
    let mut chars = value.chars();
    let head: String = chars.by_ref().take(CHARS_MAX).collect();
    if chars.next().is_some() { head + "…" } else { head }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(serde_json::json!({ "error": self.body }))).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<NoRoom> for ApiError {
    fn from(why: NoRoom) -> Self {
        Self::no_room(&why)
    }
}
