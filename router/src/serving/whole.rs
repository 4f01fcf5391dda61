//! Answers that are not streamed: nothing is sent before the end, so a worker may fail until then.

use http::HeaderValue;

use super::call::{Call, Open};
use super::placement_header;
use crate::generation::{Event, FinishReason};
use crate::metrics::RequestMetrics;
use crate::openai::ApiError;
use crate::text::Delta;
use crate::upstream::Failure;

/// The whole answer as JSON, and its placement header.
pub(crate) async fn whole(
    call: &mut Call,
    metrics: &mut RequestMetrics,
) -> Result<(String, Option<HeaderValue>), ApiError> {
    loop {
        let mut open = call.open().await?;
        match collect(&mut open, metrics).await {
            Ok((output, reason, tokens)) => {
                let usage = open.usage(tokens);
                metrics.usage(&usage);
                let json = call.answer(&open.model).whole(output, reason, usage);
                return Ok((json, placement_header(&open)));
            }
            Err(failure) => call.failed_on(open.session, failure)?,
        }
    }
}

async fn collect(
    open: &mut Open,
    metrics: &mut RequestMetrics,
) -> Result<(Delta, FinishReason, u32), Failure> {
    let mut output = open.output();
    let mut all = Delta::default();
    loop {
        match open.upstream.next().await? {
            Event::Tokens(tokens) => {
                metrics.tokens();
                for token in &tokens {
                    all.append(output.push(&open.model.tokenizer, token));
                    if all.stopped {
                        return Ok((all, FinishReason::Stop, output.tokens()));
                    }
                }
            }
            Event::Finished(reason) => {
                all.append(output.finish(&open.model.tokenizer));
                let reason = if all.stopped { FinishReason::Stop } else { reason };
                return Ok((all, reason, output.tokens()));
            }
            // Errors by the contract of `next`.
            Event::Started(_) | Event::Failed(_) => {}
        }
    }
}
