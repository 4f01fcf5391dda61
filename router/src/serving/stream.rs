//! Streamed answers: a task per answer reads the workers and fills a bounded channel that the client's connection
//! empties. A client that does not read thereby stops its workers, and nothing piles up in between.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::Stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{self, error::SendTimeoutError};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::call::{Call, Open};
use super::choices::Choices;
use crate::generation::Event;
use crate::metrics::{RequestMetrics, Status};
use crate::model::Model;
use crate::openai::{Answer, ApiError, Usage};
use crate::upstream::{Failure, Upstream};

/// Chunks between the worker and the client's connection.
const CHUNKS_MAX: usize = 16;
const DONE: &str = "data: [DONE]\n\n";

/// What an answer is held to.
pub(crate) struct StreamLimits {
    /// End of the whole request, and how long that was in seconds, for the error.
    pub deadline: Instant,
    pub request_timeout: Duration,
    /// A client that takes nothing for this long is given up.
    pub reader_timeout: Duration,
    /// The router ends, and does not wait any longer.
    pub cut: CancellationToken,
}

/// Why an answer breaks off.
enum Broken {
    /// The client went away.
    Client,
    /// The client stopped reading.
    Reader,
    /// There is an error to tell.
    Error(ApiError),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Error(match failure {
            Failure::Busy => ApiError::interrupted("the worker refused to go on."),
            Failure::Invalid(message) | Failure::Refused(message) | Failure::Lost(message) => {
                ApiError::interrupted(&message)
            }
        })
    }
}

/// One prompt's part of the answer.
pub(crate) struct Part {
    answer: Answer,
    model: Arc<Model>,
    choices: Choices,
    /// Index of its first choice among those of the whole request.
    first_choice: u32,
    /// Without completion tokens, which are still to come.
    usage: Usage,
    /// Until all choices have ended. Dropping it cancels what the worker still does.
    upstream: Option<Upstream>,
}

impl Part {
    /// The part of the answer that `call` has opened.
    pub(crate) fn new(call: &Call, open: Open) -> Self {
        Self {
            answer: call.answer(&open.model),
            choices: Choices::new(&open),
            first_choice: call.first_choice(),
            usage: open.usage(0),
            model: open.model,
            upstream: Some(open.upstream),
        }
    }

    /// Indices of its choices that have not ended.
    fn unfinished(&self) -> impl Iterator<Item = u32> + '_ {
        self.choices.unfinished().map(|choice| self.first_choice + choice)
    }
}

/// The body of the answer, and the task that fills it. There is at least one part.
pub(crate) fn stream(
    parts: Vec<Part>,
    metrics: RequestMetrics,
    permit: OwnedSemaphorePermit,
    limits: StreamLimits,
) -> (Body, impl Future<Output = ()> + Send) {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    let complete = Arc::new(AtomicBool::new(false));
    let body = Body::from_stream(Chunks { receiver, complete: Arc::clone(&complete), ended: false });
    let writer = Writer { parts, turn: 0, metrics, sender, reader_timeout: limits.reader_timeout };
    let task = async move {
        writer.run(&limits, &complete).await;
        drop(permit);
    };
    (body, task)
}

struct Writer {
    parts: Vec<Part>,
    /// The part that is asked first for its next event, so that none starves the others.
    turn: usize,
    metrics: RequestMetrics,
    sender: mpsc::Sender<Bytes>,
    reader_timeout: Duration,
}

impl Writer {
    async fn run(mut self, limits: &StreamLimits, complete: &AtomicBool) {
        let client = self.sender.clone();
        let ended = tokio::select! {
            ended = self.write() => ended,
            () = client.closed() => Err(Broken::Client),
            () = sleep_until(limits.deadline) => {
                Err(Broken::Error(ApiError::timeout(limits.request_timeout.as_secs())))
            }
            () = limits.cut.cancelled() => {
                Err(Broken::Error(ApiError::interrupted("the router is shutting down.")))
            }
        };
        let status = match ended {
            Ok(()) => Status::Http(200),
            Err(Broken::Client) => Status::Cancelled,
            Err(Broken::Reader) => Status::ReaderTimeout,
            Err(Broken::Error(error)) => {
                let unfinished = self.parts.iter().flat_map(Part::unfinished);
                let chunk = self.parts.first().map(|part| {
                    tracing::warn!(
                        request = part.answer.id,
                        message = error.body.message,
                        "answer interrupted"
                    );
                    format!("{}{DONE}", event(&part.answer.error_chunk(unfinished, &error)))
                });
                match self.send(chunk.unwrap_or_default()).await {
                    Ok(()) => Status::Interrupted,
                    Err(_) => Status::Cancelled,
                }
            }
        };
        complete.store(matches!(status, Status::Http(_) | Status::Interrupted), Ordering::Release);
        self.metrics.ends(status);
    }

    /// Writes the answer to its end.
    async fn write(&mut self) -> Result<(), Broken> {
        let choices = self.parts.iter().flat_map(|part| part.unfinished().map(move |index| (part, index)));
        let first: String = choices
            .filter_map(|(part, index)| part.answer.first_chunk(index))
            .map(|json| event(&json))
            .collect();
        if !first.is_empty() {
            self.send(first).await?;
        }
        loop {
            let (number, next) = poll_fn(|cx| self.poll_next(cx)).await;
            let brings_tokens = matches!(&next, Ok(next) if next.brings_tokens());
            let part = &mut self.parts[number];
            let Some(addition) = part.choices.take(&part.model.tokenizer, next?) else { continue };
            let index = part.first_choice + addition.choice;
            if brings_tokens {
                self.metrics.tokens(index);
            }
            let mut chunk = match addition.end {
                Some(reason) => event(&part.answer.finish_chunk(index, addition.delta, reason)),
                None if addition.delta.is_empty() => continue,
                None => event(&part.answer.delta_chunk(index, addition.delta)),
            };
            if part.choices.all_ended() {
                part.upstream = None;
            }
            let ended = self.parts.iter().all(|part| part.upstream.is_none());
            if ended {
                chunk.push_str(&self.last_words());
            }
            self.send(chunk).await?;
            if ended {
                return Ok(());
            }
        }
    }

    /// The next event of any part, and which part's it is. There has to be a part that has not ended.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<(usize, Result<Event, Failure>)> {
        let parts = self.parts.len();
        for number in (self.turn..parts).chain(0..self.turn) {
            let upstream = self.parts[number].upstream.as_mut();
            if let Some(Poll::Ready(next)) = upstream.map(|upstream| upstream.poll_next(cx)) {
                self.turn = (number + 1) % parts;
                return Poll::Ready((number, next));
            }
        }
        Poll::Pending
    }

    /// What follows the last choice's end.
    fn last_words(&self) -> String {
        let usage =
            Usage::sum(self.parts.iter().map(|part| part.usage.with_completion(part.choices.tokens())));
        self.metrics.usage(&usage);
        let chunk = self.parts.first().and_then(|part| part.answer.usage_chunk(usage));
        chunk.map(|json| event(&json)).unwrap_or_default() + DONE
    }

    async fn send(&self, chunk: String) -> Result<(), Broken> {
        match self.sender.send_timeout(chunk.into(), self.reader_timeout).await {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Closed(_)) => Err(Broken::Client),
            Err(SendTimeoutError::Timeout(_)) => Err(Broken::Reader),
        }
    }
}

/// One server-sent event.
fn event(json: &str) -> String {
    format!("data: {json}\n\n")
}

/// The chunks as a body. A body that ends without being complete ends in an error, which closes the connection, so
/// that a client never takes half an answer for a whole one.
struct Chunks {
    receiver: mpsc::Receiver<Bytes>,
    complete: Arc<AtomicBool>,
    ended: bool,
}

impl Stream for Chunks {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.receiver.poll_recv(cx).map(|chunk| {
            if chunk.is_none() {
                self.ended = true;
                if !self.complete.load(Ordering::Acquire) {
                    return Some(Err(std::io::Error::other("the answer broke off")));
                }
            }
            chunk.map(Ok)
        })
    }
}
