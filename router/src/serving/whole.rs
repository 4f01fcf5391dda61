//! Answers that are not streamed: nothing is sent before the end, so a worker may fail until then.

use futures::future::try_join_all;
use http::HeaderValue;

use super::call::{Call, Open};
use super::choices::Choices;
use super::placement_header;
use crate::generation::{FinishReason, Started};
use crate::metrics::RequestMetrics;
use crate::openai::{Answer, ApiError, Usage};
use crate::text::Delta;
use crate::upstream::Failure;

/// One prompt's part of the answer.
struct Part {
    answer: Answer,
    choices: Vec<(Delta, FinishReason)>,
    usage: Usage,
    placement: (Started, String),
}

/// The whole answer to all prompts of a request as JSON, and its placement header. When one prompt fails, so does
/// the request, and the others are cancelled.
pub(crate) async fn whole(
    calls: &mut [Call],
    metrics: &RequestMetrics,
) -> Result<(String, Option<HeaderValue>), ApiError> {
    let parts = try_join_all(calls.iter_mut().map(|call| part(call, metrics))).await?;
    let usage = Usage::sum(parts.iter().map(|part| part.usage));
    metrics.usage(&usage);
    let placement = placement_header(parts.iter().map(|part| (&part.placement.0, &*part.placement.1)));
    let Some(answer) = parts.first().map(|part| part.answer.clone()) else {
        return Err(ApiError::internal("A request without prompts."));
    };
    let choices = parts.into_iter().flat_map(|part| part.choices).collect();
    Ok((answer.whole(choices, usage), placement))
}

async fn part(call: &mut Call, metrics: &RequestMetrics) -> Result<Part, ApiError> {
    loop {
        let mut open = call.open().await?;
        match collect(&mut open, call.first_choice(), metrics).await {
            Ok((choices, tokens)) => {
                let usage = open.usage(tokens);
                let placement = (open.started, open.decode.name.as_str().to_owned());
                return Ok(Part { answer: call.answer(&open.model), choices, usage, placement });
            }
            Err(failure) => call.failed_on(open.session, failure)?,
        }
    }
}

/// Every choice to its end, and the tokens of all of them.
async fn collect(
    open: &mut Open,
    first_choice: u32,
    metrics: &RequestMetrics,
) -> Result<(Vec<(Delta, FinishReason)>, u32), Failure> {
    let mut choices = Choices::new(open);
    let mut texts: Vec<(Delta, FinishReason)> =
        (0..choices.len()).map(|_| (Delta::default(), FinishReason::Length)).collect();
    while !choices.all_ended() {
        let event = open.upstream.next().await?;
        let brings_tokens = event.brings_tokens();
        let Some(addition) = choices.take(&open.model.tokenizer, event) else { continue };
        if brings_tokens {
            metrics.tokens(first_choice + addition.choice);
        }
        if let Some((text, reason)) = texts.get_mut(addition.choice as usize) {
            text.append(addition.delta);
            *reason = addition.end.unwrap_or(*reason);
        }
    }
    Ok((texts, choices.tokens()))
}
