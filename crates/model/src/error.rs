//! What can be wrong with a model folder.

use std::path::{Path, PathBuf};

use disagg_files::{self as file, FileError};

/// A model folder cannot be used. The message names the file, and what in it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file that must be there is not.
    #[error("{}: {message}", path.display())]
    Missing {
        /// The folder.
        path: PathBuf,
        /// Which file, and what may stand in its place.
        message: String,
    },
    /// What is at a path cannot be read as a file of the model.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not the JSON that it should be.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A key of `config.json` has a value that is not supported.
    #[error("{}: {key}: {message}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it says, and what is supported.
        message: String,
    },
    /// A file of the tokenizer, or one that says how to use it, makes no sense.
    #[error("{}: {message}", path.display())]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A safetensors file is damaged.
    #[error("{}: {message}", path.display())]
    WeightsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A tensor is missing or is not what `config.json` asks for.
    #[error("{}: tensor {tensor}: {message}", path.display())]
    Tensor {
        /// The file, or the folder if no file has the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        message: String,
    },
    /// The small model's tokenizer could not be built.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
}

impl ModelError {
    /// For `map_err` on file operations.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// Whether another try would fail in the same way, as long as nobody changes the folder.
    pub fn is_final(&self) -> bool {
        match self {
            Self::File(error) => error.is_final(),
            // Reading what was there a moment ago; memory or a disk.
            Self::Io { .. } => false,
            Self::Missing { .. }
            | Self::Json { .. }
            | Self::Config { .. }
            | Self::TokenizerFile { .. }
            | Self::WeightsFile { .. }
            | Self::Tensor { .. }
            | Self::Tokenizer(_) => true,
        }
    }
}

/// Reads a whole regular file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, ModelError> {
    Ok(file::read(path, limit)?)
}
