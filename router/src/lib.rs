//! The router: OpenAI HTTP in front of the workers.
//!
//! Invariant of this crate: the router reads no model and runs none. All it knows of a model is the card that workers
//! serve; all it knows of a worker is what the worker says on its own connection. Losing a worker never blocks a
//! request that does not run on it.

mod args;

use std::future::Future;

pub use args::RouterArgs;

/// Runs the router until `shutdown` resolves (or standard input ends, with `--exit-with-stdin`), then finishes the
/// answers that are open, within `--drain-timeout-seconds`.
pub async fn run(args: RouterArgs, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(&args.listen).await?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    shutdown.await;
    Ok(())
}
