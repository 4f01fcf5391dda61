//! Models from a hub, over HTTP: what is asked for, what lands in the cache, and what is said when it goes wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

mod fake;
mod faults;
mod refusals;
mod whole;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use disagg_worker::hub::{self, HubConfig, HubError, HubModel};
use disagg_worker::model::LoadFormat;
use fake::FakeHub;
use serde_json::json;
use tempfile::TempDir;

/// Everything here is on loopback and small; what takes longer hangs.
const DEADLINE: Duration = Duration::from_mins(1);

/// Two shards, so that several files come at once.
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// Bytes that no two files share.
fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(next).collect()
}

fn config_json() -> Vec<u8> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    });
    config.to_string().into_bytes()
}

/// A model as publishers lay it out, with much that a worker does not need.
fn model_files() -> Vec<(&'static str, Vec<u8>)> {
    let map = json!({"metadata": {}, "weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}});
    vec![
        (".gitattributes", content(1, 100)),
        ("README.md", content(2, 20_000)),
        ("LICENSE", content(3, 3000)),
        ("config.json", config_json()),
        ("generation_config.json", b"{}".to_vec()),
        ("tokenizer.json", content(4, 40_000)),
        ("tokenizer_config.json", b"{ }".to_vec()),
        ("chat_template.jinja", b"{{ messages }}".to_vec()),
        ("model.safetensors.index.json", map.to_string().into_bytes()),
        (SHARDS[0], content(5, 3_000_000)),
        (SHARDS[1], content(6, 2_000_000)),
        ("pytorch_model.bin", content(7, 30_000)),
        ("original", content(8, 30_000)),
    ]
}

/// The files of [`model_files`] that a worker needs.
const NEEDED: [&str; 8] = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// One user's side: a cache of its own, and what was said to the user.
struct Home {
    /// Removed at the end.
    folder: TempDir,
    config: HubConfig,
    said: Arc<Mutex<Vec<String>>>,
}

impl Home {
    /// What `HF_HOME` would be.
    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn new(hub: &FakeHub) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = HubConfig {
            endpoint: hub.url.clone(),
            cache: folder.path().join("hub"),
            token: None,
            offline: false,
            silence: Duration::from_millis(300),
            retry_wait: Duration::from_millis(5),
            no_bars: true,
        };
        Self { folder, config, said: Arc::default() }
    }

    /// With a token as the environment gives it.
    fn with_token(hub: &FakeHub, token: &str) -> Self {
        let mut home = Self::new(hub);
        let variables = |name: &str| match name {
            "HF_HOME" => Some("/nonexistent".into()),
            "HF_TOKEN" => Some(token.into()),
            _ => None,
        };
        home.config.token = HubConfig::from(variables).unwrap().token;
        home
    }

    async fn fetch(&self, model: &str) -> Result<PathBuf, HubError> {
        self.fetch_as(model, LoadFormat::Auto).await
    }

    async fn fetch_as(&self, model: &str, format: LoadFormat) -> Result<PathBuf, HubError> {
        let model: HubModel = model.parse().unwrap();
        let said = Arc::clone(&self.said);
        let lines: hub::Lines = Arc::new(move |line| said.lock().unwrap().push(line.to_owned()));
        let fetch = hub::fetch(&model, format, &self.config, lines);
        tokio::time::timeout(DEADLINE, fetch).await.expect("it ends by itself")
    }

    /// The message of a fetch that must fail.
    async fn failure(&self, model: &str) -> String {
        self.fetch(model).await.unwrap_err().to_string()
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }

    fn blob(&self, hash: &str) -> PathBuf {
        self.config.cache.join("models--org--name/blobs").join(hash)
    }
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
