//! `disagg-operator`: everything is in the library; this sets up logs, the runtime and signals.

use std::io::IsTerminal as _;

use clap::Parser as _;
use disagg_operator::{OperatorArgs, run};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> anyhow::Result<()> {
    let args = OperatorArgs::parse();
    // A pod's log is no terminal.
    disagg_process::log_to_stderr(std::io::stderr().is_terminal());
    disagg_process::open_files::raise();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let shutdown = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        Ok(run(args, shutdown).await?)
    })
}
