//! One attempt at one request on one worker.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use disagg_proto::v1::{self, worker_client::WorkerClient};
use futures::StreamExt;
use tonic::{Code, Status, Streaming};

use crate::generation::{Event, Started};
use crate::routing::Plan;
use crate::workers::SentGuard;

/// Why an attempt came to nothing.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Failure {
    /// The worker has as many requests as it takes.
    Busy,
    /// The worker takes no new work, and has begun nothing.
    Refused(String),
    /// The worker finds the request invalid; no other will think better of it.
    Invalid(String),
    /// The worker went away, broke the contract, or could not go on.
    Lost(String),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::Unavailable if status.metadata().contains_key(disagg_proto::REFUSED_METADATA) => {
                Self::Refused(status.message().to_owned())
            }
            Code::ResourceExhausted => Self::Busy,
            Code::InvalidArgument | Code::OutOfRange => Self::Invalid(status.message().to_owned()),
            _ if status.message().is_empty() => Self::Lost(status.code().description().to_owned()),
            _ => Self::Lost(status.message().to_owned()),
        }
    }
}

/// A worker's answer that has begun. Dropping it cancels the request there.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// How many were asked for.
    choices: u32,
    /// Events that have come and were not taken yet.
    next: VecDeque<Event>,
    stream: Streaming<v1::GenerateEvent>,
    /// Counts it towards the worker's load.
    _load: SentGuard,
}

impl Upstream {
    /// Sends the request as planned and waits for the first token: until then every failure leaves nothing behind.
    /// Answers how the prompt was prefilled, too.
    pub(crate) async fn open(
        plan: &Plan,
        prompt: v1::Prompt,
        max_local_prefill_length: u32,
        fail_without_remote: bool,
    ) -> Result<(Started, Self), Failure> {
        let choices = prompt.choices;
        let remote = (!plan.prefill.is_empty()).then(|| v1::RemotePrefill {
            candidates: plan.prefill.iter().map(candidate).collect(),
            max_local_prefill_length,
            fail_without_remote,
        });
        let request = v1::GenerateRequest {
            prompt: Some(prompt),
            remote,
            placement_reason: plan.reason.as_str().to_owned(),
        };
        let load = plan.decode.worker.sending(plan.decode_load);
        let prefill_load = plan.prefill.first().map(|worker| worker.worker.sending(plan.prefill_load));
        let mut client = WorkerClient::new(plan.decode.channel.clone())
            .max_decoding_message_size(disagg_proto::limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(disagg_proto::limits::MESSAGE_BYTES_MAX);
        let stream = client.generate(request).await?.into_inner();
        let mut this = Self { choices, next: VecDeque::new(), stream, _load: load };
        let started = match poll_fn(|cx| this.poll_event(cx)).await? {
            Event::Started(started) => started,
            Event::Failed(message) => return Err(Failure::Lost(message)),
            Event::Tokens { .. } | Event::Finished { .. } => {
                return Err(Failure::Lost("the worker did not say how it placed the prompt".to_owned()));
            }
        };
        // Known by now to have been prefilled, or about to be, which its own reports show.
        drop(prefill_load);
        let first = match poll_fn(|cx| this.poll_event(cx)).await? {
            Event::Failed(message) => return Err(Failure::Lost(message)),
            event => event,
        };
        this.next.push_back(first);
        Ok((started, this))
    }

    /// The next event; once every choice has ended there is none to ask for.
    pub(crate) async fn next(&mut self) -> Result<Event, Failure> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Self::next`], for those who wait for several.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Failure>> {
        let event = match self.next.pop_front() {
            Some(event) => event,
            None => ready!(self.poll_event(cx))?,
        };
        Poll::Ready(match event {
            Event::Started(_) => Err(Failure::Lost("the worker started twice".to_owned())),
            Event::Failed(message) => Err(Failure::Lost(message)),
            Event::Tokens { .. } | Event::Finished { .. } => Ok(event),
        })
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Failure>> {
        let message = ready!(self.stream.poll_next_unpin(cx)).transpose()?;
        let lost = |problem: String| Failure::Lost(problem);
        Poll::Ready(match message {
            Some(event) => Event::from_wire(event, self.choices).map_err(|error| lost(error.to_string())),
            None => Err(lost("the worker ended its answer too early".to_owned())),
        })
    }
}

fn candidate(worker: &crate::workers::ReadyWorker) -> v1::PrefillCandidate {
    v1::PrefillCandidate {
        worker: Some(v1::WorkerRef {
            name: worker.identity.name.as_str().to_owned(),
            epoch: worker.identity.epoch.0,
        }),
        address: worker.worker.address.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_whether_another_attempt_makes_sense() {
        assert_eq!(Failure::from(Status::resource_exhausted("queue")), Failure::Busy);
        assert_eq!(Failure::from(Status::invalid_argument("bad")), Failure::Invalid("bad".to_owned()));
        assert_eq!(Failure::from(Status::failed_precondition("old")), Failure::Lost("old".to_owned()));
        assert_eq!(Failure::from(Status::unknown("")), Failure::Lost("Unknown error".to_owned()));
    }
}
