//! Host memory that chunks go through between a pool and the network: a fixed number of pieces, used again and again.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use disagg_core::BlockId;
use disagg_engine::{KvAccessError, KvMemory, KvStage};
use disagg_proto::limits::CHUNK_BYTES_MAX;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Stages of one pool, for one direction: if senders and receivers shared them, two workers that push to each other
/// could hold them all while each waits for the other to receive.
pub struct Stages {
    memory: Arc<dyn KvMemory>,
    count: usize,
    permits: Arc<Semaphore>,
    free: Mutex<Free>,
}

/// Stages that nobody uses. Made when first needed, kept after use.
#[derive(Default)]
struct Free {
    stages: Vec<Box<dyn KvStage>>,
    /// Those in main memory were made.
    made: bool,
}

impl Stages {
    /// At most `count` stages of the pool.
    pub fn new(memory: Arc<dyn KvMemory>, count: usize) -> Arc<Self> {
        Arc::new(Self { memory, count, permits: Arc::new(Semaphore::new(count)), free: Mutex::default() })
    }

    /// The pool.
    pub fn memory(&self) -> &Arc<dyn KvMemory> {
        &self.memory
    }

    /// Waits for a stage, with room for the largest chunk.
    pub async fn take(self: &Arc<Self>) -> Result<Stage, KvAccessError> {
        let closed = || KvAccessError::Device("the worker ends".to_owned());
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| closed())?;
        let free = self.free.lock().stages.pop();
        let stage = match free {
            Some(stage) => stage,
            None => self.another()?,
        };
        Ok(Stage { inner: Some(stage), stages: Arc::clone(self), _permit: permit })
    }

    /// A stage when none is free. In main memory all are made at once: how much a process holds then says whether it has
    /// pushed or received, not how many chunks were ever under way together.
    fn another(&self) -> Result<Box<dyn KvStage>, KvAccessError> {
        let bytes = stage_bytes(&self.memory);
        if let Some(stage) = self.memory.device_stage(bytes) {
            return stage;
        }
        let mut free = self.free.lock();
        if !free.made {
            free.made = true;
            let host = || Box::new(HostStage::new(&self.memory, bytes)) as Box<dyn KvStage>;
            free.stages.extend(std::iter::repeat_with(host).take(self.count));
        }
        Ok(free.stages.pop().expect("there are as many as permits"))
    }
}

/// Room for the largest chunk.
fn stage_bytes(memory: &Arc<dyn KvMemory>) -> usize {
    CHUNK_BYTES_MAX.max(memory.layout().layer_block_bytes())
}

/// A stage outside any [`Stages`].
pub fn make(memory: &Arc<dyn KvMemory>) -> Result<Box<dyn KvStage>, KvAccessError> {
    let bytes = stage_bytes(memory);
    memory.device_stage(bytes).unwrap_or_else(|| Ok(Box::new(HostStage::new(memory, bytes))))
}

/// A stage that goes back when it is dropped.
pub struct Stage {
    /// Taken on drop alone.
    inner: Option<Box<dyn KvStage>>,
    stages: Arc<Stages>,
    // Given back after the stage: fields drop after `drop`.
    _permit: OwnedSemaphorePermit,
}

impl Deref for Stage {
    type Target = dyn KvStage;

    fn deref(&self) -> &Self::Target {
        self.inner.as_deref().expect("taken on drop alone")
    }
}

impl DerefMut for Stage {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.inner.as_deref_mut().expect("taken on drop alone")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stages.free.lock().stages.extend(self.inner.take());
    }
}

/// For pools in main memory.
struct HostStage {
    memory: Arc<dyn KvMemory>,
    bytes: Vec<u8>,
}

impl HostStage {
    fn new(memory: &Arc<dyn KvMemory>, bytes: usize) -> Self {
        // Not zeros, which the system would hand out page by page when they are first written.
        Self { memory: Arc::clone(memory), bytes: vec![0xff; bytes] }
    }

    /// Bytes of a block, if there is room for that many.
    fn unit(&self, blocks: &[BlockId]) -> Result<usize, KvAccessError> {
        let unit = self.memory.layout().layer_block_bytes();
        let got = blocks.len() * unit;
        if got > self.bytes.len() {
            return Err(KvAccessError::WrongSize { got, want: self.bytes.len() });
        }
        Ok(unit)
    }
}

impl KvStage for HostStage {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn read(&mut self, layer: u32, blocks: &[BlockId]) -> Result<(), KvAccessError> {
        let unit = self.unit(blocks)?;
        for (&block, bytes) in blocks.iter().zip(self.bytes.chunks_exact_mut(unit)) {
            self.memory.read(layer, block, bytes)?;
        }
        Ok(())
    }

    fn write(&mut self, layer: u32, blocks: &[BlockId]) -> Result<(), KvAccessError> {
        let unit = self.unit(blocks)?;
        for (&block, bytes) in blocks.iter().zip(self.bytes.chunks_exact(unit)) {
            self.memory.write(layer, block, bytes)?;
        }
        Ok(())
    }
}
