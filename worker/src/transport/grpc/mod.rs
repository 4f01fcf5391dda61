//! KV transport "grpc": works between any two workers that reach each other.
//!
//! The sender opens one stream for a handoff on a connection of its own and sends chunks as layers are ready, never
//! more than the receiver has granted credit for. The receiver lands each chunk before it grants another.

mod receiver;
mod sender;

pub use receiver::KvTransferService;
pub use sender::{PushError, PushTarget, Pusher};

/// Chunks a sender may have unacknowledged: 16 MiB on the way keep a fast network busy.
const CREDIT_CHUNKS: u32 = 16;
