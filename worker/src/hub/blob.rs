//! One file's way into the cache: under a lock, from where an earlier try has ended, checked before it counts.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use disagg_process::file;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, sleep};

use super::cache::ModelCache;
use super::client::{Client, ContentHash, Failure, RemoteFile};
use super::error::HubError;
use super::id::HubModel;
use super::progress::{Progress, bytes};
use crate::https::causes;

/// Tries one after the other that bring nothing before we give up.
pub(super) const FRUITLESS_TRIES: u32 = 5;
/// How often the wait between them is doubled.
const DOUBLINGS_MAX: u32 = 4;

/// A connection that brings less than this much in this time is given up.
const TRICKLE_BYTES: u64 = 16 * 1024;
const TRICKLE_TIME: Duration = Duration::from_mins(1);

/// Between two looks at a file that another process is downloading, and its longest standstill.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const STANDSTILL: Duration = Duration::from_mins(2);

/// What a download needs besides its file.
pub(super) struct Fetch<'a> {
    pub(super) client: &'a Client,
    pub(super) cache: &'a ModelCache,
    pub(super) model: &'a HubModel,
    pub(super) commit: &'a str,
    /// Root of the cache, for messages.
    pub(super) root: &'a Path,
    pub(super) retry_wait: Duration,
    pub(super) progress: &'a Progress,
}

impl Fetch<'_> {
    /// Has the file's blob in the cache when it returns.
    pub(super) async fn file(&self, file: &RemoteFile) -> Result<(), HubError> {
        let blob = self.cache.blob(file.hash.as_str());
        if is_whole(&blob, file) {
            self.progress.found(file.size);
            return Ok(());
        }
        let part = blob.with_extension("incomplete");
        if let Some(folder) = blob.parent() {
            std::fs::create_dir_all(folder).map_err(HubError::io(folder))?;
        }
        let lock = self.lock(file, &part).await?;
        // Another process may have brought it while we waited.
        if is_whole(&blob, file) {
            self.progress.found(file.size);
            return Ok(());
        }
        self.tries(file, &part).await?;
        std::fs::rename(&part, &blob).map_err(HubError::io(&blob))?;
        drop(lock);
        Ok(())
    }

    /// One process at a time; the system drops the lock when a process dies.
    async fn lock(&self, file: &RemoteFile, part: &Path) -> Result<File, HubError> {
        let path = self.cache.lock(file.hash.as_str());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(HubError::io(folder))?;
        }
        let lock = file::open_with(&path, File::options().write(true).create(true).truncate(false))?;
        let size = || std::fs::metadata(part).map_or(0, |metadata| metadata.len());
        let (mut seen, mut moved, mut said) = (size(), Instant::now(), false);
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::Error(source)) => return Err(HubError::Io { path, source }),
                Err(TryLockError::WouldBlock) => {}
            }
            if !said {
                self.progress.say(&format!("another process is downloading {}; waiting for it", file.name));
                said = true;
            }
            sleep(LOOK_EVERY).await;
            let now = size();
            if now != seen {
                (seen, moved) = (now, Instant::now());
            } else if moved.elapsed() > STANDSTILL {
                return Err(HubError::Locked { lock: path, seconds: STANDSTILL.as_secs() });
            }
        }
    }

    /// Tries until the part is whole and right. Tries that bring something are not counted.
    async fn tries(&self, file: &RemoteFile, path: &Path) -> Result<(), HubError> {
        let mut part = Part::open(path, file, self.progress).await?;
        let mut begun_by_others = part.length > 0;
        let mut fruitless = 0;
        loop {
            let before = part.length;
            let failure = match self.one_try(file, &mut part).await {
                Ok(()) => match self.check(file, &part) {
                    Ok(()) => return Ok(()),
                    // Perhaps only what was there before is bad.
                    Err(_) if begun_by_others => {
                        begun_by_others = false;
                        part.restart().await.map_err(HubError::io(path))?;
                        continue;
                    }
                    Err(error) => {
                        part.discard();
                        return Err(error);
                    }
                },
                Err(failure) => failure,
            };
            let (cause, wait) = match failure {
                Failure::Passing { cause, wait } => (cause, wait),
                Failure::Final(error) => return Err(error),
            };
            // The next start goes on from what is on disk.
            part.flush().await.map_err(|error| self.write_error(&part, error))?;
            fruitless = if part.length > before { 1 } else { fruitless + 1 };
            if fruitless >= FRUITLESS_TRIES {
                let what = format!("downloading {} of {}", file.name, self.model);
                return Err(HubError::Connection { what, cause });
            }
            let wait =
                wait.unwrap_or_else(|| self.retry_wait * 2_u32.pow((fruitless - 1).min(DOUBLINGS_MAX)));
            let (at, seconds) = (bytes(part.length), wait.as_secs_f64());
            self.progress
                .say(&format!("{} broke off at {at}: {cause}; trying again in {seconds} s", file.name));
            sleep(wait).await;
        }
    }

    async fn one_try(&self, file: &RemoteFile, part: &mut Part<'_>) -> Result<(), Failure> {
        if part.length == file.size {
            return Ok(());
        }
        let mut response = self.client.file(self.model, self.commit, file, part.length).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, part.length) => {}
            // All of it, whatever was asked; or a range that we did not ask for, or that it does not have.
            StatusCode::OK => part.restart().await.map_err(|error| self.failed(part, error))?,
            _ => {
                part.restart().await.map_err(|error| self.failed(part, error))?;
                return Err(Failure::passing("the server does not go on where we ask it to"));
            }
        }
        let whole = response.content_length().is_none_or(|length| part.length + length == file.size);
        if !whole {
            let length = part.length + response.content_length().unwrap_or_default();
            let message = format!("the server sends {length} bytes, and the hub announced {}", file.size);
            part.discard();
            return Err(Failure::Final(self.damaged(file, message)));
        }
        let (mut since, mut come) = (Instant::now(), 0);
        loop {
            // `read_timeout` of the client bounds each wait.
            let chunk = response.chunk().await;
            let Some(chunk) = chunk.map_err(|error| Failure::passing(causes(&error)))? else { break };
            come += chunk.len() as u64;
            if part.length + chunk.len() as u64 > file.size {
                let message = format!("more than the {} bytes that the hub announced came", file.size);
                part.discard();
                return Err(Failure::Final(self.damaged(file, message)));
            }
            let appended = part.append(&chunk).await;
            appended.map_err(|error| self.failed(part, error))?;
            if since.elapsed() > TRICKLE_TIME {
                if come < TRICKLE_BYTES {
                    return Err(Failure::passing(format!(
                        "only {come} bytes in {} s",
                        TRICKLE_TIME.as_secs()
                    )));
                }
                (since, come) = (Instant::now(), 0);
            }
        }
        part.flush().await.map_err(|error| self.failed(part, error))?;
        if part.length == file.size {
            return Ok(());
        }
        Err(Failure::passing("the connection closed"))
    }

    /// A file of the right size may still be another.
    fn check(&self, file: &RemoteFile, part: &Part<'_>) -> Result<(), HubError> {
        let digest = part.digest();
        if digest == file.hash.as_str() {
            return Ok(());
        }
        Err(self.damaged(file, format!("its hash is {digest}, and the hub announced {}", file.hash.as_str())))
    }

    fn damaged(&self, file: &RemoteFile, message: String) -> HubError {
        HubError::Damaged { model: self.model.clone(), file: file.name.clone(), message }
    }

    fn failed(&self, part: &Part<'_>, source: std::io::Error) -> Failure {
        Failure::Final(self.write_error(part, source))
    }

    fn write_error(&self, part: &Part<'_>, source: std::io::Error) -> HubError {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        match source.kind() {
            StorageFull | QuotaExceeded => HubError::NoSpace {
                model: self.model.clone(),
                cache: self.root.to_owned(),
                needed: part.size.saturating_sub(part.length),
                free: None,
            },
            _ => HubError::Io { path: part.path.clone(), source },
        }
    }
}

/// A blob is renamed into its place when it is whole, so its size tells enough.
pub(super) fn is_whole(blob: &Path, file: &RemoteFile) -> bool {
    std::fs::metadata(blob).is_ok_and(|metadata| metadata.is_file() && metadata.len() == file.size)
}

/// Whether an answer with a part of a file begins at `offset`.
fn starts_at(response: &Response, offset: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok());
    start == Some(offset)
}

/// A file on its way: what has come of it, on disk and as a hash.
struct Part<'a> {
    path: PathBuf,
    file: tokio::fs::File,
    length: u64,
    hash: &'a ContentHash,
    size: u64,
    hasher: ring::digest::Context,
    progress: &'a Progress,
}

impl<'a> Part<'a> {
    /// Opens what an earlier try has left, or nothing.
    async fn open(path: &Path, remote: &'a RemoteFile, progress: &'a Progress) -> Result<Self, HubError> {
        let (hash, size) = (remote.hash.clone(), remote.size);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = file::open_with(path, &mut options)?;
        let opened = tokio::task::spawn_blocking(move || -> std::io::Result<_> {
            let mut length = file.metadata()?.len();
            let mut hasher = hasher(&hash, size);
            if length > size {
                // Of some other file, or with garbage at its end.
                file.set_len(0)?;
                length = 0;
            }
            let mut left = length;
            let mut buffer = vec![0; 1 << 20];
            while left > 0 {
                let piece = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                file.read_exact(&mut buffer[..piece])?;
                hasher.update(&buffer[..piece]);
                left -= piece as u64;
            }
            file.seek(SeekFrom::Start(length))?;
            Ok((file, length, hasher))
        });
        let opened = opened.await.map_err(std::io::Error::other).and_then(|opened| opened);
        let (file, length, hasher) = opened.map_err(HubError::io(path))?;
        progress.found(length);
        let file = tokio::fs::File::from_std(file);
        Ok(Self { path: path.to_owned(), file, length, hash: &remote.hash, size, hasher, progress })
    }

    async fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes).await?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        self.progress.came(bytes.len() as u64);
        Ok(())
    }

    /// Errors of writes may come this late.
    async fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush().await
    }

    /// Begins again.
    async fn restart(&mut self) -> std::io::Result<()> {
        use tokio::io::AsyncSeekExt as _;
        if self.length > 0 {
            self.file.set_len(0).await?;
            self.file.seek(SeekFrom::Start(0)).await?;
            self.progress.lost(self.length);
            self.length = 0;
            self.hasher = hasher(self.hash, self.size);
        }
        Ok(())
    }

    /// Nothing of it is of use.
    fn discard(&self) {
        // If it stays, the next try finds the same fault.
        let _ = std::fs::remove_file(&self.path);
    }

    fn digest(&self) -> String {
        use std::fmt::Write as _;
        let digest = self.hasher.clone().finish();
        digest.as_ref().iter().fold(String::new(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

fn hasher(hash: &ContentHash, size: u64) -> ring::digest::Context {
    match hash {
        ContentHash::Sha256(_) => ring::digest::Context::new(&ring::digest::SHA256),
        ContentHash::Git(_) => {
            let mut context = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
            context.update(format!("blob {size}\0").as_bytes());
            context
        }
    }
}

/// Asks up to `tries` times; for what is no file.
pub(super) async fn retried<T>(
    what: &str,
    tries: u32,
    retry_wait: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, Failure>,
) -> Result<T, HubError> {
    let mut tried = 0;
    loop {
        let (cause, asked) = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing { cause, wait }) => (cause, wait),
        };
        tried += 1;
        if tried >= tries {
            return Err(HubError::Connection { what: what.to_owned(), cause });
        }
        sleep(asked.unwrap_or_else(|| retry_wait * 2_u32.pow((tried - 1).min(DOUBLINGS_MAX)))).await;
    }
}
