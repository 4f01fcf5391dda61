//! What a fake worker is told to do.

/// One step of an answer.
#[derive(Clone, Debug)]
pub enum Step {
    /// The first event, with a local prefill.
    Started,
    /// The first event, with a remote prefill on the first candidate.
    StartedRemote,
    /// One message with a token for each byte.
    Text(&'static str),
    /// As `Text`, for this choice.
    Says(u32, &'static str),
    /// The end of this choice, by length.
    Ends(u32),
    /// One message with the prompt's own tokens.
    Repeat,
    /// As `Text`, with logprobs.
    Logprobs(&'static str),
    /// The same text over and over, until the stream is closed.
    Forever(&'static str),
    /// The last event, after an end-of-text token.
    Stop,
    /// The last event.
    Length,
    /// The last event: it could not go on.
    Error,
    /// Ends the call: it takes no new work.
    Refuse,
    /// Ends the call with this status.
    Fail(tonic::Code),
    /// Waits until the request is cancelled.
    Hang,
    /// Waits until `FakeWorker::open_gate`.
    Gate,
    /// The process is killed.
    Die,
}

/// What a worker answers: the first script to the first call, and so on; the last to all others.
pub type Scripts = Vec<Vec<Step>>;

/// Started, the text, and the end.
pub fn says(text: &'static str) -> Vec<Step> {
    vec![Step::Started, Step::Text(text), Step::Stop]
}
