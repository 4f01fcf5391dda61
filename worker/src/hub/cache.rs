//! The cache, laid out as `huggingface_hub` lays it out, so that both find each other's files:
//!
//! ```text
//! CACHE/models--ORG--NAME/blobs/HASH                     a file's content
//!                         blobs/HASH.incomplete          as far as it has come
//!                         snapshots/COMMIT/FILE          a link to a blob
//!                         refs/REVISION                  the commit that a branch or tag was
//! CACHE/.locks/models--ORG--NAME/HASH.lock               held by whoever downloads the blob
//! ```

use std::path::{Path, PathBuf};

use disagg_process::file;
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::error::HubError;
use super::id::{HubModel, is_commit};
use crate::model::config::CONFIG_FILE;
use crate::model::weights::weight_files;

const TOKENIZER_FILE: &str = "tokenizer.json";

/// A ref holds one commit.
const REF_BYTES_MAX: u64 = 4096;

/// What is cached of one model.
pub(super) struct ModelCache {
    root: PathBuf,
    folder_name: String,
    repo: CacheRepo,
}

impl ModelCache {
    pub(super) fn new(root: &Path, model: &HubModel) -> Self {
        let (id, revision) = (model.id().to_owned(), model.revision().to_owned());
        let repo = Repo::with_revision(id, RepoType::Model, revision);
        let folder_name = repo.folder_name();
        Self { root: root.to_owned(), folder_name, repo: Cache::new(root.to_owned()).repo(repo) }
    }

    /// The folder of the revision that is cached, if it has all that is needed.
    pub(super) fn complete(&self, model: &HubModel, weights: bool) -> Option<PathBuf> {
        let commit = if model.is_commit() {
            model.revision().to_owned()
        } else {
            file::read_text(&self.reference(model), REF_BYTES_MAX).ok()?.trim().to_owned()
        };
        let folder = self.snapshot(&commit);
        // The smaller files that the folder may have are linked before the weights.
        let has = |name: &str| folder.join(name).is_file();
        let whole = has(CONFIG_FILE)
            && (!weights
                || (has(TOKENIZER_FILE)
                    && weight_files(&folder).is_ok_and(|files| files.iter().all(|name| has(name)))));
        (is_commit(&commit) && whole).then_some(folder)
    }

    /// The folder of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo.pointer_path(commit)
    }

    /// The content with this hash.
    pub(super) fn blob(&self, hash: &str) -> PathBuf {
        self.root.join(&self.folder_name).join("blobs").join(hash)
    }

    /// Held while the blob is written.
    pub(super) fn lock(&self, hash: &str) -> PathBuf {
        self.root.join(".locks").join(&self.folder_name).join(format!("{hash}.lock"))
    }

    /// Makes the file `name` of `commit` a link to the blob.
    pub(super) fn link(&self, commit: &str, name: &str, hash: &str) -> Result<(), HubError> {
        let (path, blob) = (self.snapshot(commit).join(name), self.blob(hash));
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(HubError::io(folder))?;
        }
        let target = Path::new("../../blobs").join(hash);
        if std::fs::read_link(&path).is_ok_and(|old| old == target) {
            return Ok(());
        }
        // Whole in its place or not there, also where several processes do the same.
        let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
        let _ = std::fs::remove_file(&temporary);
        // Some volumes have no symbolic links.
        std::os::unix::fs::symlink(&target, &temporary)
            .or_else(|_| std::fs::hard_link(&blob, &temporary))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|error| {
                let _ = std::fs::remove_file(&temporary);
                HubError::io(&path)(error)
            })
    }

    /// Remembers the commit that the revision is now.
    pub(super) fn set_ref(&self, model: &HubModel, commit: &str) -> Result<(), HubError> {
        if model.is_commit() {
            return Ok(());
        }
        // In one step: a full disk must not leave half a commit.
        Ok(file::write(&self.reference(model), commit.as_bytes())?)
    }

    /// Where the commit of a branch or tag is remembered. A name may have slashes, which make folders.
    fn reference(&self, model: &HubModel) -> PathBuf {
        self.root.join(&self.folder_name).join("refs").join(model.revision())
    }
}
