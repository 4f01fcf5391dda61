//! PodMonitors of the Prometheus operator, as far as we write them, and whether the cluster knows them.

use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{Client, CustomResource};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// How long an answer of the API server on what it serves is believed.
const BELIEVED: Duration = Duration::from_secs(15);

/// Group and version of PodMonitors.
pub(crate) const GROUP_VERSION: &str = "monitoring.coreos.com/v1";

/// Which pods are scraped, and how.
#[derive(CustomResource, Serialize, Deserialize, Clone, PartialEq, Debug)]
#[kube(
    group = "monitoring.coreos.com",
    version = "v1",
    kind = "PodMonitor",
    namespaced,
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodMonitorSpec {
    /// Selects the pods, in the PodMonitor's namespace.
    pub selector: LabelSelector,
    /// Labels of pods that become labels of their series.
    pub pod_target_labels: Vec<String>,
    /// Where each pod is scraped.
    pub pod_metrics_endpoints: Vec<PodMetricsEndpoint>,
}

/// One address of a pod.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodMetricsEndpoint {
    /// Name of the container's port.
    pub port: String,
    /// Path of the metrics.
    pub path: String,
    /// Time between two scrapes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
}

/// Whether the cluster serves PodMonitors. Asked only for resources that want some.
#[derive(Debug, Default)]
pub(crate) struct Served {
    last: Mutex<Option<(bool, Instant)>>,
    /// Cancelled when they are served for the first time: the watch of them begins then.
    once: CancellationToken,
}

impl Served {
    /// Resolves when PodMonitors were seen to be served for the first time.
    pub(crate) fn once(&self) -> CancellationToken {
        self.once.clone()
    }

    /// Asks the API server, unless it has answered a short while ago.
    pub(crate) async fn ask(&self, client: &Client) -> Result<bool, kube::Error> {
        if let Some((served, when)) = *self.last.lock()
            && when.elapsed() < BELIEVED
        {
            return Ok(served);
        }
        let served = match client.list_api_group_resources(GROUP_VERSION).await {
            Ok(list) => list.resources.iter().any(|resource| resource.name == "podmonitors"),
            Err(kube::Error::Api(status)) if status.code == 404 => false,
            Err(error) => return Err(error),
        };
        *self.last.lock() = Some((served, Instant::now()));
        if served {
            self.once.cancel();
        }
        Ok(served)
    }

    /// What was believed has turned out wrong.
    pub(crate) fn forget(&self) {
        *self.last.lock() = None;
    }
}
