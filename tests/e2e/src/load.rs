//! Many requests at once against a router, some of them given up by their clients, each answer checked.
//!
//! Every prompt has one right answer, which was asked for when nothing else ran. So a wave of requests shows more than
//! that nothing fails: a block of KV that went astray under load would be a wrong answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::deployment::MODEL;
use crate::router::{PlacementHeader, http_client};
use crate::sse::SseParser;
use crate::wait::within;

/// Longest time of one request; under load on a slow machine.
const REQUEST: Duration = Duration::from_mins(2);

/// splitmix64: equal seeds, equal loads.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let value = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ value >> 31
    }

    /// From 0 to `below - 1`.
    pub fn below(&mut self, below: u64) -> u64 {
        self.number() % below
    }
}

/// A prompt, and what follows it.
#[derive(Clone, PartialEq, Debug)]
pub struct Known {
    prompt: Vec<u32>,
    max_tokens: u32,
    answer: String,
}

/// One wave.
#[derive(Clone, Copy, Debug)]
pub struct Wave {
    /// Requests in all.
    pub requests: usize,
    /// At the same time.
    pub in_flight: usize,
    /// Of 100 requests, how many are given up: half of them while they wait for the first token, half in mid-stream.
    pub cancelled_percent: u64,
    /// Of prompts, order, and who is given up when.
    pub seed: u64,
}

/// How one request ended.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// The right answer, whole.
    Right {
        /// Its prefill was on another worker.
        remote: bool,
    },
    /// Given up by its client.
    Cancelled,
    /// An HTTP error, before anything else.
    Refused {
        /// HTTP status.
        status: u16,
        /// What the body said.
        message: String,
    },
    /// A stream that had begun ended with one error event, `finish_reason: "error"` and `[DONE]`.
    Interrupted,
    /// The connection could not be made, or broke before the end of the answer.
    Broken {
        /// The answer had begun.
        begun: bool,
        /// What the client saw.
        error: String,
    },
}

/// How the requests of a wave ended.
#[derive(Clone, Default, Debug)]
pub struct Tally {
    /// Right answers whose prefill was local.
    pub local: usize,
    /// Right answers whose prefill was remote.
    pub remote: usize,
    /// Given up by clients.
    pub cancelled: usize,
    /// Streams that ended with one error event.
    pub interrupted: usize,
    /// All else, and how often.
    pub failed: BTreeMap<String, usize>,
}

impl Tally {
    /// Right answers.
    pub fn right(&self) -> usize {
        self.local + self.remote
    }

    /// Adds one.
    pub fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Right { remote: true } => self.remote += 1,
            Outcome::Right { remote: false } => self.local += 1,
            Outcome::Cancelled => self.cancelled += 1,
            Outcome::Interrupted => self.interrupted += 1,
            Outcome::Refused { .. } | Outcome::Broken { .. } => {
                *self.failed.entry(format!("{outcome:?}")).or_default() += 1;
            }
        }
    }
}

/// When a client gives up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Patience {
    Endless,
    /// Unless the answer has begun by then.
    Waits(Duration),
    /// After so many events of the answer.
    Reads(usize),
}

/// A client of one router, with prompts whose answers it knows.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: Arc<str>,
    known: Arc<[Known]>,
}

impl Client {
    /// Asks for the answer of each prompt, one after another.
    pub async fn learn(url: &str, prompts: Vec<(Vec<u32>, u32)>) -> Self {
        let mut client = Self { http: http_client(), url: url.into(), known: Arc::default() };
        let mut known = Vec::new();
        for (prompt, max_tokens) in prompts {
            let prompt = Known { prompt, max_tokens, answer: String::new() };
            let body = body(&prompt, false, None);
            let response = client.post(&body).await.expect("an answer");
            let answer = crate::openai::completion(response).await.text;
            known.push(Known { answer, ..prompt });
        }
        client.known = known.into();
        client
    }

    /// Sends a wave and waits for its end.
    pub async fn wave(&self, wave: Wave) -> Tally {
        let mut random = Random::new(wave.seed);
        let requests: Vec<_> = (0..wave.requests).map(|_| self.random_request(&wave, &mut random)).collect();
        let mut outcomes = futures::stream::iter(requests).buffer_unordered(wave.in_flight);
        let mut tally = Tally::default();
        while let Some(outcome) = outcomes.next().await {
            tally.add(&outcome);
        }
        tally
    }

    /// Keeps so many requests in flight until `stop` resolves, and lets those under way end. Nobody gives up. Gives
    /// each outcome with the times at which its request began and ended.
    pub async fn keep_busy(
        &self,
        in_flight: usize,
        seed: u64,
        stop: impl Future<Output = ()>,
    ) -> Vec<(Instant, Instant, Outcome)> {
        let mut random = Random::new(seed);
        let wave = Wave { requests: 0, in_flight, cancelled_percent: 0, seed };
        let mut running = futures::stream::FuturesUnordered::new();
        let (mut ended, mut stopped) = (Vec::new(), false);
        let mut stop = std::pin::pin!(stop);
        loop {
            while !stopped && running.len() < in_flight {
                let request = self.random_request(&wave, &mut random);
                running.push(async move {
                    let begun = Instant::now();
                    let outcome = request.await;
                    (begun, Instant::now(), outcome)
                });
            }
            tokio::select! {
                outcome = running.next() => match outcome {
                    Some(outcome) => ended.push(outcome),
                    None => return ended,
                },
                () = &mut stop, if !stopped => stopped = true,
            }
        }
    }

    fn random_request(&self, wave: &Wave, random: &mut Random) -> impl Future<Output = Outcome> + use<> {
        let known = self.known[random.below(self.known.len() as u64) as usize].clone();
        let mut patience = Patience::Endless;
        if random.below(100) < wave.cancelled_percent {
            patience = if random.below(2) == 0 {
                Patience::Waits(Duration::from_millis(random.below(60)))
            } else {
                Patience::Reads(random.below(known.max_tokens.into()) as usize)
            };
        }
        // Half of the prompts share a cache, the others have none.
        let salt = (random.below(2) == 0).then(|| format!("{:x}", random.number()));
        let stream = matches!(patience, Patience::Reads(_)) || random.below(4) > 0;
        let client = self.clone();
        async move {
            let sent = client.request(&known, stream, salt, patience);
            within("the end of a request", REQUEST, sent).await
        }
    }

    async fn post(&self, body: &Value) -> reqwest::Result<reqwest::Response> {
        let request = self.http.post(format!("{}/v1/completions", self.url)).json(body);
        request.send().await
    }

    async fn request(
        &self,
        known: &Known,
        stream: bool,
        salt: Option<String>,
        patience: Patience,
    ) -> Outcome {
        let body = body(known, stream, salt);
        let response = match patience {
            Patience::Waits(patience) => match tokio::time::timeout(patience, self.post(&body)).await {
                // It was quick; it gives up all the same.
                Ok(_) | Err(_) => return Outcome::Cancelled,
            },
            Patience::Endless | Patience::Reads(_) => self.post(&body).await,
        };
        let response = match response {
            Ok(response) => response,
            Err(error) => return Outcome::Broken { begun: false, error: causes(&error) },
        };
        if response.status() != 200 {
            let status = response.status().as_u16();
            let message = response.text().await.unwrap_or_else(|error| causes(&error));
            return Outcome::Refused { status, message };
        }
        let remote = PlacementHeader::of(&response).remote;
        let text = if stream {
            let events = if let Patience::Reads(events) = patience { events } else { usize::MAX };
            match read(response, events).await {
                Ok(text) => text,
                Err(outcome) => return outcome,
            }
        } else {
            match response.json::<crate::openai::Completion>().await {
                Ok(body) => body.choices[0].text.clone(),
                Err(error) => return Outcome::Broken { begun: true, error: causes(&error) },
            }
        };
        assert_eq!(text, known.answer, "another answer under load, remote: {remote}, {body}");
        Outcome::Right { remote }
    }
}

/// The text of a stream; `Err` unless it came whole. Given up after `events` events.
async fn read(response: reqwest::Response, events: usize) -> Result<String, Outcome> {
    let mut parser = SseParser::default();
    let mut body = response.bytes_stream();
    let (mut text, mut finish, mut seen) = (String::new(), None, 0);
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| Outcome::Broken { begun: true, error: causes(&error) })?;
        for event in parser.push(&piece) {
            assert_eq!(finish, None, "an event after the end: {event}");
            if seen == events {
                return Err(Outcome::Cancelled);
            }
            seen += 1;
            let event: Value = serde_json::from_str(&event).expect("JSON");
            let choice = &event["choices"][0];
            text += choice["text"].as_str().expect("text");
            finish = choice["finish_reason"].as_str().map(ToOwned::to_owned);
            assert_eq!(
                event.get("error").is_some(),
                finish.as_deref() == Some("error"),
                "an error and its finish reason come together: {event}"
            );
        }
    }
    parser.finish();
    match finish.as_deref() {
        Some("error") => Err(Outcome::Interrupted),
        Some("length") => Ok(text),
        other => panic!("a stream ended with {other:?}"),
    }
}

fn body(known: &Known, stream: bool, salt: Option<String>) -> Value {
    let mut body = json!({
        "model": MODEL, "prompt": known.prompt, "max_tokens": known.max_tokens, "ignore_eos": true,
        "temperature": 0, "stream": stream,
    });
    if let Some(salt) = salt {
        body["cache_salt"] = salt.into();
    }
    body
}

/// An error with all that caused it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
