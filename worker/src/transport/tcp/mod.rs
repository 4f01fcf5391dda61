//! KV transport "tcp": works between any two workers that reach each other.
//!
//! The sender opens up to a few connections for a handoff and sends chunks over each in turn as layers are ready. The
//! receiver reads a chunk only when it has a stage to read it into, and TCP holds the sender back meanwhile. Where a chunk
//! belongs is said in front of it, so their order does not matter. Payloads go from the memory that the pool was read into
//! to the socket, and from the socket to the memory that the pool is written from, without a copy in between: that is
//! why they are not gRPC messages (docs/adr/0005).
//!
//! What goes over the wire is in `proto/disagg/v1/transfer.proto`. Connections come in on the port of the gRPC
//! services; `crate::accept` tells them apart.

mod frame;
mod receiver;
mod sender;

pub use frame::MAGIC;
pub use receiver::PushReceiver;
pub use sender::{PushError, PushTarget, Pusher};

/// Chunks that a worker sends at the same time, and that it receives: memory for each direction is this many times
/// the largest chunk.
pub const STAGES: usize = 16;
