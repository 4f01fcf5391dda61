//! The workers of a role and their engines.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::limits;
use super::pod::{PodOverrides, Resources};

/// Prefix of the names under which NVIDIA's device plugin offers GPUs and parts of them.
pub const NVIDIA_PREFIX: &str = "nvidia.com/";
/// Name of a whole GPU among resources.
pub const NVIDIA_GPU: &str = "nvidia.com/gpu";

/// The workers of one role.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "!has(self.resources) || !has(self.resources.limits) || !('nvidia.com/gpu' in self.resources.limits) || \
         string(self.resources.limits['nvidia.com/gpu']) in ['0', '1']"
    )
    .message("resources.limits['nvidia.com/gpu'] must be 0 or 1: a worker uses tensorParallelSize GPUs"),
    validation = Rule::new(
        "!has(self.engine) || !has(self.engine.gpuMemoryUtilizationPercent) || (has(self.resources) && \
         has(self.resources.limits) && self.resources.limits.exists(name, name.startsWith('nvidia.com/')))"
    )
    .message("engine.gpuMemoryUtilizationPercent needs a GPU: set resources.limits['nvidia.com/gpu']")
)]
pub struct RoleSpec {
    /// How many workers. Leave it out to let an autoscaler own the number; it begins at 1.
    // No schema default: one would take the number back from an autoscaler at every apply.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = limits::REPLICAS))]
    pub replicas: Option<i32>,

    /// How many GPUs compute one model together. Only 1 works so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limits::TENSOR_PARALLEL_SIZE))]
    pub tensor_parallel_size: Option<i32>,

    /// Bounds and switches of each worker's engine.
    #[serde(default, skip_serializing_if = "EngineSpec::is_unset")]
    pub engine: EngineSpec,

    /// CPU, memory and GPUs of each worker. With a limit on `nvidia.com/gpu` a worker computes on a GPU and does not
    /// start without one; otherwise it computes on the CPU. `engine.device` says otherwise.
    #[serde(default, skip_serializing_if = "Resources::is_unset")]
    pub resources: Resources,

    /// Where and how the workers' pods run.
    #[serde(default, skip_serializing_if = "PodOverrides::is_unset")]
    pub pod_template: PodOverrides,
}

/// The pattern of [`EngineSpec::device`]. What follows `sim:` is the worker's to check.
const DEVICE_PATTERN: &str = "^(auto|cpu|cuda(:[0-9]+)?|sim(:[-a-z0-9=.,]+)?)$";

/// Bounds and switches of an engine.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.kvCacheBytes) && has(self.numBlocks))")
        .message("kvCacheBytes and numBlocks both size the KV pool; set one of them")
)]
pub struct EngineSpec {
    /// What computes: `auto` (the first GPU if there is one, otherwise the CPU), `cpu`, `cuda`, or `cuda:N` for one of
    /// several GPUs. `sim` computes nothing: it takes the time that a step would take and answers noise, to try a
    /// deployment of many workers on a small machine; `sim:prefill-tokens-per-second=20000,decode-step-ms=10` says
    /// how fast it is. The default is `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::DEVICE_LENGTH), regex(pattern = DEVICE_PATTERN))]
    pub device: Option<String>,

    /// The most tokens that one step computes, prefill chunks and decodes together. The default is 2048.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limits::MAX_NUM_BATCHED_TOKENS))]
    pub max_num_batched_tokens: Option<i32>,

    /// The most sequences in one step. The default is 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limits::MAX_NUM_SEQS))]
    pub max_num_seqs: Option<i32>,

    /// Size of the KV pool in bytes. Without it and without numBlocks the worker chooses.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = limits::KV_CACHE_BYTES_MIN, max = limits::KV_CACHE_BYTES_MAX))]
    pub kv_cache_bytes: Option<i64>,

    /// Size of the KV pool in blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limits::NUM_BLOCKS))]
    pub num_blocks: Option<i32>,

    /// Share of the GPU's memory that weights, KV and everything else of a worker may take. The default is 90.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub gpu_memory_utilization_percent: Option<i32>,

    /// Split long prompts over several steps, so that decodes go on between them. The default is true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_chunked_prefill: Option<bool>,

    /// Reuse the KV of earlier prompts that begin alike. The default is true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_prefix_caching: Option<bool>,
}

impl RoleSpec {
    /// The workers ask for NVIDIA GPUs, or parts of them.
    pub fn wants_gpu(&self) -> bool {
        self.resources
            .limits
            .iter()
            .any(|(name, quantity)| name.starts_with(NVIDIA_PREFIX) && quantity.to_string() != "0")
    }
}

impl EngineSpec {
    fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}
