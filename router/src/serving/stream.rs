//! Streamed answers: a task per answer reads the workers and fills an outbox that the client's connection empties. A
//! client that does not read thereby stops its workers, and nothing piles up in between.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::call::{Call, Open};
use super::choices::Choices;
use super::outbox::{Outbox, Unread};
use crate::budget::{Budget, Held};
use crate::generation::Event;
use crate::metrics::{RequestMetrics, Status};
use crate::model::Model;
use crate::openai::{Answer, ApiError, Usage};
use crate::upstream::{Failure, Upstream};

const DONE: &str = "data: [DONE]\n\n";

/// What an answer is held to, streamed or not.
pub(crate) struct AnswerLimits {
    /// Memory for what is written and not read yet.
    pub budget: Arc<Budget>,
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
    /// The client went away or stopped reading.
    Unread(Unread),
    /// There is an error to tell.
    Error(ApiError),
}

impl From<Unread> for Broken {
    fn from(unread: Unread) -> Self {
        Self::Unread(unread)
    }
}

impl From<Unread> for Status {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Gone => Self::Cancelled,
            Unread::Stopped => Self::ReaderTimeout,
        }
    }
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

/// The body of the answer, and the task that fills it. There is at least one part. `permit` lasts until the client has
/// read the answer, or is given up.
pub(crate) fn stream(
    parts: Vec<Part>,
    metrics: RequestMetrics,
    permit: OwnedSemaphorePermit,
    limits: AnswerLimits,
) -> (Body, impl Future<Output = ()> + Send) {
    let (outbox, body) = Outbox::new(limits.reader_timeout);
    let writer = Writer { parts, turn: 0, metrics, outbox, limits };
    let task = async move {
        writer.run().await;
        drop(permit);
    };
    (body, task)
}

struct Writer {
    parts: Vec<Part>,
    /// The part that is asked first for its next event, so that none starves the others.
    turn: usize,
    metrics: RequestMetrics,
    outbox: Outbox,
    limits: AnswerLimits,
}

impl Writer {
    async fn run(mut self) {
        let (deadline, cut) = (self.limits.deadline, self.limits.cut.clone());
        let closed = self.outbox.closes();
        let ended = tokio::select! {
            ended = self.write() => ended,
            () = closed => Err(Unread::Gone.into()),
            () = sleep_until(deadline) => {
                Err(Broken::Error(ApiError::timeout(self.limits.request_timeout.as_secs())))
            }
            () = cut.cancelled() => {
                Err(Broken::Error(ApiError::interrupted("the router is shutting down.")))
            }
        };
        let told = match ended {
            Ok(()) => Ok(Status::Http(200)),
            Err(Broken::Unread(unread)) => Err(unread),
            Err(Broken::Error(error)) => self.tell(&error).await.map(|()| Status::Interrupted),
        };
        // What the workers still do is cancelled before the client has read all.
        self.parts.clear();
        let status = match told {
            Ok(status) => self.outbox.finish().await.map_or_else(Status::from, |()| status),
            Err(unread) => unread.into(),
        };
        self.metrics.ends(status);
    }

    /// Ends an answer that cannot be finished.
    async fn tell(&self, error: &ApiError) -> Result<(), Unread> {
        let unfinished = self.parts.iter().flat_map(Part::unfinished);
        let Some(part) = self.parts.first() else { return Ok(()) };
        tracing::warn!(request = part.answer.id, message = error.body.message, "answer interrupted");
        let chunk = format!("{}{DONE}", event(&part.answer.error_chunk(unfinished, error)));
        // Small, and the last: it needs no room of its own.
        self.outbox.put(chunk, Arc::new(Held::none(&self.limits.budget))).await
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

    /// Hands a chunk to the client. Waits for the client to take what is before it, and for memory.
    async fn send(&self, chunk: String) -> Result<(), Broken> {
        let held = self.limits.budget.hold_within(chunk.len(), self.limits.reader_timeout).await;
        let held = held.map_err(|_| Broken::Error(ApiError::interrupted("the router is out of memory.")))?;
        Ok(self.outbox.put(chunk, Arc::new(held)).await?)
    }
}

/// One server-sent event.
fn event(json: &str) -> String {
    format!("data: {json}\n\n")
}
