//! Files at paths that somebody else controls: settings, models, resources, tokens; and files that we leave for later.
//!
//! What is at a path may be anything: a FIFO that nobody writes to, a device that never ends, a folder, a file of many
//! gigabytes, one that grows while it is read. [`open`] and [`read`] neither wait for it nor take more memory than the
//! caller allows, and say in one message what is there and what is accepted. [`write`](fn@write) and [`private_folder`]
//! are for what we keep: a reader sees a whole file or none, a full disk leaves nothing behind, and nobody else has put
//! it there.

mod keep;

use std::fs::{File, FileType, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

pub use keep::{private_folder, temporary_folder, write};

/// A file cannot be used. The message names it, what is there, and what is accepted.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Something else than a file is at the path, or at the end of the links that begin there.
    #[error("{}: is {kind}; a regular file is needed", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is, with an article.
        kind: &'static str,
    },
    /// The file is larger than is accepted, or became so while it was read.
    #[error("{}: has more than the {limit} bytes that are accepted", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound in bytes.
        limit: u64,
    },
    /// The file is to be text.
    #[error("{}: is not UTF-8", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// Others could have written what is in the folder.
    #[error("{}: {problem}; what is in it is not trusted. Remove it, or name another folder with {variable}", path.display())]
    NotPrivate {
        /// The folder.
        path: PathBuf,
        /// Why it is not ours alone.
        problem: &'static str,
        /// The variable of the environment that names another one.
        variable: &'static str,
    },
}

impl FileError {
    /// For `map_err` on file operations.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// Whether another try would fail in the same way, as long as nobody changes the file.
    pub fn is_final(&self) -> bool {
        use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), NotFound | PermissionDenied | NotADirectory | IsADirectory)
            }
            Self::NotAFile { .. }
            | Self::TooLarge { .. }
            | Self::NotText { .. }
            | Self::NotPrivate { .. } => true,
        }
    }
}

/// Opens a regular file for reading; links are followed. Does not wait, whatever is there.
pub fn open(path: &Path) -> Result<File, FileError> {
    // Looked at before it is opened, since opening alone can do something to a device.
    check(path, &std::fs::metadata(path).map_err(FileError::io(path))?)?;
    let mut options = File::options();
    options.read(true);
    open_with(path, &mut options)
}

/// As [`open`], with options of the caller's, for example to write a file that a later start goes on with.
pub fn open_with(path: &Path, options: &mut std::fs::OpenOptions) -> Result<File, FileError> {
    // A FIFO would wait for its other end, and a terminal would become ours.
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(FileError::io(path))?;
    // Whatever was there before, this is what will be read.
    check(path, &file.metadata().map_err(FileError::io(path))?)?;
    Ok(file)
}

/// Reads a whole regular file of at most `limit` bytes.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let file = open(path)?;
    let size = file.metadata().map_err(FileError::io(path))?.len();
    let too_large = || FileError::TooLarge { path: path.to_owned(), limit };
    if size > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(size as usize);
    // The size was that of a moment ago.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(FileError::io(path))?;
    if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
}

/// As [`read`], of text.
pub fn read_text(path: &Path, limit: u64) -> Result<String, FileError> {
    String::from_utf8(read(path, limit)?).map_err(|_| FileError::NotText { path: path.to_owned() })
}

fn check(path: &Path, metadata: &Metadata) -> Result<(), FileError> {
    let of = metadata.file_type();
    if of.is_file() { Ok(()) } else { Err(FileError::NotAFile { path: path.to_owned(), kind: kind(of) }) }
}

fn kind(of: FileType) -> &'static str {
    if of.is_dir() {
        "a folder"
    } else if of.is_fifo() {
        "a pipe (FIFO)"
    } else if of.is_socket() {
        "a socket"
    } else if of.is_char_device() || of.is_block_device() {
        "a device"
    } else {
        "something else"
    }
}

#[cfg(test)]
mod tests;
