//! KV transport "grpc": works between any two workers that reach each other.
//!
//! The sender opens a few streams for a handoff, each on a connection of its own, and sends chunks over whichever is free
//! as layers are ready, never more than the receiver has granted credit for on each. The receiver lands each chunk before
//! it grants another; where a chunk belongs is written in it, so their order does not matter.

mod receiver;
mod sender;

pub use receiver::KvTransferService;
pub use sender::{PushError, PushTarget, Pusher};

/// Chunks a stream may have unacknowledged: 8 MiB on the way on each of four keep a fast network busy.
const CREDIT_CHUNKS: u32 = 8;
