//! Names that the operator writes into a cluster and that router, CLI and users look for: children, conditions, labels,
//! annotations, ports, environment variables and the Lease.
//!
//! Text alone and no Kubernetes type, so that this module costs a router without a cluster nothing.

mod component;
pub mod conditions;

use disagg_core::FallbackPolicy;
use serde::{Deserialize, Serialize};

pub use component::{Component, is_own_container, settings_config_map, shared_by_workers};

use crate::settings::{DEFAULT_OVERLAP_WEIGHT_PERCENT, RouterSettings};

/// Group of the resource, and prefix of our labels and annotations.
pub const GROUP: &str = "disagg.dev";

/// Label: name of the `DisaggDeployment`. On every child, and through its Service on every EndpointSlice.
pub const LABEL_DEPLOYMENT: &str = "disagg.dev/deployment";
/// Label: [`Component::as_str`]. On pods, on what makes them, on their Services and through those on EndpointSlices.
pub const LABEL_ROLE: &str = "disagg.dev/role";

/// Annotation of the settings ConfigMap: a JSON object of each key to the value that was last written on behalf of the
/// resource.
pub const ANNOTATION_SEEDED: &str = "disagg.dev/seeded";
/// Annotation of the settings ConfigMap: a JSON object of all keys to the last values that were valid together. A
/// router that starts while the data is bad serves by these.
pub const ANNOTATION_LAST_GOOD: &str = "disagg.dev/last-good";
/// Annotation of pod templates: hash of what a process reads only at its start. A change rolls the pods.
pub const ANNOTATION_CONFIG_HASH: &str = "disagg.dev/config-hash";

/// Port of a worker's gRPC server, also the name of the port.
pub const WORKER_GRPC_PORT: u16 = 9000;
/// Name of [`WORKER_GRPC_PORT`] in pods, Services and EndpointSlices.
pub const WORKER_GRPC_PORT_NAME: &str = "grpc";
/// Port of a worker's `/metrics`, `/health` and `/ready`.
pub const WORKER_METRICS_PORT: u16 = 9090;
/// Name of [`WORKER_METRICS_PORT`].
pub const WORKER_METRICS_PORT_NAME: &str = "metrics";
/// Port of a router's container for clients: the OpenAI API, `/health` and `/ready`. The port that clients use is that
/// of the Service, which the resource can choose.
pub const ROUTER_HTTP_PORT: u16 = 8181;
/// Name of [`ROUTER_HTTP_PORT`] in pods and in the Service.
pub const ROUTER_HTTP_PORT_NAME: &str = "http";
/// Port of a router for whoever runs it: `/metrics`, `/health`, `/ready`, [`WORKERS_PATH`] and [`SETTINGS_PATH`]. In no
/// Service: clients have no business there. Without a cluster it is by default the one after the router's other port.
pub const ROUTER_ADMIN_PORT: u16 = ROUTER_HTTP_PORT + 1;
/// Name of [`ROUTER_ADMIN_PORT`] in pods.
pub const ROUTER_ADMIN_PORT_NAME: &str = "admin";

/// Default of a router's `--max-request-memory-mib`: what requests and answers may take.
pub const ROUTER_REQUEST_MEMORY_MIB_DEFAULT: u32 = 1024;
/// Default of a router's `--max-prefix-index-mib`.
pub const ROUTER_INDEX_MEMORY_MIB_DEFAULT: u32 = 192;
/// What a router takes beside these two: tokenizers of two generations of a model, connections, and what the allocator
/// keeps.
pub const ROUTER_PROCESS_MEMORY_MIB: u32 = 320;

/// Environment of a router in a cluster: the `DisaggDeployment` that it serves. Its workers are then found through the
/// EndpointSlices with that [`LABEL_DEPLOYMENT`], and its settings are the ConfigMap [`settings_config_map`].
pub const ENV_DEPLOYMENT: &str = "DISAGG_DEPLOYMENT";
/// Environment of a router in a cluster: the namespace of all that.
pub const ENV_NAMESPACE: &str = "DISAGG_NAMESPACE";

/// The path on [`ROUTER_ADMIN_PORT`] on which a router lists its workers, as JSON.
pub const WORKERS_PATH: &str = "/internal/workers";

/// The path on [`ROUTER_ADMIN_PORT`] on which a router says what settings it applies: a [`SettingsReport`] as JSON.
pub const SETTINGS_PATH: &str = "/internal/settings";

/// The answer to [`SETTINGS_PATH`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SettingsReport {
    /// The values that new requests are placed by.
    pub settings: SettingsValues,
    /// `flags`, the path of a file, or `ConfigMap NAMESPACE/NAME`.
    pub source: String,
    /// Of a ConfigMap: the resourceVersion that was looked at last. If there is a problem with it, the values in force
    /// are older.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Why the source, as it is now, is not in force.
    pub problem: Option<String>,
}

/// [`RouterSettings`] as JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SettingsValues {
    /// [`RouterSettings::max_local_prefill_length`].
    pub max_local_prefill_length: u32,
    /// [`RouterSettings::max_prefill_queue_depth`].
    pub max_prefill_queue_depth: u32,
    /// [`RouterSettings::fallback_policy`].
    pub fallback_policy: FallbackPolicy,
    /// [`RouterSettings::overlap_weight_percent`]. A router that does not tell it weighs as the default does.
    #[serde(default = "default_overlap_weight_percent")]
    pub overlap_weight_percent: u32,
}

fn default_overlap_weight_percent() -> u32 {
    DEFAULT_OVERLAP_WEIGHT_PERCENT
}

impl From<&RouterSettings> for SettingsValues {
    fn from(settings: &RouterSettings) -> Self {
        // Destructured without `..`, so that a new setting has to be thought of here.
        let RouterSettings {
            max_local_prefill_length,
            max_prefill_queue_depth,
            fallback_policy,
            overlap_weight_percent,
        } = settings;
        Self {
            max_local_prefill_length: *max_local_prefill_length,
            max_prefill_queue_depth: *max_prefill_queue_depth,
            fallback_policy: *fallback_policy,
            overlap_weight_percent: *overlap_weight_percent,
        }
    }
}
