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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const MODEL: ModelFingerprint = ModelFingerprint(0x0123_4567_89ab_cdef_0011_2233_4455_6677);

    fn hex(hasher: &BlockHasher, tokens: &[u32]) -> Vec<String> {
        hasher.hash_blocks(tokens).iter().map(ToString::to_string).collect()
    }

    /// Computed with Python's `xxhash.xxh3_128` from the description above. They never change: routers and workers of
    /// different builds meet in one cluster.
    #[test]
    fn golden_values() {
        assert_eq!(
            hex(&BlockHasher::new(ModelFingerprint(0), 1, ""), &[0]),
            ["301872b0d816e9ea0b282709266ef947"]
        );
        assert_eq!(
            hex(&BlockHasher::new(MODEL, 4, ""), &[1, 2, 3, 4, 5, 6, 7, 8]),
            ["42bb20dbe0538f88ade0a706214fbca5", "ed3b87281094b0faaef1005cab3cb14c"]
        );
        assert_eq!(
            hex(&BlockHasher::new(MODEL, 4, "tenant-a"), &[1, 2, 3, 4]),
            ["1e40d16f88408ac16aa052c09760c8a1"]
        );
        assert_eq!(
            hex(&BlockHasher::new(ModelFingerprint(u128::MAX), 16, "ü"), &[u32::MAX; 16]),
            ["44021b25fde2971bb5b15b0f51e4cc34"]
        );
        let tokens: Vec<u32> = (1000..1128).collect();
        assert_eq!(
            hex(&BlockHasher::new(ModelFingerprint(1), 64, ""), &tokens),
            ["c74a49a93ff4a2dce9c3571d61cc35d3", "94bd4e8ec34c8b11b48e4b2ef7299592"]
        );
    }

    #[test]
    fn model_block_size_and_salt_separate_caches() {
        let tokens = [7; 8];
        let firsts: HashSet<BlockHash> = [
            BlockHasher::new(MODEL, 4, ""),
            BlockHasher::new(ModelFingerprint(1), 4, ""),
            BlockHasher::new(MODEL, 8, ""),
            BlockHasher::new(MODEL, 4, "a"),
            BlockHasher::new(MODEL, 4, "b"),
        ]
        .iter()
        .map(|hasher| hasher.hash_blocks(&tokens)[0])
        .collect();
        assert_eq!(firsts.len(), 5);
    }

    proptest! {
        /// Two prompts agree on exactly the blocks of their common prefix, and one block at a time gives the same.
        #[test]
        fn identity_is_the_prefix(
            a in vec(0_u32..3, 0..24),
            b in vec(0_u32..3, 0..24),
            block_size in 1_u32..6,
        ) {
            let hasher = BlockHasher::new(MODEL, block_size, "");
            let (hashes_a, hashes_b) = (hasher.hash_blocks(&a), hasher.hash_blocks(&b));
            prop_assert_eq!(hashes_a.len(), a.len() / block_size as usize);
            let common_tokens = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
            for (i, (hash_a, hash_b)) in hashes_a.iter().zip(&hashes_b).enumerate() {
                prop_assert_eq!(hash_a == hash_b, (i + 1) * block_size as usize <= common_tokens);
            }
            let mut parent = None;
            for (block, hash) in a.chunks_exact(block_size as usize).zip(&hashes_a) {
                let child = hasher.child(parent, block);
                prop_assert_eq!(child, *hash);
                parent = Some(child);
            }
        }
    }
}
