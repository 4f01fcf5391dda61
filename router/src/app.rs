//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use disagg_core::RoutingStrategy;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::Budget;
use crate::config::{Limits, RoutingConfig};
use crate::endpoints::Bodies;
use crate::kubernetes::Health;
use crate::metrics::Metrics;
use crate::routing::RoundRobinCounters;
use crate::settings::LiveSettings;
use crate::text_pool::TextPool;
use crate::workers::Registry;

/// The router's state. Workers' tasks write the registry; everything else is read by requests.
pub(crate) struct App {
    pub registry: Arc<Registry>,
    pub settings: LiveSettings,
    pub metrics: Arc<Metrics>,
    pub limits: Limits,
    pub routing: RoutingStrategy,
    pub draws: RoundRobinCounters,
    pub text_pool: TextPool,
    /// A permit for each choice in progress: prompts times `n`.
    pub admission: Arc<Semaphore>,
    /// Memory for requests and answers.
    pub budget: Arc<Budget>,
    /// The bodies that are being read.
    pub bodies: Bodies,
    /// The tasks that write answers.
    pub streams: TaskTracker,
    /// Ends open answers when a shutdown has waited long enough.
    pub cut: CancellationToken,
    /// Workers that have to be ready for the router to be ready at first.
    min_workers: u32,
    /// How the watches go, in a cluster.
    pub cluster: Option<Arc<Health>>,
    /// It could serve once.
    served: AtomicBool,
    /// It ends soon; requests are still accepted.
    leaving: AtomicBool,
}

impl App {
    pub(crate) fn new(
        registry: Arc<Registry>,
        settings: LiveSettings,
        cluster: Option<Arc<Health>>,
        limits: Limits,
        routing: RoutingConfig,
    ) -> Self {
        Self {
            registry,
            settings,
            routing: routing.strategy,
            draws: RoundRobinCounters::default(),
            min_workers: routing.min_workers,
            metrics: Metrics::new(),
            text_pool: TextPool::new(limits.tokenizer_threads),
            budget: Budget::new(limits.request_memory_bytes_max),
            bodies: Bodies::default(),
            admission: Arc::new(Semaphore::new(limits.in_flight_max as usize)),
            limits,
            streams: TaskTracker::new(),
            cut: CancellationToken::new(),
            cluster,
            served: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
        }
    }

    /// Ready from the moment it can first serve, and then for good: when workers are lost later, requests wait here
    /// rather than at a router that is in the same position.
    pub(crate) fn ready(&self) -> bool {
        if !self.served.load(Ordering::Relaxed)
            && self.missing().is_none()
            && self.registry.can_serve()
            && self.registry.ready().len() >= self.min_workers as usize
        {
            self.served.store(true, Ordering::Relaxed);
        }
        self.served.load(Ordering::Relaxed)
    }

    /// What [`Self::ready`] waits for, for people.
    pub(crate) fn not_ready_because(&self) -> String {
        if let Some(missing) = self.missing() {
            missing
        } else if self.registry.can_serve() {
            let (ready, wanted) = (self.registry.ready().len(), self.min_workers);
            format!("{ready} of the {wanted} workers that --min-workers asks for are ready")
        } else {
            self.registry.why_not()
        }
    }

    /// What the cluster has not told yet.
    fn missing(&self) -> Option<String> {
        self.cluster.as_ref()?.missing()
    }

    /// Choices that hold a permit.
    pub(crate) fn choices_in_flight(&self) -> usize {
        (self.limits.in_flight_max as usize).saturating_sub(self.admission.available_permits())
    }

    /// From now on, connections are closed after each answer, so that clients come back elsewhere.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }
}
