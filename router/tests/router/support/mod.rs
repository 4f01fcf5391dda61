//! The router under test, its client, and fake workers.

pub mod api_server;
pub mod fake;
pub mod raw;
mod script;
pub mod tokenizer;

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use disagg_router::{Listeners, RouterArgs};
use fake::FakeWorker;
use futures::StreamExt;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

/// Everything that is waited for comes well within this, or the test fails.
pub const SOON: Duration = Duration::from_secs(20);

/// A router in front of some workers.
pub struct TestRouter {
    pub address: SocketAddr,
    /// Of what is not for clients.
    pub admin: SocketAddr,
    client: reqwest::Client,
    shutdown: Option<oneshot::Sender<()>>,
    pub task: JoinHandle<anyhow::Result<()>>,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: String,
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: RouterArgs,
}

impl TestRouter {
    /// Starts a router for `workers` with further `flags`.
    pub async fn start(workers: &[&FakeWorker], flags: &[&str]) -> Self {
        let addresses: Vec<String> = workers.iter().map(|worker| worker.address.to_string()).collect();
        Self::start_for(&addresses, flags).await
    }

    /// Starts a router for addresses where there may be nobody yet.
    pub async fn start_for(addresses: &[String], flags: &[&str]) -> Self {
        let workers = addresses.iter().flat_map(|address| ["--worker", address.as_str()]);
        let flags: Vec<String> = workers.chain(flags.iter().copied()).map(str::to_owned).collect();
        Self::start_with(&flags).await
    }

    /// Starts a router with these flags alone.
    pub async fn start_with(flags: &[String]) -> Self {
        let argv = ["router"].into_iter().chain(flags.iter().map(String::as_str));
        let args = Cli::try_parse_from(argv).expect("valid flags").args;
        let listen = || TcpListener::bind("127.0.0.1:0");
        let listeners =
            Listeners { api: listen().await.expect("a port"), admin: listen().await.expect("a port") };
        let address = |listener: &TcpListener| listener.local_addr().expect("an address");
        let (address, admin) = (address(&listeners.api), address(&listeners.admin));
        let (shutdown, wait) = oneshot::channel();
        let stop = async move {
            let _ = wait.await;
        };
        let task = tokio::spawn(disagg_router::serve(args, listeners, stop));
        // All is plain HTTP here, but reqwest wants a provider of TLS; installed by the first test of a process.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().expect("a client");
        Self { address, admin, client, shutdown: Some(shutdown), task }
    }

    /// Tells the router to end.
    pub fn shut_down(&mut self) {
        if let Some(shutdown) = self.shutdown.take() {
            let _ = shutdown.send(());
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn get(&self, path: &str) -> Answer {
        read(self.client.get(self.url(path)).send().await.expect("an answer")).await
    }

    /// GET of what is not for clients.
    pub async fn admin(&self, path: &str) -> Answer {
        let url = format!("http://{}{path}", self.admin);
        read(self.client.get(url).send().await.expect("an answer")).await
    }

    /// Sends a request and waits for the headers of its answer.
    pub async fn send(&self, path: &str, body: &Value) -> reqwest::Response {
        let request = self.client.post(self.url(path)).json(body);
        timeout(SOON, request.send()).await.expect("in time").expect("an answer")
    }

    /// Sends a request and reads its answer to the end.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        read(self.send(path, body).await).await
    }

    pub async fn post_raw(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        self.post_as("application/json", path, body).await
    }

    /// Sends a body of this type.
    pub async fn post_as(&self, content_type: &str, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        let request = self.client.post(self.url(path)).header("content-type", content_type).body(body);
        read(request.send().await.expect("an answer")).await
    }

    /// What a gauge or counter of `/metrics` says; 0 if it is not there.
    pub async fn metric(&self, name: &str) -> f64 {
        let metrics = self.admin("/metrics").await.body;
        let line = metrics.lines().find(|line| line.split(' ').next() == Some(name));
        line.and_then(|line| line.split(' ').next_back())
            .map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until nothing is held for any request.
    pub async fn until_idle(&self) {
        for gauge in ["requests_in_flight", "choices_in_flight", "bodies_arriving", "request_memory_bytes"] {
            self.until_metric(&format!("disagg_router_{gauge} 0")).await;
        }
    }

    /// A completion of `prompt`.
    pub async fn complete(&self, prompt: &str) -> Answer {
        self.post("/v1/completions", &completion(prompt)).await
    }

    /// The same in the background.
    pub fn spawn_complete(&self, body: Value) -> JoinHandle<Answer> {
        let (client, url) = (self.client.clone(), self.url("/v1/completions"));
        tokio::spawn(async move { read(client.post(url).json(&body).send().await.expect("an answer")).await })
    }

    /// The worker at an address, as `/internal/workers` has it.
    pub async fn worker(&self, address: SocketAddr) -> Value {
        let workers = self.admin("/internal/workers").await.json();
        let of_address = |worker: &&Value| worker["address"] == address.to_string();
        workers["workers"].as_array().expect("a list").iter().find(of_address).expect("known").clone()
    }

    /// Waits until a worker is as wanted.
    pub async fn until_worker(
        &self,
        address: SocketAddr,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut ticks = interval(Duration::from_millis(10));
        let wait = async {
            loop {
                ticks.tick().await;
                let worker = self.worker(address).await;
                if wanted(&worker) {
                    return worker;
                }
            }
        };
        timeout(SOON, wait).await.unwrap_or_else(|_| panic!("never {what}"))
    }

    /// Waits until workers are ready.
    pub async fn until_ready(&self, workers: &[&FakeWorker]) {
        for worker in workers {
            self.until_worker(worker.address, "ready", |worker| worker["state"] == "ready").await;
        }
    }

    /// Waits until `/metrics` has this line.
    pub async fn until_metric(&self, line: &str) {
        let mut ticks = interval(Duration::from_millis(10));
        let wait = async {
            while !self.admin("/metrics").await.body.lines().any(|found| found == line) {
                ticks.tick().await;
            }
        };
        let found = timeout(SOON, wait).await.is_ok();
        assert!(found, "no {line} in:\n{}", self.admin("/metrics").await.body);
    }
}

/// Body of a completion of `prompt`.
pub fn completion(prompt: &str) -> Value {
    serde_json::json!({ "model": "tiny", "prompt": prompt, "max_tokens": 100 })
}

/// Body of a streamed completion of `prompt`.
pub fn streamed(prompt: &str) -> Value {
    let mut body = completion(prompt);
    body["stream"] = true.into();
    body
}

async fn read(response: reqwest::Response) -> Answer {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = timeout(SOON, response.text()).await.expect("in time").expect("a whole body");
    Answer { status, headers, body }
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// The text of a completion, streamed or not.
    pub fn text(&self) -> String {
        let text_of = |value: &Value| value["choices"][0]["text"].as_str().unwrap_or_default().to_owned();
        if self.body.starts_with("data:") {
            self.chunks().iter().map(text_of).collect()
        } else {
            text_of(&self.json())
        }
    }

    /// The events of a stream before its `[DONE]`.
    pub fn chunks(&self) -> Vec<Value> {
        let (events, rest) = self.body.split_once("data: [DONE]\n\n").expect("an end");
        assert_eq!(rest, "", "nothing follows the end");
        let parse =
            |event: &str| serde_json::from_str(event.strip_prefix("data: ").expect("data")).expect("JSON");
        events.split_terminator("\n\n").map(parse).collect()
    }

    /// Status, headers that matter, and body without what is different every time.
    pub fn transcript(&self) -> String {
        let mut lines = vec![format!("{}", self.status)];
        for name in ["content-type", "retry-after", "x-disagg-placement"] {
            if let Some(value) = self.headers.get(name) {
                lines.push(format!("{name}: {}", value.to_str().expect("text")));
            }
        }
        lines.push(String::new());
        if self.body.starts_with("data:") {
            lines.extend(self.chunks().iter().map(|chunk| format!("data: {}", stable(chunk.clone()))));
            lines.push("data: [DONE]".to_owned());
        } else {
            let value = stable(self.json());
            lines.push(serde_json::to_string_pretty(&value).expect("JSON"));
        }
        lines.join("\n")
    }
}

/// Without ids and times.
fn stable(mut value: Value) -> Value {
    if let Some(id) = value.get("id").and_then(Value::as_str) {
        let (prefix, random) = id.split_once('-').expect("a prefix");
        assert_eq!(random.len(), 32, "{id}");
        value["id"] = format!("{prefix}-…").into();
    }
    if value.get("created").is_some() {
        value["created"] = 0.into();
    }
    value
}

/// Reads a streamed answer until its text has `wanted`; then the rest can be read from what is returned.
pub async fn read_until(
    response: reqwest::Response,
    wanted: &str,
) -> impl futures::Stream<Item = String> + Unpin {
    let mut chunks = Box::pin(response.bytes_stream().map(|chunk| {
        chunk.map_or_else(
            |error| format!("broken: {error}"),
            |chunk| String::from_utf8_lossy(&chunk).into_owned(),
        )
    }));
    let mut seen = String::new();
    while !seen.contains(wanted) {
        let chunk = timeout(SOON, chunks.next()).await.expect("in time");
        seen.push_str(&chunk.unwrap_or_else(|| panic!("no {wanted:?} in {seen}")));
    }
    chunks
}
