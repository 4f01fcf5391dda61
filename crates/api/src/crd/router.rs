//! The OpenAI endpoint, and the settings that it begins with.

use std::collections::BTreeMap;

use disagg_core::{FallbackPolicy, RoutingStrategy};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;
use super::pod::{PodOverrides, Resources, text_map};

/// The OpenAI endpoint.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct RouterSpec {
    /// How many routers. They share no state. The default is 2 in a cluster; `disagg up` runs one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limits::ROUTER_REPLICAS))]
    pub replicas: Option<i32>,

    /// The port of the HTTP endpoint; in a cluster, of the Service `<name>-router`. The default is 8181.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<i32>,

    /// How the endpoint is reached.
    #[serde(default, skip_serializing_if = "RouterService::is_unset")]
    pub service: RouterService,

    /// Choices that one router has in progress at once, prompts times `n`; more are answered 429. The default is 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limits::MAX_IN_FLIGHT))]
    pub max_in_flight: Option<i32>,

    /// Longest time that a request may take, its whole answer included, in seconds. The default is 600.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limits::REQUEST_TIMEOUT_SECONDS))]
    pub request_timeout_seconds: Option<i32>,

    /// How long a request waits for a worker when none is ready, in seconds, before it is answered 503. The default
    /// is 30.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = limits::MAX_WAIT_FOR_WORKER_SECONDS))]
    pub max_wait_for_worker_seconds: Option<i32>,

    /// How workers are chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing: Option<RoutingStrategy>,

    /// Workers, of any role, that have to be ready before a router is; requests wait until then. Later losses change
    /// nothing. The default is 1, and one of them always has to decode. Where both roles state their replicas, it is at
    /// most their sum.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limits::MIN_WORKERS))]
    pub min_workers: Option<i32>,

    /// CPU and memory of each router. Where nothing is said of memory, the limit is what its own bounds add up to, 1536Mi
    /// by default.
    #[serde(default, skip_serializing_if = "Resources::is_unset")]
    pub resources: Resources,

    /// Where and how the routers' pods run.
    #[serde(default, skip_serializing_if = "PodOverrides::is_unset")]
    pub pod_template: PodOverrides,
}

/// The Service in front of the routers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct RouterService {
    /// Who reaches the Service.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<ServiceType>,

    /// Annotations of the Service, for load balancers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "text_map::<{ limits::VALUE_LENGTH }>")]
    pub annotations: BTreeMap<String, String>,
}

/// Who reaches the Service: `ClusterIP` the cluster alone, `NodePort` every node's port too, `LoadBalancer` a load
/// balancer of the cloud too. The default is `ClusterIP`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ServiceType {
    /// The cluster alone.
    #[default]
    ClusterIP,
    /// A port of every node, too.
    NodePort,
    /// A load balancer of the cloud, too.
    LoadBalancer,
}

impl ServiceType {
    /// The name that Kubernetes has for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
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

    /// What a block of the prompt that a decode worker has cached is worth, in percent of a block of load there. 0
    /// looks at load alone, more keeps prompts with a common beginning on one worker. Only the routing kv weighs. The
    /// default is 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub overlap_weight_percent: Option<i32>,
}

impl RouterService {
    /// Nothing is set.
    pub fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}
