//! Hashes of weight files that were computed before, one small file for each, in the user's cache folder: model folders
//! are often read-only, or shared.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

/// Of an entry; paths are the longest part.
const ENTRY_BYTES_MAX: u64 = 16 << 10;

/// Entries that are kept. With more, all are dropped: each can be made again.
const ENTRIES_MAX: usize = 4096;

/// A file that was changed less than this before it was hashed may have been changed again within the same tick of
/// the file system's clock.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// What changes when a file does. The time of the last change of the inode cannot be set back, as that of the content
/// can (`cp -p`, `rsync -t`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Stamp {
    size: u64,
    inode: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Stamp {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|metadata| Self::from(&metadata))
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        let ns = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Self {
            size: metadata.size(),
            inode: metadata.ino(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The folder of known hashes.
#[derive(Clone, Debug)]
pub(in crate::weights) struct DigestCache {
    folder: PathBuf,
    settled_after: Duration,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    path: PathBuf,
    stamp: Stamp,
    /// In hexadecimal digits.
    xxh3_128: String,
}

impl DigestCache {
    /// `disagg/weights` in `XDG_CACHE_HOME` or `~/.cache`; `None` without either, since a folder that others may write
    /// to would let them say what a model is.
    pub(in crate::weights) fn of_user() -> Option<Self> {
        let absolute =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
        Some(Self::at(base.join("disagg").join("weights"), SETTLED_AFTER))
    }

    pub(super) fn at(folder: PathBuf, settled_after: Duration) -> Self {
        Self { folder, settled_after }
    }

    /// The hash of the file at `path` when it had this stamp. What cannot be read is not known.
    pub(super) fn get(&self, path: &Path, stamp: &Stamp) -> Option<u128> {
        let path = std::fs::canonicalize(path).ok()?;
        let entry = self.entry(&path);
        if std::fs::metadata(&entry).ok()?.len() > ENTRY_BYTES_MAX {
            return None;
        }
        let known: Entry = serde_json::from_slice(&std::fs::read(entry).ok()?).ok()?;
        let same = known.path == path && known.stamp == *stamp;
        same.then(|| u128::from_str_radix(&known.xxh3_128, 16).ok())?
    }

    /// Keeps a hash, if the file has not been changed just now. An entry appears whole or not at all.
    pub(super) fn put(&self, path: &Path, stamp: &Stamp, digest: u128) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let changed = u128::try_from(stamp.changed_ns.max(stamp.modified_ns)).unwrap_or_default();
        if now.saturating_sub(changed) < self.settled_after.as_nanos() {
            return Ok(());
        }
        let path = std::fs::canonicalize(path)?;
        let entry = self.entry(&path);
        let known = Entry { path, stamp: stamp.clone(), xxh3_128: format!("{digest:032x}") };
        std::fs::create_dir_all(&self.folder)?;
        if std::fs::read_dir(&self.folder)?.count() >= ENTRIES_MAX {
            std::fs::remove_dir_all(&self.folder)?;
            std::fs::create_dir_all(&self.folder)?;
        }
        let temporary = entry.with_extension(format!("tmp-{}", std::process::id()));
        let written = std::fs::write(&temporary, serde_json::to_vec(&known)?)
            .and_then(|()| std::fs::rename(&temporary, &entry));
        if written.is_err() {
            // Leftovers are only bytes in a cache.
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }

    fn entry(&self, path: &Path) -> PathBuf {
        self.folder.join(format!("{:032x}.json", xxh3_128(path.as_os_str().as_bytes())))
    }
}
