//! What a simulated model keeps for a token, and how it is found in a block again.
//!
//! Each layer keeps two digests of every token: of the token itself with its position (where a transformer keeps the
//! value), and of that one and the digest of the token before (where it keeps the key). So the digests of a sequence
//! are a chain in each layer, and a block of another sequence, another position or another layer breaks it.

use disagg_engine::KvLayout;
use xxhash_rust::xxh3::xxh3_64;

/// Bits of a digest in one element: the fraction of a float between 1 and 2.
const ELEMENT_BITS: u32 = 23;
const ELEMENT_MASK: u64 = (1 << ELEMENT_BITS) - 1;

/// 46 bits, as many as two elements hold.
pub(super) type Digest = u64;

/// Digest of two numbers, in order.
pub(super) fn mix(a: u64, b: u64) -> Digest {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&a.to_le_bytes());
    bytes[8..].copy_from_slice(&b.to_le_bytes());
    xxh3_64(&bytes) >> (64 - 2 * ELEMENT_BITS)
}

/// Digest of a token at its position.
pub(super) fn embed(token: u32, position: u32) -> Digest {
    mix(token.into(), position.into())
}

/// Element `index` of the row (all heads of one token) that holds a digest. The first two elements are enough to read
/// it; all others differ from each other, so that every misplaced byte shows.
fn element(digest: Digest, index: usize) -> f32 {
    let half = if index.is_multiple_of(2) { digest } else { digest >> ELEMENT_BITS };
    let bits = half.wrapping_add((index as u64 / 2).wrapping_mul(0x9_E377)) & ELEMENT_MASK;
    f32::from_bits(1f32.to_bits() | bits as u32)
}

/// Fills a row with a digest.
pub(super) fn fill(row: &mut [f32], digest: Digest) {
    for (index, value) in row.iter_mut().enumerate() {
        *value = element(digest, index);
    }
}

/// One block of one layer: `[K|V][kv_head][block_size][head_dim]`.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) layout: KvLayout,
    pub(super) elements: &'a [f32],
}

/// What a block has for one token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Kept {
    pub(super) chain: Digest,
    pub(super) token: Digest,
}

impl Block<'_> {
    /// The digests of the token at `offset`.
    pub(super) fn kept(&self, offset: usize) -> Kept {
        let read = |half: usize| {
            let at = half * self.layout.half_elements() + offset * self.layout.head_dim as usize;
            let bits = |value: f32| u64::from(value.to_bits()) & ELEMENT_MASK;
            bits(self.elements[at]) | bits(self.elements[at + 1]) << ELEMENT_BITS
        };
        Kept { chain: read(0), token: read(1) }
    }

    /// Whether every element of the token at `offset` is what its digests ask for.
    pub(super) fn is_whole(&self, offset: usize) -> bool {
        let kept = self.kept(offset);
        let head_dim = self.layout.head_dim as usize;
        let head_elements = self.layout.block_size as usize * head_dim;
        [kept.chain, kept.token].iter().zip(self.elements.chunks_exact(self.layout.half_elements())).all(
            |(&digest, half)| {
                half.chunks_exact(head_elements).enumerate().all(|(head, elements)| {
                    let elements = elements[offset * head_dim..][..head_dim].iter().enumerate();
                    elements
                        .map(|(i, value)| (head * head_dim + i, value))
                        .all(|(index, value)| value.to_bits() == element(digest, index).to_bits())
                })
            },
        )
    }
}
