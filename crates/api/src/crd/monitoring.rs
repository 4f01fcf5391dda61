//! How the metrics of a deployment are found.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;
use super::pod::text_map;

/// How the metrics of workers and routers are found. Without it nothing is made: `/metrics` is served all the same.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct MonitoringSpec {
    /// Make two PodMonitors (monitoring.coreos.com/v1) for the Prometheus operator, `<name>-worker` and `<name>-router`;
    /// `{}` is enough. Needs the Prometheus operator's definitions in the cluster: the condition `MonitoringAvailable`
    /// says whether they are there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_monitor: Option<PodMonitorOptions>,
}

/// What the PodMonitors say beside what to scrape.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "!has(self.labels) || self.labels.all(key, !key.startsWith('disagg.dev/') && \
         !key.startsWith('app.kubernetes.io/'))"
    )
    .message("labels below disagg.dev/ and app.kubernetes.io/ are set by the operator")
)]
pub struct PodMonitorOptions {
    /// Time between two scrapes, such as `30s`. The default is that of the Prometheus that scrapes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::INTERVAL_LENGTH), regex(pattern = INTERVAL_PATTERN))]
    pub interval: Option<String>,

    /// Labels of the PodMonitors, by which a Prometheus chooses those it reads.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "text_map::<{ limits::LABEL_LENGTH }>")]
    pub labels: BTreeMap<String, String>,
}

/// The pattern of [`PodMonitorOptions::interval`]: one number and its unit, as Prometheus has them.
const INTERVAL_PATTERN: &str = "^[1-9][0-9]*(ms|s|m|h)$";

impl MonitoringSpec {
    /// Nothing is set.
    pub fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}

impl PodMonitorOptions {
    /// As the schema's pattern has it.
    pub(super) fn is_interval(text: &str) -> bool {
        let number = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
        number.bytes().all(|byte| byte.is_ascii_digit())
            && number.bytes().next().is_some_and(|first| first != b'0')
            && ["ms", "s", "m", "h"].contains(&&text[number.len()..])
    }
}
