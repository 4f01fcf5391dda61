//! Streamed answers: a task per answer reads the worker and fills a bounded channel that the client's connection
//! empties. A client that does not read thereby stops its worker, and nothing piles up in between.

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

use super::call::Open;
use crate::generation::{Event, FinishReason, GeneratedToken};
use crate::metrics::{RequestMetrics, Status};
use crate::openai::{Answer, ApiError};
use crate::text::{Delta, OutputText};
use crate::upstream::Failure;

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
            Failure::Invalid(message) | Failure::Lost(message) => ApiError::interrupted(&message),
        })
    }
}

/// The body of the answer, and the task that fills it.
pub(crate) fn stream(
    open: Open,
    answer: Answer,
    metrics: RequestMetrics,
    permit: OwnedSemaphorePermit,
    limits: StreamLimits,
) -> (Body, impl Future<Output = ()> + Send) {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    let complete = Arc::new(AtomicBool::new(false));
    let body = Body::from_stream(Chunks { receiver, complete: Arc::clone(&complete), ended: false });
    let output = open.output();
    let writer = Writer { open, answer, metrics, output, sender, reader_timeout: limits.reader_timeout };
    let task = async move {
        writer.run(&limits, &complete).await;
        drop(permit);
    };
    (body, task)
}

struct Writer {
    open: Open,
    answer: Answer,
    metrics: RequestMetrics,
    output: OutputText,
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
                tracing::warn!(request = self.answer.id, message = error.body.message, "answer interrupted");
                let chunk = format!("{}{DONE}", event(&self.answer.error_chunk(&error)));
                match self.send(chunk).await {
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
        if let Some(first) = self.answer.first_chunk() {
            self.send(event(&first)).await?;
        }
        loop {
            match self.open.upstream.next().await? {
                Event::Tokens(tokens) => {
                    self.metrics.tokens();
                    let delta = self.text_of(&tokens);
                    if delta.stopped {
                        return self.end(delta, FinishReason::Stop).await;
                    }
                    if !delta.is_empty() {
                        self.send(event(&self.answer.delta_chunk(delta))).await?;
                    }
                }
                Event::Finished(reason) => {
                    let rest = self.output.finish(&self.open.model.tokenizer);
                    let reason = if rest.stopped { FinishReason::Stop } else { reason };
                    return self.end(rest, reason).await;
                }
                // Errors by the contract of `next`.
                Event::Started(_) | Event::Failed(_) => {}
            }
        }
    }

    /// The text of tokens that came together, up to a stop string.
    fn text_of(&mut self, tokens: &[GeneratedToken]) -> Delta {
        let mut delta = Delta::default();
        for token in tokens {
            delta.append(self.output.push(&self.open.model.tokenizer, token));
            if delta.stopped {
                break;
            }
        }
        delta
    }

    async fn end(&mut self, rest: Delta, reason: FinishReason) -> Result<(), Broken> {
        let usage = self.open.usage(self.output.tokens());
        self.metrics.usage(&usage);
        let mut chunk = event(&self.answer.finish_chunk(rest, reason));
        if let Some(usage) = self.answer.usage_chunk(usage) {
            chunk.push_str(&event(&usage));
        }
        chunk.push_str(DONE);
        self.send(chunk).await
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
