//! What the engine thread hands to pushes: per handoff queues of finished (layer, blocks), bounded by what the handoff can
//! have in all, so that the engine thread never waits and never loses anything.
//!
//! There is a queue for each connection, filled in turn. One that all took from would have to be handed from one to the next,
//! which tokio does on the thread of whoever had it: they would work one after the other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use disagg_core::{BlockId, HandoffId};
use disagg_engine::{KvLayout, KvPush, KvTransport};
use disagg_proto::limits::CHUNK_BYTES_MAX;
use parking_lot::Mutex;
use tokio::sync::mpsc;

/// Queues of one handoff, and connections that it is spread over: one is bound by what a core copies to and from the kernel.
pub const LANES: usize = 4;

/// The other ends of one handoff's queues.
pub type ReadyQueues = [mpsc::Receiver<ReadyBlocks>; LANES];

/// Blocks of one layer that are ready to be sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadyBlocks {
    /// Layer.
    pub layer: u32,
    /// Position of `blocks[0]` among the blocks that the receiver reserved.
    pub first: u32,
    /// Source blocks; few enough for one chunk.
    pub blocks: Vec<BlockId>,
}

/// The queues of all handoffs of a prefill worker.
#[derive(Debug)]
pub struct PushQueues {
    blocks_per_chunk: usize,
    layers: u32,
    queues: Mutex<HashMap<HandoffId, Queue>>,
}

#[derive(Debug)]
struct Queue {
    lanes: [mpsc::Sender<ReadyBlocks>; LANES],
    chunks: u64,
}

impl PushQueues {
    /// For a pool of this shape.
    pub fn new(layout: &KvLayout) -> Self {
        let blocks_per_chunk = (CHUNK_BYTES_MAX / layout.layer_block_bytes()).max(1);
        Self { blocks_per_chunk, layers: layout.layers, queues: Mutex::default() }
    }

    /// Begins the queues of a handoff that will push `blocks` blocks of every layer. To be called before the engine
    /// knows of the handoff. `None`: the handoff is known already.
    pub fn open(&self, handoff: HandoffId, blocks: u32) -> Option<ReadyQueues> {
        // Each entry has at least one block of one layer, and each of those is pushed once.
        let capacity = (self.layers as usize * blocks as usize).max(1);
        let mut receivers = Vec::with_capacity(LANES);
        let lanes = std::array::from_fn(|_| {
            let (sender, receiver) = mpsc::channel(capacity);
            receivers.push(receiver);
            sender
        });
        match self.queues.lock().entry(handoff) {
            Entry::Occupied(_) => None,
            Entry::Vacant(vacant) => {
                vacant.insert(Queue { lanes, chunks: 0 });
                receivers.try_into().ok()
            }
        }
    }

    /// Nothing will follow for the handoff: its queues end when they are empty. Returns the chunks that were queued.
    pub fn finish(&self, handoff: HandoffId) -> u64 {
        self.queues.lock().remove(&handoff).map_or(0, |queue| queue.chunks)
    }
}

/// The engine thread's end of [`PushQueues`].
#[derive(Clone, Debug)]
pub struct QueueingTransport(pub Arc<PushQueues>);

impl KvTransport for QueueingTransport {
    fn push_layer(&mut self, layer: u32, pushes: &[KvPush]) {
        let per_chunk = self.0.blocks_per_chunk;
        let mut queues = self.0.queues.lock();
        for push in pushes {
            // A handoff that has been given up has no queue any more.
            let Some(queue) = queues.get_mut(&push.handoff) else { continue };
            for (index, blocks) in push.blocks.chunks(per_chunk).enumerate() {
                let first = push.first + (index * per_chunk) as u32;
                let ready = ReadyBlocks { layer, first, blocks: blocks.to_vec() };
                let lane = queue.chunks as usize % LANES;
                match queue.lanes[lane].try_send(ready) {
                    Ok(()) => queue.chunks += 1,
                    // The push has ended and told whoever drives the handoff.
                    Err(mpsc::error::TrySendError::Closed(_)) => break,
                    Err(mpsc::error::TrySendError::Full(_)) => {
                        debug_assert!(false, "handoff {} pushed a block twice", push.handoff);
                        tracing::error!(handoff = %push.handoff, "more blocks were pushed than the handoff has");
                        break;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use disagg_core::Epoch;
    use disagg_engine::KvDtype;

    use super::*;

    /// 256 KiB for a block of a layer: four blocks a chunk.
    const LAYOUT: KvLayout =
        KvLayout { layers: 2, kv_heads: 8, head_dim: 64, block_size: 64, dtype: KvDtype::F32 };

    fn handoff(number: u64) -> HandoffId {
        HandoffId { epoch: Epoch(1), number }
    }

    fn blocks(range: std::ops::Range<u32>) -> Vec<BlockId> {
        range.map(BlockId).collect()
    }

    #[test]
    fn blocks_are_queued_in_chunks_of_at_most_a_mebibyte() {
        let queues = Arc::new(PushQueues::new(&LAYOUT));
        let mut ready = queues.open(handoff(1), 6).unwrap();
        assert!(queues.open(handoff(1), 6).is_none());
        let mut transport = QueueingTransport(Arc::clone(&queues));
        let pushes = [KvPush { handoff: handoff(1), first: 0, blocks: blocks(10..16) }];
        for layer in 0..LAYOUT.layers {
            transport.push_layer(layer, &pushes);
        }
        assert_eq!(queues.finish(handoff(1)), 4);
        let got = ready.each_mut().map(|lane| {
            let entry = lane.try_recv().unwrap();
            assert_eq!(lane.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
            (entry.layer, entry.first, entry.blocks.len())
        });
        assert_eq!(got, [(0, 0, 4), (0, 4, 2), (1, 0, 4), (1, 4, 2)]);
    }

    #[test]
    fn a_handoff_without_a_queue_is_ignored() {
        let queues = Arc::new(PushQueues::new(&LAYOUT));
        let receiver = queues.open(handoff(1), 1).unwrap();
        drop(receiver);
        let mut transport = QueueingTransport(Arc::clone(&queues));
        let push = |number| KvPush { handoff: handoff(number), first: 0, blocks: blocks(0..1) };
        transport.push_layer(0, &[push(1), push(2)]);
        assert_eq!(queues.finish(handoff(1)), 0);
        assert_eq!(queues.finish(handoff(2)), 0);
    }
}
