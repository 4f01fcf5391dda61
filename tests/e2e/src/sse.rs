//! Server-sent events, read strictly: what we send must suit the pickiest client.

use std::collections::VecDeque;

use futures::StreamExt;
use tokio::time::Instant;

use crate::wait::within;

/// Splits a body into events as its pieces arrive.
#[derive(Debug, Default)]
pub struct SseParser {
    /// Bytes of the event that is not complete yet.
    pending: Vec<u8>,
    /// `[DONE]` has come.
    done: bool,
}

impl SseParser {
    /// Takes the next piece and gives the data of the events that it completes, `[DONE]` not included.
    ///
    /// Each event must be one line `data: …` and an empty line, with `\n` ends, in UTF-8. Comments (lines that begin
    /// with a colon) are allowed between events. Nothing may follow `[DONE]`. Panics otherwise.
    pub fn push(&mut self, piece: &[u8]) -> Vec<String> {
        self.pending.extend_from_slice(piece);
        let mut events = Vec::new();
        while let Some(at) = self.pending.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.pending.drain(..at + 2).collect();
            let event =
                String::from_utf8(event).unwrap_or_else(|error| panic!("an event is not UTF-8: {error}"));
            let event = event.trim_end_matches('\n');
            assert!(!self.done, "an event after [DONE]: {event:?}");
            assert!(!event.contains('\r'), "a carriage return: {event:?}");
            if event.lines().all(|line| line.starts_with(':')) {
                continue;
            }
            let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("no data line: {event:?}"));
            assert!(!data.contains('\n'), "an event of several lines: {event:?}");
            if data == "[DONE]" {
                self.done = true;
            } else {
                events.push(data.to_owned());
            }
        }
        events
    }

    /// The body has ended. Panics if it ended inside an event or without `[DONE]`.
    pub fn finish(&self) {
        assert!(
            self.pending.is_empty(),
            "the body ends inside an event: {:?}",
            String::from_utf8_lossy(&self.pending)
        );
        assert!(self.done, "the body ends without [DONE]");
    }
}

/// The events of a response, as they arrive.
pub struct SseBody {
    body: futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    parser: SseParser,
    ready: VecDeque<String>,
}

impl SseBody {
    /// Panics unless the response says that it is an event stream.
    pub fn new(response: reqwest::Response) -> Self {
        let content_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
        assert!(
            content_type.is_some_and(|value| value.split(';').next() == Some("text/event-stream")),
            "content-type is {content_type:?}"
        );
        Self { body: response.bytes_stream().boxed(), parser: SseParser::default(), ready: VecDeque::new() }
    }

    /// The next event's data; `None` at the end of a body that ended as it should.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let Some(piece) = self.body.next().await else {
                self.parser.finish();
                return None;
            };
            let piece = piece.unwrap_or_else(|error| panic!("the body broke off: {error}"));
            self.ready.extend(self.parser.push(&piece));
        }
    }

    /// All events that are left, with the time each arrived.
    pub async fn collect(mut self, deadline: std::time::Duration) -> Vec<(Instant, String)> {
        let mut events = Vec::new();
        within("the end of an event stream", deadline, async {
            while let Some(event) = self.next().await {
                events.push((Instant::now(), event));
            }
        })
        .await;
        events
    }
}
