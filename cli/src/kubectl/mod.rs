//! `kubectl disagg`: looks after a deployment in a cluster. It is the same executable, found by kubectl when it is
//! called `kubectl-disagg` and lies on the PATH.
//!
//! It needs no more rights than its user has: routers are reached by port-forwards, the threshold is changed by a patch
//! of the settings ConfigMap.

mod bench;
mod check;
mod cluster;
mod forward;
mod routers;
mod status;
mod threshold;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use cluster::Connection;

/// Name of the executable by which kubectl finds it.
const PLUGIN_NAME: &str = "kubectl-disagg";

const EXAMPLES: &str = "\
Examples:
  kubectl disagg check                     what is wrong with the cluster or a DisaggDeployment, and what to do
  kubectl disagg status demo               conditions, workers and placements of the DisaggDeployment demo
  kubectl disagg threshold get             the threshold in force
  kubectl disagg threshold set 1024        from now on, only longer prompts are prefilled remotely
  kubectl disagg bench demo --requests 50  latencies and throughput, through a port-forward

Where a NAME can be left out, the only DisaggDeployment of the namespace is meant.";

/// Look after DisaggDeployments in a cluster.
#[derive(Parser, Debug)]
#[command(name = PLUGIN_NAME, bin_name = "kubectl disagg", version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    connection: Connection,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    // Help texts of those without a comment here stand with their arguments.
    Check(check::CheckArgs),
    Status(status::StatusArgs),
    Threshold(threshold::ThresholdArgs),
    Bench(Box<bench::PluginBenchArgs>),
}

/// Whether the program was called by the plugin's name.
pub(crate) fn is_called(program: Option<&OsStr>) -> bool {
    let stem = program.map(Path::new).and_then(Path::file_stem);
    stem.is_some_and(|stem| stem == PLUGIN_NAME)
}

pub(crate) async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let cluster = cli.connection.open().await?;
    match cli.command {
        Command::Check(args) => check::run(&cluster, &args).await,
        Command::Status(args) => status::run(&cluster, &args).await,
        Command::Threshold(args) => threshold::run(&cluster, &args).await,
        Command::Bench(args) => bench::run(&cluster, *args).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.strip_prefix("kubectl ").unwrap().split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn examples_parse() {
        let examples: Vec<&str> =
            EXAMPLES.lines().map(str::trim).filter(|line| line.starts_with("kubectl ")).collect();
        assert_eq!(examples.len(), 5);
        for line in examples {
            let (command, _remark) = line.split_once("  ").expect("a remark after two spaces");
            parse(command).unwrap_or_else(|error| panic!("{command}: {error}"));
        }
    }

    #[test]
    fn flags_of_kubectl_go_anywhere() {
        for line in [
            "kubectl disagg -n llm --context kind check demo",
            "kubectl disagg check demo --namespace llm --context kind",
            "kubectl disagg threshold set 5 demo -n llm --context=kind",
        ] {
            let cli = parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(cli.connection.namespace.as_deref(), Some("llm"), "{line}");
            assert_eq!(cli.connection.context.as_deref(), Some("kind"), "{line}");
        }
        for line in ["kubectl disagg", "kubectl disagg threshold", "kubectl disagg threshold set many"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_name_of_the_program_decides() {
        for (program, plugin) in [
            ("kubectl-disagg", true),
            ("/usr/local/bin/kubectl-disagg", true),
            ("disagg", false),
            ("/opt/kubectl-disagg/disagg", false),
        ] {
            assert_eq!(is_called(Some(OsStr::new(program))), plugin, "{program}");
        }
        assert!(!is_called(None));
    }
}
