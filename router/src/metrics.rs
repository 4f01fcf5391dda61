//! Metrics, served at `/metrics` in the OpenMetrics text format.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use disagg_core::Role;
use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, LabelValueEncoder, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::budget::Budget;
use crate::kubernetes::{Feed, Health};
use crate::openai::{Endpoint, Usage};
use crate::workers::{self, State};

/// Buckets, in seconds.
const LATENCY: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
const TOKEN_GAP: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
const STAGE: [f64; 12] = [1e-5, 5e-5, 0.0001, 0.0005, 0.001, 0.0025, 0.01, 0.025, 0.1, 0.5, 2.5, 30.0];

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct EndpointLabel {
    endpoint: Name,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct RequestLabels {
    endpoint: Name,
    status: Status,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct PlacementLabels {
    placement: Name,
    reason: Name,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct WorkerLabels {
    role: Name,
    state: Name,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct StageLabel {
    stage: Name,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct FeedLabel {
    feed: Name,
}

/// A label that is one of a fixed set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Name(&'static str);

impl prometheus_client::encoding::EncodeLabelValue for Name {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.write_str(self.0)
    }
}

/// What a request goes through before its answer begins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Stage {
    /// The body comes in.
    Read,
    /// It becomes a valid request.
    Parse,
    /// It waits for a thread that works on text.
    TextQueue,
    /// The chat template makes a text of it.
    Render,
    /// The text becomes token ids.
    Tokenize,
    /// Blocks are hashed, and workers chosen.
    Choose,
    /// A worker is asked, until it has the first token. The only one that is not the router's work.
    Worker,
}

impl Stage {
    fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Parse => "parse",
            Self::TextQueue => "text_queue",
            Self::Render => "render",
            Self::Tokenize => "tokenize",
            Self::Choose => "choose",
            Self::Worker => "worker",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Status {
    /// With this HTTP status, and its body to the end.
    Http(u16),
    /// The client went away.
    Cancelled,
    /// The answer had begun and broke off.
    Interrupted,
    /// The client stopped reading.
    ReaderTimeout,
}

impl prometheus_client::encoding::EncodeLabelValue for Status {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        match self {
            Self::Http(code) => write!(encoder, "{code}"),
            Self::Cancelled => encoder.write_str("cancelled"),
            Self::Interrupted => encoder.write_str("interrupted"),
            Self::ReaderTimeout => encoder.write_str("reader_timeout"),
        }
    }
}

/// All metrics of the router.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    in_flight: Gauge,
    ttft: Family<EndpointLabel, Histogram>,
    itl: Family<EndpointLabel, Histogram>,
    duration: Family<EndpointLabel, Histogram>,
    placements: Family<PlacementLabels, Counter>,
    retries: Counter,
    stages: Family<StageLabel, Histogram>,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    completion_tokens: Counter,
    workers: Family<WorkerLabels, Gauge>,
    index_blocks: Gauge,
    index_blocks_max: Gauge,
    index_evicted: Counter,
    settings_valid: Gauge,
    watches: Family<FeedLabel, Gauge>,
    memory_used: Gauge,
    memory_max: Gauge,
    choices: Gauge,
    bodies: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("disagg_router");
        let latency: fn() -> Histogram = || Histogram::new(LATENCY);
        let gap: fn() -> Histogram = || Histogram::new(TOKEN_GAP);
        let stage: fn() -> Histogram = || Histogram::new(STAGE);
        let metrics = Self {
            requests: Family::default(),
            in_flight: Gauge::default(),
            ttft: Family::new_with_constructor(latency),
            itl: Family::new_with_constructor(gap),
            duration: Family::new_with_constructor(latency),
            placements: Family::default(),
            retries: Counter::default(),
            stages: Family::new_with_constructor(stage),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            completion_tokens: Counter::default(),
            workers: Family::default(),
            index_blocks: Gauge::default(),
            index_blocks_max: Gauge::default(),
            index_evicted: Counter::default(),
            settings_valid: Gauge::default(),
            watches: Family::default(),
            memory_used: Gauge::default(),
            memory_max: Gauge::default(),
            choices: Gauge::default(),
            bodies: Gauge::default(),
            registry: Registry::default(),
        };
        let m = &metrics;
        registry.register("requests", "Requests, by how they ended", m.requests.clone());
        registry.register("requests_in_flight", "Requests in progress", m.in_flight.clone());
        let seconds = Unit::Seconds;
        let help = "From the request to its first token";
        registry.register_with_unit("time_to_first_token", help, seconds.clone(), m.ttft.clone());
        let help = "Between the arrivals of tokens from the worker";
        registry.register_with_unit("inter_token_latency", help, seconds.clone(), m.itl.clone());
        let help = "From the request to the end of its answer";
        registry.register_with_unit("request_duration", help, seconds.clone(), m.duration.clone());
        let help = "Where prompts were prefilled (refused: nowhere), and why";
        registry.register("placements", help, m.placements.clone());
        registry.register("retries", "Requests tried again after a worker failed", m.retries.clone());
        let help = "What a request goes through before its answer begins";
        registry.register_with_unit("request_stage", help, seconds, m.stages.clone());
        registry.register("prompt_tokens", "Tokens of prompts", m.prompt_tokens.clone());
        let help = "Tokens of prompts that workers had cached";
        registry.register("cached_prompt_tokens", help, m.cached_tokens.clone());
        registry.register("completion_tokens", "Tokens generated", m.completion_tokens.clone());
        registry.register("workers", "Workers, by role and state", m.workers.clone());
        registry.register("prefix_index_blocks", "Blocks in the prefix index", m.index_blocks.clone());
        let help = "Blocks that the prefix index may hold";
        registry.register("prefix_index_max_blocks", help, m.index_blocks_max.clone());
        let help = "Blocks that the prefix index forgot for its bound";
        registry.register("prefix_index_evicted_blocks", help, m.index_evicted.clone());
        let help = "1 if the settings file or ConfigMap is in force as it is, 0 if other values are";
        registry.register("settings_valid", help, m.settings_valid.clone());
        let help = "In a cluster: 1 if what is watched through the Kubernetes API is up to date";
        registry.register("kubernetes_watch_up", help, m.watches.clone());
        let help = "Memory that requests and answers hold, of --max-request-memory-mib";
        registry.register_with_unit("request_memory", help, Unit::Bytes, m.memory_used.clone());
        let help = "Memory that requests and answers may hold";
        registry.register_with_unit("request_memory_max", help, Unit::Bytes, m.memory_max.clone());
        let help = "Choices in progress, of --max-in-flight: prompts times n";
        registry.register("choices_in_flight", help, m.choices.clone());
        registry.register("bodies_arriving", "Request bodies that are being read", m.bodies.clone());
        Arc::new(Self { registry, ..metrics })
    }

    /// The text of `/metrics`, with gauges set from what is now.
    pub(crate) fn render(
        &self,
        workers: &workers::Registry,
        settings_valid: bool,
        cluster: Option<&Health>,
    ) -> String {
        for (feed, health) in cluster.iter().flat_map(|health| Feed::ALL.map(|feed| (feed, health))) {
            self.watches
                .get_or_create(&FeedLabel { feed: Name(feed.as_str()) })
                .set(health.is_up(feed).into());
        }
        for role in [Role::Prefill, Role::Decode, Role::Both] {
            for state in State::ALL {
                let labels = WorkerLabels { role: Name(role.as_str()), state: Name(state.as_str()) };
                self.workers.get_or_create(&labels).set(0);
            }
        }
        for worker in workers.status() {
            let role = worker.identity.map_or("unknown", |identity| identity.role.as_str());
            let labels = WorkerLabels { role: Name(role), state: Name(worker.state.as_str()) };
            self.workers.get_or_create(&labels).inc();
        }
        let usage = workers.index_usage();
        self.index_blocks.set(i64::try_from(usage.blocks).unwrap_or(i64::MAX));
        self.index_blocks_max.set(i64::try_from(usage.max_blocks).unwrap_or(i64::MAX));
        self.index_evicted.inner().store(usage.evicted, Ordering::Relaxed);
        self.settings_valid.set(settings_valid.into());
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// Sets the gauges of what is held now, for [`Self::render`].
    pub(crate) fn holds(&self, budget: &Budget, choices: usize, bodies: usize) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.memory_used.set(number(budget.used()));
        self.memory_max.set(number(budget.max()));
        self.choices.set(number(choices));
        self.bodies.set(number(bodies));
    }

    /// Counts how a prompt was really placed. `reason` is one of a fixed set.
    pub(crate) fn placed(&self, remote: bool, reason: &'static str) {
        self.decided(if remote { "remote" } else { "local" }, reason);
    }

    /// Counts a prompt that was placed nowhere.
    pub(crate) fn placement_refused(&self, reason: &'static str) {
        self.decided("refused", reason);
    }

    fn decided(&self, placement: &'static str, reason: &'static str) {
        let labels = PlacementLabels { placement: Name(placement), reason: Name(reason) };
        self.placements.get_or_create(&labels).inc();
    }

    /// Counts a second attempt.
    pub(crate) fn retried(&self) {
        self.retries.inc();
    }

    /// The time that a request has spent in a stage.
    pub(crate) fn passed(&self, stage: Stage, took: Duration) {
        self.stages.get_or_create(&StageLabel { stage: Name(stage.as_str()) }).observe(took.as_secs_f64());
    }
}

/// Follows one request; counts it when dropped.
pub(crate) struct RequestMetrics {
    metrics: Arc<Metrics>,
    endpoint: EndpointLabel,
    began: Instant,
    /// When the last tokens of each choice came.
    last_tokens: Mutex<BTreeMap<u32, Instant>>,
    status: Status,
}

impl RequestMetrics {
    /// A request has come.
    pub(crate) fn begin(metrics: &Arc<Metrics>, endpoint: Endpoint) -> Self {
        metrics.in_flight.inc();
        Self {
            metrics: Arc::clone(metrics),
            endpoint: EndpointLabel { endpoint: Name(endpoint.as_str()) },
            began: Instant::now(),
            last_tokens: Mutex::default(),
            status: Status::Cancelled,
        }
    }

    /// Tokens of one of the request's choices have come from the worker.
    pub(crate) fn tokens(&self, choice: u32) {
        let now = Instant::now();
        let mut last_tokens = self.last_tokens.lock();
        let first_of_all = last_tokens.is_empty();
        let since = match last_tokens.insert(choice, now) {
            Some(last) => Some((&self.metrics.itl, last)),
            None => first_of_all.then_some((&self.metrics.ttft, self.began)),
        };
        if let Some((family, since)) = since {
            family.get_or_create(&self.endpoint).observe((now - since).as_secs_f64());
        }
    }

    /// The tokens of a request that was answered.
    pub(crate) fn usage(&self, usage: &Usage) {
        self.metrics.prompt_tokens.inc_by(usage.prompt_tokens.into());
        self.metrics.cached_tokens.inc_by(usage.prompt_tokens_details.cached_tokens.into());
        self.metrics.completion_tokens.inc_by(usage.completion_tokens.into());
    }

    /// How it ends, unless the client goes away first, which is what is counted without this.
    pub(crate) fn ends(&mut self, status: Status) {
        self.status = status;
    }
}

impl Drop for RequestMetrics {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        self.metrics.duration.get_or_create(&self.endpoint).observe(self.began.elapsed().as_secs_f64());
        let labels = RequestLabels { endpoint: self.endpoint.endpoint, status: self.status };
        self.metrics.requests.get_or_create(&labels).inc();
    }
}
