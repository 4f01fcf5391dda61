//! Requests that end with their first token: the prefill worker's answer is all there is, so nothing is reserved,
//! transferred or decoded here.

use disagg_engine::{FinishReason, Request, SampledToken};
use tokio::sync::mpsc;

use crate::engine_thread::{SequenceEvent, SequenceEvents};

/// Whether every choice surely ends with its first token.
pub(super) fn is_all(request: &Request) -> bool {
    request.stop.max_tokens == 1
}

/// What the engine would have said of these tokens.
pub(super) fn events(request: &Request, tokens: Vec<SampledToken>) -> SequenceEvents {
    let (sender, receiver) = mpsc::channel(2 * tokens.len().max(1));
    for (choice, token) in (0..).zip(tokens) {
        let stop = &request.stop;
        let is_eos = !stop.ignore_eos && stop.eos_token_ids.contains(&token.token);
        let ends = is_eos || stop.stop_token_ids.contains(&token.token);
        let reason = if ends { FinishReason::Stop(token.token) } else { FinishReason::Length };
        // Two events fit for each choice.
        let _ = sender.try_send(SequenceEvent::Tokens { choice, tokens: vec![token] });
        let _ = sender.try_send(SequenceEvent::Finished { choice, reason, message: None });
    }
    SequenceEvents::ready(receiver)
}

#[cfg(test)]
mod tests {
    use disagg_engine::{SamplingParams, StopRules};

    use super::*;

    #[tokio::test]
    async fn each_choice_has_its_token_and_its_end() {
        let stop = StopRules {
            max_tokens: 1,
            min_tokens: 0,
            eos_token_ids: vec![2],
            stop_token_ids: vec![3],
            ignore_eos: true,
        };
        let request = Request {
            prompt: vec![1],
            cache_salt: String::new(),
            sampling: SamplingParams::greedy(),
            stop,
            choices: 3,
        };
        assert!(is_all(&request));
        let token = |token| SampledToken { token, logprob: None, top_logprobs: Vec::new() };
        let mut events = events(&request, vec![token(2), token(3), token(4)]);
        let mut ends = Vec::new();
        while let Some(event) = events.recv().await {
            if let SequenceEvent::Finished { choice, reason, .. } = event {
                ends.push((choice, reason));
            }
        }
        let expected = [(0, FinishReason::Length), (1, FinishReason::Stop(3)), (2, FinishReason::Length)];
        assert_eq!(ends, expected);
    }
}
