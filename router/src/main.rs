//! The `disagg-router` binary: arguments, logging, signals; the rest is the library's.

use std::future::Future;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser;

/// OpenAI-compatible HTTP in front of disaggregated prefill and decode workers.
#[derive(Parser)]
#[command(name = "disagg-router", version)]
struct Cli {
    #[command(flatten)]
    router: disagg_router::RouterArgs,
}

fn main() -> ExitCode {
    disagg_process::malloc::set_up();
    disagg_process::malloc::give_back_when_idle();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "Error: {}", disagg_process::one_line(error.as_ref()));
            disagg_router::failure(&error).status().into()
        }
    }
}

#[tokio::main]
async fn run() -> anyhow::Result<()> {
    let cli = Cli::parse();
    // A pod's log is no terminal.
    disagg_process::log_to_stderr(std::io::stderr().is_terminal());
    disagg_process::open_files::raise();
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
