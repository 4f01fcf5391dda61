//! The model's folder: checked if it is the user's, downloaded if it is on the hub, made if there is none.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use disagg_api::crd::LoadFormat;
use disagg_worker::hub::{self, HubConfig, Lines};

use super::plan::Model;
use crate::state;

/// Raise it when `disagg_worker::model::tiny` writes other files for the same seed.
const RANDOM_MODEL_REVISION: u32 = 1;

/// A folder that can be given to workers.
pub(super) struct Folder {
    pub(super) path: PathBuf,
    /// It has just been made.
    pub(super) made: bool,
}

/// The folder of `model`. It is downloaded here, once, and not by each worker; `lines` tells how far that is.
pub(super) async fn prepare(model: &Model, format: LoadFormat, lines: Lines) -> anyhow::Result<Folder> {
    match model {
        Model::Folder(path) => {
            check(path)?;
            // The workers run in our own working folder, but an absolute path reads better in their messages.
            let path = std::path::absolute(path)?;
            Ok(Folder { path, made: false })
        }
        Model::Hub(model) => {
            let format = match format {
                LoadFormat::Auto => disagg_worker::model::LoadFormat::Auto,
                LoadFormat::Dummy => disagg_worker::model::LoadFormat::Dummy,
            };
            let path = hub::fetch(model, format, &HubConfig::from_env()?, lines).await?;
            Ok(Folder { path, made: false })
        }
        Model::Random { seed } => {
            let (cache, seed) = (state::cache_folder()?.join("models"), *seed);
            tokio::task::spawn_blocking(move || random(&cache, seed)).await?
        }
    }
}

/// What can be said about a folder before a worker reads it.
fn check(folder: &Path) -> anyhow::Result<()> {
    if !folder.exists() {
        bail!(
            "the model folder {} does not exist (--model, or spec.model.source.path); a model on the hub is named \
             ORG/NAME",
            folder.display()
        );
    }
    if !folder.join("config.json").is_file() {
        bail!(
            "{} is no model folder: it has no config.json; a Hugging Face folder with config.json, tokenizer.json and \
             *.safetensors is needed",
            folder.display()
        );
    }
    Ok(())
}

/// A small model with random weights below `cache`. It appears there whole or not at all, so that several `up` may
/// start at the same time and one that is interrupted does no harm.
fn random(cache: &Path, seed: u64) -> anyhow::Result<Folder> {
    let version = env!("CARGO_PKG_VERSION");
    let path = cache.join(format!("random-{version}-r{RANDOM_MODEL_REVISION}-seed{seed}"));
    if path.is_dir() {
        return Ok(Folder { path, made: false });
    }
    let failed = || format!("cannot make the random model in {}", path.display());
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    disagg_worker::model::tiny::write(&temporary, seed).with_context(failed)?;
    if let Err(error) = std::fs::rename(&temporary, &path) {
        // Leftovers are only bytes in a cache.
        let _ = std::fs::remove_dir_all(&temporary);
        // Another process was quicker: its files are equal.
        if !path.is_dir() {
            return Err(error).with_context(failed);
        }
    }
    Ok(Folder { path, made: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_model_is_made_once_and_whole() {
        let cache = tempfile::tempdir().unwrap();
        let first = random(cache.path(), 7).unwrap();
        assert!(first.made && first.path.join("config.json").is_file());
        let again = random(cache.path(), 7).unwrap();
        assert!(!again.made);
        assert_eq!(again.path, first.path);
        assert_ne!(random(cache.path(), 8).unwrap().path, first.path);
        let entries: Vec<_> = std::fs::read_dir(cache.path()).unwrap().collect();
        assert_eq!(entries.len(), 2, "nothing temporary is left: {entries:?}");
    }

    #[test]
    fn several_may_make_it_at_once() {
        let cache = tempfile::tempdir().unwrap();
        let path = random(cache.path(), 1).unwrap().path;
        // The other process was quicker between our check and our rename.
        let temporary = path.with_extension("tmp-other");
        disagg_worker::model::tiny::write(&temporary, 1).unwrap();
        assert!(std::fs::rename(&temporary, &path).is_err(), "a whole folder is never replaced");
    }

    #[test]
    fn folders_that_hold_no_model_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = |path: &Path| check(path).unwrap_err().to_string();
        assert!(error(&folder.path().join("absent")).contains("does not exist"));
        assert!(error(folder.path()).contains("has no config.json"));
    }
}
