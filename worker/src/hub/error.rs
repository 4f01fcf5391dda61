//! What can go wrong between `--model ORG/NAME` and a folder.

use std::path::{Path, PathBuf};

use disagg_process::file::FileError;

use super::id::HubModel;
use super::progress::bytes;
use crate::model::ModelError;

/// A model cannot be had from the hub. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// An environment variable makes no sense.
    #[error("{name}: {message}")]
    Variable {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        message: &'static str,
    },
    /// The token would be readable on the way to the hub.
    #[error(
        "HF_ENDPOINT: {endpoint} is not encrypted, and the token of {origin} would be sent readable; use an https:// \
         address, or go without the token (HF_HUB_DISABLE_IMPLICIT_TOKEN=1)"
    )]
    TokenInTheClear {
        /// The hub.
        endpoint: String,
        /// Where the token was found.
        origin: String,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no such model, or the hub does not tell of it.
    #[error(
        "{model}: there is no such model on {endpoint}, or it is private; for a private one set HF_TOKEN to a token \
         that may read it ({token}). A folder of this name is not here either"
    )]
    NotFound {
        /// The model.
        model: HubModel,
        /// The hub.
        endpoint: String,
        /// Which token was sent.
        token: String,
    },
    /// No branch, tag or commit of that name.
    #[error("{}: {endpoint} has no revision {:?} of it", model.id(), model.revision())]
    NoRevision {
        /// The model.
        model: HubModel,
        /// The hub.
        endpoint: String,
    },
    /// A licence has to be accepted first.
    #[error(
        "{model} is gated: accept its licence at {endpoint}/{}, then set HF_TOKEN (or HF_TOKEN_PATH) to a token of \
         that account ({token}). The hub says: {message}",
        model.id()
    )]
    Gated {
        /// The model.
        model: HubModel,
        /// The hub.
        endpoint: String,
        /// Which token was sent.
        token: String,
        /// The hub's own words.
        message: String,
    },
    /// Any other 401 or 403.
    #[error("{model}: {endpoint} refuses access with {status} ({token}). The hub says: {message}")]
    Refused {
        /// The model.
        model: HubModel,
        /// The hub.
        endpoint: String,
        /// HTTP status.
        status: u16,
        /// Which token was sent.
        token: String,
        /// The hub's own words.
        message: String,
    },
    /// The hub cannot be reached, or breaks off again and again.
    #[error("{what}: {cause}. What has come so far is kept, and the next start goes on from there")]
    Connection {
        /// What was being fetched.
        what: String,
        /// Why it failed the last time.
        cause: String,
    },
    /// Something answers that does not speak the hub's protocol.
    #[error("{url}: {message}; is HF_ENDPOINT a Hugging Face hub?")]
    Protocol {
        /// What was asked.
        url: String,
        /// What is wrong with the answer.
        message: String,
    },
    /// The bytes that came are not those that the hub announced.
    #[error("{file} of {model}: {message}. It has been thrown away")]
    Damaged {
        /// The model.
        model: HubModel,
        /// The file.
        file: String,
        /// What is wrong.
        message: String,
    },
    /// The model's folder on the hub cannot be served.
    #[error("{model}: {message}")]
    Unusable {
        /// The model.
        model: HubModel,
        /// What it lacks.
        message: String,
    },
    /// Its config.json is one that we cannot serve. Checked before the weights are fetched.
    #[error("{model}: {source}")]
    Model {
        /// The model.
        model: HubModel,
        /// What is not supported.
        source: Box<ModelError>,
    },
    /// Only the cache may be used, and it lacks something.
    #[error(
        "{model} is not complete in {}, and HF_HUB_OFFLINE forbids asking the hub; start once without it, or point \
         HF_HOME to a cache that has the model",
        cache.display()
    )]
    Offline {
        /// The model.
        model: HubModel,
        /// The cache.
        cache: PathBuf,
    },
    /// The disk is full, or would be.
    #[error(
        "no space for {model} in {}: {} more are needed{}. Make room, or set HF_HOME to a larger disk; what has come \
         so far is kept",
        cache.display(),
        bytes(*needed),
        free.map_or_else(String::new, |free| format!(", {} are free", bytes(free)))
    )]
    NoSpace {
        /// The model.
        model: HubModel,
        /// The cache.
        cache: PathBuf,
        /// Bytes that are still to come.
        needed: u64,
        /// Bytes that are free, if that is known.
        free: Option<u64>,
    },
    /// Another process holds the file and makes no progress.
    #[error("{}: another process is downloading this file and has made no progress for {seconds} s", lock.display())]
    Locked {
        /// The lock's file.
        lock: PathBuf,
        /// How long we have waited.
        seconds: u64,
    },
    /// The cache cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl HubError {
    pub(super) fn variable(name: &'static str, message: &'static str) -> Self {
        Self::Variable { name, message }
    }

    /// Whether another try would fail in the same way, as long as nobody changes anything.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Variable { .. }
            | Self::TokenInTheClear { .. }
            | Self::NotFound { .. }
            | Self::NoRevision { .. }
            | Self::Gated { .. }
            | Self::Refused { .. }
            | Self::Unusable { .. }
            | Self::Offline { .. } => true,
            Self::Model { source, .. } => source.is_final(),
            Self::File(error) => error.is_final(),
            Self::Connection { .. }
            | Self::Protocol { .. }
            | Self::Damaged { .. }
            | Self::NoSpace { .. }
            | Self::Locked { .. }
            | Self::Io { .. } => false,
        }
    }

    /// For `map_err` on file operations.
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}
