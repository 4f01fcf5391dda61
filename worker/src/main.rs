//! `disagg-worker`: one worker process. Everything is in the library; this sets up logs, the runtime and signals.

use std::io::{IsTerminal as _, Write as _};

use clap::Parser;
use disagg_worker::WorkerArgs;

/// One worker of disaggregated LLM serving.
#[derive(Parser)]
#[command(name = "disagg-worker", version)]
struct Cli {
    #[command(flatten)]
    worker: WorkerArgs,
}

fn main() -> std::io::Result<()> {
    disagg_process::malloc::set_up();
    let cli = Cli::parse();
    // A pod's log is no terminal.
    disagg_process::log_to_stderr(std::io::stderr().is_terminal());
    disagg_process::open_files::raise();
    disagg_process::malloc::give_back_when_idle();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(disagg_worker::run(cli.worker, disagg_worker::terminated()));
    let status = ended.map_or_else(
        |error| {
            let _ = writeln!(std::io::stderr(), "Error: {}", disagg_process::one_line(error.as_ref()));
            disagg_worker::failure(&error).status()
        },
        |()| 0,
    );
    disagg_process::end_at_once(status)
}
