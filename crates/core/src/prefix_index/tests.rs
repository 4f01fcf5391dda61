//! The index against naive models: one of workers whose streams lose batches, one of the bound.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn worker(number: usize) -> WorkerId {
    WorkerId::new(format!("w{number}"))
}

/// Blocks are named by small numbers; block `n` follows block `n / 2`, and 1, 2 and 3 begin prompts.
fn hash(block: u32) -> BlockHash {
    // Spread over both halves, as real hashes are.
    BlockHash(u128::from(block).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

fn parent(block: u32) -> Option<u32> {
    (block > 3).then_some(block / 2)
}

fn stored(block: u32) -> KvEvent {
    KvEvent::BlockStored { hash: hash(block), parent: parent(block).map(hash) }
}

fn removed(block: u32) -> KvEvent {
    KvEvent::BlockRemoved { hash: hash(block) }
}

/// The blocks of the prompt that ends with this one.
fn chain(block: u32) -> Vec<u32> {
    let mut blocks: Vec<u32> = std::iter::successors(Some(block), |block| parent(*block)).collect();
    blocks.reverse();
    blocks
}

/// Small enough that workers share many.
const BLOCKS: std::ops::Range<u32> = 1..48;

/// Leading blocks of each chain that each worker holds.
fn naive_overlap(held: &BTreeMap<usize, BTreeSet<u32>>, chain: &[u32]) -> Vec<(WorkerId, u32)> {
    held.iter()
        .map(|(number, held)| {
            (worker(*number), chain.iter().take_while(|block| held.contains(block)).count() as u32)
        })
        .filter(|(_, depth)| *depth > 0)
        .collect()
}

fn overlap(index: &PrefixIndex, chain: &[u32]) -> Vec<(WorkerId, u32)> {
    index.overlap(&chain.iter().copied().map(hash).collect::<Vec<_>>())
}

fn batch(epoch: u64, last_event: u64, kind: BatchKind, events: &[KvEvent]) -> KvEventBatch<'_> {
    KvEventBatch { epoch: Epoch(epoch), last_event, kind, events }
}

const END: BatchKind = BatchKind::Snapshot { end: true };
const PART: BatchKind = BatchKind::Snapshot { end: false };

/// A worker as it really is, and what the index should know of it.
#[derive(Clone, Default, Debug)]
struct RealWorker {
    epoch: u64,
    last_event: u64,
    cache: BTreeSet<u32>,
    /// What the index should hold of this worker.
    indexed: BTreeSet<u32>,
    /// The epoch and number up to which the index is complete; `None` until a snapshot.
    followed: Option<(u64, u64)>,
}

#[derive(Clone, Debug)]
enum Step {
    /// The worker changes its cache and sends the events, which may be lost or come twice.
    Delta {
        worker: usize,
        changes: Vec<(u32, bool)>,
        copies: usize,
    },
    /// The router subscribes: a snapshot in this many parts. It may break off before the last.
    Subscribe {
        worker: usize,
        parts: usize,
        complete: bool,
    },
    Clear {
        worker: usize,
        arrives: bool,
    },
    Restart {
        worker: usize,
    },
    Remove {
        worker: usize,
    },
    Reset {
        worker: usize,
    },
}

fn step(workers: usize) -> impl Strategy<Value = Step> {
    let worker = move || 0..workers;
    let copies = prop_oneof![1 => Just(0_usize), 8 => Just(1), 1 => Just(2)];
    prop_oneof![
        12 => (worker(), vec((BLOCKS, prop::bool::weighted(0.7)), 0..12), copies)
            .prop_map(|(worker, changes, copies)| Step::Delta { worker, changes, copies }),
        8 => (worker(), 1_usize..4, prop::bool::weighted(0.8))
            .prop_map(|(worker, parts, complete)| Step::Subscribe { worker, parts, complete }),
        1 => (worker(), any::<bool>()).prop_map(|(worker, arrives)| Step::Clear { worker, arrives }),
        1 => worker().prop_map(|worker| Step::Restart { worker }),
        1 => worker().prop_map(|worker| Step::Remove { worker }),
        1 => worker().prop_map(|worker| Step::Reset { worker }),
    ]
}

/// Sends one batch of deltas and checks what the index says against what it should.
fn deliver(index: &mut PrefixIndex, number: usize, real: &mut RealWorker, events: &[KvEvent]) {
    let before = real.last_event - events.len() as u64;
    let applied = index.apply(&worker(number), &batch(real.epoch, real.last_event, BatchKind::Delta, events));
    let expected = match real.followed {
        None => Applied::NeedsSnapshot(ResetReason::NoSnapshot),
        Some((epoch, _)) if epoch != real.epoch => Applied::NeedsSnapshot(ResetReason::NewEpoch),
        Some((_, seen)) if seen != before && real.last_event <= seen => Applied::Stale,
        Some((_, seen)) if seen != before => Applied::NeedsSnapshot(ResetReason::Gap),
        Some(_) if events.contains(&KvEvent::AllBlocksCleared) => {
            Applied::NeedsSnapshot(ResetReason::Cleared)
        }
        Some(_) => Applied::Ok,
    };
    assert_eq!(applied, expected);
    match expected {
        Applied::Ok => {
            real.indexed.clone_from(&real.cache);
            real.followed = Some((real.epoch, real.last_event));
        }
        Applied::Stale => {}
        Applied::NeedsSnapshot(_) => {
            real.indexed.clear();
            real.followed = None;
        }
    }
}

fn take(index: &mut PrefixIndex, reals: &mut [RealWorker], step: Step) {
    match step {
        Step::Delta { worker: number, changes, copies } => {
            let real = &mut reals[number];
            let mut events = Vec::new();
            for (block, store) in changes {
                if store && real.cache.insert(block) {
                    events.push(stored(block));
                } else if !store && real.cache.remove(&block) {
                    events.push(removed(block));
                }
            }
            real.last_event += events.len() as u64;
            for _ in 0..copies {
                deliver(index, number, real, &events);
            }
        }
        Step::Subscribe { worker: number, parts, complete } => {
            let real = &mut reals[number];
            let blocks: Vec<u32> = real.cache.iter().copied().collect();
            let size = blocks.len().div_ceil(parts).max(1);
            let mut chunks: Vec<&[u32]> = blocks.chunks(size).collect();
            if chunks.is_empty() {
                chunks.push(&[]);
            }
            let sent = if complete { chunks.len() } else { chunks.len() - 1 };
            // A new subscription is a new stream: what an earlier one brought is replaced.
            index.reset_worker(&worker(number));
            real.indexed.clear();
            real.followed = None;
            for (i, chunk) in chunks.iter().take(sent).enumerate() {
                let kind = if i + 1 == chunks.len() { END } else { PART };
                let events: Vec<KvEvent> = chunk.iter().copied().map(stored).collect();
                let applied =
                    index.apply(&worker(number), &batch(real.epoch, real.last_event, kind, &events));
                assert_eq!(applied, Applied::Ok);
                real.indexed.extend(*chunk);
            }
            if complete {
                real.followed = Some((real.epoch, real.last_event));
            }
        }
        Step::Clear { worker: number, arrives } => {
            let real = &mut reals[number];
            real.cache.clear();
            real.last_event += 1;
            if arrives {
                deliver(index, number, real, &[KvEvent::AllBlocksCleared]);
            }
        }
        Step::Restart { worker: number } => {
            let real = &mut reals[number];
            real.epoch += 1;
            real.last_event = 0;
            real.cache.clear();
        }
        Step::Remove { worker: number } => {
            index.remove_worker(&worker(number));
            reals[number].indexed.clear();
            reals[number].followed = None;
        }
        Step::Reset { worker: number } => {
            index.reset_worker(&worker(number));
            reals[number].indexed.clear();
            reals[number].followed = None;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// The index holds of each worker exactly what an unbroken numbering has told, and says when it is broken.
    #[test]
    fn the_index_follows_streams_that_break(
        steps in (1_usize..4).prop_flat_map(|workers| vec(step(workers), 0..40)),
    ) {
        let mut index = PrefixIndex::new(10_000);
        let mut reals = vec![RealWorker { epoch: 1, ..RealWorker::default() }; 3];
        for step in steps {
            take(&mut index, &mut reals, step);
            let indexed: BTreeMap<usize, BTreeSet<u32>> =
                reals.iter().map(|real| real.indexed.clone()).enumerate().collect();
            for block in BLOCKS.rev().step_by(5) {
                let chain = chain(block);
                prop_assert_eq!(overlap(&index, &chain), naive_overlap(&indexed, &chain));
            }
            for (number, real) in reals.iter().enumerate() {
                prop_assert_eq!(index.is_live(&worker(number)), real.followed.is_some());
            }
        }
        // Nothing is left of workers that are gone, not even the blocks that only led to others.
        for number in 0..reals.len() {
            index.remove_worker(&worker(number));
        }
        prop_assert_eq!(index.usage().blocks, 0);
        prop_assert_eq!(index.usage().evicted, 0);
    }
}

/// The bound, done naively.
#[derive(Default, Debug)]
struct NaiveBound {
    /// Block, holders, when it was stored last.
    blocks: BTreeMap<u32, (BTreeSet<usize>, u64)>,
    ticks: u64,
    evicted: u64,
}

impl NaiveBound {
    /// Blocks held, and blocks that held ones follow.
    fn known(&self) -> BTreeSet<u32> {
        let followed = self.blocks.keys().filter_map(|block| parent(*block));
        self.blocks.keys().copied().chain(followed).collect()
    }

    fn store(&mut self, number: usize, block: u32, max_blocks: usize) {
        self.ticks += 1;
        let entry = self.blocks.entry(block).or_default();
        entry.0.insert(number);
        entry.1 = self.ticks;
        while self.known().len() > max_blocks {
            let followed: BTreeSet<u32> = self.blocks.keys().filter_map(|block| parent(*block)).collect();
            let oldest = self
                .blocks
                .iter()
                .filter(|(block, _)| !followed.contains(block))
                .min_by_key(|(_, (_, stored_at))| *stored_at)
                .map(|(block, _)| *block)
                .expect("chains have ends");
            self.blocks.remove(&oldest);
            self.evicted += 1;
        }
    }

    fn remove(&mut self, number: usize, block: u32) {
        if let Some((holders, _)) = self.blocks.get_mut(&block) {
            holders.remove(&number);
            if holders.is_empty() {
                self.blocks.remove(&block);
            }
        }
    }

    fn held(&self) -> BTreeMap<usize, BTreeSet<u32>> {
        let mut held: BTreeMap<usize, BTreeSet<u32>> = BTreeMap::new();
        for (block, (holders, _)) in &self.blocks {
            for number in holders {
                held.entry(*number).or_default().insert(*block);
            }
        }
        held
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Exactly the oldest ends of prompts are dropped, and never more blocks are held than may be. Children are
    /// stored after their parents here, as workers do; parents may go first.
    #[test]
    fn the_bound_drops_the_oldest_ends(
        max_blocks in 1_usize..12,
        changes in vec((0_usize..3, BLOCKS, prop::bool::weighted(0.8)), 0..80),
    ) {
        let mut index = PrefixIndex::new(max_blocks);
        let mut naive = NaiveBound::default();
        let mut numbers = [0_u64; 3];
        for number in 0..3 {
            prop_assert_eq!(index.apply(&worker(number), &batch(1, 0, END, &[])), Applied::Ok);
        }
        for (number, block, store) in changes {
            let blocks = if store { chain(block) } else { vec![block] };
            for block in blocks {
                let event = if store { stored(block) } else { removed(block) };
                numbers[number] += 1;
                let applied =
                    index.apply(&worker(number), &batch(1, numbers[number], BatchKind::Delta, &[event]));
                prop_assert_eq!(applied, Applied::Ok);
                if store {
                    naive.store(number, block, max_blocks);
                } else {
                    naive.remove(number, block);
                }
                prop_assert!(index.usage().blocks <= max_blocks);
            }
            let held = naive.held();
            for block in BLOCKS {
                let chain = chain(block);
                prop_assert_eq!(overlap(&index, &chain), naive_overlap(&held, &chain));
            }
            prop_assert_eq!(index.usage().evicted, naive.evicted);
            prop_assert_eq!(index.usage().blocks, naive.known().len());
        }
    }
}

fn live_index(max_blocks: usize, blocks: &[u32]) -> PrefixIndex {
    let mut index = PrefixIndex::new(max_blocks);
    let events: Vec<KvEvent> = blocks.iter().copied().map(stored).collect();
    assert_eq!(index.apply(&worker(0), &batch(1, 5, END, &events)), Applied::Ok);
    index
}

#[test]
fn a_second_snapshot_replaces_the_first() {
    let mut index = live_index(100, &[1, 2]);
    assert_eq!(index.apply(&worker(0), &batch(1, 6, PART, &[stored(3)])), Applied::Ok);
    assert!(!index.is_live(&worker(0)));
    assert_eq!(index.apply(&worker(0), &batch(1, 6, END, &[stored(4)])), Applied::Ok);
    assert!(index.is_live(&worker(0)));
    assert_eq!(overlap(&index, &[1]), []);
    assert_eq!(overlap(&index, &[3]), [(worker(0), 1)]);
    assert_eq!(overlap(&index, &[4]), [(worker(0), 1)]);
}

#[test]
fn a_delta_in_the_middle_of_a_snapshot_asks_for_another() {
    let mut index = PrefixIndex::new(100);
    assert_eq!(index.apply(&worker(0), &batch(1, 5, PART, &[stored(1)])), Applied::Ok);
    let applied = index.apply(&worker(0), &batch(1, 6, BatchKind::Delta, &[stored(2)]));
    assert_eq!(applied, Applied::NeedsSnapshot(ResetReason::NoSnapshot));
    assert_eq!(index.usage().blocks, 0);
}

#[test]
fn an_empty_batch_tells_whether_something_is_missing() {
    let mut index = live_index(100, &[1]);
    assert_eq!(index.apply(&worker(0), &batch(1, 5, BatchKind::Delta, &[])), Applied::Ok);
    assert_eq!(index.apply(&worker(0), &batch(1, 4, BatchKind::Delta, &[])), Applied::Stale);
    let applied = index.apply(&worker(0), &batch(1, 6, BatchKind::Delta, &[]));
    assert_eq!(applied, Applied::NeedsSnapshot(ResetReason::Gap));
    assert_eq!(ResetReason::Gap.as_str(), "gap");
}

#[test]
fn a_batch_that_is_longer_than_its_number_is_a_gap() {
    let mut index = PrefixIndex::new(100);
    assert_eq!(index.apply(&worker(0), &batch(1, 0, END, &[])), Applied::Ok);
    let applied = index.apply(&worker(0), &batch(1, 1, BatchKind::Delta, &[stored(1), stored(2)]));
    assert_eq!(applied, Applied::NeedsSnapshot(ResetReason::Gap));
}

#[test]
fn a_batch_that_is_half_known_is_a_gap() {
    let mut index = live_index(100, &[1]);
    let applied = index.apply(&worker(0), &batch(1, 6, BatchKind::Delta, &[stored(2), stored(3)]));
    assert_eq!(applied, Applied::NeedsSnapshot(ResetReason::Gap));
}

#[test]
fn many_workers_are_told_apart() {
    let mut index = PrefixIndex::new(100);
    for number in 0..200 {
        let blocks: &[u32] = if number % 3 == 0 { &[2, 4] } else { &[2] };
        let events: Vec<KvEvent> = blocks.iter().copied().map(stored).collect();
        assert_eq!(index.apply(&worker(number), &batch(1, 0, END, &events)), Applied::Ok);
    }
    assert!(index.remove_worker(&worker(150)));
    assert!(!index.remove_worker(&worker(150)));
    let overlap = overlap(&index, &[2, 4, 8]);
    assert_eq!(overlap.len(), 199);
    for number in (0..200).filter(|number| *number != 150) {
        let depth = if number % 3 == 0 { 2 } else { 1 };
        assert!(overlap.contains(&(worker(number), depth)), "worker {number}");
    }
    assert_eq!(index.usage(), IndexUsage { blocks: 2, max_blocks: 100, evicted: 0 });
}

#[test]
fn a_prompt_without_blocks_overlaps_nowhere() {
    assert_eq!(overlap(&live_index(100, &[1]), &[]), []);
}

#[test]
fn it_says_how_full_it_is() {
    let index = live_index(4, &[1]);
    assert!((index.usage().fullness() - 0.25).abs() < 1e-9);
    let index = live_index(0, &[1, 2]);
    assert_eq!(index.usage(), IndexUsage { blocks: 0, max_blocks: 0, evicted: 2 });
}

#[test]
fn chains_that_loop_cannot_break_the_bound() {
    let follows = |block, parent| KvEvent::BlockStored { hash: hash(block), parent: Some(hash(parent)) };
    let loops = [follows(1, 1), follows(2, 3), follows(3, 2), follows(5, 6), follows(6, 5)];
    let mut index = PrefixIndex::new(3);
    for round in 0..3 {
        assert_eq!(index.apply(&worker(0), &batch(1, round, END, &loops)), Applied::Ok);
        assert!(index.usage().blocks <= 3);
    }
    index.remove_worker(&worker(0));
    assert!(index.usage().blocks <= 3);
}
