//! The rules of disaggregated serving, without anything that does I/O: names, block identity, KV events, the prefix
//! index, placement, choice of workers, the handoff machine, and the options that every part of a deployment shares.
//!
//! Invariant of this crate: no clock, no randomness, no async, no global state. Time and seeds are arguments, so
//! every decision can be replayed from its inputs.

pub mod choice;
pub mod handoff;
pub mod hash;
pub mod ids;
pub mod kv_event;
pub mod options;
pub mod placement;
pub mod prefix_index;
pub mod role;

pub use choice::{RoutingStrategy, RoutingWeights};
pub use handoff::Handoff;
pub use hash::BlockHasher;
pub use ids::{BlockHash, BlockId, Epoch, HandoffId, KvCompat, ModelFingerprint, SequenceId, WorkerId};
pub use kv_event::KvEvent;
pub use options::{Dtype, LoadFormat};
pub use placement::{FallbackPolicy, Placement, PlacementReason, PlacementSettings};
pub use prefix_index::PrefixIndex;
pub use role::Role;
