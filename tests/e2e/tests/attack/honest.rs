//! A client that does nothing wrong: short chats, prefilled where they are decoded, and longer prompts, prefilled
//! elsewhere, in turn. It knows each answer.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use disagg_e2e::deployment::MODEL;
use disagg_e2e::load::Random;
use disagg_e2e::router::PlacementHeader;
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::SharedField;
use crate::field::Field;

/// Longest wait for a whole answer. Longer than any bound on the first token, so that how late it is can be told.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Between the end of an answer and the next question.
const PAUSE: Duration = Duration::from_millis(10);

/// Tokens of the longer prompts.
const LONG_TOKENS: usize = 200;

/// How many failures are told before it is cut short.
const PROBLEMS_SHOWN: usize = 3;

pub(crate) struct Honest {
    target: SharedField,
    http: reqwest::Client,
    /// What was answered first to each question.
    known: Mutex<BTreeMap<usize, String>>,
}

/// Times to first tokens.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Latency {
    pub(crate) requests: usize,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// What the client has seen.
pub(crate) struct Seen {
    times: Vec<Duration>,
    /// Longer prompts, and how many of them were prefilled elsewhere.
    long: usize,
    remote: usize,
    failures: Vec<String>,
}

struct Answer {
    first_token: Duration,
    text: String,
    remote: bool,
}

impl Honest {
    pub(crate) fn new(field: &Field) -> Self {
        let builder = disagg_worker::https::client_builder("http://127.0.0.1").no_proxy();
        // Every request comes over a connection of its own, as from a client that was not there before.
        let http = builder.pool_max_idle_per_host(0).build().expect("an HTTP client");
        Self { target: field.target(), http, known: Mutex::default() }
    }

    /// So many requests, one after another.
    pub(crate) async fn requests(&self, count: usize) -> Seen {
        let mut seen = Seen { times: Vec::new(), long: 0, remote: 0, failures: Vec::new() };
        for number in 0..count {
            self.ask(number, &mut seen).await;
        }
        seen
    }

    /// Requests one after another for this long, and one more than one at least.
    pub(crate) async fn while_attacked(&self, time: Duration) -> Seen {
        let mut seen = Seen { times: Vec::new(), long: 0, remote: 0, failures: Vec::new() };
        let (begun, mut number) = (Instant::now(), 0);
        while number < 2 || begun.elapsed() < time {
            self.ask(number, &mut seen).await;
            number += 1;
        }
        seen
    }

    async fn ask(&self, number: usize, seen: &mut Seen) {
        // Three short chats, then one of two longer prompts.
        let question = if number % 4 == 3 { 1 + number / 4 % 2 } else { 0 };
        let asked = tokio::time::timeout(ANSWER_MAX, self.stream(question)).await;
        match asked {
            Ok(Ok(answer)) => {
                seen.times.push(answer.first_token);
                if question > 0 {
                    seen.long += 1;
                    seen.remote += usize::from(answer.remote);
                }
                let mut known = self.known.lock().expect("nobody panics with it");
                let first = known.entry(question).or_insert_with(|| answer.text.clone());
                if *first != answer.text || answer.text.is_empty() {
                    seen.failures
                        .push(format!("another answer than before: {:?}, not {first:?}", answer.text));
                }
            }
            Ok(Err(why)) => seen.failures.push(why),
            Err(_) => {
                seen.times.push(ANSWER_MAX);
                seen.failures.push(format!("no answer in {ANSWER_MAX:?}"));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }

    async fn stream(&self, question: usize) -> Result<Answer, String> {
        let mut body = json!({
            "model": MODEL, "max_tokens": 4, "ignore_eos": true, "temperature": 0, "stream": true,
        });
        let path = if question == 0 {
            body["messages"] = json!([{"role": "user", "content": "Hi"}]);
            "chat/completions"
        } else {
            let mut random = Random::new(self.target.seed + question as u64);
            let prompt: Vec<u64> = (0..LONG_TOKENS).map(|_| 3 + random.below(250)).collect();
            body["prompt"] = json!(prompt);
            // Nothing of it is cached.
            body["cache_salt"] = json!(unique().to_string());
            "completions"
        };
        let begun = Instant::now();
        let url = format!("http://{}/v1/{path}", self.target.router);
        let response = self.http.post(url).json(&body).send().await.map_err(|error| cause(&error))?;
        if response.status() != 200 {
            let status = response.status();
            return Err(format!("{status}: {}", response.text().await.unwrap_or_default()));
        }
        let remote = PlacementHeader::of(&response).remote;
        let mut pieces = response.bytes_stream();
        let mut bytes =
            pieces.next().await.ok_or("an empty stream")?.map_err(|error| cause(&error))?.to_vec();
        let first_token = begun.elapsed();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece.map_err(|error| cause(&error))?);
        }
        Ok(Answer { first_token, text: text(&String::from_utf8_lossy(&bytes))?, remote })
    }
}

/// The text of a stream that has ended well.
fn text(body: &str) -> Result<String, String> {
    let events: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let [events @ .., "[DONE]"] = events.as_slice() else { return Err(format!("not ended: {body}")) };
    let mut text = String::new();
    for event in events {
        let event: Value = serde_json::from_str(event).map_err(|error| format!("{error}: {event}"))?;
        if event.get("error").is_some() || event["choices"][0]["finish_reason"] == "error" {
            return Err(format!("broke off: {event}"));
        }
        let choice = &event["choices"][0];
        text.push_str(choice["text"].as_str().or(choice["delta"]["content"].as_str()).unwrap_or_default());
    }
    Ok(text)
}

fn cause(error: &reqwest::Error) -> String {
    disagg_worker::https::causes(error)
}

/// Another number at every call.
fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Seen {
    pub(crate) fn latency(&self) -> Latency {
        let mut times = self.times.clone();
        times.sort();
        let at = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100);
            times.get(rank.saturating_sub(1)).copied().unwrap_or(ANSWER_MAX)
        };
        Latency { requests: times.len(), p50: at(50), p99: at(99) }
    }

    pub(crate) fn problems(&self, when: &str) -> Vec<String> {
        let mut problems: Vec<String> = self
            .failures
            .iter()
            .take(PROBLEMS_SHOWN)
            .map(|failure| format!("{when}, the honest client got: {failure:.300}"))
            .collect();
        if self.failures.len() > PROBLEMS_SHOWN {
            problems.push(format!("{when}, it got {} such answers", self.failures.len()));
        }
        // The way between workers is attacked too.
        if self.long > 0 && self.remote == 0 && self.failures.is_empty() {
            problems.push(format!("{when}, none of {} long prompts was prefilled elsewhere", self.long));
        }
        problems
    }
}
