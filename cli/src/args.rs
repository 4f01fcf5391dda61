//! The command line.

use clap::{Parser, Subcommand};
use disagg_router::RouterArgs;
use disagg_worker::WorkerArgs;

use crate::bench::BenchArgs;
use crate::status::StatusArgs;
use crate::threshold::ThresholdArgs;
use crate::up::UpArgs;

const EXAMPLES: &str = "\
Examples:
  disagg up                          everything on this machine, with the demo model
  disagg up --model ./my-llama       the same with a model of yours (a Hugging Face folder)
  disagg up -f deployment.yaml       what a DisaggDeployment says, as local processes
  disagg status                      the workers as the router sees them
  disagg threshold set 1024          from now on, only longer prompts are prefilled remotely
  disagg bench                       latencies and throughput under load, of this or any OpenAI-compatible server

By hand, each in its own terminal:
  disagg worker --role prefill --name prefill-0 --listen 127.0.0.1:9001 --model ./my-llama
  disagg worker --role decode  --name decode-0  --listen 127.0.0.1:9002 --model ./my-llama
  disagg router --worker 127.0.0.1:9001 --worker 127.0.0.1:9002";

/// Serve large language models with prefill and decode on separate workers.
#[derive(Parser, Debug)]
#[command(name = "disagg", version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    // Help texts of those without a comment here stand with their arguments.
    Up(Box<UpArgs>),
    Status(StatusArgs),
    Bench(Box<BenchArgs>),
    Threshold(ThresholdArgs),
    /// Run one router: OpenAI HTTP in front of the workers
    Router(Box<RouterArgs>),
    Worker(Box<WorkerArgs>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The examples of the help must be lines that parse.
    #[test]
    fn examples_parse() {
        let examples: Vec<&str> =
            EXAMPLES.lines().map(str::trim).filter(|line| line.starts_with("disagg ")).collect();
        assert_eq!(examples.len(), 9);
        for line in examples {
            // A remark may follow, in plain words; it begins with one of these.
            let words = line.split_whitespace();
            let command: Vec<&str> = words
                .take_while(|word| !["everything", "the", "what", "from", "latencies"].contains(word))
                .collect();
            Cli::try_parse_from(&command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
        }
    }
}
