//! The `disagg-router` binary: arguments, logging, signals; the rest is the library's.

use std::future::Future;
use std::io::IsTerminal as _;

use clap::Parser;
use tracing_subscriber::EnvFilter;

/// OpenAI-compatible HTTP in front of disaggregated prefill and decode workers.
#[derive(Parser)]
#[command(name = "disagg-router", version)]
struct Cli {
    #[command(flatten)]
    router: disagg_router::RouterArgs,
}

fn main() -> anyhow::Result<()> {
    disagg_malloc::set_up();
    disagg_malloc::give_back_when_idle();
    run()
}

#[tokio::main]
async fn run() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // A pod's log is no terminal.
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    disagg_router::run(cli.router, terminated()?).await
}

/// Resolves on SIGTERM or Ctrl-C.
fn terminated() -> anyhow::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
