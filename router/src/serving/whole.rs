//! Answers that are not streamed: nothing is sent before the end, so a worker may fail until then.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures::future::try_join_all;
use http::HeaderValue;
use tokio::sync::OwnedSemaphorePermit;

use super::AnswerLimits;
use super::call::{Call, Open};
use super::choices::Choices;
use super::outbox::{Outbox, Unread};
use super::placement_header;
use crate::budget::{Budget, Held, NoRoom};
use crate::generation::{FinishReason, Started};
use crate::metrics::{RequestMetrics, Status};
use crate::openai::{Answer, ApiError, Usage};
use crate::text::Delta;
use crate::upstream::Failure;

/// Bytes of an answer that are handed to the connection at once.
const PIECE_BYTES: usize = 32 * 1024;

/// One prompt's part of the answer.
struct Part {
    answer: Answer,
    choices: Vec<(Delta, FinishReason)>,
    usage: Usage,
    placement: (Started, String),
    held: Held,
}

/// A whole answer, ready to be sent.
pub(crate) struct Whole {
    pub json: String,
    pub placement: Option<HeaderValue>,
    /// Its memory.
    pub held: Held,
}

/// What went wrong with a prompt whose answer had begun.
enum Broken {
    Worker(Failure),
    Memory(ApiError),
}

/// The whole answer to all prompts of a request. When one prompt fails, so does the request, and the others are
/// cancelled. Its memory is taken from the budget as it grows.
pub(crate) async fn whole(
    calls: &mut [Call],
    metrics: &RequestMetrics,
    budget: &Arc<Budget>,
) -> Result<Whole, ApiError> {
    let parts = try_join_all(calls.iter_mut().map(|call| part(call, metrics, budget))).await?;
    let usage = Usage::sum(parts.iter().map(|part| part.usage));
    metrics.usage(&usage);
    let placement = placement_header(parts.iter().map(|part| (&part.placement.0, &*part.placement.1)));
    let Some(answer) = parts.first().map(|part| part.answer.clone()) else {
        return Err(ApiError::internal("A request without prompts."));
    };
    let (mut held, mut choices) = (Held::none(budget), Vec::new());
    for part in parts {
        held.merge(part.held);
        choices.extend(part.choices);
    }
    // While it is written there are both, the pieces and the text of them.
    let no_room = |why: NoRoom| ApiError::no_room_for_answer(&why);
    held.grow(held.bytes()).map_err(no_room)?;
    let json = answer.whole(choices, usage);
    held.resize(json.len()).map_err(no_room)?;
    Ok(Whole { json, placement, held })
}

/// The body of a whole answer, and the task that hands it to the client. `permit` lasts until the client has read it, or
/// is given up.
pub(crate) fn deliver(
    whole: Whole,
    mut metrics: RequestMetrics,
    permit: OwnedSemaphorePermit,
    limits: AnswerLimits,
) -> (Body, impl Future<Output = ()> + Send) {
    let (outbox, body) = Outbox::new(limits.reader_timeout);
    let task = async move {
        let written = tokio::select! {
            written = write(whole, outbox) => written,
            () = limits.cut.cancelled() => Err(Unread::Gone),
        };
        metrics.ends(written.map_or_else(Status::from, |()| Status::Http(200)));
        drop(permit);
    };
    (body, task)
}

async fn write(whole: Whole, outbox: Outbox) -> Result<(), Unread> {
    let (mut rest, held) = (Bytes::from(whole.json), Arc::new(whole.held));
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        outbox.put(piece, Arc::clone(&held)).await?;
    }
    drop((rest, held));
    outbox.finish().await
}

async fn part(call: &mut Call, metrics: &RequestMetrics, budget: &Arc<Budget>) -> Result<Part, ApiError> {
    loop {
        let mut open = call.open().await?;
        let mut held = Held::none(budget);
        match collect(&mut open, call.first_choice(), metrics, &mut held).await {
            Ok((choices, tokens)) => {
                let usage = open.usage(tokens);
                let placement = (open.started, open.decode.name.as_str().to_owned());
                return Ok(Part { answer: call.answer(&open.model), choices, usage, placement, held });
            }
            Err(Broken::Worker(failure)) => call.failed_on(open.session, failure)?,
            Err(Broken::Memory(error)) => return Err(error),
        }
    }
}

/// Every choice to its end, and the tokens of all of them.
async fn collect(
    open: &mut Open,
    first_choice: u32,
    metrics: &RequestMetrics,
    held: &mut Held,
) -> Result<(Vec<(Delta, FinishReason)>, u32), Broken> {
    let mut choices = Choices::new(open);
    let mut texts: Vec<(Delta, FinishReason)> =
        (0..choices.len()).map(|_| (Delta::default(), FinishReason::Length)).collect();
    while !choices.all_ended() {
        let event = open.upstream.next().await.map_err(Broken::Worker)?;
        let brings_tokens = event.brings_tokens();
        let Some(addition) = choices.take(&open.model.tokenizer, event) else { continue };
        if brings_tokens {
            metrics.tokens(first_choice + addition.choice);
        }
        held.grow(addition.delta.bytes())
            .map_err(|why| Broken::Memory(ApiError::no_room_for_answer(&why)))?;
        if let Some((text, reason)) = texts.get_mut(addition.choice as usize) {
            text.append(addition.delta);
            *reason = addition.end.unwrap_or(*reason);
        }
    }
    Ok((texts, choices.tokens()))
}
