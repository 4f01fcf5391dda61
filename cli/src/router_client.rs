//! What the CLI asks a router: its workers, its settings, and whether it can serve.
//!
//! Fields that are missing get a default, so that a newer CLI can talk to an older router.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use disagg_api::kubernetes::{SETTINGS_PATH, SettingsReport, WORKERS_PATH};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The router is near: what takes longer will not come.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Asks one router over its admin port.
#[derive(Clone)]
pub(crate) struct RouterClient {
    url: String,
    http: reqwest::Client,
}

/// Where the admin port of a router on this machine is, unless its ports were chosen.
pub(crate) const ADMIN_URL: &str = "http://127.0.0.1:8182";

/// Answer of `GET /internal/workers`.
#[derive(Deserialize, Clone, PartialEq, Debug)]
pub(crate) struct Workers {
    pub(crate) workers: Vec<Worker>,
}

/// One worker as the router sees it.
#[derive(Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(default)]
pub(crate) struct Worker {
    pub(crate) address: String,
    pub(crate) name: Option<String>,
    pub(crate) role: Option<String>,
    /// `joining`, `ready`, `draining`, `suspect` or `gone`.
    pub(crate) state: String,
    /// Of one life of the process.
    pub(crate) epoch: Option<String>,
    pub(crate) load: Load,
    /// Requests of this router that run there.
    pub(crate) in_flight: u64,
    /// Ways for KV to come and go.
    pub(crate) transports: Vec<String>,
    /// Why it is not ready.
    pub(crate) problem: Option<String>,
    /// KV goes only between workers where this is equal.
    pub(crate) kv_compat: Option<String>,
}

/// A worker's own report.
#[derive(Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(default)]
pub(crate) struct Load {
    pub(crate) running: u32,
    pub(crate) waiting: u32,
    pub(crate) awaiting_kv: u32,
    pub(crate) blocks_total: u32,
    pub(crate) blocks_used: u32,
    pub(crate) blocks_quarantined: u32,
    pub(crate) prefill_queue: u32,
}

/// Answer of `GET /internal/settings`.
#[derive(Deserialize, Clone, PartialEq, Debug)]
pub(crate) struct Settings {
    /// What is in force: flat keys, as in the ConfigMap.
    #[serde(rename = "settings")]
    pub(crate) values: BTreeMap<String, serde_json::Value>,
    /// Path of the watched file, or `flags`.
    #[serde(default)]
    source: String,
    /// Why the file, as it is now, is not in force.
    #[serde(default)]
    pub(crate) problem: Option<String>,
}

impl Settings {
    /// The watched file, if there is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        (!self.source.is_empty() && self.source != "flags").then(|| Path::new(&self.source))
    }
}

impl RouterClient {
    /// `url` is that of the router's admin port, for example [`ADMIN_URL`].
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        let http = disagg_worker::https::client_builder(url).timeout(TIMEOUT).build();
        let http = http.with_context(|| format!("cannot make an HTTP client for {url}"))?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), http })
    }

    /// The workers, by name.
    pub(crate) async fn workers(&self) -> anyhow::Result<Workers> {
        self.get(WORKERS_PATH).await
    }

    /// The settings in force.
    pub(crate) async fn settings(&self) -> anyhow::Result<Settings> {
        self.get(SETTINGS_PATH).await
    }

    /// The same as the router and the operator exchange it.
    pub(crate) async fn settings_report(&self) -> anyhow::Result<SettingsReport> {
        self.get(SETTINGS_PATH).await
    }

    /// What keeps the router from being ready; `None` if it is ready.
    pub(crate) async fn not_ready_because(&self) -> anyhow::Result<Option<String>> {
        let url = format!("{}/ready", self.url);
        let response = self.http.get(&url).send().await;
        let response = response.with_context(|| format!("no router answers at {}", self.url))?;
        if response.status().is_success() {
            return Ok(None);
        }
        let answer: serde_json::Value = response.json().await.unwrap_or_default();
        Ok(Some(answer["reason"].as_str().unwrap_or("it does not say why").to_owned()))
    }

    /// The text of `/metrics`.
    pub(crate) async fn metrics(&self) -> anyhow::Result<String> {
        let response = self.response("/metrics").await?;
        response.text().await.with_context(|| format!("{} breaks off its metrics", self.url))
    }

    /// Whether requests can be served. The router being absent counts as no.
    pub(crate) async fn is_ready(&self) -> bool {
        self.answers("/ready").await
    }

    /// Whether the router is there.
    pub(crate) async fn is_alive(&self) -> bool {
        self.answers("/health").await
    }

    async fn answers(&self, path: &str) -> bool {
        let response = self.http.get(format!("{}{path}", self.url)).send().await;
        response.is_ok_and(|response| response.status().is_success())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let response = self.response(path).await?;
        let url = response.url().clone();
        response.json().await.with_context(|| format!("{url} answers something else; is it a disagg router?"))
    }

    async fn response(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        let url = format!("{}{path}", self.url);
        let response = self.http.get(&url).send().await;
        let response = response.with_context(|| format!("no router answers at {}", self.url))?;
        let status = response.status();
        if !status.is_success() {
            bail!("{url} answers {status}; is it the admin port of a disagg router (its --admin-listen)?");
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::ADMIN_URL;
    use disagg_api::kubernetes::ROUTER_ADMIN_PORT;

    #[test]
    fn the_admin_port_is_that_of_routers_everywhere() {
        assert_eq!(ADMIN_URL, format!("http://127.0.0.1:{ROUTER_ADMIN_PORT}"));
    }
}
