//! Host access to the KV pool on the GPU, for transports that go through host memory.
//!
//! A kernel gathers the blocks of one layer straight into pinned host memory, or scatters them from there: one launch
//! for a whole chunk of a transfer. A few such lanes, each with a stream and a piece of pinned memory, let transfers run
//! beside each other and beside the model; the GPU's bus takes over 50 GB/s each way, so that the copy between pinned
//! memory and the transport's own is what bounds a lane.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaContext, CudaStream};
use disagg_core::BlockId;
use disagg_engine::{KvAccessError, KvLayout, KvMemory};
use parking_lot::{Mutex, MutexGuard};

use super::compile::{self, Target};
use super::device::{Arg, Buffer, Device, Kernel};
use super::format::Bits;
use super::staging::Pinned;
use super::{CudaError, Doing};

/// Transfers that copy at the same time.
const LANES: usize = 4;
/// Pinned memory of a lane, at least one unit.
const LANE_BYTES: usize = 4 << 20;
/// Grid and block of the copying kernels: enough to fill the bus, few enough to leave the model its multiprocessors.
const GRID: (u32, u32) = (16, 1);
const BLOCK: u32 = 512;
/// What the copying kernels move at once; units are multiples of it, since a block has 64 tokens.
const PIECE_BYTES: usize = 16;

/// The pool of one GPU. One (layer, block) pair, a unit, is contiguous there.
pub(super) struct DevicePool {
    layout: KvLayout,
    blocks: u32,
    pool: Arc<Buffer<Bits>>,
    gather: Kernel,
    scatter: Kernel,
    lanes: Vec<Mutex<Lane>>,
    /// Which lane to wait for when all are taken.
    next: AtomicUsize,
    context: Arc<CudaContext>,
}

/// From the pool to host memory, or back.
#[derive(Clone, Copy)]
enum Direction {
    Gather,
    Scatter,
}

/// One copy under way: its stream, and the memory it goes through.
struct Lane {
    stream: Arc<CudaStream>,
    bytes: Pinned<u8>,
    host_ids: Pinned<u32>,
    ids: Buffer<u32>,
}

impl DevicePool {
    /// Access to `pool`, which stays allocated for as long as a transport may hold this.
    pub(super) fn new(
        device: &Device,
        target: &Target,
        pool: Arc<Buffer<Bits>>,
        layout: KvLayout,
        blocks: u32,
    ) -> Result<Self, CudaError> {
        let module = device.load(compile::COPY_BLOCKS, target)?;
        let units = (LANE_BYTES / layout.layer_block_bytes()).max(1);
        let lane = || -> Result<Mutex<Lane>, CudaError> {
            Ok(Mutex::new(Lane {
                stream: device.context.new_stream().doing("making a stream for copies")?,
                bytes: Pinned::new(device, units * layout.layer_block_bytes())?,
                host_ids: Pinned::new(device, units)?,
                ids: device.buffer(units)?,
            }))
        };
        let lanes = (0..LANES).map(|_| lane()).collect::<Result<_, _>>()?;
        // The lanes' buffers are allocated in order on the device's stream, and used on others.
        device.synchronize()?;
        Ok(Self {
            layout,
            blocks,
            pool,
            gather: Kernel::new(&module, "gather_blocks", 0)?,
            scatter: Kernel::new(&module, "scatter_blocks", 0)?,
            lanes,
            next: AtomicUsize::new(0),
            context: device.context.clone(),
        })
    }

    /// A lane that is free, or else the next in turn.
    fn lane(&self) -> MutexGuard<'_, Lane> {
        self.lanes.iter().find_map(Mutex::try_lock).unwrap_or_else(|| {
            let turn = self.next.fetch_add(1, Ordering::Relaxed);
            self.lanes[turn % self.lanes.len()].lock()
        })
    }

    /// Start of a layer's part of the pool.
    fn layer(&self, layer: u32, blocks: &[BlockId]) -> Result<CUdeviceptr, KvAccessError> {
        let outside = |block: u32| KvAccessError::OutOfRange {
            layer,
            block,
            layers: self.layout.layers,
            blocks: self.blocks,
        };
        if layer >= self.layout.layers {
            return Err(outside(blocks.first().map_or(0, |block| block.0)));
        }
        if let Some(block) = blocks.iter().find(|block| block.0 >= self.blocks) {
            return Err(outside(block.0));
        }
        let units = u64::from(layer) * u64::from(self.blocks);
        Ok(self.pool.address() + units * self.layout.layer_block_bytes() as u64)
    }

    /// Sends the ids of `blocks` and runs one copying kernel between the layer and the lane's memory, to its end.
    fn copy(
        &self,
        lane: &mut Lane,
        direction: Direction,
        layer: CUdeviceptr,
        blocks: &[BlockId],
    ) -> Result<(), CudaError> {
        let (layer, stretch) = (Arg::Address(layer), Arg::Address(lane.bytes.address()));
        let (kernel, first, second) = match direction {
            Direction::Gather => (&self.gather, stretch, layer),
            Direction::Scatter => (&self.scatter, layer, stretch),
        };
        let args = [
            first,
            second,
            Arg::Address(lane.ids.address()),
            Arg::Int(blocks.len() as i32),
            Arg::Int((self.layout.layer_block_bytes() / PIECE_BYTES) as i32),
        ];
        for (id, block) in lane.host_ids.as_mut_slice().iter_mut().zip(blocks) {
            *id = block.0;
        }
        // SAFETY: `blocks` are at most as many as the lane has room for and lie in the pool; host memory is touched
        // again only after the stream is done.
        unsafe {
            cudarc::driver::result::memcpy_htod_async(
                lane.ids.address(),
                &lane.host_ids.as_slice()[..blocks.len()],
                lane.stream.cu_stream(),
            )
            .doing("sending block numbers")?;
            kernel.launch_on(&lane.stream, GRID, BLOCK, &args)?;
        }
        lane.stream.synchronize().doing("copying KV blocks")
    }

    fn bind(&self) -> Result<(), KvAccessError> {
        self.context.bind_to_thread().doing("using the GPU").map_err(|error| device_error(&error))
    }
}

fn device_error(error: &CudaError) -> KvAccessError {
    KvAccessError::Device(error.to_string())
}

impl KvMemory for DevicePool {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn num_blocks(&self) -> u32 {
        self.blocks
    }

    fn read(&self, layer: u32, block: BlockId, out: &mut Vec<u8>) -> Result<(), KvAccessError> {
        self.read_blocks(layer, &[block], out)
    }

    fn write(&self, layer: u32, block: BlockId, bytes: &[u8]) -> Result<(), KvAccessError> {
        self.write_blocks(layer, &[block], bytes)
    }

    fn read_blocks(&self, layer: u32, blocks: &[BlockId], out: &mut Vec<u8>) -> Result<(), KvAccessError> {
        let address = self.layer(layer, blocks)?;
        self.bind()?;
        let unit = self.layout.layer_block_bytes();
        let mut lane = self.lane();
        let start = out.len();
        out.reserve(blocks.len() * unit);
        for part in blocks.chunks(lane.host_ids.as_slice().len()) {
            if let Err(error) = self.copy(&mut lane, Direction::Gather, address, part) {
                out.truncate(start);
                return Err(device_error(&error));
            }
            out.extend_from_slice(&lane.bytes.as_slice()[..part.len() * unit]);
        }
        Ok(())
    }

    fn write_blocks(&self, layer: u32, blocks: &[BlockId], bytes: &[u8]) -> Result<(), KvAccessError> {
        let address = self.layer(layer, blocks)?;
        let unit = self.layout.layer_block_bytes();
        if bytes.len() != blocks.len() * unit {
            return Err(KvAccessError::WrongSize { got: bytes.len(), want: blocks.len() * unit });
        }
        self.bind()?;
        let mut lane = self.lane();
        let most = lane.host_ids.as_slice().len();
        for (part, bytes) in blocks.chunks(most).zip(bytes.chunks(most * unit)) {
            lane.bytes.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
            self.copy(&mut lane, Direction::Scatter, address, part).map_err(|error| device_error(&error))?;
        }
        Ok(())
    }
}
