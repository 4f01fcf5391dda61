//! The blocks of the index: who holds each, what follows it, and which goes first when there are too many.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::worker_set::WorkerSet;
use crate::ids::BlockHash;

/// One block: held by at least one worker, or else only known because held blocks follow it.
#[derive(Clone, Debug)]
struct Node {
    /// The block before it, while this one is held. Part of its identity, so all workers agree.
    parent: Option<BlockHash>,
    /// Held blocks whose parent this is.
    children: u32,
    /// When a worker last reported it stored, in ticks of the index.
    stored_at: u64,
    holders: WorkerSet,
}

/// Bounded set of blocks. A held block that no held block follows is a leaf; leaves are evicted, oldest first.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    nodes: HashMap<BlockHash, Node, BuildHasherDefault<AlreadyHashed>>,
    /// Leaves by `stored_at`, which is unique among held blocks.
    leaves: BTreeMap<u64, BlockHash>,
    bound: usize,
    ticks: u64,
    evicted: u64,
}

impl Blocks {
    pub(super) fn new(bound: usize) -> Self {
        Self { nodes: HashMap::default(), leaves: BTreeMap::new(), bound, ticks: 0, evicted: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn bound(&self) -> usize {
        self.bound
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(super) fn holders(&self, hash: &BlockHash) -> Option<&WorkerSet> {
        self.nodes.get(hash).map(|node| &node.holders)
    }

    /// The worker holds the block.
    pub(super) fn store(&mut self, slot: u32, hash: BlockHash, parent: Option<BlockHash>) {
        self.ticks += 1;
        let now = self.ticks;
        let node = self.nodes.entry(hash).or_insert_with(|| Node::unreported(now));
        if node.children == 0 {
            self.leaves.remove(&node.stored_at);
            self.leaves.insert(now, hash);
        }
        node.stored_at = now;
        node.holders.insert(slot);
        if node.parent.is_none()
            && let Some(parent) = parent
            // Nothing follows itself; a worker that says so is confused.
            && parent != hash
        {
            node.parent = Some(parent);
            let parent_node = self.nodes.entry(parent).or_insert_with(|| Node::unreported(now));
            if parent_node.children == 0 && !parent_node.holders.is_empty() {
                self.leaves.remove(&parent_node.stored_at);
            }
            parent_node.children += 1;
        }
        while self.nodes.len() > self.bound {
            self.evict_one();
        }
    }

    /// The worker does not hold the block any more.
    pub(super) fn remove(&mut self, slot: u32, hash: BlockHash) {
        if let Some(node) = self.nodes.get_mut(&hash)
            && node.holders.contains(slot)
        {
            node.holders.remove(slot);
            if node.holders.is_empty() {
                self.release(hash);
            }
        }
    }

    /// The worker holds nothing any more. Looks at every block: workers are reset rarely.
    pub(super) fn remove_worker(&mut self, slot: u32) {
        let held: Vec<BlockHash> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.holders.contains(slot))
            .map(|(hash, _)| *hash)
            .collect();
        for hash in held {
            self.remove(slot, hash);
        }
    }

    fn evict_one(&mut self) {
        let Some((_, hash)) = self.leaves.pop_first() else {
            // Chains of hashes have ends. Only a worker that reports a loop gets here; the bound holds all the same.
            self.evicted += self.nodes.len() as u64;
            self.nodes.clear();
            return;
        };
        self.evicted += 1;
        if let Some(node) = self.nodes.get_mut(&hash) {
            node.holders = WorkerSet::default();
            self.release(hash);
        }
    }

    /// Nobody holds the block any more. It stays for as long as it is followed.
    fn release(&mut self, hash: BlockHash) {
        let Some(node) = self.nodes.get_mut(&hash) else {
            return;
        };
        let parent = node.parent.take();
        if node.children == 0 {
            self.leaves.remove(&node.stored_at);
            self.nodes.remove(&hash);
        }
        let Some(parent) = parent else {
            return;
        };
        let Some(parent_node) = self.nodes.get_mut(&parent) else {
            return;
        };
        parent_node.children -= 1;
        if parent_node.children == 0 {
            if parent_node.holders.is_empty() {
                self.nodes.remove(&parent);
            } else {
                self.leaves.insert(parent_node.stored_at, parent);
            }
        }
    }
}

impl Node {
    /// A block known only because another follows it, or about to be reported.
    fn unreported(now: u64) -> Self {
        Self { parent: None, children: 0, stored_at: now, holders: WorkerSet::default() }
    }
}

/// Takes the low half of a block hash, which is uniform already, as its hash.
#[derive(Clone, Copy, Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only `u128` is ever hashed; this keeps the trait's promise for the rest.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
}
