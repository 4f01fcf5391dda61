//! Host access to the KV pool on the GPU, for transports that go through host memory.
//!
//! A stage is pinned host memory that blocks of a layer are gathered into or scattered from, and that the network reads and
//! writes in place. Each has a stream of its own, so that transfers run beside each other and beside the model. Large
//! blocks are moved by the GPU's copy engines, which take nothing from the model's multiprocessors; small ones, of which
//! each would cost a call, by one kernel for all of them.

use std::sync::Arc;

use cudarc::driver::result::{memcpy_dtoh_async, memcpy_htod_async, stream::get_priority_range};
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaContext, CudaStream};
use disagg_core::BlockId;
use disagg_engine::{KvAccessError, KvLayout, KvMemory, KvStage};
use parking_lot::Mutex;

use super::compile::{self, Target};
use super::device::{Arg, Buffer, Device, Kernel};
use super::format::Bits;
use super::staging::Pinned;
use super::{CudaError, Doing};

/// Units of so many bytes go by the copy engines.
const COPY_ENGINE_BYTES: usize = 64 << 10;
/// Grid and block of the copying kernels: enough to fill the bus, few enough to leave the model its multiprocessors.
const GRID: (u32, u32) = (16, 1);
const BLOCK: u32 = 512;
/// What the copying kernels move at once; units are multiples of it, since a block has 64 tokens.
const PIECE_BYTES: usize = 16;

/// The pool of one GPU. One (layer, block) pair, a unit, is contiguous there.
pub(super) struct DevicePool {
    copies: Arc<Copies>,
    /// For single blocks.
    single: Mutex<DeviceStage>,
}

/// What stages share.
struct Copies {
    layout: KvLayout,
    blocks: u32,
    pool: Arc<Buffer<Bits>>,
    gather: Kernel,
    scatter: Kernel,
    context: Arc<CudaContext>,
}

/// From the pool to host memory, or back.
#[derive(Clone, Copy)]
enum Direction {
    Gather,
    Scatter,
}

/// A stream, and the memory that its copies go through.
struct DeviceStage {
    copies: Arc<Copies>,
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
        let copies = Arc::new(Copies {
            layout,
            blocks,
            pool,
            gather: Kernel::new(&module, "gather_blocks", 0)?,
            scatter: Kernel::new(&module, "scatter_blocks", 0)?,
            context: device.context.clone(),
        });
        let single = Mutex::new(Copies::stage(&copies, layout.layer_block_bytes())?);
        Ok(Self { copies, single })
    }
}

impl Copies {
    fn stage(copies: &Arc<Self>, bytes: usize) -> Result<DeviceStage, CudaError> {
        let context = &copies.context;
        context.bind_to_thread().doing("using the GPU")?;
        let (_lowest, highest) = get_priority_range().doing("asking for the priorities of streams")?;
        // Copies are short and someone waits for them.
        let stream = context.new_stream_with_priority(highest).doing("making a stream for copies")?;
        let units = (bytes / copies.layout.layer_block_bytes()).max(1);
        let ids = Buffer::on(&stream, units)?;
        stream.synchronize().doing("making a stage")?;
        Ok(DeviceStage {
            copies: Arc::clone(copies),
            stream,
            bytes: Pinned::within(context, bytes)?,
            host_ids: Pinned::within(context, units)?,
            ids,
        })
    }

    /// Start of a layer's part of the pool, in which all of `blocks` are.
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
}

impl DeviceStage {
    /// Copies between blocks of a layer and the beginning of the stage, and waits.
    fn copy(&mut self, direction: Direction, layer: u32, blocks: &[BlockId]) -> Result<(), KvAccessError> {
        let address = self.copies.layer(layer, blocks)?;
        let unit = self.copies.layout.layer_block_bytes();
        let (got, want) = (blocks.len() * unit, self.bytes.as_slice().len());
        if got > want {
            return Err(KvAccessError::WrongSize { got, want });
        }
        let context = &self.copies.context;
        context.bind_to_thread().doing("using the GPU").map_err(|error| device_error(&error))?;
        let issued = if unit >= COPY_ENGINE_BYTES {
            self.copy_one_by_one(direction, address, blocks)
        } else {
            self.copy_together(direction, address, blocks)
        };
        // Also when not all could be issued: what was must not touch the stage later.
        let done = self.stream.synchronize().doing("copying KV blocks");
        issued.and(done).map_err(|error| device_error(&error))
    }

    fn copy_one_by_one(
        &mut self,
        direction: Direction,
        layer: CUdeviceptr,
        blocks: &[BlockId],
    ) -> Result<(), CudaError> {
        let unit = self.copies.layout.layer_block_bytes();
        let stream = self.stream.cu_stream();
        for (block, bytes) in blocks.iter().zip(self.bytes.as_mut_slice().chunks_exact_mut(unit)) {
            let address = layer + u64::from(block.0) * unit as u64;
            // SAFETY: the unit lies in the pool; the stage is touched again only after the stream is done.
            unsafe {
                match direction {
                    Direction::Gather => memcpy_dtoh_async(bytes, address, stream),
                    Direction::Scatter => memcpy_htod_async(address, bytes, stream),
                }
            }
            .doing("copying a KV block")?;
        }
        Ok(())
    }

    fn copy_together(
        &mut self,
        direction: Direction,
        layer: CUdeviceptr,
        blocks: &[BlockId],
    ) -> Result<(), CudaError> {
        for (id, block) in self.host_ids.as_mut_slice().iter_mut().zip(blocks) {
            *id = block.0;
        }
        let copies = &self.copies;
        let (layer, stage) = (Arg::Address(layer), Arg::Address(self.bytes.address()));
        let (kernel, first, second) = match direction {
            Direction::Gather => (&copies.gather, stage, layer),
            Direction::Scatter => (&copies.scatter, layer, stage),
        };
        let args = [
            first,
            second,
            Arg::Address(self.ids.address()),
            Arg::Int(blocks.len() as i32),
            Arg::Int((copies.layout.layer_block_bytes() / PIECE_BYTES) as i32),
        ];
        // SAFETY: `blocks` are at most as many as the stage has room for and lie in the pool; host memory is touched
        // again only after the stream is done.
        unsafe {
            memcpy_htod_async(
                self.ids.address(),
                &self.host_ids.as_slice()[..blocks.len()],
                self.stream.cu_stream(),
            )
            .doing("sending block numbers")?;
            kernel.launch_on(&self.stream, GRID, BLOCK, &args)
        }
    }
}

fn device_error(error: &CudaError) -> KvAccessError {
    KvAccessError::Device(error.to_string())
}

impl KvStage for DeviceStage {
    fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes.as_mut_slice()
    }

    fn read(&mut self, layer: u32, blocks: &[BlockId]) -> Result<(), KvAccessError> {
        self.copy(Direction::Gather, layer, blocks)
    }

    fn write(&mut self, layer: u32, blocks: &[BlockId]) -> Result<(), KvAccessError> {
        self.copy(Direction::Scatter, layer, blocks)
    }
}

impl KvMemory for DevicePool {
    fn layout(&self) -> KvLayout {
        self.copies.layout
    }

    fn num_blocks(&self) -> u32 {
        self.copies.blocks
    }

    fn read(&self, layer: u32, block: BlockId, out: &mut [u8]) -> Result<(), KvAccessError> {
        let mut stage = self.single.lock();
        let (got, want) = (out.len(), stage.bytes().len());
        if got != want {
            return Err(KvAccessError::WrongSize { got, want });
        }
        stage.read(layer, &[block])?;
        out.copy_from_slice(stage.bytes());
        Ok(())
    }

    fn write(&self, layer: u32, block: BlockId, bytes: &[u8]) -> Result<(), KvAccessError> {
        let mut stage = self.single.lock();
        let (got, want) = (bytes.len(), stage.bytes().len());
        if got != want {
            return Err(KvAccessError::WrongSize { got, want });
        }
        stage.bytes_mut().copy_from_slice(bytes);
        stage.write(layer, &[block])
    }

    fn device_stage(&self, bytes: usize) -> Option<Result<Box<dyn KvStage>, KvAccessError>> {
        let stage = Copies::stage(&self.copies, bytes);
        Some(stage.map(|stage| Box::new(stage) as _).map_err(|error| device_error(&error)))
    }
}
