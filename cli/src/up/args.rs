//! Flags of `disagg up`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use disagg_api::crd::limits;
use disagg_core::{Dtype, LoadFormat, RoutingStrategy};
use disagg_worker::args::Device;
use disagg_worker::hub::ModelRef;

use super::engine_args::EngineArgs;

const EXAMPLES: &str = "\
Examples:
  disagg up
      One prefill worker, one decode worker, the demo model, at http://127.0.0.1:8181.
  disagg up --model ./my-llama --prefill 2 --decode 2
      A model of yours, a folder in the Hugging Face layout, on four workers.
  disagg up --model Qwen/Qwen3-0.6B
      A model from the Hugging Face hub, downloaded once.
  disagg up -f deployment.yaml --port 9000
      What a DisaggDeployment says, on another port.

Stop it with Ctrl-C: open answers are finished first. A second Ctrl-C stops at once.";

/// Run a whole deployment on this machine: router, prefill workers, decode workers
///
/// They run as processes of their own and are started again when they die. Without -f it runs a built-in demo: one
/// prefill worker, one decode worker, and prompts of more than 128 tokens are prefilled remotely. Flags override what
/// the file says.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UpArgs {
    /// A DisaggDeployment, as for `kubectl apply`
    #[arg(short, long, value_name = "CR.yaml")]
    pub(crate) file: Option<PathBuf>,

    /// The model: a folder in the Hugging Face layout, or ORG/NAME[@REVISION] on the Hugging Face hub, downloaded into
    /// HF_HOME with the token of HF_TOKEN; `bundled` is the demo model, which answers questions about disagg,
    /// `random[:SEED]` a small one with random weights [default: the file's, or bundled]
    #[arg(long, value_name = "FOLDER|ORG/NAME|bundled|random")]
    pub(crate) model: Option<ModelRef>,

    /// Name that clients send as "model" [default: the file's, or the folder's name, or ORG/NAME]
    #[arg(long, value_name = "NAME")]
    pub(crate) served_model_name: Option<String>,

    /// Prefill workers; 0 prefills everything where it is decoded
    #[arg(long, value_name = "N", value_parser = at_most(limits::REPLICAS, 0))]
    pub(crate) prefill: Option<u32>,

    /// Decode workers
    #[arg(long, value_name = "N", value_parser = at_most(limits::REPLICAS, 1))]
    pub(crate) decode: Option<u32>,

    /// Port of the HTTP endpoint; 0 takes a free one [default: the file's, or 8181]
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,

    /// Port for you alone, always on 127.0.0.1: metrics, workers and settings, what `disagg status` and `disagg
    /// threshold` ask; 0 takes a free one [default: one above the port of the HTTP endpoint, or a free one]
    #[arg(long, value_name = "PORT")]
    pub(crate) admin_port: Option<u16>,

    /// Address of the HTTP endpoint; 0.0.0.0 lets in whoever reaches this machine, and nobody needs a key
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: Option<std::net::IpAddr>,

    /// The threshold: prompts with more net-new tokens than this are prefilled remotely
    #[arg(long, value_name = "TOKENS", value_parser = at_most(limits::MAX_LENGTH, 0))]
    pub(crate) max_local_prefill_length: Option<u32>,

    /// How workers are chosen: by what they have cached and their load (kv), by load alone, in turn, or at random
    #[arg(long, value_name = "kv|least-loaded|round-robin|random")]
    pub(crate) routing: Option<RoutingStrategy>,

    /// Workers, of any role, that have to be ready before requests are taken
    #[arg(long, value_name = "N", value_parser = at_most(limits::MIN_WORKERS, 1))]
    pub(crate) min_workers: Option<u32>,

    /// Most tokens that prompt and output may have together [default: the file's, or what the model allows]
    #[arg(long, value_name = "TOKENS", value_parser = at_most(limits::MAX_LENGTH, 2))]
    pub(crate) max_model_len: Option<u32>,

    /// Settings file for the router to follow; made if it is not there, and otherwise what is in it counts, not what
    /// the deployment says [default: one below ~/.local/state]
    #[arg(long, value_name = "FILE", conflicts_with = "max_local_prefill_length")]
    pub(crate) settings: Option<PathBuf>,

    /// What computes: a GPU of its own for every worker (cuda), the CPU, or auto: GPUs if there are any. sim computes
    /// nothing and takes the time that a step would take, so that many workers fit on one machine
    /// (sim:prefill-tokens-per-second=20000,decode-step-ms=10) [default: the file's, or auto]
    #[arg(long, env = "DISAGG_DEVICE", value_name = "auto|cpu|cuda|sim")]
    pub(crate) device: Option<Device>,

    /// Tokens in one KV block
    #[arg(long, value_name = "TOKENS", value_parser = at_most(limits::BLOCK_SIZE, 1))]
    pub(crate) block_size: Option<u32>,

    /// Where weights come from: the model's folder, or random numbers of the right shapes
    #[arg(long, value_name = "auto|dummy")]
    pub(crate) load_format: Option<LoadFormat>,

    /// Number format to compute in: float32 on a CPU, float16 or bfloat16 on a GPU [default: the file's, or auto]
    #[arg(long, value_name = "auto|float32|bfloat16|float16")]
    pub(crate) dtype: Option<Dtype>,

    /// Number format of keys and values, for workers on CPUs beside others on GPUs: that of the GPUs [default: the file's,
    /// or what each worker computes in]
    #[arg(long, value_name = "auto|float32|bfloat16|float16")]
    pub(crate) kv_cache_dtype: Option<Dtype>,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    /// Longest time to get ready before giving up, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120,
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=86_400))]
    pub(crate) startup_timeout_seconds: u32,

    /// A router or worker that answers nothing on its health port for so long hangs: it is killed and started again, in
    /// seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
          value_parser = RangedU64ValueParser::<u32>::new().range(3..=3600))]
    pub(crate) max_silence_seconds: u32,

    /// On Ctrl-C, longest time for open answers to end, in seconds [default: the file's, or 10]
    #[arg(long, value_name = "SECONDS",
          value_parser = RangedU64ValueParser::<u32>::new().range(0..=3600))]
    pub(crate) drain_seconds: Option<u32>,

    /// Show what router and workers log: -v for progress, -vv for details. RUST_LOG goes first
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

pub(super) fn at_most(max: i32, min: u64) -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(min..=u64::from(max.unsigned_abs()))
}
