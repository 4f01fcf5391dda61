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
use http::HeaderValue;

use crate::RouterArgs;
use crate::args::ConnectionArgs;
use crate::kubernetes::Target;

/// Connections that are taken by default, at least.
const CONNECTIONS_MIN: u32 = 4096;

/// Beyond the reader timeout, when a connection is cut whose client takes nothing. A stream that has filled what lies
/// between its worker and the socket is given up before that, and counted as such; this is for all other answers.
const CUT_AFTER: Duration = Duration::from_secs(10);

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
    /// A name with a port, a scheme or a path.
    #[error("--allowed-host {0:?} is no name; write it without scheme and port, for example llm.example.com")]
    AllowedHost(String),
    /// A URL with a path, or no URL.
    #[error("--cors-origin {0:?} is no origin; write SCHEME://HOST[:PORT] as browsers do, or *")]
    CorsOrigin(String),
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

/// Bounds and deadlines of clients' connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ConnectionLimits {
    pub connections_max: usize,
    /// From one address.
    pub per_client_max: usize,
    pub head_timeout: Duration,
    pub idle_timeout: Duration,
    /// Longest time in which a client takes nothing of an answer.
    pub write_timeout: Duration,
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
    pub connections: ConnectionLimits,
    /// Names beside those of loopback.
    pub allowed_hosts: Vec<String>,
    pub cors_origins: Vec<HeaderValue>,
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
        let connections =
            ConnectionLimits::of(&args.connections, args.max_in_flight, args.reader_timeout_seconds);
        let (allowed_hosts, cors_origins) =
            (allowed_hosts(&args.connections)?, cors_origins(&args.connections)?);
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
            connections,
            allowed_hosts,
            cors_origins,
            exit_with_stdin: args.exit_with_stdin,
        })
    }
}

impl ConnectionLimits {
    fn of(args: &ConnectionArgs, in_flight_max: u32, reader_timeout_seconds: u32) -> Self {
        // Room for requests in progress, for those that are told to come back, and for idle connections of pools.
        let by_default = in_flight_max.saturating_mul(4).max(CONNECTIONS_MIN);
        let connections_max = args.max_connections.unwrap_or(by_default);
        let per_client_max = args.max_connections_per_client.unwrap_or(connections_max.div_ceil(2));
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        Self {
            connections_max: connections_max as usize,
            per_client_max: per_client_max as usize,
            head_timeout: seconds(args.head_timeout_seconds),
            idle_timeout: seconds(args.idle_timeout_seconds),
            write_timeout: seconds(reader_timeout_seconds) + CUT_AFTER,
        }
    }
}

fn allowed_hosts(args: &ConnectionArgs) -> Result<Vec<String>, ConfigError> {
    let is_name = |name: &String| {
        name.parse::<http::uri::Authority>()
            .is_ok_and(|authority| authority.host() == name && !name.is_empty())
    };
    match args.allowed_hosts.iter().find(|name| !is_name(name)) {
        Some(bad) => Err(ConfigError::AllowedHost(bad.clone())),
        None => Ok(args.allowed_hosts.clone()),
    }
}

fn cors_origins(args: &ConnectionArgs) -> Result<Vec<HeaderValue>, ConfigError> {
    let origin = |text: &String| {
        let is_origin = text.split_once("://").is_some_and(|(scheme, authority)| {
            matches!(scheme, "http" | "https")
                && authority.parse::<http::uri::Authority>().is_ok()
                && !authority.contains(['@', '*'])
                && *text == text.to_ascii_lowercase()
        });
        if is_origin || text == "*" { HeaderValue::from_str(text).ok() } else { None }
            .ok_or_else(|| ConfigError::CorsOrigin(text.clone()))
    };
    args.cors_origins.iter().map(origin).collect()
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
            (&["--allowed-host", "https://llm.example"], "--allowed-host"),
            (&["--allowed-host", "llm.example:443"], "without scheme and port"),
            (&["--cors-origin", "llm.example"], "SCHEME://HOST[:PORT]"),
            (&["--cors-origin", "https://llm.example/"], "--cors-origin"),
            (&["--cors-origin", "https://*.example"], "--cors-origin"),
            (&["--cors-origin", "HTTPS://llm.example"], "--cors-origin"),
            (&["--max-connections", "0"], "--max-connections"),
            (&["--head-timeout-seconds", "0"], "--head-timeout-seconds"),
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
    fn there_are_more_connections_than_requests_and_one_client_has_half() {
        let bounds = |flags: &[&str]| {
            let limits = config(flags).unwrap().connections;
            (limits.connections_max, limits.per_client_max)
        };
        assert_eq!(bounds(&[]), (4096, 2048));
        assert_eq!(bounds(&["--max-in-flight", "5000"]), (20_000, 10_000));
        assert_eq!(bounds(&["--max-connections", "3"]), (3, 2));
        assert_eq!(bounds(&["--max-connections", "9", "--max-connections-per-client", "9"]), (9, 9));
    }

    #[test]
    fn hosts_and_origins_are_repeated_or_listed() {
        let config = config(&[
            "--allowed-host",
            "a.example,b",
            "--cors-origin",
            "https://a:8443",
            "--cors-origin",
            "*",
        ]);
        let config = config.unwrap();
        assert_eq!(config.allowed_hosts, ["a.example", "b"]);
        assert_eq!(config.cors_origins, ["https://a:8443", "*"]);
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
