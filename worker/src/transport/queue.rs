//! What the engine thread hands to pushes: per handoff a queue of finished (layer, blocks), bounded by what the
//! handoff can have in all, so that the engine thread never waits and never loses anything.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use disagg_core::{BlockId, HandoffId};
use disagg_engine::{KvLayout, KvPush, KvTransport};
use disagg_proto::MAX_CHUNK_BYTES;
use parking_lot::Mutex;
use tokio::sync::mpsc;

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
    sender: mpsc::Sender<ReadyBlocks>,
    chunks: u64,
}

impl PushQueues {
    /// For a pool of this shape.
    pub fn new(layout: &KvLayout) -> Self {
        let blocks_per_chunk = (MAX_CHUNK_BYTES / layout.layer_block_bytes()).max(1);
        Self { blocks_per_chunk, layers: layout.layers, queues: Mutex::default() }
    }

    /// Begins a queue for a handoff that will push `blocks` blocks of every layer. To be called before the engine
    /// knows of the handoff. `None`: the handoff is known already.
    pub fn open(&self, handoff: HandoffId, blocks: u32) -> Option<mpsc::Receiver<ReadyBlocks>> {
        // Each entry has at least one block of one layer, and each of those is pushed once.
        let capacity = (self.layers as usize * blocks as usize).max(1);
        let (sender, receiver) = mpsc::channel(capacity);
        match self.queues.lock().entry(handoff) {
            Entry::Occupied(_) => None,
            Entry::Vacant(vacant) => {
                vacant.insert(Queue { sender, chunks: 0 });
                Some(receiver)
            }
        }
    }

    /// Nothing will follow for the handoff: its queue ends when it is empty. Returns the chunks that were queued.
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
                match queue.sender.try_send(ready) {
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
        let mut got = Vec::new();
        while let Ok(entry) = ready.try_recv() {
            got.push((entry.layer, entry.first, entry.blocks.len()));
        }
        assert_eq!(got, [(0, 0, 4), (0, 4, 2), (1, 0, 4), (1, 4, 2)]);
        assert_eq!(ready.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
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
