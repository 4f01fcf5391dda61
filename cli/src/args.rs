//! The command line.

use clap::{Parser, Subcommand};
use disagg_router::RouterArgs;
use disagg_worker::WorkerArgs;

use crate::status::StatusArgs;
use crate::threshold::ThresholdArgs;
use crate::up::UpArgs;

const EXAMPLES: &str = "\
Examples:
  disagg up                          everything on this machine, with a small random model
  disagg up --model ./my-llama       the same with a model of yours (a Hugging Face folder)
  disagg up -f deployment.yaml       what a DisaggDeployment says, as local processes
  disagg status                      the workers as the router sees them
  disagg threshold set 1024          from now on, only longer prompts are prefilled remotely

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
    /// Run a whole deployment on this machine: router, prefill workers, decode workers
    Up(Box<UpArgs>),
    /// Show the workers as the router sees them
    Status(StatusArgs),
    /// Show or change the threshold of a deployment that `disagg up` runs
    Threshold(ThresholdArgs),
    /// Run one router (`up` starts one)
    Router(Box<RouterArgs>),
    /// Run one worker (`up` starts several)
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
        assert_eq!(examples.len(), 8);
        for line in examples {
            // The remark after an example stands at least two spaces away; flags are aligned with two at most.
            let words: Vec<&str> = match line.split_once("     ") {
                Some((command, _)) => command.split_whitespace().collect(),
                None => line.split_whitespace().collect(),
            };
            let command: Vec<&str> = words.into_iter().take_while(|word| !REMARKS.contains(word)).collect();
            Cli::try_parse_from(&command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
        }
    }

    /// First words of remarks that stand close to their example.
    const REMARKS: [&str; 2] = ["the", "what"];
}
