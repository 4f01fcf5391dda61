//! The block pool: who holds which KV block, and which blocks can be found again by their content.
//!
//! A block is *held* (referenced by one or more sequences, or in quarantine) or *free*. A full block of known tokens
//! can be *published*: from then on a prompt that begins with the same tokens shares it. A free block stays
//! published until it is given to something else, least recently used first; blocks without content go before all
//! others. A sequence lets go of its tail before its head, so a chain of blocks is forgotten from its end.
//!
//! What a block holds is an *entry*: a place in the tree of prompts. Two blocks of equal content share one entry, and
//! KV events speak of entries. A hash alone never makes a hit: the tokens are compared, and the entry's parent must be
//! the very entry matched before, so a collision costs a miss and not a wrong answer.

use std::collections::{BTreeMap, HashMap};

use disagg_core::{BlockHash, BlockId, KvEvent, SequenceId};

/// Names an entry; never reused, so that a forgotten parent can not be mistaken for its successor of equal hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct EntryId(u64);

/// One piece of content that can be found.
#[derive(Debug)]
struct Entry {
    id: EntryId,
    /// The entry before it, with its hash; `None` for the first block of a prompt.
    parent: Option<(EntryId, BlockHash)>,
    tokens: Box<[u32]>,
    /// Blocks that hold it, at least one.
    blocks: Vec<BlockId>,
}

/// Order in which free blocks are taken: those without content first, then by the time they became free.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct FreeKey {
    published: bool,
    since: u64,
}

#[derive(Debug)]
struct Block {
    /// Holders; quarantine counts as one.
    holders: u32,
    /// Entry it holds, by hash.
    content: Option<BlockHash>,
    /// Set exactly while nobody holds it.
    free: Option<FreeKey>,
}

/// A block that may not be published: why, for tests and debug output. The caller goes on without a cached block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotPublished {
    /// The block before it can not be found, so neither could this one.
    ParentUnknown,
    /// Other content has the same hash.
    Collision,
}

/// Blocks of one KV pool. Knows nothing of the bytes in them.
#[derive(Debug)]
pub struct BlockPool {
    block_size: usize,
    blocks: Vec<Block>,
    free: BTreeMap<FreeKey, BlockId>,
    entries: HashMap<BlockHash, Entry>,
    quarantine: BTreeMap<SequenceId, Vec<BlockId>>,
    quarantined: usize,
    events: Vec<KvEvent>,
    /// Counts releases; orders [`FreeKey`]s.
    clock: u64,
    next_entry: u64,
}

impl BlockPool {
    /// `num_blocks` free blocks of `block_size` tokens each, without content.
    pub fn new(num_blocks: u32, block_size: u32) -> Self {
        let keys = (0..num_blocks).map(|index| FreeKey { published: false, since: u64::from(index) });
        Self {
            block_size: block_size as usize,
            blocks: keys.clone().map(|key| Block { holders: 0, content: None, free: Some(key) }).collect(),
            free: keys.zip((0..num_blocks).map(BlockId)).collect(),
            entries: HashMap::new(),
            quarantine: BTreeMap::new(),
            quarantined: 0,
            events: Vec::new(),
            clock: u64::from(num_blocks),
            next_entry: 0,
        }
    }

    /// Blocks in the pool.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody holds, published or not.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Blocks held by sequences or quarantine.
    pub fn used(&self) -> usize {
        self.total() - self.free()
    }

    /// Blocks in quarantine.
    pub fn quarantined(&self) -> usize {
        self.quarantined
    }

    /// Blocks that can be found by content.
    pub fn published(&self) -> usize {
        self.entries.values().map(|entry| entry.blocks.len()).sum()
    }

    /// The longest chain of published blocks that `tokens` begins with, at most one block per hash. `hashes` are
    /// those of the first full blocks of `tokens`. Holds nothing: call [`Self::hold`] before anything else changes.
    pub fn lookup(&self, hashes: &[BlockHash], tokens: &[u32]) -> Vec<BlockId> {
        let mut chain = Vec::new();
        let mut parent = None;
        for (hash, tokens) in hashes.iter().zip(tokens.chunks_exact(self.block_size)) {
            let Some(entry) = self.entries.get(hash) else { break };
            if entry.parent.map(|(id, _)| id) != parent || *entry.tokens != *tokens {
                break;
            }
            // A held block costs nothing; a free one is taken from those that could be given away.
            let held = entry.blocks.iter().find(|block| self.block(**block).holders > 0);
            let Some(&block) = held.or(entry.blocks.first()) else { break };
            chain.push(block);
            parent = Some(entry.id);
        }
        chain
    }

    /// How many of `blocks` are free: holding them leaves that many fewer to allocate.
    pub fn count_free(&self, blocks: &[BlockId]) -> usize {
        blocks.iter().filter(|block| self.block(**block).free.is_some()).count()
    }

    /// Adds a holder to each block.
    pub fn hold(&mut self, blocks: &[BlockId]) {
        for &block in blocks {
            let state = self.block_mut(block);
            state.holders += 1;
            if let Some(key) = state.free.take() {
                self.free.remove(&key);
            }
        }
        self.debug_check();
    }

    /// `count` blocks with one holder and no content, or none at all. What they held before is forgotten.
    pub fn allocate(&mut self, count: usize) -> Option<Vec<BlockId>> {
        if count > self.free.len() {
            return None;
        }
        let mut taken = Vec::with_capacity(count);
        for _ in 0..count {
            let (_, block) = self.free.pop_first()?;
            self.forget(block);
            let state = self.block_mut(block);
            state.free = None;
            state.holders = 1;
            taken.push(block);
        }
        self.debug_check();
        Some(taken)
    }

    /// Makes a held, full block findable. `parent` is the block before it in the same sequence and must be published.
    /// `hash` is that of the chain up to here, `tokens` are those of this block alone. Without effect for a block that
    /// several sequences hold and one of the others has published.
    pub fn publish(
        &mut self,
        parent: Option<BlockId>,
        block: BlockId,
        hash: BlockHash,
        tokens: &[u32],
    ) -> Result<(), NotPublished> {
        debug_assert_eq!(tokens.len(), self.block_size, "only full blocks are published");
        debug_assert!(self.block(block).holders > 0);
        if let Some(content) = self.block(block).content {
            debug_assert_eq!(content, hash, "{block:?} holds something else");
            return Ok(());
        }
        let parent = match parent {
            None => None,
            Some(parent) => {
                let hash = self.block(parent).content.ok_or(NotPublished::ParentUnknown)?;
                let entry = self.entries.get(&hash).ok_or(NotPublished::ParentUnknown)?;
                Some((entry.id, hash))
            }
        };
        if let Some(entry) = self.entries.get_mut(&hash) {
            if entry.parent != parent || *entry.tokens != *tokens {
                return Err(NotPublished::Collision);
            }
            entry.blocks.push(block);
        } else {
            let id = EntryId(self.next_entry);
            self.next_entry += 1;
            self.entries.insert(hash, Entry { id, parent, tokens: tokens.into(), blocks: vec![block] });
            self.events.push(KvEvent::BlockStored { hash, parent: parent.map(|(_, hash)| hash) });
        }
        self.block_mut(block).content = Some(hash);
        self.debug_check();
        Ok(())
    }

    /// Takes one holder off each of a sequence's blocks, given head first; those without another become free, the
    /// tail first.
    pub fn release(&mut self, blocks: &[BlockId]) {
        for &block in blocks.iter().rev() {
            self.clock += 1;
            let since = self.clock;
            let state = self.block_mut(block);
            debug_assert!(state.holders > 0, "{block:?} is released more often than held");
            state.holders -= 1;
            if state.holders == 0 {
                let key = FreeKey { published: state.content.is_some(), since };
                state.free = Some(key);
                self.free.insert(key, block);
            }
        }
        self.debug_check();
    }

    /// Whether `block` has one holder and no content: only such a block may be written.
    pub fn is_writable(&self, block: BlockId) -> bool {
        let state = self.block(block);
        state.holders == 1 && state.content.is_none()
    }

    /// Keeps blocks of a sequence that has ended, because a peer may still write to them. They pass from the sequence
    /// to the quarantine as they are, held once.
    pub fn quarantine(&mut self, sequence: SequenceId, blocks: Vec<BlockId>) {
        debug_assert!(
            blocks.iter().all(|block| self.is_writable(*block)),
            "a shared block can not be quarantined"
        );
        self.quarantined += blocks.len();
        self.quarantine.entry(sequence).or_default().extend(blocks);
        self.debug_check();
    }

    /// Frees what [`Self::quarantine`] kept for this sequence.
    pub fn end_quarantine(&mut self, sequence: SequenceId) {
        if let Some(blocks) = self.quarantine.remove(&sequence) {
            self.quarantined -= blocks.len();
            self.release(&blocks);
        }
    }

    /// Changes since the last call, in order.
    pub fn take_events(&mut self) -> Vec<KvEvent> {
        std::mem::take(&mut self.events)
    }

    /// All that can be found, parents before children.
    pub fn snapshot(&self) -> Vec<KvEvent> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        // An entry is made after its parent.
        entries.sort_unstable_by_key(|(_, entry)| entry.id);
        let stored = |(hash, entry): (&BlockHash, &Entry)| KvEvent::BlockStored {
            hash: *hash,
            parent: entry.parent.map(|(_, hash)| hash),
        };
        entries.into_iter().map(stored).collect()
    }

    /// Unpublishes a block.
    fn forget(&mut self, block: BlockId) {
        let Some(hash) = self.block_mut(block).content.take() else { return };
        let Some(entry) = self.entries.get_mut(&hash) else { return };
        entry.blocks.retain(|held| *held != block);
        if entry.blocks.is_empty() {
            self.entries.remove(&hash);
            self.events.push(KvEvent::BlockRemoved { hash });
        }
    }

    fn block(&self, block: BlockId) -> &Block {
        &self.blocks[block.0 as usize]
    }

    fn block_mut(&mut self, block: BlockId) -> &mut Block {
        &mut self.blocks[block.0 as usize]
    }

    /// [`Self::check`] after every mutation of pools small enough to be a test's.
    fn debug_check(&self) {
        if cfg!(debug_assertions) && self.blocks.len() <= 256 {
            self.check();
        }
    }

    /// Panics if an invariant does not hold. Linear in the pool: for tests and debug builds.
    pub fn check(&self) {
        assert_eq!(self.free.len(), self.blocks.iter().filter(|block| block.holders == 0).count());
        for (index, block) in self.blocks.iter().enumerate() {
            let id = BlockId(index as u32);
            assert_eq!(block.free.is_some(), block.holders == 0, "{id:?} is free iff nobody holds it");
            if let Some(key) = block.free {
                assert_eq!(self.free.get(&key), Some(&id));
                assert_eq!(
                    key.published,
                    block.content.is_some(),
                    "{id:?} is in the wrong part of the free list"
                );
            }
            if let Some(hash) = block.content {
                assert!(self.entries[&hash].blocks.contains(&id), "{id:?} is published under its hash");
            }
        }
        for (hash, entry) in &self.entries {
            assert!(!entry.blocks.is_empty(), "an entry has a block");
            assert_eq!(entry.tokens.len(), self.block_size);
            for block in &entry.blocks {
                assert_eq!(self.block(*block).content, Some(*hash));
            }
            if let Some((id, parent)) = entry.parent {
                assert_eq!(
                    self.entries.get(&parent).map(|entry| entry.id),
                    Some(id),
                    "a parent outlives its children"
                );
            }
        }
        assert_eq!(self.quarantined, self.quarantine.values().map(Vec::len).sum::<usize>());
        assert!(self.quarantine.values().flatten().all(|block| self.block(*block).holders == 1));
    }
}
