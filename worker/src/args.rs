//! Flags of a worker, and how they are checked.

mod config;
mod device;
pub(crate) mod dtype;
mod size;

use std::net::Ipv6Addr;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{ArgAction, Args};
use disagg_core::{Dtype, LoadFormat, Role, WorkerId};
use disagg_proto::limits::{LEASE_MS, SERVED_MODEL_NAME_BYTES_MAX, WORKER_NAME_BYTES_MAX};

use crate::hub::ModelRef;

pub use config::{EngineLimits, ModelConfig, PoolSize, ServeConfig, WorkerConfig};
pub use device::{BadDevice, Device};
pub use size::{BadByteSize, ByteSize};

/// Run one worker: it loads a model and serves prefill, decode or both over gRPC.
///
/// A decode worker answers requests on its own. With prefill workers beside it, the router sends long prompts there
/// first; their KV is pushed into the decode worker as it is computed.
#[derive(Clone, PartialEq, Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // each is a flag of its own
pub struct WorkerArgs {
    /// Stable name of this worker, shown in `x-disagg-placement` and logs [default: <role>-0]
    #[arg(long, env = "DISAGG_NAME", value_name = "NAME")]
    pub name: Option<String>,

    /// What this worker does: prefill (for others only), decode (prefills short prompts itself), or both
    #[arg(long, env = "DISAGG_ROLE", default_value = "both", value_name = "prefill|decode|both")]
    pub role: Role,

    /// Address of the gRPC server; port 0 takes a free one, [::] is every address, of IPv4 as well
    #[arg(long, env = "DISAGG_LISTEN", default_value = "127.0.0.1:0", value_name = "HOST:PORT")]
    pub listen: String,

    /// Address under which other workers reach this one; an IPv6 address may lack its brackets, as a pod's does
    /// [default: the address it listens on]
    #[arg(long, env = "DISAGG_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,

    /// Address of /metrics, /health and /ready over HTTP; absent: not served
    #[arg(long, env = "DISAGG_METRICS_LISTEN", value_name = "HOST:PORT")]
    pub metrics_listen: Option<String>,

    /// Model: a folder in the Hugging Face layout (config.json, tokenizer.json, *.safetensors), or ORG/NAME[@REVISION]
    /// on the Hugging Face hub, which is downloaded into HF_HOME unless it is there. HF_TOKEN opens gated models.
    /// `bundled` is the demo model, `random[:SEED]` a small one with random weights
    #[arg(long, env = "DISAGG_MODEL", value_name = "FOLDER|ORG/NAME|bundled|random")]
    pub model: ModelRef,

    /// Name that clients put into `model` [default: the folder's name, or ORG/NAME]
    #[arg(long, env = "DISAGG_SERVED_MODEL_NAME", value_name = "NAME")]
    pub served_model_name: Option<String>,

    /// Where weights come from: the folder's safetensors, or random numbers of the right shapes
    #[arg(long, env = "DISAGG_LOAD_FORMAT", default_value_t, value_name = "auto|dummy")]
    pub load_format: LoadFormat,

    /// Seed of `--load-format dummy`; workers of one deployment need the same
    #[arg(long, env = "DISAGG_SEED", default_value_t = 0, value_name = "N")]
    pub seed: u64,

    /// What computes: a GPU (cuda:0, cuda:1, ...), the CPU, or auto: the first GPU if there is one. `sim` computes
    /// nothing: it takes the time of `sim:prefill-tokens-per-second=20000,decode-step-ms=10`, or what you write there
    #[arg(long, env = "DISAGG_DEVICE", default_value_t, value_name = "auto|cpu|cuda:N|sim")]
    pub device: Device,

    /// Number format to compute in: float32 on a CPU; on a GPU float16 for models published in it and bfloat16 for all
    /// others. A format that the device would not compute in is refused
    #[arg(long, env = "DISAGG_DTYPE", default_value_t, value_name = "auto|float32|bfloat16|float16")]
    pub dtype: Dtype,

    /// Number format of keys and values, in which they go to other workers, too: prefill and decode workers need the same.
    /// auto is the format that is computed in. A CPU worker beside GPU workers takes theirs; it rounds, and saves no memory
    #[arg(
        long,
        env = "DISAGG_KV_CACHE_DTYPE",
        default_value_t,
        value_name = "auto|float32|bfloat16|float16"
    )]
    pub kv_cache_dtype: Dtype,

    /// Share of the GPU's whole memory that weights, KV and everything else of this worker may take, over 0 and up to 1.
    /// What other processes hold does not count, but nobody gets more than is free: two workers on one GPU take 0.45 each
    #[arg(long, env = "DISAGG_GPU_MEMORY_UTILIZATION", default_value_t = 0.9, value_name = "SHARE")]
    pub gpu_memory_utilization: f64,

    /// How the engine waits for the GPU: asleep, or looking all the time, which keeps a core busy
    #[arg(long, env = "DISAGG_GPU_WAIT", value_enum, default_value_t)]
    pub gpu_wait: GpuWait,

    /// Prompt and output together, in tokens [default: what the model's config.json allows]
    #[arg(long, env = "DISAGG_MAX_MODEL_LEN", value_name = "TOKENS")]
    pub max_model_len: Option<u32>,

    /// Tokens computed in one step: smaller keeps decoding smooth, larger prefills faster
    #[arg(long, env = "DISAGG_MAX_NUM_BATCHED_TOKENS", default_value_t = 2048, value_name = "TOKENS")]
    pub max_num_batched_tokens: u32,

    /// Sequences computed in one step. When more want to run, requests share these slots evenly, however many choices (n)
    /// each asks for
    #[arg(long, env = "DISAGG_MAX_NUM_SEQS", default_value_t = 64, value_name = "N")]
    pub max_num_seqs: u32,

    /// Tokens in one KV block; workers that hand KV to each other need the same
    #[arg(long, env = "DISAGG_BLOCK_SIZE", default_value_t = 64, value_name = "TOKENS")]
    pub block_size: u32,

    /// KV blocks in the pool; instead of --kv-cache-bytes
    #[arg(long, env = "DISAGG_NUM_BLOCKS", value_name = "N", conflicts_with = "kv_cache_bytes")]
    pub num_blocks: Option<u32>,

    /// Memory for the KV pool, for example 4GiB [default: 512MiB on a CPU; on a GPU all that is left]
    #[arg(long, env = "DISAGG_KV_CACHE_BYTES", value_name = "SIZE")]
    pub kv_cache_bytes: Option<ByteSize>,

    /// Requests that may wait to run; more are refused with 429. One with several choices counts once
    #[arg(long, env = "DISAGG_MAX_WAITING", default_value_t = 256, value_name = "N")]
    pub max_waiting: u32,

    /// Prefills for other workers queued or running; more are refused, and the asker tries another worker
    #[arg(long, env = "DISAGG_MAX_PREFILL_QUEUE", default_value_t = 8, value_name = "N")]
    pub max_prefill_queue: u32,

    /// Split long prompts over steps, so that decoding goes on meanwhile
    #[arg(long, env = "DISAGG_ENABLE_CHUNKED_PREFILL", default_value_t = true, action = ArgAction::Set,
        num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub enable_chunked_prefill: bool,

    /// The same as --enable-chunked-prefill false
    #[arg(long, conflicts_with = "enable_chunked_prefill")]
    pub no_enable_chunked_prefill: bool,

    /// Reuse the KV of earlier prompts that begin alike
    #[arg(long, env = "DISAGG_ENABLE_PREFIX_CACHING", default_value_t = true, action = ArgAction::Set,
        num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub enable_prefix_caching: bool,

    /// Silence of a peer after which a handoff is given up, in milliseconds (100 to 60000)
    #[arg(long, env = "DISAGG_HANDOFF_LEASE_MS", default_value_t = 2000, value_name = "MS")]
    pub handoff_lease_ms: u32,

    /// On SIGTERM: time for running requests to end, in seconds (at most 3600)
    #[arg(long, env = "DISAGG_DRAIN_SECONDS", default_value_t = 30, value_name = "SECONDS")]
    pub drain_seconds: u32,

    /// A step of the engine that takes longer than this hangs: the worker says so on /health, drains and ends, in
    /// seconds (1 to 86400)
    #[arg(long, env = "DISAGG_MAX_STEP_SECONDS", default_value_t = 300, value_name = "SECONDS")]
    pub max_step_seconds: u32,

    /// Threads of the CPU backend [default: one per core]
    #[arg(long, env = "DISAGG_THREADS", value_name = "N")]
    pub threads: Option<NonZeroUsize>,

    /// End when standard input closes; used by parents that must not leave orphans behind
    #[arg(long, env = "DISAGG_EXIT_WITH_STDIN")]
    pub exit_with_stdin: bool,
}

/// How the engine's thread waits for the end of a step on a GPU.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, clap::ValueEnum)]
pub enum GpuWait {
    /// It sleeps until it is woken. The next step is under way by then, so the GPU does not notice.
    #[default]
    Sleep,
    /// It looks all the time: the earliest notice, for one core.
    Spin,
}

/// A flag whose value cannot work.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("--{flag}: {message}")]
pub struct ArgsError {
    flag: &'static str,
    message: String,
}

impl ArgsError {
    pub(crate) fn new(flag: &'static str, message: impl Into<String>) -> Self {
        Self { flag, message: message.into() }
    }
}

impl WorkerArgs {
    /// Checks everything that can be checked without the model, and fills in defaults.
    pub fn resolve(self) -> Result<WorkerConfig, ArgsError> {
        let name = self.name.unwrap_or_else(|| format!("{}-0", self.role));
        name_within("name", &name, WORKER_NAME_BYTES_MAX)?;
        host_port("listen", &self.listen)?;
        if let Some(address) = &self.advertise {
            let port = host_port("advertise", address)?;
            if port == 0 {
                return Err(ArgsError::new("advertise", "port 0 cannot be reached; give the real port"));
            }
        }
        if let Some(address) = &self.metrics_listen {
            host_port("metrics-listen", address)?;
        }
        // Which it is, the model decides.
        let on_gpu = [Dtype::Bfloat16, Dtype::Float16];
        let computes: &[Dtype] = match self.device {
            Device::Cpu | Device::Sim(_) => &[Dtype::Float32],
            Device::Cuda(_) => &on_gpu,
            // Known when the GPUs have been looked for.
            Device::Auto => &[Dtype::Float32, Dtype::Bfloat16, Dtype::Float16],
        };
        if let Some(problem) = dtype::problem(self.dtype, computes) {
            return Err(ArgsError::new("dtype", problem));
        }
        if !matches!(self.device, Device::Auto | Device::Cpu)
            && let Some(problem) = dtype::kv_problem(self.kv_cache_dtype, computes)
        {
            return Err(ArgsError::new("kv-cache-dtype", problem));
        }
        at_least_one("max-num-batched-tokens", self.max_num_batched_tokens)?;
        at_least_one("max-num-seqs", self.max_num_seqs)?;
        at_least_one("max-waiting", self.max_waiting)?;
        at_least_one("max-prefill-queue", self.max_prefill_queue)?;
        if let Some(tokens) = self.max_model_len
            && tokens < 2
        {
            return Err(ArgsError::new("max-model-len", "at least 2: one prompt token and one of output"));
        }
        if !(1..=1024).contains(&self.block_size) {
            let message = format!("{} given; 1 to 1024 tokens are allowed", self.block_size);
            return Err(ArgsError::new("block-size", message));
        }
        if !(self.gpu_memory_utilization > 0.0 && self.gpu_memory_utilization <= 1.0) {
            let message = format!("{} given; over 0 and up to 1 is allowed", self.gpu_memory_utilization);
            return Err(ArgsError::new("gpu-memory-utilization", message));
        }
        if !LEASE_MS.contains(&self.handoff_lease_ms) {
            let (least, most) = (LEASE_MS.start(), LEASE_MS.end());
            let message = format!("{} given; {least} to {most} are allowed", self.handoff_lease_ms);
            return Err(ArgsError::new("handoff-lease-ms", message));
        }
        if self.drain_seconds > 3600 {
            let message = format!("{} given; at most 3600 are allowed", self.drain_seconds);
            return Err(ArgsError::new("drain-seconds", message));
        }
        if !(1..=86_400).contains(&self.max_step_seconds) {
            let message = format!("{} given; 1 to 86400 are allowed", self.max_step_seconds);
            return Err(ArgsError::new("max-step-seconds", message));
        }
        let pool = match (self.num_blocks, self.kv_cache_bytes) {
            (Some(0), _) => return Err(ArgsError::new("num-blocks", "at least 1 is needed")),
            (Some(blocks), _) => PoolSize::Blocks(blocks),
            (None, Some(ByteSize(bytes))) => PoolSize::Bytes(bytes),
            (None, None) => PoolSize::Default,
        };
        let served_model_name = match self.served_model_name {
            Some(name) => name,
            None => self.model.default_name().ok_or_else(|| {
                let message = format!("needed, since {} has no usable name", self.model);
                ArgsError::new("served-model-name", message)
            })?,
        };
        // Routers refuse a card with a longer one.
        name_within("served-model-name", &served_model_name, SERVED_MODEL_NAME_BYTES_MAX)?;
        Ok(WorkerConfig {
            model: ModelConfig {
                model: self.model,
                served_model_name,
                load_format: self.load_format,
                seed: self.seed,
                device: self.device,
                dtype: self.dtype,
                kv_cache_dtype: self.kv_cache_dtype,
                gpu_memory_utilization: self.gpu_memory_utilization,
                gpu_wait: self.gpu_wait,
                max_model_len: self.max_model_len,
                block_size: self.block_size,
                pool,
                threads: self.threads,
            },
            serve: ServeConfig {
                name: WorkerId::new(name),
                role: self.role,
                listen: self.listen,
                advertise: self.advertise.map(bracketed),
                limits: EngineLimits {
                    max_num_batched_tokens: self.max_num_batched_tokens,
                    max_num_seqs: self.max_num_seqs,
                    max_waiting: self.max_waiting,
                    max_prefill_queue: self.max_prefill_queue,
                    enable_chunked_prefill: self.enable_chunked_prefill && !self.no_enable_chunked_prefill,
                    enable_prefix_caching: self.enable_prefix_caching,
                },
                lease: Duration::from_millis(self.handoff_lease_ms.into()),
                drain: Duration::from_secs(self.drain_seconds.into()),
                step_max: Duration::from_secs(self.max_step_seconds.into()),
                unread_max: ServeConfig::UNREAD_MAX,
            },
            metrics_listen: self.metrics_listen,
            exit_with_stdin: self.exit_with_stdin,
        })
    }
}

/// The port of `address`, if it has the form HOST:PORT.
fn host_port(flag: &'static str, address: &str) -> Result<u16, ArgsError> {
    address
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty())
        .and_then(|(_, port)| port.parse().ok())
        .ok_or_else(|| {
            ArgsError::new(flag, format!("{address:?} is not HOST:PORT, for example 127.0.0.1:9000"))
        })
}

/// HOST:PORT as a URL has it. What Kubernetes puts for `$(POD_IP)` has no brackets, of either family.
fn bracketed(address: String) -> String {
    match address.rsplit_once(':') {
        Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => format!("[{host}]:{port}"),
        _ => address,
    }
}

fn name_within(flag: &'static str, name: &str, bytes_max: usize) -> Result<(), ArgsError> {
    if (1..=bytes_max).contains(&name.len()) {
        return Ok(());
    }
    Err(ArgsError::new(flag, format!("{} bytes given; 1 to {bytes_max} are allowed", name.len())))
}

fn at_least_one(flag: &'static str, value: u32) -> Result<(), ArgsError> {
    if value == 0 { Err(ArgsError::new(flag, "at least 1 is needed")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: WorkerArgs,
    }

    fn parse(flags: &[&str]) -> Result<WorkerConfig, String> {
        let flags = ["worker", "--model", "/models/tiny"].iter().chain(flags);
        Cli::try_parse_from(flags)
            .map_err(|error| error.to_string())?
            .args
            .resolve()
            .map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_come_from_role_and_folder() {
        let config = parse(&["--role", "decode"]).unwrap();
        assert_eq!(config.serve.name.as_str(), "decode-0");
        assert_eq!(config.model.served_model_name, "tiny");
        assert_eq!(config.model.pool, PoolSize::Default);
        assert_eq!(config.model.device, Device::Auto);
        assert!(config.serve.limits.enable_chunked_prefill);
    }

    #[test]
    fn a_model_on_the_hub_is_served_by_its_whole_name() {
        let flags = ["worker", "--model", "org/name@v2"];
        let config = Cli::try_parse_from(flags).unwrap().args.resolve().unwrap();
        assert_eq!(config.model.served_model_name, "org/name");
        assert!(matches!(config.model.model, ModelRef::Hub(ref model) if model.revision() == "v2"));
    }

    #[test]
    fn chunked_prefill_can_be_turned_off_in_both_ways() {
        for flags in [&["--enable-chunked-prefill", "false"][..], &["--no-enable-chunked-prefill"]] {
            assert!(!parse(flags).unwrap().serve.limits.enable_chunked_prefill, "{flags:?}");
        }
    }

    #[test]
    fn an_address_of_a_pod_is_one_that_peers_can_use() {
        let cases = [
            ("10.0.0.1:9000", "10.0.0.1:9000"),
            ("fd00::1:9000", "[fd00::1]:9000"),
            ("[fd00::1]:9000", "[fd00::1]:9000"),
            ("worker-0.example:9000", "worker-0.example:9000"),
        ];
        for (given, used) in cases {
            let config = parse(&["--advertise", given]).unwrap();
            assert_eq!(config.serve.advertise.as_deref(), Some(used));
        }
    }

    #[test]
    fn names_are_no_longer_than_the_wire_contract_allows() {
        let long = |bytes: usize| "n".repeat(bytes);
        for (flag, most) in
            [("--name", WORKER_NAME_BYTES_MAX), ("--served-model-name", SERVED_MODEL_NAME_BYTES_MAX)]
        {
            assert!(parse(&[flag, &long(most)]).is_ok(), "{flag}");
            let refused = parse(&[flag, &long(most + 1)]).unwrap_err();
            assert_eq!(refused, format!("{flag}: {} bytes given; 1 to {most} are allowed", most + 1));
        }
    }

    #[test]
    fn bad_values_name_the_flag() {
        let cases: &[(&[&str], &str)] = &[
            (&["--listen", "9000"], "--listen"),
            (&["--advertise", "host:0"], "--advertise"),
            (&["--max-num-seqs", "0"], "--max-num-seqs"),
            (&["--max-waiting", "0"], "--max-waiting"),
            (&["--block-size", "0"], "--block-size"),
            (&["--num-blocks", "0"], "--num-blocks"),
            (&["--device", "gpu"], "--device"),
            (&["--device", "cpu", "--dtype", "bfloat16"], "--dtype"),
            (&["--device", "cuda:0", "--dtype", "float32"], "--dtype"),
            (&["--device", "cpu", "--dtype", "float16"], "--dtype"),
            (&["--dtype", "int4"], "--dtype"),
            (&["--device", "cuda:0", "--kv-cache-dtype", "float32"], "--kv-cache-dtype"),
            (&["--device", "sim", "--kv-cache-dtype", "bfloat16"], "--kv-cache-dtype"),
            (&["--kv-cache-dtype", "fp8"], "--kv-cache-dtype"),
            (&["--device", "cuda:"], "cuda:N"),
            (&["--device", "sim:decode-step-ms=-1"], "decode-step-ms"),
            (&["--gpu-memory-utilization", "0"], "--gpu-memory-utilization"),
            (&["--gpu-memory-utilization", "1.1"], "--gpu-memory-utilization"),
            (&["--gpu-memory-utilization", "NaN"], "--gpu-memory-utilization"),
            (&["--num-blocks", "8", "--kv-cache-bytes", "1GiB"], "--num-blocks"),
            (&["--handoff-lease-ms", "99"], "--handoff-lease-ms"),
            (&["--drain-seconds", "3601"], "--drain-seconds"),
            (&["--max-model-len", "1"], "--max-model-len"),
            (&["--name", ""], "--name"),
            (&["--served-model-name", ""], "--served-model-name"),
        ];
        for (flags, named) in cases {
            let error = parse(flags).unwrap_err();
            assert!(error.contains(named), "{flags:?}: {error}");
        }
    }
}
