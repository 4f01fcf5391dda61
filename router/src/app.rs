//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use disagg_core::RoutingStrategy;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Limits, RoutingConfig};
use crate::metrics::Metrics;
use crate::routing::Draws;
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
    pub draws: Draws,
    pub text_pool: TextPool,
    /// A permit for each request in progress.
    pub admission: Arc<Semaphore>,
    /// The tasks that write streamed answers.
    pub streams: TaskTracker,
    /// Ends open answers when a shutdown has waited long enough.
    pub cut: CancellationToken,
    /// Workers that have to be ready for the router to be ready at first.
    min_workers: u32,
    /// It could serve once.
    served: AtomicBool,
}

impl App {
    pub(crate) fn new(
        registry: Arc<Registry>,
        settings: LiveSettings,
        limits: Limits,
        routing: RoutingConfig,
    ) -> Self {
        Self {
            registry,
            settings,
            routing: routing.strategy,
            draws: Draws::default(),
            min_workers: routing.min_workers,
            metrics: Metrics::new(),
            text_pool: TextPool::new(limits.tokenizer_threads),
            admission: Arc::new(Semaphore::new(limits.in_flight_max as usize)),
            limits,
            streams: TaskTracker::new(),
            cut: CancellationToken::new(),
            served: AtomicBool::new(false),
        }
    }

    /// Ready from the moment it can first serve, and then for good: when workers are lost later, requests wait here
    /// rather than at a router that is in the same position.
    pub(crate) fn ready(&self) -> bool {
        if !self.served.load(Ordering::Relaxed)
            && self.registry.can_serve()
            && self.registry.ready().len() >= self.min_workers as usize
        {
            self.served.store(true, Ordering::Relaxed);
        }
        self.served.load(Ordering::Relaxed)
    }

    /// What [`Self::ready`] waits for, for people.
    pub(crate) fn not_ready_because(&self) -> String {
        if self.registry.can_serve() {
            let (ready, wanted) = (self.registry.ready().len(), self.min_workers);
            format!("{ready} of the {wanted} workers that --min-workers asks for are ready")
        } else {
            "no decode worker has been ready yet".to_owned()
        }
    }
}
