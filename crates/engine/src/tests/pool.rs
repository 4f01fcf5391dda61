//! The block pool, alone.

use std::collections::{BTreeMap, HashMap};

use disagg_core::hash::BlockHasher;
use disagg_core::{BlockHash, BlockId, KvEvent, ModelFingerprint, SequenceId};
use proptest::prelude::*;

use crate::pool::{BlockPool, NotPublished};

const SIZE: usize = 2;

fn hasher() -> BlockHasher {
    BlockHasher::new(ModelFingerprint(1), SIZE as u32, "")
}

/// Allocates and publishes a whole prompt.
fn fill(pool: &mut BlockPool, tokens: &[u32]) -> Vec<BlockId> {
    let hashes = hasher().hash_blocks(tokens);
    let blocks = pool.allocate(hashes.len()).unwrap();
    publish(pool, &blocks, &hashes, tokens);
    blocks
}

fn publish(pool: &mut BlockPool, blocks: &[BlockId], hashes: &[BlockHash], tokens: &[u32]) {
    let mut parent = None;
    for ((block, hash), tokens) in blocks.iter().zip(hashes).zip(tokens.chunks_exact(SIZE)) {
        pool.publish(parent, *block, *hash, tokens).unwrap();
        parent = Some(*block);
    }
}

fn lookup(pool: &BlockPool, tokens: &[u32]) -> Vec<BlockId> {
    pool.lookup(&hasher().hash_blocks(tokens), tokens)
}

#[test]
fn freed_blocks_are_found_until_they_are_given_away_tail_first() {
    let mut pool = BlockPool::new(4, SIZE as u32);
    let tokens = [1, 2, 3, 4, 5, 6];
    let blocks = fill(&mut pool, &tokens);
    assert_eq!((pool.used(), pool.free()), (3, 1));
    pool.release(&blocks);
    assert_eq!((pool.used(), pool.free()), (0, 4));
    assert_eq!(lookup(&pool, &tokens), blocks);
    // The block without content goes first, then the tail.
    let one = pool.allocate(1).unwrap();
    assert_eq!(lookup(&pool, &tokens), blocks);
    let two = pool.allocate(1).unwrap();
    assert_eq!(two, [blocks[2]]);
    assert_eq!(lookup(&pool, &tokens), blocks[..2]);
    pool.release(&[one, two].concat());
    assert!(pool.allocate(5).is_none());
    assert_eq!(lookup(&pool, &tokens), blocks[..2], "a refusal changes nothing");
}

#[test]
fn the_least_recently_used_content_goes_first() {
    let mut pool = BlockPool::new(3, SIZE as u32);
    let all: Vec<_> = [[1, 1], [2, 2], [3, 3]].iter().map(|tokens| fill(&mut pool, tokens)).collect();
    for blocks in &all {
        pool.release(blocks);
    }
    // Used again, the first is the most recent one.
    pool.hold(&all[0]);
    pool.release(&all[0]);
    assert_eq!(pool.allocate(2).unwrap(), [all[1][0], all[2][0]]);
    assert_eq!(lookup(&pool, &[1, 1]), all[0]);
}

#[test]
fn held_blocks_are_counted_once_and_freed_by_the_last_holder() {
    let mut pool = BlockPool::new(4, SIZE as u32);
    let blocks = fill(&mut pool, &[1, 2, 3, 4]);
    assert!(blocks.iter().all(|block| !pool.is_writable(*block)), "published content is not written");
    pool.hold(&blocks);
    pool.release(&blocks);
    assert_eq!(pool.used(), 2);
    pool.release(&blocks);
    assert_eq!(pool.used(), 0);
    assert_eq!(pool.count_free(&blocks), 2);
    let fresh = pool.allocate(1).unwrap();
    assert!(pool.is_writable(fresh[0]));
    pool.hold(&fresh);
    assert!(!pool.is_writable(fresh[0]), "shared blocks are not written");
}

#[test]
fn blocks_of_equal_content_are_one_entry() {
    let mut pool = BlockPool::new(6, SIZE as u32);
    let tokens = [1, 2, 3, 4];
    let (first, second) = (fill(&mut pool, &tokens), fill(&mut pool, &tokens));
    assert_eq!(pool.take_events().len(), 2, "stored once");
    assert_eq!(pool.published(), 4);
    pool.release(&first);
    assert_eq!(lookup(&pool, &tokens), second, "a held block costs nothing");
    pool.release(&second);
    pool.allocate(2 + 2).unwrap();
    assert_eq!(pool.take_events(), [], "one of each is left");
    assert_eq!(lookup(&pool, &tokens).len(), 2);
    pool.allocate(2).unwrap();
    let hashes = hasher().hash_blocks(&tokens);
    let removed = |index: usize| KvEvent::BlockRemoved { hash: hashes[index] };
    assert_eq!(pool.take_events(), [removed(1), removed(0)], "children before parents");
    assert!(pool.snapshot().is_empty());
}

#[test]
fn a_collision_is_a_miss() {
    let mut pool = BlockPool::new(8, SIZE as u32);
    let hash = BlockHash(42);
    let root = pool.allocate(3).unwrap();
    pool.publish(None, root[0], hash, &[1, 2]).unwrap();
    // Other tokens, same hash.
    assert_eq!(pool.publish(None, root[1], hash, &[3, 4]), Err(NotPublished::Collision));
    assert_eq!(pool.lookup(&[hash], &[3, 4]), []);
    assert_eq!(pool.lookup(&[hash], &[1, 2]), [root[0]]);
    // Same hash and tokens after another parent.
    let child = BlockHash(43);
    pool.publish(None, root[1], BlockHash(44), &[3, 4]).unwrap();
    let children = pool.allocate(2).unwrap();
    pool.publish(Some(root[0]), children[0], child, &[5, 6]).unwrap();
    assert_eq!(pool.publish(Some(root[1]), children[1], child, &[5, 6]), Err(NotPublished::Collision));
    assert_eq!(pool.lookup(&[BlockHash(44), child], &[3, 4, 5, 6]), [root[1]]);
    assert_eq!(pool.lookup(&[hash, child], &[1, 2, 5, 6]), [root[0], children[0]]);
    assert_eq!(pool.lookup(&[child], &[5, 6]), [], "not the beginning of a prompt");
    // After a block that can not be found, nothing can be.
    assert_eq!(
        pool.publish(Some(root[2]), children[1], BlockHash(45), &[7, 8]),
        Err(NotPublished::ParentUnknown)
    );
}

#[test]
fn quarantine_keeps_blocks_until_it_ends() {
    let mut pool = BlockPool::new(4, SIZE as u32);
    let blocks = pool.allocate(3).unwrap();
    pool.quarantine(SequenceId(1), blocks[..2].to_vec());
    pool.quarantine(SequenceId(2), blocks[2..].to_vec());
    assert_eq!((pool.used(), pool.quarantined()), (3, 3));
    assert!(pool.allocate(2).is_none());
    pool.end_quarantine(SequenceId(1));
    pool.end_quarantine(SequenceId(1));
    assert_eq!((pool.used(), pool.quarantined()), (1, 1));
}

/// What the pool should do, told with whole prefixes in place of hashes and lists in place of indexes.
#[derive(Default)]
struct Naive {
    /// All tokens up to the end of each published block.
    content: BTreeMap<BlockId, Vec<u32>>,
    holders: BTreeMap<BlockId, usize>,
    /// Free blocks by how long they have been free, those without content apart.
    empty: Vec<BlockId>,
    cached: Vec<BlockId>,
}

impl Naive {
    fn new(blocks: u32) -> Self {
        let empty: Vec<_> = (0..blocks).map(BlockId).collect();
        Self { holders: empty.iter().map(|block| (*block, 0)).collect(), empty, ..Self::default() }
    }

    fn longest(&self, tokens: &[u32]) -> usize {
        let stored = |end: &usize| self.content.values().any(|content| content == &tokens[..*end]);
        (1..=tokens.len() / SIZE).take_while(|blocks| stored(&(blocks * SIZE))).count()
    }

    fn hold(&mut self, blocks: &[BlockId]) {
        for block in blocks {
            *self.holders.get_mut(block).unwrap() += 1;
            self.empty.retain(|free| free != block);
            self.cached.retain(|free| free != block);
        }
    }

    fn allocate(&mut self, count: usize) -> Option<Vec<BlockId>> {
        let order: Vec<_> = self.empty.iter().chain(&self.cached).copied().take(count).collect();
        (order.len() == count).then(|| {
            self.content.retain(|block, _| !order.contains(block));
            self.hold(&order);
            order
        })
    }

    fn release(&mut self, blocks: &[BlockId]) {
        for block in blocks.iter().rev() {
            let holders = self.holders.get_mut(block).unwrap();
            *holders -= 1;
            if *holders == 0 {
                let list = if self.content.contains_key(block) { &mut self.cached } else { &mut self.empty };
                list.push(*block);
            }
        }
    }
}

/// A prompt comes, as an engine would take it, and goes when `Some` of its turn.
#[derive(Clone, Debug)]
enum Action {
    Come { tokens: Vec<u32>, spare: usize, use_cache: bool },
    Go(usize),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let come = (prop::collection::vec(0u32..2, 0..13), 0usize..2, prop::bool::weighted(0.8))
        .prop_map(|(tokens, spare, use_cache)| Action::Come { tokens, spare, use_cache });
    prop::collection::vec(prop_oneof![3 => come, 2 => (0usize..6).prop_map(Action::Go)], 1..60)
}

/// A router's view: applies events and fails on any that makes no sense.
fn apply(view: &mut HashMap<BlockHash, Option<BlockHash>>, events: Vec<KvEvent>) {
    for event in events {
        match event {
            KvEvent::BlockStored { hash, parent } => {
                assert!(parent.is_none_or(|parent| view.contains_key(&parent)), "a child before its parent");
                assert!(view.insert(hash, parent).is_none(), "stored twice");
            }
            KvEvent::BlockRemoved { hash } => {
                assert!(view.remove(&hash).is_some(), "removed what is not there");
                assert!(view.values().all(|parent| *parent != Some(hash)), "a parent before its children");
            }
            KvEvent::AllBlocksCleared => view.clear(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn does_what_the_naive_pool_does(blocks in 1u32..14, actions in actions()) {
        let (mut pool, mut naive) = (BlockPool::new(blocks, SIZE as u32), Naive::new(blocks));
        let mut live: Vec<Vec<BlockId>> = Vec::new();
        let mut view = HashMap::new();
        for action in actions {
            match action {
                Action::Come { tokens, spare, use_cache } => {
                    let cached = if use_cache { lookup(&pool, &tokens) } else { Vec::new() };
                    if use_cache {
                        prop_assert_eq!(cached.len(), naive.longest(&tokens));
                    }
                    for (index, block) in cached.iter().enumerate() {
                        prop_assert_eq!(&naive.content[block], &tokens[..(index + 1) * SIZE]);
                    }
                    pool.hold(&cached);
                    naive.hold(&cached);
                    let hashes = hasher().hash_blocks(&tokens);
                    let fresh = pool.allocate(hashes.len() - cached.len() + spare);
                    prop_assert_eq!(&fresh, &naive.allocate(hashes.len() - cached.len() + spare));
                    let Some(fresh) = fresh else {
                        pool.release(&cached);
                        naive.release(&cached);
                        continue;
                    };
                    let held = [cached.clone(), fresh].concat();
                    for index in cached.len()..hashes.len() {
                        let parent = index.checked_sub(1).map(|parent| held[parent]);
                        let of_block = &tokens[index * SIZE..(index + 1) * SIZE];
                        pool.publish(parent, held[index], hashes[index], of_block).unwrap();
                        naive.content.insert(held[index], tokens[..(index + 1) * SIZE].to_vec());
                    }
                    live.push(held);
                }
                Action::Go(which) if which < live.len() => {
                    let blocks = live.remove(which);
                    pool.release(&blocks);
                    naive.release(&blocks);
                }
                Action::Go(_) => {}
            }
            pool.check();
            prop_assert_eq!(pool.free(), naive.empty.len() + naive.cached.len());
            prop_assert_eq!(pool.published(), naive.content.len());
            apply(&mut view, pool.take_events());
            let mut snapshot = HashMap::new();
            apply(&mut snapshot, pool.snapshot());
            prop_assert_eq!(&snapshot, &view, "events and snapshot tell the same");
        }
        for blocks in live {
            pool.release(&blocks);
        }
        prop_assert_eq!(pool.used(), 0);
    }
}
