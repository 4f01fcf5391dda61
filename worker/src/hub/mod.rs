//! Models from the Hugging Face hub: `--model ORG/NAME[@REVISION]` becomes a folder in the cache.
//!
//! Only what a worker reads is fetched: `config.json` first, so that a model which we cannot serve costs nothing, then
//! the files of the model card, then the safetensors. Variables and cache are those of Python's `huggingface_hub`, so
//! a model that either has fetched is there for both.
//!
//! Names and cache layout are hf-hub's. The transfer is our own, because that of hf-hub 0.5 has no time limits, does
//! not check a file's size or hash, appends the whole file when a server answers a range with all of it, and cannot
//! go on from a part that happens to be complete (it asks for a range beyond the end, and fails with 416 for good). A
//! worker in a pod meets all of these. The Xet protocol of hf-hub 1 is left out: the hub serves every file by plain
//! HTTP too.

mod blob;
mod cache;
mod client;
mod config;
mod error;
mod id;
mod progress;

use std::path::PathBuf;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use blob::{FRUITLESS_TRIES, Fetch, is_whole, retried};
use cache::ModelCache;
use client::{Client, RemoteFile, Revision};
pub use config::{HubConfig, Token};
pub use error::HubError;
pub use id::{BadHubModel, HubModel, ModelRef};
pub use progress::Lines;
use progress::Progress;

use crate::model::config::CONFIG_FILE;
use crate::model::weights::{INDEX_FILE, SINGLE_FILE, weight_files};
use crate::model::{CARD_FILES, LoadFormat, ModelSpec};

/// Files that are fetched at the same time: one connection to the hub's storage is slower than most networks.
const CONCURRENT_FILES: usize = 4;

/// The folder of a model, complete; downloaded if it is not in the cache. Blocks the thread now and then for a disk
/// access, so it belongs where nothing is served yet. Dropping the future ends the download; what has come is kept.
pub async fn fetch(
    model: &HubModel,
    format: LoadFormat,
    config: &HubConfig,
    lines: Lines,
) -> Result<PathBuf, HubError> {
    let cache = ModelCache::new(&config.cache, model);
    let weights = format == LoadFormat::Auto;
    let cached = cache.complete(model, weights);
    if config.offline {
        return cached.ok_or_else(|| HubError::Offline { model: model.clone(), cache: config.cache.clone() });
    }
    // A commit never changes.
    if let Some(folder) = cached.clone().filter(|_| model.is_commit()) {
        return Ok(folder);
    }
    let client = Client::new(config)?;
    let what = format!("asking {} for {model}", config.endpoint);
    let tries = if cached.is_some() { 1 } else { FRUITLESS_TRIES };
    let asked = retried(&what, tries, config.retry_wait, async || client.revision(model).await).await;
    let revision = match (asked, cached) {
        (Ok(revision), _) => revision,
        (Err(error @ HubError::Connection { .. }), Some(folder)) => {
            lines(&format!("{error}. Using {model} as it is in the cache"));
            return Ok(folder);
        }
        (Err(error), _) => return Err(error),
    };
    let download = Download { model, config, client, cache, revision, lines };
    download.run(weights).await
}

/// One model's way into the cache.
struct Download<'a> {
    model: &'a HubModel,
    config: &'a HubConfig,
    client: Client,
    cache: ModelCache,
    revision: Revision,
    lines: Lines,
}

impl Download<'_> {
    async fn run(&self, weights: bool) -> Result<PathBuf, HubError> {
        let folder = self.cache.snapshot(&self.revision.commit);
        self.get(&[self.needed(CONFIG_FILE)?]).await?;
        let unsupported = |source| HubError::Model { model: self.model.clone(), source: Box::new(source) };
        ModelSpec::read(&folder).map_err(unsupported)?;

        let mut files: Vec<&RemoteFile> =
            CARD_FILES.iter().filter_map(|name| self.revision.files.get(*name)).collect();
        if weights {
            self.needed("tokenizer.json")?;
            if let Some(single) = self.revision.files.get(SINGLE_FILE) {
                files.push(single);
            } else if let Some(index) = self.revision.files.get(INDEX_FILE) {
                self.get(&[index]).await?;
                for name in weight_files(&folder).map_err(unsupported)? {
                    files.push(self.needed(&name)?);
                }
            } else {
                return Err(self.unusable(self.no_safetensors()));
            }
        }
        self.get(&files).await?;
        self.cache.set_ref(self.model, &self.revision.commit)?;
        Ok(folder)
    }

    /// Has these files in the folder when it returns.
    async fn get(&self, files: &[&RemoteFile]) -> Result<(), HubError> {
        let missing = |file: &&&RemoteFile| !is_whole(&self.cache.blob(file.hash.as_str()), file);
        if files.iter().any(|file| missing(&file)) {
            let total = files.iter().map(|file| file.size).sum();
            self.check_space(files.iter().filter(missing).map(|file| file.size).sum())?;
            let what = format!("downloading {}", self.model);
            let progress = Progress::new(what, total, self.config.no_bars, self.lines.clone());
            let fetch = Fetch {
                client: &self.client,
                cache: &self.cache,
                model: self.model,
                commit: &self.revision.commit,
                root: &self.config.cache,
                retry_wait: self.config.retry_wait,
                progress: &progress,
            };
            let fetches = stream::iter(files.iter().map(|file| fetch.file(file)));
            fetches.buffer_unordered(CONCURRENT_FILES).try_collect::<()>().await?;
            progress.finish();
        }
        for file in files {
            self.cache.link(&self.revision.commit, &file.name, file.hash.as_str())?;
        }
        Ok(())
    }

    /// Before hours of downloading. What others write meanwhile is noticed when it happens.
    fn check_space(&self, needed: u64) -> Result<(), HubError> {
        let root = &self.config.cache;
        std::fs::create_dir_all(root).map_err(HubError::io(root))?;
        // Not every file system tells.
        let Ok(free) = rustix::fs::statvfs(root) else { return Ok(()) };
        let free = free.f_bavail.saturating_mul(free.f_frsize);
        if free >= needed {
            return Ok(());
        }
        let (model, cache) = (self.model.clone(), root.clone());
        Err(HubError::NoSpace { model, cache, needed, free: Some(free) })
    }

    fn needed(&self, name: &str) -> Result<&RemoteFile, HubError> {
        self.revision.files.get(name).ok_or_else(|| self.unusable(format!("it has no {name}")))
    }

    fn no_safetensors(&self) -> String {
        let others = [".bin", ".gguf", ".pt", ".pth", ".safetensors"];
        let others = |name: &&str| others.iter().any(|ending| name.ends_with(ending));
        let others: Vec<&str> =
            self.revision.files.keys().map(String::as_str).filter(others).take(5).collect();
        let found = if others.is_empty() { "no weights at all".to_owned() } else { others.join(", ") };
        format!("it has neither {SINGLE_FILE} nor {INDEX_FILE}, but {found}; weights have to be safetensors")
    }

    fn unusable(&self, message: String) -> HubError {
        HubError::Unusable { model: self.model.clone(), message }
    }
}
