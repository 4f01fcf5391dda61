//! `disagg`: runs, inspects and tunes disaggregated LLM serving. One executable is everything: `disagg up` starts
//! itself again as the router and as each worker.
//!
//! Invariant of this crate: it decides nothing about serving. It turns flags and a `DisaggDeployment` into processes
//! and keeps them running.

mod args;
mod bench;
mod console;
mod kubectl;
mod router_client;
mod state;
mod status;
mod supervise;
mod threshold;
mod up;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};

fn main() -> ExitCode {
    disagg_process::malloc::set_up();
    // A connection is a file, of the router's clients and of the load that `bench` makes.
    disagg_process::open_files::raise();
    // Parsed before anything else: help and mistakes need no runtime.
    let called = if kubectl::is_called(std::env::args_os().next().as_deref()) {
        Called::Plugin(Box::new(kubectl::Cli::parse()))
    } else {
        Called::Disagg(Cli::parse().command)
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let result = runtime.block_on(async {
        match called {
            Called::Plugin(cli) => kubectl::run(*cli).await,
            Called::Disagg(command) => run(command).await,
        }
    });
    // Whatever a task still holds ends with the process.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| fail(&error))
}

/// By which name, and for what.
enum Called {
    /// `kubectl disagg`.
    Plugin(Box<kubectl::Cli>),
    Disagg(Command),
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(args) => up::run(*args).await,
        Command::Status(args) => status::run(&args).await,
        Command::Bench(args) => bench::run(&args).await,
        Command::Threshold(args) => threshold::run(&args).await,
        Command::Router(args) => {
            log_to_stderr();
            disagg_process::malloc::give_back_when_idle();
            match disagg_router::run(*args, disagg_worker::terminated()).await {
                Ok(()) => Ok(ExitCode::SUCCESS),
                Err(error) => {
                    fail(&error);
                    Ok(disagg_router::failure(&error).status().into())
                }
            }
        }
        Command::Worker(args) => {
            log_to_stderr();
            disagg_process::malloc::give_back_when_idle();
            let ended = disagg_worker::run(*args, disagg_worker::terminated()).await;
            let status = ended.map_or_else(
                |error| {
                    fail(&error);
                    disagg_worker::failure(&error).status()
                },
                |()| 0,
            );
            disagg_process::end_at_once(status)
        }
    }
}

/// Logs of the long-running parts, `info` unless `RUST_LOG` says otherwise.
fn log_to_stderr() {
    disagg_process::log_to_stderr(console::colour_is_wanted());
}

/// The one place where an error is shown: itself and its causes in one line, unless it has several of its own.
fn fail(error: &anyhow::Error) -> ExitCode {
    console::error(&disagg_process::one_line(error.as_ref()));
    ExitCode::FAILURE
}
