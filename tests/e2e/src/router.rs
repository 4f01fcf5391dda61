//! The router under test: its process, and HTTP requests to it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Response;
use serde_json::Value;

use crate::metrics::Metrics;
use crate::ports::free_address;
use crate::process::Process;
use crate::wait::eventually;

/// Longest time until it serves.
const START: Duration = Duration::from_secs(30);

/// Longest time of one whole request; tests of slow machines need less.
const REQUEST: Duration = Duration::from_mins(2);

/// One router.
pub struct Router {
    process: Process,
    arguments: Vec<String>,
    folder: PathBuf,
    lives: u32,
    url: String,
    admin: String,
    http: reqwest::Client,
}

/// An HTTP client without a proxy, whatever the environment says: everything here is on loopback.
pub fn http_client() -> reqwest::Client {
    let builder = disagg_worker::https::client_builder("http://127.0.0.1").no_proxy();
    builder.timeout(REQUEST).build().expect("an HTTP client")
}

/// Reads the metrics at this URL.
pub async fn scrape(url: &str) -> Result<Metrics, String> {
    let get = async { http_client().get(url).send().await?.error_for_status()?.text().await };
    get.await.map(|text| Metrics::parse(&text)).map_err(|error| error.to_string())
}

impl Router {
    /// Starts `disagg router` for these workers with further flags. Logs go to `folder`.
    pub fn start(workers: &[&str], flags: &[String], folder: &Path) -> Self {
        let (address, admin) = (free_address(), free_address());
        let mut arguments: Vec<String> =
            ["router", "--listen", &address, "--admin-listen", &admin, "--exit-with-stdin"]
                .map(Into::into)
                .into();
        for worker in workers {
            arguments.extend(["--worker".to_owned(), (*worker).to_owned()]);
        }
        arguments.extend_from_slice(flags);
        let process = Process::disagg("router", folder, &arguments);
        let (url, admin) = (format!("http://{address}"), format!("http://{admin}"));
        Self { process, arguments, folder: folder.to_owned(), lives: 1, url, admin, http: http_client() }
    }

    /// `kill -9`.
    pub fn kill_9(&mut self) {
        self.process.kill_9();
    }

    /// Starts it again with the same flags on the same port, and waits until it is ready.
    pub async fn restart(&mut self) {
        self.lives += 1;
        let name = format!("router.{}", self.lives);
        self.process = Process::disagg(&name, &self.folder, &self.arguments);
        self.ready().await;
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Base URL of the API.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Base URL of what is for whoever runs it: metrics, workers, settings.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// Waits until `/ready` is 200.
    pub async fn ready(&mut self) {
        eventually("the router to be ready", START, async || {
            if let Some(status) = self.process.ended() {
                panic!("the router ended with {status} before it was ready");
            }
            match self.http.get(format!("{}/ready", self.url)).send().await {
                Ok(response) if response.status() == 200 => Ok(()),
                Ok(response) => Err(format!("/ready is {}", response.status())),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Response {
        let url = format!("{}{path}", self.url);
        self.http.get(&url).send().await.unwrap_or_else(|error| panic!("GET {url}: {error}"))
    }

    /// POST of JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Response {
        self.post_text(path, body.to_string()).await
    }

    /// POST of a body that says it is JSON.
    pub async fn post_text(&self, path: &str, body: String) -> Response {
        let url = format!("{}{path}", self.url);
        let request = self.http.post(&url).header("content-type", "application/json").body(body);
        request.send().await.unwrap_or_else(|error| panic!("POST {url}: {error}"))
    }

    /// One scrape of its metrics.
    pub async fn metrics(&self) -> Metrics {
        scrape(&format!("{}/metrics", self.admin)).await.expect("metrics of the router")
    }
}

/// The header `x-disagg-placement`, taken apart: `remote; reason=above-threshold; prefill=prefill-0; decode=decode-0`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlacementHeader {
    /// Prefilled on another worker.
    pub remote: bool,
    /// Why.
    pub reason: String,
    /// The prefill worker, when remote.
    pub prefill: Option<String>,
    /// The decode worker.
    pub decode: String,
}

impl PlacementHeader {
    /// Of a response. Panics when it has none or a malformed one.
    pub fn of(response: &Response) -> Self {
        let text = response.headers().get("x-disagg-placement").expect("x-disagg-placement");
        Self::parse(text.to_str().expect("x-disagg-placement is text"))
    }

    /// Panics on anything but the form above.
    pub fn parse(text: &str) -> Self {
        let (mut reason, mut prefill, mut decode) = (None, None, None);
        let mut parts = text.split("; ");
        let remote = match parts.next() {
            Some("remote") => true,
            Some("local") => false,
            _ => panic!("x-disagg-placement: {text:?}"),
        };
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or_else(|| panic!("x-disagg-placement: {text:?}"));
            let place = match key {
                "reason" => &mut reason,
                "prefill" => &mut prefill,
                "decode" => &mut decode,
                _ => panic!("x-disagg-placement has {key:?}: {text:?}"),
            };
            assert!(place.replace(value.to_owned()).is_none(), "{key} comes twice: {text:?}");
        }
        assert_eq!(remote, prefill.is_some(), "prefill= iff remote: {text:?}");
        Self {
            remote,
            reason: reason.unwrap_or_else(|| panic!("no reason: {text:?}")),
            prefill,
            decode: decode.unwrap_or_else(|| panic!("no decode: {text:?}")),
        }
    }
}
