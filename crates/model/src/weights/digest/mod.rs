//! What tells the weights of one model from those of another: a hash of every byte of their files.
//!
//! Two fine-tunes of a model may differ anywhere and nowhere else, and workers that take each other's KV must not
//! mistake them. Hashing takes about as long as reading, so it runs beside the loading, and what was hashed once is
//! kept ([`DigestCache`]) until the file changes.

mod cache;

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3;

use crate::error::ModelError;
pub(super) use cache::DigestCache;
use cache::Stamp;

/// Bytes that are read at once.
const READ_BYTES: usize = 4 << 20;

/// Files that are hashed at the same time; a disk gives no more to many than to a few.
const THREADS_MAX: usize = 4;

/// A file of weights, open.
pub(super) struct WeightFile {
    /// Its name in the folder.
    pub(super) name: String,
    /// Where it is.
    pub(super) path: PathBuf,
    /// Read at offsets, so that others may read it at the same time.
    pub(super) file: File,
}

/// The hash of a model's weights, known or being computed.
#[derive(Debug)]
pub struct WeightsDigest(State);

#[derive(Debug)]
enum State {
    Known(u128),
    Computing { names: Vec<String>, digests: Vec<Option<u128>>, results: mpsc::Receiver<Hashed> },
}

/// Which file, and its hash.
type Hashed = (usize, Result<u128, ModelError>);

impl WeightsDigest {
    /// Of weights that are no files.
    pub(crate) fn known(digest: u128) -> Self {
        Self(State::Known(digest))
    }

    /// Begins to hash, on threads of its own, the files that `cache` does not know.
    pub(super) fn start(files: Vec<WeightFile>, cache: Option<&DigestCache>) -> Result<Self, ModelError> {
        let names = files.iter().map(|file| file.name.clone()).collect();
        let mut digests = Vec::with_capacity(files.len());
        let mut unknown = VecDeque::new();
        for (index, file) in files.into_iter().enumerate() {
            let stamp = Stamp::of(&file.file).map_err(ModelError::io(&file.path))?;
            let digest = cache.and_then(|cache| cache.get(&file.path, &stamp));
            digests.push(digest);
            if digest.is_none() {
                unknown.push_back((index, file, stamp));
            }
        }
        let (sender, results) = mpsc::channel();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = unknown.len().min(THREADS_MAX).min(cores);
        let unknown = Arc::new(Mutex::new(unknown));
        for _ in 0..threads {
            let (unknown, cache, sender) = (Arc::clone(&unknown), cache.cloned(), sender.clone());
            let work = move || {
                loop {
                    // Not in the loop's head, where it would be locked while a file is hashed.
                    let next = unknown.lock().pop_front();
                    let Some((index, file, stamp)) = next else { return };
                    // Nobody may want to know any more.
                    if sender.send((index, hash(&file, &stamp, cache.as_ref()))).is_err() {
                        return;
                    }
                }
            };
            let thread = std::thread::Builder::new().name("weights-digest".to_owned());
            thread.spawn(work).map_err(|source| ModelError::Io { path: "weights".into(), source })?;
        }
        Ok(Self(State::Computing { names, digests, results }))
    }

    /// Waits for the hash.
    pub(crate) fn finish(self) -> Result<u128, ModelError> {
        let (names, mut digests, results) = match self.0 {
            State::Known(digest) => return Ok(digest),
            State::Computing { names, digests, results } => (names, digests, results),
        };
        // Ends when every thread has: all files are hashed, or one has failed.
        for (index, digest) in results {
            digests[index] = Some(digest?);
        }
        let mut hasher = Xxh3::new();
        for (name, digest) in names.iter().zip(digests) {
            let missing = || ModelError::WeightsFile {
                path: name.into(),
                message: "was not hashed: its thread has ended".to_owned(),
            };
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(&digest.ok_or_else(missing)?.to_le_bytes());
        }
        Ok(hasher.digest128())
    }
}

/// Hashes a file, and keeps the hash if the file was the same before and after.
fn hash(file: &WeightFile, stamp: &Stamp, cache: Option<&DigestCache>) -> Result<u128, ModelError> {
    let begun = Instant::now();
    let mut hasher = Xxh3::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut offset = 0;
    loop {
        let read = file.file.read_at(&mut buffer, offset).map_err(ModelError::io(&file.path))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        offset += read as u64;
    }
    let digest = hasher.digest128();
    let mib = offset >> 20;
    tracing::info!(file = file.name, mib, took = ?begun.elapsed(), "hashed for the model's fingerprint");
    if let Some(cache) = cache
        && Stamp::of(&file.file).is_ok_and(|after| after == *stamp)
        && let Err(error) = cache.put(&file.path, stamp, digest)
    {
        tracing::info!(%error, "the hash cannot be kept; the next start computes it again");
    }
    Ok(digest)
}

#[cfg(test)]
mod tests;
