//! What each worker's prefix cache holds, as the router knows it from the workers' KV events.
//!
//! Every worker numbers its events without gaps within one epoch. A subscription begins with a snapshot and goes on
//! with deltas. Whatever breaks the numbering (a gap, another epoch, a delta before the snapshot) or clears the cache
//! resets that worker's entries and asks for a new snapshot, so the index is never wrong for longer than that takes.
//!
//! The index is a hint: a wrong entry costs a prefill, never a wrong token, since the worker itself checks.
//!
//! # Memory
//!
//! At most [`PrefixIndex::max_blocks`] distinct blocks are held, each about [`APPROX_BYTES_PER_BLOCK`] bytes
//! whatever the number of workers up to 64. When there are more, the block that was stored longest ago among those
//! that no held block follows is dropped, for all workers. So old prompts fade from their end, and what many
//! prompts begin with stays.

mod blocks;
#[cfg(test)]
mod tests;
mod worker_set;

use std::collections::BTreeMap;

use blocks::Blocks;
use worker_set::WorkerSet;

use crate::ids::{BlockHash, Epoch, WorkerId};
use crate::kv_event::KvEvent;

/// Memory of one indexed block, in bytes, for choosing the bound.
pub const APPROX_BYTES_PER_BLOCK: usize = 192;

/// Events of one worker, as they come from its stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvEventBatch<'a> {
    /// The worker's epoch.
    pub epoch: Epoch,
    /// Number of the last event in the batch, or of the last event before it if it is empty. All parts of a snapshot
    /// carry the number of the last event that the snapshot includes.
    pub last_event: u64,
    /// What kind of batch.
    pub kind: BatchKind,
    /// In order.
    pub events: &'a [KvEvent],
}

/// Kind of a batch of events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BatchKind {
    /// A part of the cache as it is.
    Snapshot {
        /// The last part.
        end: bool,
    },
    /// Changes.
    Delta,
}

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a worker whose snapshot is not asked for stays unknown"]
pub enum Applied {
    /// It is in the index.
    Ok,
    /// All of it was known already; nothing was changed.
    Stale,
    /// The worker's entries were dropped: subscribe to it anew.
    NeedsSnapshot(ResetReason),
}

/// Why a worker's entries were dropped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ResetReason {
    /// A delta came before a complete snapshot.
    NoSnapshot,
    /// The worker has restarted.
    NewEpoch,
    /// Events are missing.
    Gap,
    /// The worker has cleared its cache.
    Cleared,
}

impl ResetReason {
    /// Name as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSnapshot => "no-snapshot",
            Self::NewEpoch => "new-epoch",
            Self::Gap => "gap",
            Self::Cleared => "cleared",
        }
    }
}

/// How full the index is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexUsage {
    /// Distinct blocks held.
    pub blocks: usize,
    /// The most that may be.
    pub max_blocks: usize,
    /// Blocks dropped for the bound, since the index was made.
    pub evicted: u64,
}

impl IndexUsage {
    /// Share of the bound in use, 0 to 1.
    pub fn fullness(&self) -> f64 {
        self.blocks as f64 / self.max_blocks.max(1) as f64
    }
}

/// How far a worker's numbering was followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    /// Nothing is known, and no block is held; only a snapshot helps.
    Unknown,
    /// Parts of a snapshot have come.
    Loading { epoch: Epoch, last_event: u64 },
    /// Up to date with this event.
    Live { epoch: Epoch, last_event: u64 },
}

#[derive(Clone, Debug)]
struct Worker {
    /// Bit in the blocks' sets.
    slot: u32,
    progress: Progress,
}

impl Worker {
    /// Drops what is known of it.
    fn reset(&mut self, blocks: &mut Blocks) {
        if self.progress != Progress::Unknown {
            self.progress = Progress::Unknown;
            blocks.remove_worker(self.slot);
        }
    }
}

/// The index over all workers whose blocks have one identity (one model fingerprint and block size).
#[derive(Clone, Debug)]
pub struct PrefixIndex {
    /// By name, so that results come in a fixed order.
    workers: BTreeMap<WorkerId, Worker>,
    blocks: Blocks,
}

impl PrefixIndex {
    /// An empty index of at most `max_blocks` distinct blocks.
    pub fn new(max_blocks: usize) -> Self {
        Self { workers: BTreeMap::new(), blocks: Blocks::new(max_blocks) }
    }

    /// The bound it was made with.
    pub fn max_blocks(&self) -> usize {
        self.blocks.bound()
    }

    /// How full it is.
    pub fn usage(&self) -> IndexUsage {
        IndexUsage {
            blocks: self.blocks.len(),
            max_blocks: self.blocks.bound(),
            evicted: self.blocks.evicted(),
        }
    }

    /// Whether the worker's cache is known completely: a snapshot has come, and every event since.
    pub fn is_live(&self, worker: &WorkerId) -> bool {
        self.workers.get(worker).is_some_and(|worker| matches!(worker.progress, Progress::Live { .. }))
    }

    /// Takes in a batch of one worker's events. An unknown worker is added.
    pub fn apply(&mut self, worker: &WorkerId, batch: &KvEventBatch<'_>) -> Applied {
        if !self.workers.contains_key(worker) {
            let known = Worker { slot: self.free_slot(), progress: Progress::Unknown };
            self.workers.insert(worker.clone(), known);
        }
        let Some(known) = self.workers.get_mut(worker) else {
            return Applied::NeedsSnapshot(ResetReason::NoSnapshot);
        };
        match batch.kind {
            BatchKind::Snapshot { end } => {
                apply_snapshot(&mut self.blocks, known, batch, end);
                Applied::Ok
            }
            BatchKind::Delta => match apply_delta(&mut self.blocks, known, batch) {
                Ok(applied) => applied,
                Err(reason) => {
                    known.reset(&mut self.blocks);
                    Applied::NeedsSnapshot(reason)
                }
            },
        }
    }

    /// Drops a worker's entries, for example when its stream breaks. It stays unknown until a snapshot comes.
    pub fn reset_worker(&mut self, worker: &WorkerId) {
        if let Some(known) = self.workers.get_mut(worker) {
            known.reset(&mut self.blocks);
        }
    }

    /// Forgets a worker that is gone. True if it was known.
    pub fn remove_worker(&mut self, worker: &WorkerId) -> bool {
        let Some(mut known) = self.workers.remove(worker) else {
            return false;
        };
        known.reset(&mut self.blocks);
        true
    }

    /// How many leading blocks of a prompt each worker has, for the workers that have any, in order of name.
    ///
    /// Takes one look-up per block, up to the first block that no worker has together with all before it.
    pub fn overlap(&self, hashes: &[BlockHash]) -> Vec<(WorkerId, u32)> {
        let nobody = WorkerSet::default();
        // Workers that have every block so far.
        let mut matching: WorkerSet = self.workers.values().map(|known| known.slot).collect();
        let mut depth = 0;
        let mut depth_of_slot: BTreeMap<u32, u32> = BTreeMap::new();
        for hash in hashes {
            let still = matching.intersection(self.blocks.holders(hash).unwrap_or(&nobody));
            depth_of_slot.extend(matching.difference(&still).iter().map(|slot| (slot, depth)));
            matching = still;
            if matching.is_empty() {
                break;
            }
            depth += 1;
        }
        depth_of_slot.extend(matching.iter().map(|slot| (slot, depth)));
        self.workers
            .iter()
            .filter_map(|(worker, known)| {
                let depth = depth_of_slot.get(&known.slot).copied().unwrap_or(0);
                (depth > 0).then(|| (worker.clone(), depth))
            })
            .collect()
    }

    /// The lowest bit that no worker has.
    fn free_slot(&self) -> u32 {
        let taken: WorkerSet = self.workers.values().map(|known| known.slot).collect();
        taken.first_missing()
    }
}

/// A part of a snapshot. The first part replaces what was known; parts that follow it carry the same numbers.
fn apply_snapshot(blocks: &mut Blocks, worker: &mut Worker, batch: &KvEventBatch<'_>, end: bool) {
    let (epoch, last_event) = (batch.epoch, batch.last_event);
    let loading = Progress::Loading { epoch, last_event };
    if worker.progress != loading {
        worker.reset(blocks);
    }
    worker.progress = if end { Progress::Live { epoch, last_event } } else { loading };
    for event in batch.events {
        apply_event(blocks, worker.slot, event);
    }
}

/// Changes. An error leaves the worker to be reset.
fn apply_delta(
    blocks: &mut Blocks,
    worker: &mut Worker,
    batch: &KvEventBatch<'_>,
) -> Result<Applied, ResetReason> {
    let (epoch, seen) = match worker.progress {
        Progress::Live { epoch, last_event } => (epoch, last_event),
        Progress::Unknown | Progress::Loading { .. } => return Err(ResetReason::NoSnapshot),
    };
    if batch.epoch != epoch {
        return Err(ResetReason::NewEpoch);
    }
    // The number before the batch's first event; a batch longer than its numbering says is malformed.
    let before = batch.last_event.checked_sub(batch.events.len() as u64).ok_or(ResetReason::Gap)?;
    if before != seen {
        return if batch.last_event <= seen { Ok(Applied::Stale) } else { Err(ResetReason::Gap) };
    }
    if batch.events.contains(&KvEvent::AllBlocksCleared) {
        return Err(ResetReason::Cleared);
    }
    for event in batch.events {
        apply_event(blocks, worker.slot, event);
    }
    worker.progress = Progress::Live { epoch, last_event: batch.last_event };
    Ok(Applied::Ok)
}

fn apply_event(blocks: &mut Blocks, slot: u32, event: &KvEvent) {
    match *event {
        KvEvent::BlockStored { hash, parent } => blocks.store(slot, hash, parent),
        KvEvent::BlockRemoved { hash } => blocks.remove(slot, hash),
        KvEvent::AllBlocksCleared => blocks.remove_worker(slot),
    }
}
