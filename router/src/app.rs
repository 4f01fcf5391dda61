//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Limits;
use crate::metrics::Metrics;
use crate::settings::LiveSettings;
use crate::text_pool::TextPool;
use crate::workers::Registry;

/// The router's state. Workers' tasks write the registry; everything else is read by requests.
pub(crate) struct App {
    pub registry: Arc<Registry>,
    pub settings: LiveSettings,
    pub metrics: Arc<Metrics>,
    pub limits: Limits,
    pub text_pool: TextPool,
    /// A permit for each request in progress.
    pub admission: Arc<Semaphore>,
    /// The tasks that write streamed answers.
    pub streams: TaskTracker,
    /// Ends open answers when a shutdown has waited long enough.
    pub cut: CancellationToken,
    /// It could serve once.
    served: AtomicBool,
}

impl App {
    pub(crate) fn new(registry: Arc<Registry>, settings: LiveSettings, limits: Limits) -> Self {
        Self {
            registry,
            settings,
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
        if !self.served.load(Ordering::Relaxed) && self.registry.can_serve() {
            self.served.store(true, Ordering::Relaxed);
        }
        self.served.load(Ordering::Relaxed)
    }
}
