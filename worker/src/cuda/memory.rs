//! Host access to the KV pool on the GPU, for transports that go through host memory.

use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaContext, CudaStream};
use disagg_core::BlockId;
use disagg_engine::{KvAccessError, KvLayout, KvMemory};
use parking_lot::Mutex;

use super::device::Buffer;
use super::weights::Bf16;

/// The pool of one GPU. One (layer, block) pair is contiguous there, so an access is one copy.
pub(super) struct DevicePool {
    layout: KvLayout,
    blocks: u32,
    pool: Arc<Buffer<Bf16>>,
    /// Copies go on a stream of their own: they overlap with computing, and never wait for it.
    copies: Mutex<Arc<CudaStream>>,
    context: Arc<CudaContext>,
}

impl DevicePool {
    /// Access to `pool`, which stays allocated for as long as a transport may hold this.
    pub(super) fn new(
        context: &Arc<CudaContext>,
        pool: Arc<Buffer<Bf16>>,
        layout: KvLayout,
        blocks: u32,
    ) -> Result<Self, cudarc::driver::DriverError> {
        let copies = Mutex::new(context.new_stream()?);
        Ok(Self { layout, blocks, pool, copies, context: context.clone() })
    }

    fn at(&self, layer: u32, block: BlockId) -> Result<CUdeviceptr, KvAccessError> {
        let (layers, blocks) = (self.layout.layers, self.blocks);
        if layer >= layers || block.0 >= blocks {
            return Err(KvAccessError::OutOfRange { layer, block: block.0, layers, blocks });
        }
        let index = u64::from(layer) * u64::from(blocks) + u64::from(block.0);
        Ok(self.pool.address() + index * self.layout.layer_block_bytes() as u64)
    }
}

impl KvMemory for DevicePool {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn num_blocks(&self) -> u32 {
        self.blocks
    }

    fn read(&self, layer: u32, block: BlockId, out: &mut Vec<u8>) -> Result<(), KvAccessError> {
        let (address, bytes) = (self.at(layer, block)?, self.layout.layer_block_bytes());
        let start = out.len();
        out.resize(start + bytes, 0);
        let stream = self.copies.lock();
        // SAFETY: the range is inside the pool; the copy is complete before `out` can go.
        let copied = self.context.bind_to_thread().and_then(|()| unsafe {
            cudarc::driver::result::memcpy_dtoh_async(&mut out[start..], address, stream.cu_stream())?;
            stream.synchronize()
        });
        copied.map_err(|error| {
            out.truncate(start);
            KvAccessError::Device(format!("{error:?}"))
        })
    }

    fn write(&self, layer: u32, block: BlockId, bytes: &[u8]) -> Result<(), KvAccessError> {
        let (address, want) = (self.at(layer, block)?, self.layout.layer_block_bytes());
        if bytes.len() != want {
            return Err(KvAccessError::WrongSize { got: bytes.len(), want });
        }
        let stream = self.copies.lock();
        // SAFETY: the range is inside the pool; the copy is complete before `bytes` can go.
        let copied = self.context.bind_to_thread().and_then(|()| unsafe {
            cudarc::driver::result::memcpy_htod_async(address, bytes, stream.cu_stream())?;
            stream.synchronize()
        });
        copied.map_err(|error| KvAccessError::Device(format!("{error:?}")))
    }
}
