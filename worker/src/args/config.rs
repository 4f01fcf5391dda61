//! The checked configuration: what flags come to.

use std::num::NonZeroUsize;
use std::time::Duration;

use disagg_core::{Dtype, LoadFormat, Role, WorkerId};

use super::{Device, GpuWait};
use crate::hub::ModelRef;

/// Size of the KV pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PoolSize {
    /// This many blocks.
    Blocks(u32),
    /// As many blocks as fit these bytes.
    Bytes(u64),
    /// 512 MiB on a CPU, what is left of [`ModelConfig::gpu_memory_utilization`] on a GPU.
    Default,
}

/// Which model, and how to get it into memory.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelConfig {
    /// Where it is.
    pub model: ModelRef,
    /// Name that clients use.
    pub served_model_name: String,
    /// Where weights come from.
    pub load_format: LoadFormat,
    /// Seed of dummy weights.
    pub seed: u64,
    /// What computes.
    pub device: Device,
    /// The number format to compute in that was asked for.
    pub dtype: Dtype,
    /// The number format of keys and values that was asked for.
    pub kv_cache_dtype: Dtype,
    /// Share of a GPU's memory to take.
    pub gpu_memory_utilization: f64,
    /// How to wait for a GPU.
    pub gpu_wait: GpuWait,
    /// Limit asked for, in tokens.
    pub max_model_len: Option<u32>,
    /// Tokens in one KV block.
    pub block_size: u32,
    /// Size of the KV pool.
    pub pool: PoolSize,
    /// Threads of the CPU backend.
    pub threads: Option<NonZeroUsize>,
}

/// Bounds and switches of the engine that flags set; the rest comes from the model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EngineLimits {
    /// Tokens in one step.
    pub max_num_batched_tokens: u32,
    /// Sequences in one step.
    pub max_num_seqs: u32,
    /// Requests that may wait.
    pub max_waiting: u32,
    /// Remote prefills queued or running.
    pub max_prefill_queue: u32,
    /// Split prompts over steps.
    pub enable_chunked_prefill: bool,
    /// Reuse blocks of earlier prompts.
    pub enable_prefix_caching: bool,
}

/// How the process serves; independent of the model.
#[derive(Clone, PartialEq, Debug)]
pub struct ServeConfig {
    /// Stable name.
    pub name: WorkerId,
    /// What it does.
    pub role: Role,
    /// gRPC listen address.
    pub listen: String,
    /// Address peers use, if not the listen address.
    pub advertise: Option<String>,
    /// Engine limits.
    pub limits: EngineLimits,
    /// Silence that ends a handoff.
    pub lease: Duration,
    /// Bound of a drain.
    pub drain: Duration,
    /// A step that takes longer hangs.
    pub step_max: Duration,
    /// A caller that has tokens to read and takes none for this long is given up.
    pub unread_max: Duration,
}

impl ServeConfig {
    /// For [`Self::unread_max`]: the most that a router may be told to wait for its own clients
    /// (`--reader-timeout-seconds`). The request holds no running slot meanwhile.
    pub const UNREAD_MAX: Duration = Duration::from_hours(1);
}

/// Checked flags.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkerConfig {
    /// The model to load.
    pub model: ModelConfig,
    /// How to serve it.
    pub serve: ServeConfig,
    /// HTTP address of metrics and probes.
    pub metrics_listen: Option<String>,
    /// Whether closing standard input ends the process.
    pub exit_with_stdin: bool,
}
