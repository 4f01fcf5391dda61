//! Where pushed blocks land: for each handoff a zone of reserved blocks, written only while the zone is open.
//!
//! Closing a zone is the fence of a handoff (docs/adr/0003): once [`LandingRegistry::close`] has returned, nothing that
//! belongs to the handoff is written any more, so its blocks may be used or freed at once.

use std::collections::HashMap;
use std::sync::Arc;

use disagg_core::{BlockId, HandoffId, KvCompat};
use disagg_engine::{KvAccessError, KvMemory, KvStage};
use disagg_proto::v1::KvChunk;
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use crate::convert::{InvalidField, Peer, PushStart, chunk_bytes};
use crate::transport::token::LandingToken;

/// Why a push or a chunk of it was refused. Nothing of a refused chunk was written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The handoff is of another life of this worker.
    #[error("handoff {0} is of another epoch")]
    WrongEpoch(HandoffId),
    /// Not known, or over.
    #[error("handoff {0} is unknown or over")]
    UnknownHandoff(HandoffId),
    /// The pusher does not have the zone's token.
    #[error("handoff {0} was opened with another token")]
    WrongToken(HandoffId),
    /// The pusher is not the worker that was asked to prefill.
    #[error("handoff {handoff} is prefilled by {expected}, not by {got}")]
    WrongWorker {
        /// Which.
        handoff: HandoffId,
        /// Who was asked.
        expected: String,
        /// Who pushes.
        got: String,
    },
    /// The bytes would mean something else here.
    #[error("KV of {got} does not fit a worker of {want}")]
    WrongCompat {
        /// Of the pusher.
        got: KvCompat,
        /// Of this worker.
        want: KvCompat,
    },
    /// The handoff was ended while the push was under way.
    #[error("the handoff has ended")]
    Fenced,
    /// The (layer, block) was written before.
    #[error("layer {layer}, block {block} has landed before")]
    Duplicate {
        /// Layer.
        layer: u32,
        /// Position among the reserved blocks.
        block: u32,
    },
    /// Outside the model's layers or the reserved blocks.
    #[error(
        "layer {layer}, blocks {first}..{end} are outside the {layers} layers and {blocks} blocks reserved"
    )]
    OutOfRange {
        /// Layer.
        layer: u32,
        /// First position.
        first: u32,
        /// Position after the last.
        end: u64,
        /// Layers there are.
        layers: u32,
        /// Blocks reserved.
        blocks: u32,
    },
    /// The payload is not as long as it has to be.
    #[error(transparent)]
    WrongSize(#[from] InvalidField),
    /// The payload is not what was sent.
    #[error("the checksum of layer {layer}, block {first} does not match its payload")]
    BadChecksum {
        /// Layer.
        layer: u32,
        /// First position.
        first: u32,
    },
    /// The end announced more chunks than came.
    #[error("{announced} chunks were announced and {got} came")]
    Short {
        /// By the end message.
        announced: u64,
        /// That were written.
        got: u64,
    },
    /// The pool itself refused; the zone was opened over blocks that do not exist.
    #[error(transparent)]
    Memory(#[from] KvAccessError),
}

impl Refusal {
    /// Label of the metric.
    pub fn label(&self) -> &'static str {
        match self {
            Self::WrongEpoch(_) => "wrong-epoch",
            Self::UnknownHandoff(_) => "unknown-handoff",
            Self::WrongToken(_) => "wrong-token",
            Self::WrongWorker { .. } => "wrong-worker",
            Self::WrongCompat { .. } => "wrong-compat",
            Self::Fenced => "fenced",
            Self::Duplicate { .. } => "duplicate",
            Self::OutOfRange { .. } => "out-of-range",
            Self::WrongSize(_) => "wrong-size",
            Self::BadChecksum { .. } => "bad-checksum",
            Self::Short { .. } => "short",
            Self::Memory(_) => "memory",
        }
    }
}

/// How much of a zone has landed, in (layer, block) pairs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Landed {
    /// Written.
    pub units: usize,
    /// To be written.
    pub total: usize,
}

impl Landed {
    /// Whether nothing is missing.
    pub fn complete(&self) -> bool {
        self.units == self.total
    }
}

/// The reserved blocks of one handoff.
pub struct Zone {
    memory: Arc<dyn KvMemory>,
    token: LandingToken,
    prefill_worker: Peer,
    blocks: Vec<BlockId>,
    state: Mutex<ZoneState>,
    /// Told whenever a write has ended.
    written: Condvar,
    closed: CancellationToken,
}

struct ZoneState {
    /// Cleared by the fence. No write begins once it is.
    open: bool,
    /// Writes under way. They go on beside each other, and whoever clears `open` waits for them.
    writing: u32,
    /// `[layer][block]`: written, or being written.
    taken: Vec<bool>,
    progress: watch::Sender<Landed>,
}

impl Zone {
    /// Checks one chunk before its payload is there; gives the bytes of that.
    pub fn check(&self, chunk: &KvChunk) -> Result<usize, Refusal> {
        let layout = self.memory.layout();
        let bytes = chunk_bytes(chunk, layout.layer_block_bytes())?;
        let end = u64::from(chunk.first_block) + u64::from(chunk.block_count);
        if chunk.layer >= layout.layers || end > self.blocks.len() as u64 {
            return Err(Refusal::OutOfRange {
                layer: chunk.layer,
                first: chunk.first_block,
                end,
                layers: layout.layers,
                blocks: self.blocks.len() as u32,
            });
        }
        Ok(bytes)
    }

    /// Checks one chunk, whose payload is at the beginning of `stage`, and writes it, all or nothing.
    pub fn land(&self, chunk: &KvChunk, stage: &mut dyn KvStage) -> Result<(), Refusal> {
        let bytes = self.check(chunk)?;
        let (layer, first) = (chunk.layer, chunk.first_block);
        let got = stage.bytes().len();
        let payload = stage.bytes().get(..bytes).ok_or(KvAccessError::WrongSize { got, want: bytes })?;
        if chunk.checksum.is_some_and(|sent| sent != xxh3_64(payload)) {
            return Err(Refusal::BadChecksum { layer, first });
        }
        let range = first as usize..(first + chunk.block_count) as usize;
        let row = layer as usize * self.blocks.len();
        {
            let mut state = self.state.lock();
            if !state.open {
                return Err(Refusal::Fenced);
            }
            if let Some(block) = range.clone().find(|block| state.taken[row + block]) {
                return Err(Refusal::Duplicate { layer, block: block as u32 });
            }
            state.taken[row + range.start..row + range.end].fill(true);
            state.writing += 1;
        }
        // Not under the lock: connections land beside each other.
        let result = stage.write(layer, &self.blocks[range.clone()]);
        let mut state = self.state.lock();
        state.writing -= 1;
        if result.is_ok() {
            state.progress.send_modify(|landed| landed.units += range.len());
        }
        drop(state);
        self.written.notify_all();
        Ok(result?)
    }

    /// Whether everything has landed.
    pub fn is_complete(&self) -> bool {
        self.state.lock().progress.borrow().complete()
    }

    /// Waits until the zone is closed.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// No write begins any more, and when this returns none is under way.
    fn close(&self) {
        let mut state = self.state.lock();
        state.open = false;
        while state.writing > 0 {
            self.written.wait(&mut state);
        }
        drop(state);
        self.closed.cancel();
    }
}

/// All zones of a worker.
pub struct LandingRegistry {
    memory: Arc<dyn KvMemory>,
    kv_compat: KvCompat,
    epoch: disagg_core::Epoch,
    zones: Mutex<HashMap<HandoffId, Arc<Zone>>>,
}

impl LandingRegistry {
    /// No zones yet. Handoffs of other epochs than `epoch`, and pushers of another `kv_compat`, are refused.
    pub fn new(memory: Arc<dyn KvMemory>, epoch: disagg_core::Epoch, kv_compat: KvCompat) -> Self {
        Self { memory, kv_compat, epoch, zones: Mutex::default() }
    }

    /// Lets `prefill_worker`, which is told the `token`, write `blocks`. The receiver tells how far it is; it ends when
    /// the zone is closed and no push holds it any more.
    pub fn open(
        &self,
        handoff: HandoffId,
        token: LandingToken,
        prefill_worker: Peer,
        blocks: Vec<BlockId>,
    ) -> watch::Receiver<Landed> {
        let total = self.memory.layout().layers as usize * blocks.len();
        let (progress, receiver) = watch::channel(Landed { units: 0, total });
        let state = ZoneState { open: true, writing: 0, taken: vec![false; total], progress };
        let zone = Zone {
            memory: Arc::clone(&self.memory),
            token,
            prefill_worker,
            blocks,
            state: Mutex::new(state),
            written: Condvar::new(),
            closed: CancellationToken::new(),
        };
        let before = self.zones.lock().insert(handoff, Arc::new(zone));
        debug_assert!(before.is_none(), "handoff {handoff} was numbered twice");
        receiver
    }

    /// The fence. When this returns, nothing is being written for the handoff, and nothing will be.
    pub fn close(&self, handoff: HandoffId) {
        let zone = self.zones.lock().remove(&handoff);
        if let Some(zone) = zone {
            zone.close();
        }
    }

    /// The zone that a push is for.
    pub fn begin(&self, push: &PushStart) -> Result<Arc<Zone>, Refusal> {
        if push.handoff.epoch != self.epoch {
            return Err(Refusal::WrongEpoch(push.handoff));
        }
        if push.kv_compat != self.kv_compat {
            return Err(Refusal::WrongCompat { got: push.kv_compat, want: self.kv_compat });
        }
        let zone = self.zones.lock().get(&push.handoff).cloned();
        let zone = zone.ok_or(Refusal::UnknownHandoff(push.handoff))?;
        if zone.token != push.token {
            return Err(Refusal::WrongToken(push.handoff));
        }
        if zone.prefill_worker != push.prefill_worker {
            let name = |peer: &Peer| format!("{} ({})", peer.worker, peer.epoch);
            return Err(Refusal::WrongWorker {
                handoff: push.handoff,
                expected: name(&zone.prefill_worker),
                got: name(&push.prefill_worker),
            });
        }
        Ok(zone)
    }

    /// Zones that are open.
    pub fn len(&self) -> usize {
        self.zones.lock().len()
    }

    /// Whether nothing may land.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
#[path = "landing_tests.rs"]
mod tests;
