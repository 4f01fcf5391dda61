//! The KV pool in main memory, of the backends that compute on the CPU.

use disagg_core::BlockId;
use disagg_engine::{KvAccessError, KvDtype, KvLayout, KvMemory};
use half::{bf16, f16};
use parking_lot::{RwLock, RwLockReadGuard};

/// Rows of equal length in one slice.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// From the first row's first element on.
    pub(super) data: &'a [f32],
    /// Elements from one row's start to the next's.
    pub(super) stride: usize,
    /// Elements of a row.
    pub(super) width: usize,
    /// Rows.
    pub(super) count: usize,
}

impl<'a> Rows<'a> {
    /// Rows without gaps.
    pub(super) fn dense(data: &'a [f32], width: usize) -> Self {
        Self { data, stride: width, width, count: data.len() / width }
    }

    // Kernels are compiled for an instruction set only where what they call is inlined.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    pub(super) fn row(&self, index: usize) -> &'a [f32] {
        &self.data[index * self.stride..][..self.width]
    }

    /// All but the first rows.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    pub(super) fn skip_rows(self, first: usize) -> Self {
        Self { data: &self.data[first * self.stride..], count: self.count - first, ..self }
    }
}

/// Keys and values as f32, with a lock for every (layer, block), so that network threads land KV in reserved blocks
/// while the engine thread computes in others.
///
/// Another format of the layout is that of the bytes that go to other workers. Values are rounded to it as they are
/// stored, so a sequence has the same bits whether its KV was computed here or brought by a handoff; they take four
/// bytes each all the same, since the kernels compute with f32.
pub(super) struct PagedPool {
    layout: KvLayout,
    num_blocks: u32,
    /// By layer, then block: `[K|V][kv_head][block_size][head_dim]`.
    blocks: Vec<RwLock<Box<[f32]>>>,
}

impl PagedPool {
    pub(super) fn new(layout: KvLayout, num_blocks: u32) -> Self {
        let count = layout.layers as usize * num_blocks as usize;
        let elements = 2 * layout.half_elements();
        let blocks = (0..count).map(|_| RwLock::new(vec![0.0; elements].into_boxed_slice())).collect();
        Self { layout, num_blocks, blocks }
    }

    /// Tokens per block.
    pub(super) fn block_size(&self) -> usize {
        self.layout.block_size as usize
    }

    /// Locks one block of one layer for reading.
    pub(super) fn block(&self, layer: u32, block: BlockId) -> RwLockReadGuard<'_, Box<[f32]>> {
        self.blocks[self.index(layer, block)].read()
    }

    /// Puts the keys and values of a batch (rows of `kv_heads * head_dim`) into their slots.
    pub(super) fn store(&self, layer: u32, slots: &[u32], keys: Rows<'_>, values: Rows<'_>) {
        let block_size = self.layout.block_size;
        let head_dim = self.layout.head_dim as usize;
        let half = self.layout.half_elements();
        let head_elements = block_size as usize * head_dim;
        let mut token = 0;
        // Neighbours mostly share a block: one lock for them all.
        for same_block in slots.chunk_by(|a, b| a / block_size == b / block_size) {
            let block = BlockId(same_block[0] / block_size);
            let mut guard = self.blocks[self.index(layer, block)].write();
            let (k, v) = guard.split_at_mut(half);
            for slot in same_block {
                let offset = (slot % block_size) as usize * head_dim;
                for (pool, row) in [(&mut *k, keys.row(token)), (&mut *v, values.row(token))] {
                    for (head, elements) in row.chunks_exact(head_dim).enumerate() {
                        let slot = &mut pool[head * head_elements + offset..][..head_dim];
                        slot.copy_from_slice(elements);
                        round(self.layout.dtype, slot);
                    }
                }
                token += 1;
            }
        }
    }

    fn index(&self, layer: u32, block: BlockId) -> usize {
        layer as usize * self.num_blocks as usize + block.0 as usize
    }

    fn checked_index(&self, layer: u32, block: BlockId) -> Result<usize, KvAccessError> {
        if layer < self.layout.layers && block.0 < self.num_blocks {
            return Ok(self.index(layer, block));
        }
        Err(KvAccessError::OutOfRange {
            layer,
            block: block.0,
            layers: self.layout.layers,
            blocks: self.num_blocks,
        })
    }
}

impl KvMemory for PagedPool {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn num_blocks(&self) -> u32 {
        self.num_blocks
    }

    fn read(&self, layer: u32, block: BlockId, out: &mut [u8]) -> Result<(), KvAccessError> {
        let index = self.checked_index(layer, block)?;
        let want = self.layout.layer_block_bytes();
        if out.len() != want {
            return Err(KvAccessError::WrongSize { got: out.len(), want });
        }
        let guard = self.blocks[index].read();
        match self.layout.dtype {
            KvDtype::F32 => encode(&guard, out, f32::to_le_bytes),
            KvDtype::Bf16 => encode(&guard, out, |value| bf16::from_f32(value).to_le_bytes()),
            KvDtype::F16 => encode(&guard, out, |value| f16::from_f32(value).to_le_bytes()),
        }
        Ok(())
    }

    fn write(&self, layer: u32, block: BlockId, bytes: &[u8]) -> Result<(), KvAccessError> {
        let index = self.checked_index(layer, block)?;
        let want = self.layout.layer_block_bytes();
        if bytes.len() != want {
            return Err(KvAccessError::WrongSize { got: bytes.len(), want });
        }
        let mut guard = self.blocks[index].write();
        match self.layout.dtype {
            KvDtype::F32 => decode(bytes, &mut guard, f32::from_le_bytes),
            KvDtype::Bf16 => decode(bytes, &mut guard, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            KvDtype::F16 => decode(bytes, &mut guard, |bytes| f16::from_le_bytes(bytes).to_f32()),
        }
        Ok(())
    }
}

/// Rounds to what `dtype` can tell, to nearest, ties to even.
fn round(dtype: KvDtype, values: &mut [f32]) {
    match dtype {
        KvDtype::F32 => {}
        KvDtype::Bf16 => values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32()),
        KvDtype::F16 => values.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32()),
    }
}

fn encode<const N: usize>(values: &[f32], out: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
    for (bytes, value) in out.as_chunks_mut().0.iter_mut().zip(values) {
        *bytes = encode(*value);
    }
}

fn decode<const N: usize>(bytes: &[u8], values: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
        *value = decode(*bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool_of(dtype: KvDtype) -> PagedPool {
        PagedPool::new(KvLayout { layers: 2, kv_heads: 2, head_dim: 4, block_size: 3, dtype }, 5)
    }

    fn pool() -> PagedPool {
        pool_of(KvDtype::F32)
    }

    #[test]
    fn what_is_stored_is_what_another_worker_would_get() {
        // Neither format of 16 bits has them, and f16 has no number as large as the last.
        let values = [1.0 + 1.0 / 4096.0, -0.1, 3.0e-6, 70_000.0];
        let rounded = [
            (KvDtype::F32, values),
            (KvDtype::Bf16, values.map(|value| bf16::from_f32(value).to_f32())),
            (KvDtype::F16, values.map(|value| f16::from_f32(value).to_f32())),
        ];
        assert_eq!((rounded[1].1[0], rounded[2].1[3]), (1.0, f32::INFINITY));
        for (dtype, want) in rounded {
            let (from, to) = (pool_of(dtype), pool_of(dtype));
            let row: Vec<f32> = values.iter().chain(&values).copied().collect();
            from.store(1, &[4], Rows::dense(&row, 8), Rows::dense(&row, 8));
            assert_eq!(from.block(1, BlockId(1))[4..8], want, "{dtype:?}");
            let mut bytes = vec![0; from.layout().layer_block_bytes()];
            assert_eq!(bytes.len(), 48 * dtype.bytes());
            from.read(1, BlockId(1), &mut bytes).expect("in range");
            to.write(0, BlockId(3), &bytes).expect("fits");
            assert_eq!(to.block(0, BlockId(3))[..], from.block(1, BlockId(1))[..], "{dtype:?}");
        }
    }

    #[test]
    fn stored_tokens_lie_where_the_layout_says() {
        let pool = pool();
        let keys: Vec<f32> = (0..32).map(|i| i as f32).collect();
        let values: Vec<f32> = keys.iter().map(|k| k + 100.0).collect();
        // The last slot of block 1, two of block 4, and one of block 0.
        pool.store(1, &[5, 12, 13, 0], Rows::dense(&keys, 8), Rows::dense(&values, 8));
        let mut bytes = vec![0; 192];
        pool.read(1, BlockId(4), &mut bytes).expect("in range");
        let block: Vec<f32> = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        // Tokens 1 and 2: head 0 from 8 and 16, head 1 from 12 and 20.
        assert_eq!(block[..8], [8.0, 9.0, 10.0, 11.0, 16.0, 17.0, 18.0, 19.0]);
        assert_eq!(block[12..20], [12.0, 13.0, 14.0, 15.0, 20.0, 21.0, 22.0, 23.0]);
        assert_eq!(block[24..28], [108.0, 109.0, 110.0, 111.0]);
        assert_eq!(pool.block(1, BlockId(1))[8..12], [0.0, 1.0, 2.0, 3.0]);
        assert!(pool.block(0, BlockId(4)).iter().all(|v| *v == 0.0));

        pool.write(0, BlockId(2), &bytes).expect("fits");
        assert_eq!(pool.block(0, BlockId(2))[..], block);
    }

    #[test]
    fn wrong_accesses_are_refused() {
        let pool = pool();
        let mut out = vec![1; 192];
        let outside = KvAccessError::OutOfRange { layer: 2, block: 0, layers: 2, blocks: 5 };
        assert_eq!(pool.read(2, BlockId(0), &mut out), Err(outside));
        let short = KvAccessError::WrongSize { got: 191, want: 192 };
        assert_eq!(pool.read(0, BlockId(0), &mut out[..191]), Err(short));
        assert!(out.iter().all(|byte| *byte == 1));
        assert!(matches!(pool.write(0, BlockId(5), &[]), Err(KvAccessError::OutOfRange { block: 5, .. })));
        let short = KvAccessError::WrongSize { got: 12, want: 192 };
        assert_eq!(pool.write(0, BlockId(0), &[0; 12]), Err(short));
    }
}
