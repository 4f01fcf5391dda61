//! Steady load on an OpenAI-compatible server, for a pod of the cluster tests: see `disagg_e2e::cluster::LoadPlan`.
//! Prints one JSON line for each request when it has ended, and after SIGTERM, when all have, how many there were.

#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use disagg_e2e::cluster::{LoadLine, LoadPlan, LoadRequest, PLAN_ENV};
use disagg_e2e::eventually;
use futures::StreamExt as _;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

/// Longest time of one request.
const REQUEST: Duration = Duration::from_mins(2);

/// Longest time until a Service that is ready answers on this node.
const REACHABLE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() {
    let plan = std::env::var(PLAN_ENV).expect(PLAN_ENV);
    let plan: Arc<LoadPlan> = Arc::new(serde_json::from_str(&plan).expect(PLAN_ENV));
    let mut terminated = signal(SignalKind::terminate()).expect("a handler for SIGTERM");
    reachable(&plan.url).await;
    let (end, ended) = watch::channel(false);
    let count = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..plan.clients)
        .map(|client| tokio::spawn(run_client(client, plan.clone(), count.clone(), ended.clone())))
        .collect();
    terminated.recv().await;
    end.send_replace(true);
    for client in clients {
        client.await.expect("a client");
    }
    print(&LoadLine::End(count.load(Ordering::Relaxed)));
}

/// Waits until something answers. Each node learns by itself that the pods behind a Service are ready, a moment after the
/// deployment's status tells of them.
async fn reachable(url: &str) {
    let http =
        disagg_worker::https::client_builder(url).no_proxy().timeout(REQUEST).build().expect("a client");
    eventually("the Service to answer", REACHABLE, async || {
        let answer = http.get(format!("{url}/v1/models")).send().await;
        answer.map(|_| ()).map_err(|error| format!("{error:?}"))
    })
    .await;
}

fn print(line: &LoadLine) {
    println!("{}", json!(line));
}

async fn run_client(
    number: u32,
    plan: Arc<LoadPlan>,
    count: Arc<AtomicUsize>,
    mut ended: watch::Receiver<bool>,
) {
    let keep = if number.is_multiple_of(2) { usize::MAX } else { 0 };
    let builder = disagg_worker::https::client_builder(&plan.url).no_proxy();
    let http = builder.pool_max_idle_per_host(keep).timeout(REQUEST).build().expect("a client");
    // Out of step with each other.
    tokio::time::sleep(Duration::from_millis(plan.pause_ms * u64::from(number) / u64::from(plan.clients)))
        .await;
    for turn in number as usize.. {
        let prompt = turn % plan.prompt_tokens.len();
        // Not in step with the prompts, so that each of them is sent both ways.
        let stream = plan.streams_only || (turn / plan.prompt_tokens.len()).is_multiple_of(2);
        let request = send(&http, &plan, number, prompt, stream, turn).await;
        count.fetch_add(1, Ordering::Relaxed);
        print(&LoadLine::Request(request));
        let pause = tokio::time::sleep(Duration::from_millis(plan.pause_ms));
        tokio::select! {
            () = pause => {}
            _ = ended.wait_for(|ended| *ended) => return,
        }
        if *ended.borrow() {
            return;
        }
    }
}

async fn send(
    http: &Client,
    plan: &LoadPlan,
    client: u32,
    prompt: usize,
    stream: bool,
    turn: usize,
) -> LoadRequest {
    let sent = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    let start = Instant::now();
    let mut request = LoadRequest {
        client,
        prompt,
        stream,
        sent_ms: u64::try_from(sent.as_millis()).expect("a time before the year 500 million"),
        first_ms: None,
        total_ms: 0.0,
        placement: None,
        fingerprint: None,
        text: None,
        error: None,
    };
    let body = json!({
        "model": plan.model,
        "prompt": prompt_of(plan.prompt_tokens[prompt], prompt),
        "max_tokens": plan.max_tokens,
        "temperature": 0,
        "ignore_eos": true,
        "stream": stream,
        // Nothing of it is cached, so a long prompt is worth a remote prefill each time.
        "cache_salt": format!("{client}-{turn}-{}", request.sent_ms),
    });
    let url = format!("{}/v1/completions", plan.url);
    let answer = async {
        let response = http.post(url).json(&body).send().await.map_err(|error| format!("{error:?}"))?;
        let placement = response.headers().get("x-disagg-placement").and_then(|value| value.to_str().ok());
        request.placement = placement.map(ToOwned::to_owned);
        if !response.status().is_success() {
            let status = response.status();
            return Err(format!("{status}: {}", response.text().await.unwrap_or_default()));
        }
        if stream { read_stream(response, start, &mut request).await } else { read_whole(response).await }
    };
    match answer.await {
        Ok((text, fingerprint)) => (request.text, request.fingerprint) = (Some(text), Some(fingerprint)),
        Err(error) => request.error = Some(error),
    }
    request.total_ms = milliseconds(start);
    if !stream && request.error.is_none() {
        request.first_ms = Some(request.total_ms);
    }
    request
}

/// A prompt that every small model knows, each with its own noise.
fn prompt_of(length: u32, number: usize) -> Vec<u32> {
    (0..length)
        .map(|at| 3 + (at.wrapping_mul(2_654_435_761) >> 16).wrapping_add(number as u32 * 31) % 250)
        .collect()
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// The text of an answer and the model's fingerprint.
async fn read_whole(response: Response) -> Result<(String, String), String> {
    let body: Value = response.json().await.map_err(|error| format!("{error:?}"))?;
    let choice = &body["choices"][0];
    let (finish, fingerprint) = (choice["finish_reason"].as_str(), body["system_fingerprint"].as_str());
    match (choice["text"].as_str(), finish, fingerprint) {
        (Some(text), Some("length"), Some(fingerprint)) => Ok((text.to_owned(), fingerprint.to_owned())),
        _ => Err(format!("not a whole answer: {body}")),
    }
}

/// The same of a stream that ended as it should. All of it comes from one model.
async fn read_stream(
    response: Response,
    start: Instant,
    request: &mut LoadRequest,
) -> Result<(String, String), String> {
    let mut body = response.bytes_stream();
    let (mut pending, mut text, mut finish, mut done) = (Vec::new(), String::new(), None, false);
    let mut fingerprint: Option<String> = None;
    while let Some(piece) = body.next().await {
        pending.extend_from_slice(&piece.map_err(|error| format!("{error:?}"))?);
        while let Some(end) = pending.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = pending.drain(..end + 2).collect();
            let event = String::from_utf8(event).map_err(|error| error.to_string())?;
            let Some(data) = event.trim_end().strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                done = true;
                continue;
            }
            let data: Value = serde_json::from_str(data).map_err(|error| format!("{error}: {data}"))?;
            if data.get("error").is_some() {
                return Err(data.to_string());
            }
            request.first_ms.get_or_insert_with(|| milliseconds(start));
            let model = data["system_fingerprint"].as_str().unwrap_or_default();
            if fingerprint.get_or_insert_with(|| model.to_owned()) != model {
                return Err(format!("{fingerprint:?} and {model} in one stream"));
            }
            text += data["choices"][0]["text"].as_str().unwrap_or_default();
            finish = data["choices"][0]["finish_reason"].as_str().map(ToOwned::to_owned).or(finish);
        }
    }
    match (finish.as_deref(), done, fingerprint) {
        (Some("length"), true, Some(fingerprint)) => Ok((text, fingerprint)),
        _ => Err(format!("the stream ended early: finish_reason {finish:?}, [DONE] {done}")),
    }
}
