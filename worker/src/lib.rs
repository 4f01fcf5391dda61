//! A worker: loads a model, computes with it on one engine thread, and serves it over gRPC.
//!
//! Invariant of this crate: wire messages are checked and converted in `convert` and go no deeper; tokio ends at
//! the channels of the engine thread; only the landing registry writes KV that came from outside.

pub mod args;
pub mod backend;
pub mod model;

use std::future::Future;

pub use args::WorkerArgs;

/// Runs a worker until `shutdown` resolves and its work is drained, or until it cannot go on.
pub async fn run(args: WorkerArgs, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let config = args.resolve()?;
    tracing::info!(name = %config.serve.name, role = %config.serve.role, "worker starts");
    shutdown.await;
    Ok(())
}

/// Resolves on SIGTERM or Ctrl-C.
pub async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};

    // Without a handler the default action ends the process, which is what the signal asks for.
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
