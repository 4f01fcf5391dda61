//! A transport for tests, in which bytes travel when the test says so.

use std::sync::Arc;

use disagg_core::{BlockId, HandoffId};

use crate::kv::{KvMemory, KvPush, KvTransport};

/// A transport that notes every push, and lets the test decide when its bytes travel.
pub struct FakeTransport {
    source: Arc<dyn KvMemory>,
    /// What was pushed and has not been taken, in order.
    pub pushed: Vec<PushedBlock>,
}

/// One block of one layer on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PushedBlock {
    /// Whose.
    pub handoff: HandoffId,
    /// Layer.
    pub layer: u32,
    /// Position among the blocks the receiver reserved.
    pub position: u32,
    source: BlockId,
    bytes: Vec<u8>,
}

impl FakeTransport {
    /// Carries blocks out of `source`.
    pub fn new(source: Arc<dyn KvMemory>) -> Self {
        Self { source, pushed: Vec::new() }
    }

    /// Reads a pushed block as late as a real transport may. Asserts that it is what it was when it was pushed.
    pub fn read(&self, pushed: &PushedBlock) -> Vec<u8> {
        let mut bytes = vec![0; self.source.layout().layer_block_bytes()];
        self.source.read(pushed.layer, pushed.source, &mut bytes).expect("a block of the pool");
        assert_eq!(bytes, pushed.bytes, "a block changed before its push had drained");
        bytes
    }
}

impl KvTransport for FakeTransport {
    fn push_layer(&mut self, layer: u32, pushes: &[KvPush]) {
        for push in pushes {
            assert!(!push.blocks.is_empty(), "an empty push");
            for (&source, position) in push.blocks.iter().zip(push.first..) {
                let mut bytes = vec![0; self.source.layout().layer_block_bytes()];
                self.source.read(layer, source, &mut bytes).expect("a block of the pool");
                self.pushed.push(PushedBlock { handoff: push.handoff, layer, position, source, bytes });
            }
        }
    }
}
