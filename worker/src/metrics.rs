//! Prometheus metrics of a worker.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::engine_thread::Load;

/// What became of a handoff on the decode side, or of a lease on the prefill side.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Placement {
    placement: &'static str,
    reason: &'static str,
}

/// Counters and gauges. One instance per worker, so that two in one process do not mix.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    running: Gauge,
    waiting: Gauge,
    paused: Gauge,
    awaiting_kv: Gauge,
    blocks_total: Gauge,
    blocks_used: Gauge,
    blocks_quarantined: Gauge,
    prefill_queue: Gauge,
    prefill_queue_tokens: Gauge,
    prefill_speed: Gauge<f64, AtomicU64>,
    requests: Family<Placement, Counter>,
    handoffs: Family<Outcome, Counter>,
    leases: Family<Outcome, Counter>,
    chunks_refused: Family<Reason, Counter>,
    pushed_bytes: Counter,
    landed_bytes: Counter,
    prefill_tokens: Counter,
    decode_tokens: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("disagg_worker");
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let running = gauge("running", "Sequences in the running batch");
        let waiting = gauge("waiting", "Sequences that wait to run");
        let paused = gauge("paused", "Sequences whose client does not read");
        let awaiting_kv = gauge("awaiting_kv", "Sequences whose KV is on its way here");
        let blocks_total = gauge("kv_blocks", "Blocks in the KV pool");
        let blocks_used = gauge("kv_blocks_used", "Blocks held by sequences, handoffs or quarantine");
        let blocks_quarantined = gauge("kv_blocks_quarantined", "Blocks that a lost peer may still write");
        let prefill_queue = gauge("prefill_queue", "Prefills for other workers queued or running");
        let prefill_queue_tokens = gauge("prefill_queue_tokens", "Their tokens still to be computed");

        let prefill_speed = Gauge::default();
        registry.register(
            "prefill_tokens_per_second",
            "Recent speed of prefills for other workers",
            prefill_speed.clone(),
        );
        let requests = Family::default();
        registry.register("requests", "Requests by placement and reason", requests.clone());
        let handoffs = Family::default();
        registry.register("handoffs", "Attempted handoffs to this worker by outcome", handoffs.clone());
        let leases = Family::default();
        registry.register("prefill_leases", "Prefills for other workers by outcome", leases.clone());
        let chunks_refused = Family::default();
        registry.register(
            "chunks_refused",
            "Pushed chunks that were refused, by reason",
            chunks_refused.clone(),
        );
        let mut counter = |name: &str, help: &str, unit: Option<Unit>| {
            let counter = Counter::default();
            match unit {
                Some(unit) => registry.register_with_unit(name, help, unit, counter.clone()),
                None => registry.register(name, help, counter.clone()),
            }
            counter
        };
        let pushed_bytes = counter("kv_pushed", "KV pushed to other workers", Some(Unit::Bytes));
        let landed_bytes = counter("kv_landed", "KV received from other workers", Some(Unit::Bytes));
        let prefill_tokens = counter("prefill_tokens", "Prompt tokens computed here", None);
        let decode_tokens = counter("decode_tokens", "Tokens sent to routers", None);
        Self {
            registry,
            running,
            waiting,
            paused,
            awaiting_kv,
            blocks_total,
            blocks_used,
            blocks_quarantined,
            prefill_queue,
            prefill_queue_tokens,
            prefill_speed,
            requests,
            handoffs,
            leases,
            chunks_refused,
            pushed_bytes,
            landed_bytes,
            prefill_tokens,
            decode_tokens,
        }
    }

    /// The exposition text, with gauges as of `load`.
    pub fn render(&self, load: &Load) -> Result<String, std::fmt::Error> {
        let engine = &load.engine;
        self.running.set(engine.running.into());
        self.waiting.set(engine.waiting.into());
        self.paused.set(engine.paused.into());
        self.awaiting_kv.set(engine.awaiting_kv.into());
        self.blocks_total.set(engine.blocks_total.into());
        self.blocks_used.set(engine.blocks_used.into());
        self.blocks_quarantined.set(engine.blocks_quarantined.into());
        self.prefill_queue.set(engine.prefill_queue.into());
        self.prefill_queue_tokens.set(engine.prefill_queue_tokens.try_into().unwrap_or(i64::MAX));
        self.prefill_speed.set(load.prefill_tokens_per_second);
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    pub(crate) fn placed(&self, remote: bool, reason: &'static str) {
        let placement = if remote { "remote" } else { "local" };
        self.requests.get_or_create(&Placement { placement, reason }).inc();
    }

    pub(crate) fn handoff_ended(&self, outcome: &'static str) {
        self.handoffs.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn lease_ended(&self, outcome: &'static str) {
        self.leases.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn chunk_refused(&self, reason: &'static str) {
        self.chunks_refused.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn pushed(&self, bytes: usize) {
        self.pushed_bytes.inc_by(bytes as u64);
    }

    pub(crate) fn landed(&self, bytes: usize) {
        self.landed_bytes.inc_by(bytes as u64);
    }

    pub(crate) fn prefilled(&self, tokens: u32) {
        self.prefill_tokens.inc_by(tokens.into());
    }

    pub(crate) fn decoded(&self, tokens: usize) {
        self.decode_tokens.inc_by(tokens as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_gauges_are_in_the_text() {
        let metrics = Metrics::new();
        metrics.placed(true, "above-threshold");
        metrics.chunk_refused("duplicate");
        metrics.landed(7);
        let mut load = Load::default();
        load.engine.blocks_used = 3;
        let text = metrics.render(&load).unwrap();
        for line in [
            r#"disagg_worker_requests_total{placement="remote",reason="above-threshold"} 1"#,
            r#"disagg_worker_chunks_refused_total{reason="duplicate"} 1"#,
            "disagg_worker_kv_landed_bytes_total 7",
            "disagg_worker_kv_blocks_used 3",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
