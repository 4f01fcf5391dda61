//! KV events: what a worker's prefix cache holds, told as changes.

use crate::ids::BlockHash;

/// One change of a worker's prefix cache. Workers number them without gaps within an epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvEvent {
    /// A full block can now be found by its hash.
    BlockStored {
        /// Identity of the block.
        hash: BlockHash,
        /// The block before it; `None` for the first of a prompt.
        parent: Option<BlockHash>,
    },
    /// The block was given to something else.
    BlockRemoved {
        /// Identity of the block.
        hash: BlockHash,
    },
    /// Nothing that was stored before can be found any more. Part of the contract for workers that can empty their cache at
    /// once, as other engines do; ours has no such operation and never tells this. Whoever follows the events has to take
    /// it for what it says.
    AllBlocksCleared,
}
