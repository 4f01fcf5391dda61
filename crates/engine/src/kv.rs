//! KV memory as the engine and the transports see it.

use disagg_core::{BlockId, HandoffId};

/// Number format of keys and values in memory and on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum KvDtype {
    /// 32-bit float: the CPU backend.
    F32,
    /// bfloat16: GPUs.
    Bf16,
    /// 16-bit float.
    F16,
}

impl KvDtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// Name in status and errors.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

/// Shape of the KV pool: `[layer][block][K|V][kv_head][block_size][head_dim]`, little-endian elements.
///
/// One (layer, block) pair is contiguous, which makes it the unit of a transfer. Heads are outside tokens, so that
/// another tensor-parallel size on the other side is a slice of heads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct KvLayout {
    /// Decoder layers.
    pub layers: u32,
    /// KV heads per layer on this worker.
    pub kv_heads: u32,
    /// Elements of one head.
    pub head_dim: u32,
    /// Tokens per block.
    pub block_size: u32,
    /// Element format.
    pub dtype: KvDtype,
}

impl KvLayout {
    /// Goes into `kv_compat`; raised whenever the meaning of the bytes changes.
    pub const VERSION: u32 = 1;

    /// Elements of K (or V) of one block of one layer.
    pub fn half_elements(&self) -> usize {
        self.kv_heads as usize * self.block_size as usize * self.head_dim as usize
    }

    /// Bytes of K and V of one block of one layer: the unit of a transfer.
    pub fn layer_block_bytes(&self) -> usize {
        2 * self.half_elements() * self.dtype.bytes()
    }

    /// Bytes of one block over all layers.
    pub fn block_bytes(&self) -> usize {
        self.layers as usize * self.layer_block_bytes()
    }

    /// Blocks that `tokens` tokens take.
    pub fn blocks_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.block_size)
    }
}

/// A transfer named memory that does not exist or brought bytes of the wrong size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KvAccessError {
    /// Layer or block is outside the pool.
    #[error("layer {layer}, block {block} is outside the pool of {layers} layers and {blocks} blocks")]
    OutOfRange {
        /// Layer asked for.
        layer: u32,
        /// Block asked for.
        block: u32,
        /// Layers there are.
        layers: u32,
        /// Blocks there are.
        blocks: u32,
    },
    /// The bytes are not one block of one layer, or not as many as the blocks have.
    #[error("{got} bytes given where {want} are needed")]
    WrongSize {
        /// Bytes given.
        got: usize,
        /// Bytes of the blocks.
        want: usize,
    },
    /// The device that holds the pool refused the access.
    #[error("the KV pool's device: {0}")]
    Device(String),
}

/// Host access to a worker's KV pool, by block and layer, from any thread.
///
/// The engine thread computes in the same pool at the same time. Implementations make single accesses atomic; that
/// nobody reads a block while it is written is the protocol's task: a block is read by a push only after its layer
/// is complete, and written by a landing only while its sequence is awaiting KV.
pub trait KvMemory: Send + Sync {
    /// Shape of the pool.
    fn layout(&self) -> KvLayout;

    /// Blocks in the pool.
    fn num_blocks(&self) -> u32;

    /// Copies one block of one layer to `out`, which is as long as that.
    fn read(&self, layer: u32, block: BlockId, out: &mut [u8]) -> Result<(), KvAccessError>;

    /// Overwrites one block of one layer.
    fn write(&self, layer: u32, block: BlockId, bytes: &[u8]) -> Result<(), KvAccessError>;

    /// A stage of `bytes` bytes, of pools that are not in the host's memory.
    fn device_stage(&self, bytes: usize) -> Option<Result<Box<dyn KvStage>, KvAccessError>> {
        let _ = bytes;
        None
    }
}

/// Host memory that blocks go through on their way out of a pool or into it, for one user at a time. A pool on a device
/// gives out memory that the device itself fills and empties, several blocks at once, while a network reads and writes it
/// in place.
pub trait KvStage: Send {
    /// The whole stage.
    fn bytes(&self) -> &[u8];

    /// The whole stage, to be filled from elsewhere.
    fn bytes_mut(&mut self) -> &mut [u8];

    /// Fills the beginning of the stage with blocks of one layer, one after the other.
    fn read(&mut self, layer: u32, blocks: &[BlockId]) -> Result<(), KvAccessError>;

    /// Overwrites blocks of one layer with the beginning of the stage, one after the other. If it fails, some of them
    /// may have been overwritten.
    fn write(&mut self, layer: u32, blocks: &[BlockId]) -> Result<(), KvAccessError>;
}

/// Blocks of one prefill that one step completes and that belong to a handoff.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KvPush {
    /// Whose landing takes them.
    pub handoff: HandoffId,
    /// Position of `blocks[0]` among the blocks the receiver reserved.
    pub first: u32,
    /// Source blocks, in prompt order.
    pub blocks: Vec<BlockId>,
}

/// Prefill side of a KV transport, as the engine thread sees it.
///
/// For each step the backend calls `push_layer` once per layer, in order, as soon as that layer's keys and values of
/// the batch are in the pool, so that a transfer overlaps with the layers still to be computed. It must not block
/// and must not fail: what cannot be sent is reported by the transport to whoever drives the handoff. Source blocks
/// stay valid until the engine is told that the handoff's push has drained.
pub trait KvTransport: Send {
    /// `pushes` is the same for every layer of a step.
    fn push_layer(&mut self, layer: u32, pushes: &[KvPush]);
}

/// For workers and tests that never prefill for others.
#[derive(Clone, Copy, Default, Debug)]
pub struct NoTransport;

impl KvTransport for NoTransport {
    fn push_layer(&mut self, _layer: u32, pushes: &[KvPush]) {
        debug_assert!(pushes.is_empty(), "a push was scheduled on a worker without a transport");
    }
}
