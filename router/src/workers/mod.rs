//! The workers as this router knows them: who they are, how they are, and what their caches hold.
//!
//! One task per address keeps a connection, says hello, fetches the model card if it is new, and follows load and KV
//! events. Requests read snapshots and never wait for these tasks.

mod connection;
mod discovery;
mod load;
mod registry;
mod worker;

pub(crate) use discovery::{Addresses, EndpointState, fixed};
#[cfg(test)]
pub(crate) use load::Load;
pub(crate) use load::{Sending, SentGuard};
pub(crate) use registry::Registry;
pub(crate) use worker::{Identity, ReadyWorker, State, Worker};

/// A ready worker for unit tests of routing: fingerprint 1, blocks of 4 tokens, nothing to do. Needs a tokio runtime,
/// since a channel does.
#[cfg(test)]
pub(crate) fn test_worker(name: &str, role: disagg_core::Role) -> ReadyWorker {
    use disagg_core::{Epoch, KvCompat, ModelFingerprint, WorkerId};
    let identity = Identity {
        name: WorkerId::new(name),
        epoch: Epoch(1),
        role,
        fingerprint: ModelFingerprint(1),
        kv_compat: KvCompat(1),
        block_size: 4,
        kv_block_bytes: 1000,
        max_model_len: 4096,
        transports: Vec::new(),
        version: String::new(),
        backend: String::new(),
    };
    ReadyWorker {
        worker: std::sync::Arc::new(Worker::new(format!("{name}:1"), EndpointState::Serving)),
        identity: std::sync::Arc::new(identity),
        channel: tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy(),
        session: 1,
        serving: true,
        load: Load { blocks_total: 1000, ..Load::default() },
        unreported: Sending::default(),
        transfers: std::sync::Arc::default(),
    }
}
