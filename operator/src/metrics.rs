//! What the operator tells of itself, as OpenMetrics.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::requests::Request;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Asked {
    verb: &'static str,
    resource: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Every metric that the operator serves on `/metrics`.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Asked, Counter>,
    reconciles: Family<Outcome, Counter>,
    duration: Histogram,
    /// 1 on the replica that reconciles.
    pub leader: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("disagg_operator");
        let requests = Family::default();
        registry.register("api_requests", "Requests to the API server, watches included", requests.clone());
        let reconciles = Family::default();
        registry.register("reconciles", "Reconciles of resources", reconciles.clone());
        let duration = Histogram::new([0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0, 60.0]);
        registry.register("reconcile_duration_seconds", "Time that one reconcile took", duration.clone());
        let leader = Gauge::default();
        registry.register("leader", "1 on the replica that reconciles", leader.clone());
        Self { registry, requests, reconciles, duration, leader }
    }

    /// A request goes to the API server.
    pub(crate) fn request(&self, request: Request) {
        let Request { verb, resource } = request;
        self.requests.get_or_create(&Asked { verb, resource }).inc();
    }

    /// A reconcile has ended.
    pub(crate) fn reconciled(&self, succeeded: bool, took: Duration) {
        let outcome = if succeeded { "success" } else { "failure" };
        self.reconciles.get_or_create(&Outcome { outcome }).inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// All metrics as text.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
