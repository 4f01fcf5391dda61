//! The configuration that the router runs with: checked arguments.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use disagg_api::settings::{
    FALLBACK_POLICY, MAX_LOCAL_PREFILL_LENGTH, MAX_PREFILL_QUEUE_DEPTH, OVERLAP_WEIGHT_PERCENT,
};
use disagg_api::{RouterSettings, SettingsErrors};
use disagg_core::RoutingStrategy;
use disagg_core::prefix_index::APPROX_BYTES_PER_BLOCK;

use crate::RouterArgs;
use crate::kubernetes::Target;

/// A body is held with what is made of it, three times its size in all; one request may take three quarters of the
/// memory.
const MEMORY_PER_BODY_BYTE: u64 = 5;

/// An argument that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// An address without host or port.
    #[error("--worker {0:?} is no address; write HOST:PORT, for example 127.0.0.1:9001")]
    WorkerAddress(String),
    /// A name that no resource can have.
    #[error("--deployment-name {0:?} is no name of a DisaggDeployment; write for example demo")]
    DeploymentName(String),
    /// Memory that is too little for one large body.
    #[error(
        "--max-request-memory-mib {memory_mib} is too little for --max-body-bytes {body_bytes}: reading and parsing the \
         largest body takes {needed_mib} MiB of it; raise the one or lower the other"
    )]
    RequestMemory {
        /// As given.
        memory_mib: u32,
        /// As given.
        body_bytes: u32,
        /// The least that would do.
        needed_mib: u64,
    },
    /// A routing setting out of its range.
    #[error("{0}")]
    Settings(SettingsErrors),
}

/// Where the routing settings come from.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum SettingsSource {
    /// The flags; they stay as they are.
    Flags(RouterSettings),
    /// A file, which is watched.
    File(PathBuf),
}

/// Where workers and settings come from.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Source {
    /// Named by flags.
    Flags { workers: BTreeSet<String>, settings: SettingsSource },
    /// A deployment in a cluster.
    Kubernetes(Target),
}

/// Limits that requests are held to.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Limits {
    pub in_flight_max: u32,
    pub body_bytes_max: usize,
    pub request_memory_bytes_max: usize,
    pub request_timeout: Duration,
    pub worker_wait_max: Duration,
    pub reader_timeout: Duration,
    pub tokenizer_threads: usize,
    pub shutdown_delay: Duration,
    pub drain_timeout: Duration,
}

/// How workers are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RoutingConfig {
    pub strategy: RoutingStrategy,
    pub min_workers: u32,
    pub index_blocks_max: usize,
}

/// Checked arguments.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Config {
    pub listen: String,
    pub routing: RoutingConfig,
    pub source: Source,
    pub limits: Limits,
    pub exit_with_stdin: bool,
}

impl TryFrom<RouterArgs> for Config {
    type Error = ConfigError;

    fn try_from(args: RouterArgs) -> Result<Self, ConfigError> {
        if let Some(bad) = args.workers.iter().find(|address| !is_address(address)) {
            return Err(ConfigError::WorkerAddress(bad.clone()));
        }
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let source = if let Some(deployment) = args.deployment_name {
            let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if deployment.is_empty() || deployment.len() > 63 || !deployment.bytes().all(allowed) {
                return Err(ConfigError::DeploymentName(deployment));
            }
            Source::Kubernetes(Target {
                deployment,
                namespace: args.kubernetes_namespace,
                kubeconfig: args.kubeconfig,
            })
        } else if let Some(file) = args.settings {
            let workers = args.workers.into_iter().collect();
            Source::Flags { workers, settings: SettingsSource::File(file) }
        } else {
            let length = args.max_local_prefill_length.map(|value| value.to_string());
            let depth = args.max_prefill_queue_depth.map(|value| value.to_string());
            let weight = args.overlap_weight_percent.map(|value| value.to_string());
            let given = [
                (MAX_LOCAL_PREFILL_LENGTH, length.as_deref()),
                (MAX_PREFILL_QUEUE_DEPTH, depth.as_deref()),
                (FALLBACK_POLICY, args.fallback_policy.as_deref()),
                (OVERLAP_WEIGHT_PERCENT, weight.as_deref()),
            ];
            let pairs = given.into_iter().filter_map(|(key, value)| Some((key, value?)));
            let settings = RouterSettings::from_pairs(pairs).map_err(ConfigError::Settings)?;
            let workers = args.workers.into_iter().collect();
            Source::Flags { workers, settings: SettingsSource::Flags(settings) }
        };
        let cpus = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self {
            listen: args.listen,
            routing: RoutingConfig {
                strategy: args.routing,
                min_workers: args.min_workers,
                index_blocks_max: args.max_prefix_index_mib as usize * (1024 * 1024 / APPROX_BYTES_PER_BLOCK),
            },
            source,
            limits: Limits {
                in_flight_max: args.max_in_flight,
                body_bytes_max: args.max_body_bytes as usize,
                request_memory_bytes_max: request_memory_bytes_max(
                    args.max_request_memory_mib,
                    args.max_body_bytes,
                )?,
                request_timeout: seconds(args.request_timeout_seconds),
                worker_wait_max: seconds(args.max_wait_for_worker_seconds),
                reader_timeout: seconds(args.reader_timeout_seconds),
                tokenizer_threads: args.tokenizer_threads.map_or_else(cpus, |threads| threads as usize),
                shutdown_delay: seconds(args.shutdown_delay_seconds),
                drain_timeout: seconds(args.drain_timeout_seconds),
            },
            exit_with_stdin: args.exit_with_stdin,
        })
    }
}

/// The budget for requests and answers, in which the largest body has to have room.
fn request_memory_bytes_max(memory_mib: u32, body_bytes: u32) -> Result<usize, ConfigError> {
    let needed_mib = (MEMORY_PER_BODY_BYTE * u64::from(body_bytes)).div_ceil(1024 * 1024);
    if u64::from(memory_mib) < needed_mib {
        return Err(ConfigError::RequestMemory { memory_mib, body_bytes, needed_mib });
    }
    Ok(memory_mib as usize * 1024 * 1024)
}

fn is_address(text: &str) -> bool {
    text.parse::<http::uri::Authority>().is_ok_and(|authority| {
        authority.port_u16().is_some() && !authority.host().is_empty() && !text.contains('@')
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use disagg_api::FallbackPolicy;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: RouterArgs,
    }

    fn config(flags: &[&str]) -> Result<Config, String> {
        let argv = ["router", "--worker", "127.0.0.1:1"].iter().chain(flags);
        let cli = Cli::try_parse_from(argv).map_err(|error| error.to_string())?;
        Config::try_from(cli.args).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_give_settings() {
        let config = config(&["--max-local-prefill-length", "64", "--fallback-policy", "Fail"]).unwrap();
        let Source::Flags { settings: SettingsSource::Flags(settings), .. } = config.source else {
            panic!("no file was given")
        };
        assert_eq!(settings.max_local_prefill_length, 64);
        assert_eq!(settings.max_prefill_queue_depth, 2);
        assert_eq!(settings.fallback_policy, FallbackPolicy::Fail);
    }

    #[test]
    fn bad_arguments_are_named() {
        for (flags, expected) in [
            (&["--worker", "nowhere"][..], "--worker \"nowhere\" is no address"),
            (&["--worker", "host:99999"], "is no address"),
            (&["--max-prefill-queue-depth", "0"], "maxPrefillQueueDepth"),
            (&["--overlap-weight-percent", "10001"], "overlapWeightPercent"),
            (&["--fallback-policy", "Maybe"], "it must be Local or Fail"),
            (&["--max-in-flight", "0"], "--max-in-flight"),
            (&["--max-request-memory-mib", "15"], "--max-request-memory-mib"),
            (&["--max-request-memory-mib", "64", "--max-body-bytes", "16777216"], "takes 80 MiB"),
            (&["--routing", "prefix"], "none of kv, least-loaded, round-robin, random"),
            (&["--min-workers", "0"], "--min-workers"),
            (&["--max-prefix-index-mib", "0"], "--max-prefix-index-mib"),
            (&["--settings", "f", "--max-local-prefill-length", "1"], "cannot be used with"),
            (&["--deployment-name", "demo"], "cannot be used with"),
        ] {
            let error = config(flags).unwrap_err();
            assert!(error.contains(expected), "{flags:?}: {error}");
        }
    }

    #[test]
    fn the_prefix_index_is_bounded_by_memory() {
        let blocks = |flags: &[&str]| config(flags).unwrap().routing.index_blocks_max;
        assert_eq!(blocks(&[]) * APPROX_BYTES_PER_BLOCK / (1024 * 1024), 191);
        assert_eq!(blocks(&["--max-prefix-index-mib", "1"]), 5461);
    }

    #[test]
    fn workers_are_repeated_or_listed() {
        let config = config(&["--worker", "worker-0.pool:9000,[::1]:9001"]).unwrap();
        let Source::Flags { workers, .. } = config.source else { panic!("workers were given") };
        assert_eq!(workers.len(), 3);
    }

    #[test]
    fn a_router_is_for_workers_or_for_a_deployment() {
        let parse = |flags: &[&str]| {
            let cli =
                Cli::try_parse_from(["router"].iter().chain(flags)).map_err(|error| error.to_string())?;
            Config::try_from(cli.args).map_err(|error| error.to_string())
        };
        let config = parse(&["--deployment-name", "demo", "--kubernetes-namespace", "llm"]).unwrap();
        let target =
            Target { deployment: "demo".to_owned(), namespace: Some("llm".to_owned()), kubeconfig: None };
        assert_eq!(config.source, Source::Kubernetes(target));
        assert!(parse(&[]).unwrap_err().contains("--worker"));
        assert!(parse(&["--deployment-name", "a,b"]).unwrap_err().contains("is no name"));
    }
}
