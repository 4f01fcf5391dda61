//! The inference engine without the arithmetic: sequences, the block pool with its prefix cache, the scheduler,
//! sampling, and the trait that a backend implements.
//!
//! Invariant of this crate: it knows no tokio, no tonic, no tensor library, no clock and no randomness of its own.
//! `Engine::step` is schedule, execute, postprocess; everything in it can be driven by a test with a fake backend.

pub mod backend;
pub mod engine;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod kv;
pub mod pool;
pub mod request;
pub mod sampling;
mod scheduler;
mod sequence;
mod sequences;
#[cfg(test)]
mod tests;

pub use backend::{Backend, BackendError, Batch, SampleRow, SampledToken, StepTokens, TokenInput};
pub use engine::{
    AdmitError, BlockFate, ConfigError, Engine, EngineConfig, EngineEvent, EngineLoad, NotAwaitingKv,
    RemotePrefill, Reservation,
};
pub use kv::{KvAccessError, KvDtype, KvLayout, KvMemory, KvPush, KvStage, KvTransport, NoTransport};
pub use pool::BlockPool;
pub use request::{FinishReason, Request, SamplingParams, StopRules};
pub use sampling::{SampleError, sample};
