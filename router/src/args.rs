//! Command line and environment of the router, and the validated configuration made from them.

mod connections;

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use disagg_api::kubernetes::{
    ENV_DEPLOYMENT, ENV_NAMESPACE, ROUTER_INDEX_MEMORY_MIB_DEFAULT, ROUTER_REQUEST_MEMORY_MIB_DEFAULT,
};
use disagg_core::RoutingStrategy;

pub use connections::ConnectionArgs;

/// Arguments of the router. Every flag can also be set by the environment variable named beside it.
#[derive(clap::Args, Clone, Debug)]
pub struct RouterArgs {
    /// Address to serve HTTP on. Port 0 takes a free one, which is logged.
    #[arg(long, env = "DISAGG_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:8181")]
    pub listen: String,

    /// Address of /metrics, /internal/workers and /internal/settings, for whoever runs the router, and of /health and
    /// /ready for probes. Not for clients: it tells names, addresses and epochs of workers. [default: 127.0.0.1 and
    /// the port after --listen's]
    #[arg(long, env = "DISAGG_ADMIN_LISTEN", value_name = "HOST:PORT")]
    pub admin_listen: Option<String>,

    /// A worker's gRPC address; repeat it for each worker. Workers may start, restart and leave in any order: the
    /// router keeps trying and learns role, model and epoch from the worker itself.
    #[arg(
        long = "worker",
        env = "DISAGG_WORKERS",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        required_unless_present = "deployment_name"
    )]
    pub workers: Vec<String>,

    /// In a cluster: serve the DisaggDeployment of this name. Its workers are found through EndpointSlices, and its
    /// settings are the ConfigMap NAME-router, which is watched.
    #[arg(long, env = ENV_DEPLOYMENT, value_name = "NAME", conflicts_with_all = ["workers", "settings",
          "max_local_prefill_length", "max_prefill_queue_depth", "fallback_policy", "overlap_weight_percent"])]
    pub deployment_name: Option<String>,

    /// Namespace of that DisaggDeployment. [default: the pod's own, or that of the kubeconfig's context]
    #[arg(long, env = ENV_NAMESPACE, value_name = "NAMESPACE")]
    pub kubernetes_namespace: Option<String>,

    /// Kubeconfig file, for a router outside of the cluster. [default: as kubectl finds it, or the pod's service
    /// account]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// YAML file with the routing settings (maxLocalPrefillLength, maxPrefillQueueDepth, fallbackPolicy,
    /// overlapWeightPercent). It is watched: an edit applies to new requests within a second. A bad edit changes
    /// nothing and is logged.
    #[arg(long, env = "DISAGG_SETTINGS", value_name = "FILE")]
    pub settings: Option<PathBuf>,

    /// Prompts with more net-new tokens than this are prefilled remotely. Not together with
    /// --settings. [default: 512]
    #[arg(long, env = "DISAGG_MAX_LOCAL_PREFILL_LENGTH", value_name = "TOKENS", conflicts_with = "settings")]
    pub max_local_prefill_length: Option<u32>,

    /// A prefill worker with this many prefills queued is not given another. Not together with
    /// --settings. [default: 2]
    #[arg(long, env = "DISAGG_MAX_PREFILL_QUEUE_DEPTH", value_name = "N", conflicts_with = "settings")]
    pub max_prefill_queue_depth: Option<u32>,

    /// What to do with a prompt that needs a remote prefill when none can be had: Local or Fail. Not
    /// together with --settings. [default: Local]
    #[arg(long, env = "DISAGG_FALLBACK_POLICY", value_name = "POLICY", conflicts_with = "settings")]
    pub fallback_policy: Option<String>,

    /// What a block of the prompt that a decode worker has cached is worth against a block of load there, for
    /// --routing kv. Not together with --settings. [default: 100]
    #[arg(long, env = "DISAGG_OVERLAP_WEIGHT_PERCENT", value_name = "PERCENT", conflicts_with = "settings")]
    pub overlap_weight_percent: Option<u32>,

    /// How workers are chosen: by what they have cached and their load (kv), by load alone, in turn, or at random.
    #[arg(long, env = "DISAGG_ROUTING", value_name = "kv|least-loaded|round-robin|random",
          default_value_t = RoutingStrategy::Kv)]
    pub routing: RoutingStrategy,

    /// Workers, of any role, that have to be ready before the router is. Requests wait until then; later losses
    /// change nothing. One of them always has to decode.
    #[arg(long, env = "DISAGG_MIN_WORKERS", value_name = "N", default_value_t = 1,
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=100_000))]
    pub min_workers: u32,

    /// Memory for the index of what workers have cached, in MiB. When it is full, what was stored longest ago is
    /// forgotten.
    #[arg(long, env = "DISAGG_MAX_PREFIX_INDEX_MIB", value_name = "MIB", default_value_t = ROUTER_INDEX_MEMORY_MIB_DEFAULT,
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=65_536))]
    pub max_prefix_index_mib: u32,

    /// Choices that may be in progress at once: a request is as many as its prompts times its `n`. More are answered 429
    /// with Retry-After; a single request of more is refused. The last quarter is for requests with at most 8 choices.
    #[arg(long, env = "DISAGG_MAX_IN_FLIGHT", value_name = "N", default_value_t = 1024,
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=1_000_000))]
    pub max_in_flight: u32,

    /// Longest time a request may take, its whole answer included.
    #[arg(long, env = "DISAGG_REQUEST_TIMEOUT_SECONDS", value_name = "SECONDS", default_value_t = 600,
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=86_400))]
    pub request_timeout_seconds: u32,

    /// How long a request waits for a worker when none is ready, before it is answered 503 with Retry-After.
    #[arg(long, env = "DISAGG_MAX_WAIT_FOR_WORKER_SECONDS", value_name = "SECONDS", default_value_t = 30,
          value_parser = RangedU64ValueParser::<u32>::new().range(0..=3600))]
    pub max_wait_for_worker_seconds: u32,

    /// A client that takes nothing from its answer for this long, streamed or not, is given up, and its request cancelled.
    #[arg(long, env = "DISAGG_READER_TIMEOUT_SECONDS", value_name = "SECONDS", default_value_t = 60,
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=3600))]
    pub reader_timeout_seconds: u32,

    /// Largest request body, in bytes; larger ones are answered 413. A body has to arrive within 30 seconds, and at 16 KiB
    /// a second or faster.
    #[arg(long, env = "DISAGG_MAX_BODY_BYTES", value_name = "BYTES", default_value_t = 8 * 1024 * 1024,
          value_parser = RangedU64ValueParser::<u32>::new().range(1024..=256 * 1024 * 1024))]
    pub max_body_bytes: u32,

    /// Memory for requests and answers, in MiB: bodies, what is made of them, prompts, and answers that are not read yet.
    /// When it is full, requests are answered 503 with Retry-After. One request may take three quarters of it, and takes 300
    /// bytes for each byte of prose while it is tokenized: by default 2.5 MB of text, or half a million tokens. The process
    /// takes this, the prefix index, and about 320 MiB.
    #[arg(long, env = "DISAGG_MAX_REQUEST_MEMORY_MIB", value_name = "MIB",
          default_value_t = ROUTER_REQUEST_MEMORY_MIB_DEFAULT,
          value_parser = RangedU64ValueParser::<u32>::new().range(16..=1_048_576))]
    pub max_request_memory_mib: u32,

    /// Short prompts that are tokenized at once; others wait their turn. Those over 64 KiB take turns of their own, half
    /// as many, and those over 1 MiB a quarter. [default: number of CPUs]
    #[arg(long, env = "DISAGG_TOKENIZER_THREADS", value_name = "N",
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=256))]
    pub tokenizer_threads: Option<u32>,

    /// On SIGTERM, how long requests are still accepted, before open answers are finished: the time that whoever sends
    /// requests here may take to learn that this router leaves.
    #[arg(long, env = "DISAGG_SHUTDOWN_DELAY_SECONDS", value_name = "SECONDS", default_value_t = 0,
          value_parser = RangedU64ValueParser::<u32>::new().range(0..=300))]
    pub shutdown_delay_seconds: u32,

    /// On shutdown, how long open answers may go on before they are cut.
    #[arg(long, env = "DISAGG_DRAIN_TIMEOUT_SECONDS", value_name = "SECONDS", default_value_t = 60,
          value_parser = RangedU64ValueParser::<u32>::new().range(0..=3600))]
    pub drain_timeout_seconds: u32,

    /// Shut down when standard input ends. A parent that keeps the pipe open thereby never leaves a router behind.
    #[arg(long, env = "DISAGG_EXIT_WITH_STDIN")]
    pub exit_with_stdin: bool,

    /// Who may connect, and how many.
    // Last: its heading is that of all that follows.
    #[command(flatten)]
    pub connections: ConnectionArgs,
}
