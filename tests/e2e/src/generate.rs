//! `Generate` over gRPC, as a router would call it, with a check of the contract on every stream.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use disagg_proto::v1;
use disagg_proto::v1::generate_event::Event;

use crate::wait::within;
use crate::worker::Worker;

/// Longest time of one request here.
const REQUEST: Duration = Duration::from_mins(2);

/// A request that is still to be sent.
#[derive(Clone, Debug)]
pub struct Ask {
    request: v1::GenerateRequest,
}

/// What came of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// How it was placed.
    pub started: v1::Started,
    /// Tokens of each choice.
    pub choices: Vec<Choice>,
}

/// One choice of an answer.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Choice {
    /// The tokens, in order.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Option<v1::FinishReason>,
}

impl Answer {
    /// Tokens of the only choice.
    pub fn tokens(&self) -> &[u32] {
        assert_eq!(self.choices.len(), 1, "one choice was asked for");
        &self.choices[0].tokens
    }
}

impl Ask {
    /// Greedy, exactly `max_tokens` tokens, prefilled where it is decoded.
    pub async fn local(decode: &Worker, prompt: &[u32], max_tokens: u32) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let prompt = v1::Prompt {
            request_id: format!("e2e-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)),
            token_ids: prompt.to_vec(),
            model_fingerprint: decode.hello().await.model_fingerprint,
            cache_salt: String::new(),
            sampling: Some(v1::Sampling { top_p: 1.0, repetition_penalty: 1.0, ..Default::default() }),
            stop: Some(v1::StopRules { max_tokens, ignore_eos: true, ..Default::default() }),
            choices: 1,
        };
        Self {
            request: v1::GenerateRequest {
                prompt: Some(prompt),
                remote: None,
                placement_reason: "below-threshold".to_owned(),
            },
        }
    }

    /// Prefilled by the first of these that takes it; by the decode worker itself if none does.
    pub async fn remote(decode: &Worker, prefill: &[&Worker], prompt: &[u32], max_tokens: u32) -> Self {
        let mut ask = Self::local(decode, prompt, max_tokens).await;
        let mut candidates = Vec::new();
        for worker in prefill {
            candidates.push(worker.candidate().await);
        }
        ask.request.remote =
            Some(v1::RemotePrefill { candidates, max_local_prefill_length: 0, fail_without_remote: false });
        "above-threshold".clone_into(&mut ask.request.placement_reason);
        ask
    }

    /// Keeps its prefix cache apart from that of other salts.
    #[must_use]
    pub fn salted(mut self, salt: &str) -> Self {
        salt.clone_into(&mut self.prompt().cache_salt);
        self
    }

    /// The prompt, to be changed.
    pub fn prompt(&mut self) -> &mut v1::Prompt {
        self.request.prompt.as_mut().expect("set by the constructors")
    }

    /// The whole request, to be changed.
    pub fn request(&mut self) -> &mut v1::GenerateRequest {
        &mut self.request
    }

    /// Sends it and reads the answer to its end. Panics when the stream breaks the contract of `worker.proto`.
    pub async fn send(self, decode: &Worker) -> Result<Answer, tonic::Status> {
        let choices = self.request.prompt.as_ref().map_or(0, |prompt| prompt.choices);
        let collect = async {
            let mut stream = decode.client().generate(self.request).await?.into_inner();
            let mut answer = Reader::new(choices);
            while let Some(event) = stream.message().await? {
                answer.take(event);
            }
            Ok(answer.end())
        };
        within("the end of a Generate stream", REQUEST, collect).await
    }
}

/// Reads a stream of events and holds it to the contract.
struct Reader {
    started: Option<v1::Started>,
    choices: BTreeMap<u32, Choice>,
    expected: u32,
}

impl Reader {
    fn new(expected: u32) -> Self {
        Self { started: None, choices: BTreeMap::new(), expected }
    }

    fn take(&mut self, event: v1::GenerateEvent) {
        match event.event.expect("an event of a kind we know") {
            Event::Started(started) => {
                assert!(self.choices.is_empty(), "Started after tokens");
                assert!(self.started.replace(started).is_none(), "Started twice");
            }
            Event::Tokens(tokens) => {
                assert!(self.started.is_some(), "tokens before Started");
                assert!(!tokens.tokens.is_empty(), "an event without tokens");
                let choice = self.choices.entry(tokens.choice).or_default();
                assert!(choice.finish.is_none(), "tokens after the end of choice {}", tokens.choice);
                choice.tokens.extend(tokens.tokens.iter().map(|token| token.token_id));
            }
            Event::Finished(finished) => {
                assert!(self.started.is_some(), "the end before Started");
                let choice = self.choices.entry(finished.choice).or_default();
                let reason = v1::FinishReason::try_from(finished.reason).expect("a reason we know");
                assert_ne!(reason, v1::FinishReason::Unspecified);
                assert!(choice.finish.replace(reason).is_none(), "choice {} ends twice", finished.choice);
            }
        }
    }

    fn end(self) -> Answer {
        assert_eq!(
            self.choices.keys().copied().collect::<Vec<_>>(),
            (0..self.expected).collect::<Vec<_>>(),
            "one answer for each choice"
        );
        for (number, choice) in &self.choices {
            assert!(choice.finish.is_some(), "choice {number} has no end");
        }
        Answer {
            started: self.started.expect("a stream that ends well has begun"),
            choices: self.choices.into_values().collect(),
        }
    }
}
