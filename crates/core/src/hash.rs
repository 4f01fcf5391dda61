//! Identity of blocks: equal tokens after an equal prefix, under an equal model, have equal keys and values.
//!
//! `root = xxh3_128("disagg block v1" ‖ fingerprint ‖ block size ‖ salt)`, and each block is
//! `xxh3_128(parent ‖ token ids)` with the root as the parent of a prompt's first block. Integers are little-endian:
//! the fingerprint and the parent take 16 bytes, the block size and each token id 4.
//!
//! The hash leaves the process (KV events, routers), so it never changes between builds; tests hold the values. It is
//! no defence against someone who looks for collisions: a pool compares the tokens on a hit.

use xxhash_rust::xxh3::xxh3_128;

use crate::ids::{BlockHash, ModelFingerprint};

/// Changed whenever the input of the hash changes its meaning.
const DOMAIN: &[u8] = b"disagg block v1";

/// Hashes the blocks of one model under one salt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockHasher {
    root: BlockHash,
    block_size: u32,
}

impl BlockHasher {
    /// `block_size` is in tokens and over zero. `salt` separates prefix caches: prompts under different salts share
    /// no blocks.
    pub fn new(fingerprint: ModelFingerprint, block_size: u32, salt: &str) -> Self {
        assert!(block_size > 0, "a block holds at least one token");
        // The salt comes last, and everything before it has a fixed length: no two inputs run together.
        let mut bytes = Vec::with_capacity(DOMAIN.len() + 16 + 4 + salt.len());
        bytes.extend_from_slice(DOMAIN);
        bytes.extend_from_slice(&fingerprint.0.to_le_bytes());
        bytes.extend_from_slice(&block_size.to_le_bytes());
        bytes.extend_from_slice(salt.as_bytes());
        Self { root: BlockHash(xxh3_128(&bytes)), block_size }
    }

    /// Tokens in a block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Identities of the full blocks of a prompt, first to last. What is left of a partial block has no identity.
    pub fn hash_blocks(&self, tokens: &[u32]) -> Vec<BlockHash> {
        let mut bytes = Vec::with_capacity(16 + 4 * self.block_size as usize);
        let mut parent = self.root;
        tokens
            .chunks_exact(self.block_size as usize)
            .map(|block| {
                parent = hash_block(&mut bytes, parent, block);
                parent
            })
            .collect()
    }

    /// Identity of the block that holds `tokens` (one block's worth) after `parent`; `None` begins a prompt.
    pub fn child(&self, parent: Option<BlockHash>, tokens: &[u32]) -> BlockHash {
        debug_assert_eq!(tokens.len(), self.block_size as usize, "only full blocks have an identity");
        hash_block(&mut Vec::with_capacity(16 + 4 * tokens.len()), parent.unwrap_or(self.root), tokens)
    }
}

/// `bytes` is scratch space, so that a long prompt costs one allocation.
fn hash_block(bytes: &mut Vec<u8>, parent: BlockHash, tokens: &[u32]) -> BlockHash {
    bytes.clear();
    bytes.extend_from_slice(&parent.0.to_le_bytes());
    for token in tokens {
        bytes.extend_from_slice(&token.to_le_bytes());
    }
    BlockHash(xxh3_128(bytes))
}
