//! The KV memory of the fake backend.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use disagg_core::BlockId;

use super::FakeControl;
use crate::kv::{KvAccessError, KvLayout, KvMemory};

/// KV memory of a [`super::FakeBackend`]: real bytes, filled with noise at first.
#[derive(Debug)]
pub struct FakeMemory {
    pub(super) layout: KvLayout,
    pub(super) num_blocks: u32,
    /// `[layer][block]`.
    blocks: Mutex<Vec<Vec<u8>>>,
    control: Arc<FakeControl>,
}

impl FakeMemory {
    pub(super) fn new(layout: KvLayout, num_blocks: u32, control: Arc<FakeControl>) -> Self {
        let block = vec![0xA5; layout.layer_block_bytes()];
        let blocks = Mutex::new(vec![block; (layout.layers * num_blocks) as usize]);
        Self { layout, num_blocks, blocks, control }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self, layer: u32, block: BlockId) -> Result<usize, KvAccessError> {
        let (layers, blocks) = (self.layout.layers, self.num_blocks);
        if layer < layers && block.0 < blocks {
            Ok((layer * blocks + block.0) as usize)
        } else {
            Err(KvAccessError::OutOfRange { layer, block: block.0, layers, blocks })
        }
    }

    /// What a transport gets from a device that is gone.
    fn reachable(&self) -> Result<(), KvAccessError> {
        if self.control.lost.load(Ordering::SeqCst) {
            return Err(KvAccessError::Device(super::LOST.to_owned()));
        }
        Ok(())
    }

    /// Bytes of a slot's K and of its V within its block.
    fn halves(&self, offset: usize) -> [Range<usize>; 2] {
        let half = self.layout.half_elements() * 4;
        [offset * 4..offset * 4 + 4, half + offset * 4..half + offset * 4 + 4]
    }

    pub(super) fn set(&self, layer: u32, slot: u32, value: u64) {
        let size = self.layout.block_size;
        let index = self.index(layer, BlockId(slot / size)).expect("a slot of the pool");
        let bytes = &mut self.lock()[index];
        let [k, v] = self.halves((slot % size) as usize);
        bytes[k].copy_from_slice(&(value as u32).to_le_bytes());
        bytes[v].copy_from_slice(&((value >> 32) as u32).to_le_bytes());
    }

    /// Values of the first `count` tokens of a block table.
    pub(super) fn context(&self, layer: u32, table: &[BlockId], count: usize) -> Vec<u64> {
        let size = self.layout.block_size as usize;
        let blocks = self.lock();
        let value = |position: usize| {
            let index = self.index(layer, table[position / size]).expect("a block of the pool");
            let [k, v] = self.halves(position % size);
            let word = |range: Range<usize>| {
                blocks[index][range].iter().rev().fold(0, |sum, b| sum << 8 | u64::from(*b))
            };
            word(v) << 32 | word(k)
        };
        (0..count).map(value).collect()
    }
}

impl KvMemory for FakeMemory {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn num_blocks(&self) -> u32 {
        self.num_blocks
    }

    fn read(&self, layer: u32, block: BlockId, out: &mut [u8]) -> Result<(), KvAccessError> {
        let index = self.index(layer, block)?;
        self.reachable()?;
        let want = self.layout.layer_block_bytes();
        if out.len() != want {
            return Err(KvAccessError::WrongSize { got: out.len(), want });
        }
        out.copy_from_slice(&self.lock()[index]);
        Ok(())
    }

    fn write(&self, layer: u32, block: BlockId, bytes: &[u8]) -> Result<(), KvAccessError> {
        let index = self.index(layer, block)?;
        self.reachable()?;
        let want = self.layout.layer_block_bytes();
        if bytes.len() != want {
            return Err(KvAccessError::WrongSize { got: bytes.len(), want });
        }
        self.lock()[index].copy_from_slice(bytes);
        Ok(())
    }
}
