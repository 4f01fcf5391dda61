//! The model's folder: checked if it is the user's, downloaded if it is on the hub, written if it needs no files.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use disagg_core::LoadFormat;
use disagg_worker::hub::{self, HubConfig, Lines};
use disagg_worker::model::ModelSpec;
use disagg_worker::model::built_in::Written;

use super::plan::Model;
use crate::state;

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
            let path = hub::fetch(model, format, &HubConfig::from_env()?, lines).await?;
            Ok(Folder { path, made: false })
        }
        Model::BuiltIn(model) => {
            let (cache, model) = (state::cache_folder()?.join("models"), *model);
            let written = tokio::task::spawn_blocking(move || model.write(&cache)).await?;
            let Written { path, new } = written.context("cannot write the model into the cache folder")?;
            Ok(Folder { path, made: new })
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
    if !folder.join("config.json").exists() {
        bail!(
            "{} is no model folder: it has no config.json; a Hugging Face folder with config.json, tokenizer.json and \
             *.safetensors is needed",
            folder.display()
        );
    }
    // Each worker would say so.
    ModelSpec::read(folder)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_hold_no_model_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = |path: &Path| check(path).unwrap_err().to_string();
        assert!(error(&folder.path().join("absent")).contains("does not exist"));
        assert!(error(folder.path()).contains("has no config.json"));
        std::fs::create_dir(folder.path().join("config.json")).unwrap();
        assert!(error(folder.path()).contains("config.json: is a folder"));
    }
}
