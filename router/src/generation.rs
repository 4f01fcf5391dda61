//! What workers generate, in this crate's own types.

use disagg_proto::v1;

/// One token of output.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct GeneratedToken {
    pub id: u32,
    /// Present when asked for.
    pub logprob: Option<f32>,
    /// The most likely tokens at this place.
    pub top: Vec<(u32, f32)>,
}

/// Why an answer ended well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FinishReason {
    /// A stop string, a stop token, or the model's end of text.
    Stop,
    /// The limit on tokens.
    Length,
}

impl FinishReason {
    /// OpenAI's word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// How the prompt was really prefilled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Started {
    /// On a prefill worker.
    pub remote: bool,
    /// One of the names of [`disagg_core::PlacementReason`], or `unknown`.
    pub reason: &'static str,
    /// The prefill worker's name; empty when local.
    pub prefill_worker: String,
    /// Prompt tokens that were cached.
    pub overlap_tokens: u32,
}

/// One event of a worker's answer.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Event {
    /// Comes first.
    Started(Started),
    /// At least one token of one choice.
    Tokens { choice: u32, tokens: Vec<GeneratedToken> },
    /// Nothing follows for this choice.
    Finished { choice: u32, reason: FinishReason },
    /// Nothing follows: the worker could not go on.
    Failed(String),
}

/// A message of the wire that means nothing here.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the worker sent {0}")]
pub(crate) struct BadEvent(&'static str);

impl Event {
    /// Whether it has tokens of some choice.
    pub(crate) fn brings_tokens(&self) -> bool {
        matches!(self, Self::Tokens { .. })
    }

    /// Reads a message of the wire about a request for `choices` choices.
    pub(crate) fn from_wire(event: v1::GenerateEvent, choices: u32) -> Result<Self, BadEvent> {
        use v1::generate_event::Event as Wire;
        match event.event {
            None => Err(BadEvent("an event that this router does not know")),
            Some(Wire::Started(started)) => Ok(Self::Started(Started {
                remote: started.remote,
                // Only known names become header values and metric labels.
                reason: started
                    .reason
                    .parse::<disagg_core::PlacementReason>()
                    .map_or("unknown", |r| r.as_str()),
                prefill_worker: started.prefill_worker,
                overlap_tokens: started.overlap_tokens,
            })),
            Some(Wire::Tokens(tokens)) => {
                let choice = asked_for(tokens.choice, choices)?;
                if tokens.tokens.is_empty() {
                    return Err(BadEvent("tokens without a token"));
                }
                Ok(Self::Tokens { choice, tokens: tokens.tokens.into_iter().map(token).collect() })
            }
            Some(Wire::Finished(finished)) => {
                let choice = asked_for(finished.choice, choices)?;
                Ok(match v1::FinishReason::try_from(finished.reason) {
                    Ok(v1::FinishReason::Stop) => Self::Finished { choice, reason: FinishReason::Stop },
                    Ok(v1::FinishReason::Length) => Self::Finished { choice, reason: FinishReason::Length },
                    Ok(v1::FinishReason::Cancelled) => {
                        Self::Failed("the worker cancelled the request".to_owned())
                    }
                    Ok(v1::FinishReason::Error) => Self::Failed(finished.message),
                    Ok(v1::FinishReason::Unspecified) | Err(_) => {
                        return Err(BadEvent("a finish reason that this router does not know"));
                    }
                })
            }
        }
    }
}

fn asked_for(choice: u32, choices: u32) -> Result<u32, BadEvent> {
    if choice < choices { Ok(choice) } else { Err(BadEvent("a choice that was not asked for")) }
}

fn token(token: v1::Token) -> GeneratedToken {
    GeneratedToken {
        id: token.token_id,
        logprob: token.logprob,
        top: token.top_logprobs.into_iter().map(|top| (top.token_id, top.logprob)).collect(),
    }
}
