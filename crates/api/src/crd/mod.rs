//! The `DisaggDeployment` resource: one model at one URL, prefill and decode on separate workers.
//!
//! Doc comments of the fields are what `kubectl explain` prints, so they are written for users. Numbers are signed
//! because the API server's schemas know no unsigned ones; [`DisaggDeployment::validate`] checks the same bounds that
//! the schema states, for files that never meet an API server.

// `derive(KubeSchema)` repeats each struct, with its `pub`, inside a function.
#![allow(unreachable_pub)]

mod definition;
mod model;
mod monitoring;
mod pod;
mod read;
mod router;
mod status;
mod validate;
mod worker_flags;
mod workers;

pub use model::{BundledModel, ImageSource, ModelSource, ModelSpec, PvcSource, RandomModel, SecretKey};
pub use monitoring::{MonitoringSpec, PodMonitorOptions};
pub use pod::{Amount, EnvVar, Images, ObjectName, PodOverrides, PullPolicy, Resources, VolumeMount};
pub use read::ReadError;
pub use router::{DisaggregationSpec, RouterService, RouterSpec, ServiceType};
pub use status::{DisaggDeploymentStatus, RoleStatus, RouterStatus, SettingsStatus};
pub use validate::{Invalid, Problem};
pub use worker_flags::{Flag, WorkerFlags};
pub use workers::{EngineSpec, NVIDIA_GPU, NVIDIA_PREFIX, RoleSpec};

use disagg_core::Dtype;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bounds that the schema and [`DisaggDeployment::validate`] share.
pub mod limits {
    /// Characters of a resource's name: the names of its children add a suffix and must stay under 63.
    pub const NAME_LENGTH: usize = 40;
    /// Characters of a path.
    pub const PATH_LENGTH: u64 = 4096;
    /// Characters of a branch, tag or commit.
    pub const REVISION_LENGTH: u64 = 200;
    /// Characters of the name of another object, as Kubernetes bounds them.
    pub const OBJECT_NAME_LENGTH: u64 = 253;
    /// Characters of an image reference.
    pub const IMAGE_LENGTH: u64 = 512;
    /// Characters of a hub id.
    pub const HUB_ID_LENGTH: u64 = 200;
    /// Characters of a device.
    pub const DEVICE_LENGTH: u64 = 200;
    /// Characters of the name that clients send as `model`.
    pub const SERVED_NAME_LENGTH: u64 = 200;
    /// The longest context anyone may ask for, in tokens.
    pub const MAX_LENGTH: i32 = 16_777_216;
    /// Workers of one role.
    pub const REPLICAS: i32 = 1024;
    /// GPUs of one worker that compute one model together: more do not work yet.
    pub const TENSOR_PARALLEL_SIZE: i32 = 1;
    /// Requests in progress on one router.
    pub const MAX_IN_FLIGHT: i32 = 1_000_000;
    /// Workers that a router may wait for.
    pub const MIN_WORKERS: i32 = 2 * REPLICAS;
    /// Seconds that a request may take.
    pub const REQUEST_TIMEOUT_SECONDS: i32 = 86_400;
    /// Seconds that a request may wait for a worker.
    pub const MAX_WAIT_FOR_WORKER_SECONDS: i32 = 3600;
    /// Seconds that pods get to finish their requests.
    pub const DRAIN_SECONDS: i32 = 3600;
    /// Seconds that a change may go without progress: a day.
    pub const PROGRESS_DEADLINE_SECONDS: i32 = 86_400;
    /// Entries of a list.
    pub const LIST_LENGTH: u64 = 32;
    /// Entries of a map of labels or annotations.
    pub const MAP_LENGTH: u64 = 64;
    /// Kinds of resources of one container.
    pub const RESOURCES_LENGTH: u64 = 16;
    /// Characters of a time between scrapes.
    pub const INTERVAL_LENGTH: u64 = 8;
    /// Secrets for pulling images.
    pub const PULL_SECRETS: u64 = 16;
    /// Characters of a label's value, as Kubernetes bounds them.
    pub const LABEL_LENGTH: u64 = 63;
    /// Characters of an annotation's or environment variable's value.
    pub const VALUE_LENGTH: u64 = 4096;
    /// Characters of an environment variable's name.
    pub const ENV_NAME_LENGTH: u64 = 128;
    /// Characters of a volume's name, as Kubernetes bounds them.
    pub const VOLUME_NAME_LENGTH: u64 = 63;
    /// Characters of an amount of a resource.
    pub const AMOUNT_LENGTH: u64 = 32;
    /// Routers.
    pub const ROUTER_REPLICAS: i32 = 64;
    /// Tokens of one step.
    pub const MAX_NUM_BATCHED_TOKENS: i32 = 1_048_576;
    /// Sequences of one step.
    pub const MAX_NUM_SEQS: i32 = 4096;
    /// Tokens of one KV block.
    pub const BLOCK_SIZE: i32 = 1024;
    /// Blocks of one worker.
    pub const NUM_BLOCKS: i32 = 16_777_216;
    /// The smallest KV pool that can be asked for in bytes: 1 MiB.
    pub const KV_CACHE_BYTES_MIN: i64 = 1_048_576;
    /// The largest: 1 PiB.
    pub const KV_CACHE_BYTES_MAX: i64 = 1_125_899_906_842_624;
}

/// What to serve and with which workers.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, PartialEq, Debug)]
#[kube(
    group = "disagg.dev",
    version = "v1alpha1",
    kind = "DisaggDeployment",
    namespaced,
    shortname = "dd",
    doc = "One model at one URL, served by separate prefill and decode workers.",
    derive = "PartialEq",
    status = "DisaggDeploymentStatus",
    scale(
        spec_replicas_path = ".spec.decode.replicas",
        status_replicas_path = ".status.decode.replicas",
        label_selector_path = ".status.decode.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether requests are served as the spec asks"
    ),
    printcolumn(
        name = "Prefill",
        type_ = "integer",
        json_path = ".status.prefill.readyReplicas",
        description = "Prefill workers that are ready"
    ),
    printcolumn(
        name = "Decode",
        type_ = "integer",
        json_path = ".status.decode.readyReplicas",
        description = "Decode workers that are ready"
    ),
    printcolumn(
        name = "Threshold",
        type_ = "integer",
        json_path = ".status.settings.maxLocalPrefillLength",
        description = "maxLocalPrefillLength in force on every ready router"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready or not",
        priority = "1"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 40")
        .message("metadata.name must be at most 40 characters long: the names of its children add to it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must start with a letter, hold only a-z, 0-9 and '-', and end in a letter or digit"),
    // Without a number of replicas it is an autoscaler's, and nobody knows it here. With no decode workers nothing is to be
    // served, so a deployment can be scaled to zero whatever its minWorkers.
    validation = Rule::new(
        "!has(self.spec.router) || !has(self.spec.router.minWorkers) || !has(self.spec.prefill) || \
         !has(self.spec.prefill.replicas) || !has(self.spec.decode) || !has(self.spec.decode.replicas) || \
         self.spec.decode.replicas == 0 || \
         self.spec.router.minWorkers <= self.spec.prefill.replicas + self.spec.decode.replicas"
    )
    .message("router.minWorkers must be at most prefill.replicas + decode.replicas: a router waits until so many are ready")
)]
#[serde(rename_all = "camelCase")]
pub struct DisaggDeploymentSpec {
    /// The model that every worker serves.
    pub model: ModelSpec,

    /// What prefill and decode workers must have in common for one to use the other's KV.
    #[serde(default, skip_serializing_if = "KvCacheSpec::is_unset")]
    pub kv_cache: KvCacheSpec,

    /// The workers that prefill long prompts for others. They never decode.
    #[serde(default)]
    pub prefill: RoleSpec,

    /// The workers that decode, and prefill the prompts that are not worth a remote prefill.
    #[serde(default)]
    pub decode: RoleSpec,

    /// The OpenAI endpoint in front of the workers.
    #[serde(default)]
    pub router: RouterSpec,

    /// When a prompt is worth a remote prefill. These values seed the ConfigMap `<name>-router`; edit that one to
    /// retune a running deployment.
    #[serde(default)]
    pub disaggregation: DisaggregationSpec,

    /// How the metrics of workers and routers are found.
    #[serde(default, skip_serializing_if = "MonitoringSpec::is_unset")]
    pub monitoring: MonitoringSpec,

    /// Images of the containers. The defaults are those that the operator was installed with.
    #[serde(default, skip_serializing_if = "Images::is_unset")]
    pub images: Images,

    /// Longest time that a pod which is to end gets to finish its requests, in seconds. The default is 30 in a
    /// cluster, 10 for `disagg up`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = limits::DRAIN_SECONDS))]
    pub drain_seconds: Option<i32>,

    /// Longest time without progress, in seconds, before a change counts as stuck: the condition `Progressing` is then
    /// False with the reason `ProgressDeadlineExceeded`. Nothing is undone, and it goes on when it can. Progress is a pod
    /// that is made as the resource asks, or becomes ready. The default is 600, as for Deployments; allow for the time
    /// that a worker takes to load its model.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limits::PROGRESS_DEADLINE_SECONDS))]
    pub progress_deadline_seconds: Option<i32>,
}

/// What prefill and decode workers must have in common.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct KvCacheSpec {
    /// Tokens in one KV block, the unit of caching and of transfer. The default is 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limits::BLOCK_SIZE))]
    pub block_size: Option<i32>,

    /// The number format of keys and values, in which they also go from worker to worker. `auto` is the format that each
    /// worker computes in. Where prefill workers have GPUs and decode workers have none, or the other way round, name that of
    /// the GPUs: workers on CPUs then round to it. A worker on a GPU that computes in another says so and does not start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "kv_dtype")]
    pub dtype: Option<Dtype>,
}

/// An optional enum would have the description of its type, which tells of another field.
fn kv_dtype(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let mut schema = Dtype::json_schema(generator);
    schema.remove("description");
    schema
}

impl KvCacheSpec {
    fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}

impl DisaggDeployment {
    /// The name that clients send as `model`.
    pub fn served_name(&self) -> &str {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        self.spec.model.served_name.as_deref().unwrap_or(name)
    }
}
