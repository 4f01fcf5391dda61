//! What the operator reports. Nothing here is ever read back as a wish.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use disagg_core::FallbackPolicy;

/// What is true of a deployment, as the operator last saw it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct DisaggDeploymentStatus {
    /// The generation of the spec that the operator has seen, and that this status tells of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// `Ready` (requests are served), `PrefillAvailable`, `DecodeAvailable`, `RouterAvailable`, `Progressing` (a change is
    /// under way, or fewer pods serve than are wanted), `ChildrenApplied`, `SettingsValid` and, where PodMonitors are asked
    /// for, `MonitoringAvailable`, each with the reason in one word and in one sentence. `Reconciling` and `Stalled` are
    /// there only while they are True, for tools that look for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,

    /// The prefill workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill: Option<RoleStatus>,

    /// The decode workers. The scale subresource reads this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode: Option<RoleStatus>,

    /// The routers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterStatus>,

    /// The settings that every ready router says it applies. Absent while they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<SettingsStatus>,

    /// When the last change began, or last came nearer to its end. `spec.progressDeadlineSeconds` counts from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_progress_time: Option<Time>,
}

/// The workers of one role.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct RoleStatus {
    /// Workers that exist.
    pub replicas: i32,
    /// Workers that can serve, and are not about to end.
    pub ready_replicas: i32,
    /// Workers that run what the spec asks for now.
    #[serde(default)]
    pub updated_replicas: i32,
    /// Label selector of their pods, for autoscalers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub selector: Option<String>,
}

/// The routers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct RouterStatus {
    /// Routers that exist.
    pub replicas: i32,
    /// Routers that can serve, and are not about to end.
    pub ready_replicas: i32,
    /// Routers that run what the spec asks for now.
    #[serde(default)]
    pub updated_replicas: i32,
    /// Where clients inside the cluster reach them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub url: Option<String>,
}

/// Settings in force, and where they came from.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct SettingsStatus {
    /// The threshold, in tokens.
    pub max_local_prefill_length: i32,
    /// The bound of a prefill worker's queue.
    pub max_prefill_queue_depth: i32,
    /// What becomes of a prompt when no prefill worker can take it.
    pub fallback_policy: FallbackPolicy,
    /// What a cached block is worth, in percent of a block of load.
    pub overlap_weight_percent: i32,
    /// The resourceVersion of the ConfigMap that they were read from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub resource_version: Option<String>,
}
