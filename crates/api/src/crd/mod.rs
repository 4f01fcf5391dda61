//! The `DisaggDeployment` resource: one model at one URL, prefill and decode on separate workers.
//!
//! Doc comments of the fields are what `kubectl explain` prints, so they are written for users. Numbers are signed
//! because the API server's schemas know no unsigned ones; [`DisaggDeployment::validate`] checks the same bounds that
//! the schema states, for files that never meet an API server.

// `derive(KubeSchema)` repeats each struct, with its `pub`, inside a function.
#![allow(unreachable_pub)]

mod read;
mod status;
mod validate;

pub use read::ReadError;
pub use status::{DisaggDeploymentStatus, RoleStatus, RouterStatus, SettingsStatus};
pub use validate::{Invalid, Problem};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::{CustomResource, CustomResourceExt as _, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::settings::FallbackPolicy;

/// Bounds that the schema and [`DisaggDeployment::validate`] share.
pub mod limits {
    /// Characters of a resource's name: the names of its children add a suffix and must stay under 63.
    pub const NAME_LENGTH: usize = 40;
    /// Characters of a path.
    pub const PATH_LENGTH: u64 = 4096;
    /// Characters of a hub id.
    pub const HUB_ID_LENGTH: u64 = 200;
    /// Characters of the name that clients send as `model`.
    pub const SERVED_NAME_LENGTH: u64 = 200;
    /// The longest context anyone may ask for, in tokens.
    pub const MAX_LENGTH: i32 = 16_777_216;
    /// Workers of one role.
    pub const REPLICAS: i32 = 1024;
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
        .message("metadata.name must start with a letter, hold only a-z, 0-9 and '-', and end in a letter or digit")
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
}

/// The model that every worker serves.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    /// Where the model comes from. Exactly one of its fields is set.
    pub source: ModelSource,

    /// The name that clients send as `model`. The default is the name of this resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::SERVED_NAME_LENGTH))]
    pub served_name: Option<String>,

    /// The most tokens that prompt and output may have together. The default is what the model's config says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = limits::MAX_LENGTH))]
    pub max_length: Option<i32>,

    /// How the workers get their weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_format: Option<LoadFormat>,
}

/// Where the model comes from. Exactly one of its fields is set.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.path), has(self.hubId), has(self.random)].exists_one(set, set)")
        .message("exactly one of path, hubId and random must be set")
)]
pub struct ModelSource {
    /// A folder as Hugging Face lays models out (config.json, tokenizer.json, *.safetensors), as the worker sees it.
    /// A relative path is for `disagg up` alone, and is relative to the folder of the file that holds this resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::PATH_LENGTH))]
    pub path: Option<String>,

    /// A model on the Hugging Face hub, as `organization/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = limits::HUB_ID_LENGTH), regex(pattern = HUB_ID_PATTERN))]
    pub hub_id: Option<String>,

    /// A small model with random weights, made on the spot. It answers nonsense quickly, which is enough to see the
    /// parts work together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random: Option<RandomModel>,
}

/// The pattern of [`ModelSource::hub_id`]; [`DisaggDeployment::validate`] has the same rule in words.
const HUB_ID_PATTERN: &str = "^[A-Za-z0-9][-A-Za-z0-9._]*/[A-Za-z0-9][-A-Za-z0-9._]*$";

/// A small model with random weights.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct RandomModel {
    /// Equal seeds give equal weights. The default is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub seed: Option<i32>,
}

/// `auto` reads the weights of the source. `dummy` makes random weights of the shape that the source's config states,
/// for benchmarks: it loads at once and answers nonsense. The default is `auto`.
// The schema of an optional enum takes the type's description, not the field's.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "lowercase")]
pub enum LoadFormat {
    /// Read them from the model's folder.
    #[default]
    Auto,
    /// Make random ones of the shape that the model's config states.
    Dummy,
}

/// What prefill and decode workers must have in common.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct KvCacheSpec {
    /// Tokens in one KV block, the unit of caching and of transfer. The default is 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limits::BLOCK_SIZE))]
    pub block_size: Option<i32>,
}

/// The workers of one role.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct RoleSpec {
    /// How many workers. Leave it out to let an autoscaler own the number; it begins at 1.
    // No schema default: one would take the number back from an autoscaler at every apply.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = limits::REPLICAS))]
    pub replicas: Option<i32>,

    /// Bounds and switches of each worker's engine.
    #[serde(default, skip_serializing_if = "EngineSpec::is_unset")]
    pub engine: EngineSpec,
}

/// Bounds and switches of an engine.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.kvCacheBytes) && has(self.numBlocks))")
        .message("kvCacheBytes and numBlocks both size the KV pool; set one of them")
)]
pub struct EngineSpec {
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

    /// Split long prompts over several steps, so that decodes go on between them. The default is true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_chunked_prefill: Option<bool>,

    /// Reuse the KV of earlier prompts that begin alike. The default is true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_prefix_caching: Option<bool>,
}

/// The OpenAI endpoint.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct RouterSpec {
    /// How many routers. They share no state. The default is 2 in a cluster; `disagg up` runs one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limits::ROUTER_REPLICAS))]
    pub replicas: Option<i32>,

    /// The port of the HTTP endpoint. The default is 8181.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<i32>,
}

/// When a prompt is worth a remote prefill.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct DisaggregationSpec {
    /// The threshold, in tokens. A prompt is prefilled on a prefill worker only if it has more net-new tokens (those
    /// that the decode worker has not cached) than this. The default is 512.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 16_777_216))]
    pub max_local_prefill_length: Option<i32>,

    /// A prefill worker takes remote prefills only while fewer than this many are queued or running on it. The
    /// default is 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub max_prefill_queue_depth: Option<i32>,

    /// What becomes of a prompt that is worth a remote prefill when no prefill worker can take it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback_policy: Option<FallbackPolicy>,
}

impl KvCacheSpec {
    fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}

impl EngineSpec {
    fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}

impl DisaggDeployment {
    /// The definition that goes to the API server.
    ///
    /// It is the derived one without `nullable`: an explicit `null` is then pruned before defaulting and before the
    /// CEL rules, so it means the same as an absent field, here and in [`DisaggDeployment::validate`].
    pub fn definition() -> CustomResourceDefinition {
        let mut definition = Self::crd();
        for version in &mut definition.spec.versions {
            if let Some(schema) =
                version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut())
            {
                strip_nullable(schema);
            }
        }
        definition
    }

    /// The name that clients send as `model`.
    pub fn served_name(&self) -> &str {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        self.spec.model.served_name.as_deref().unwrap_or(name)
    }
}

fn strip_nullable(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        strip_nullable(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        strip_nullable(items);
    }
}
