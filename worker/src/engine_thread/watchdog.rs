//! Notices a step that does not end: a kernel that spins, a lock that nobody lets go of. Such a step neither fails nor
//! panics, so that without this a worker would look well and do nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::EngineStatus;

/// Longest time between two looks.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(1);

/// When the step that runs now has begun. Written by the engine thread, read by anybody.
pub(super) struct StepClock {
    origin: Instant,
    /// Milliseconds from `origin` to the begin of the step, plus 1; 0 between steps.
    begun: AtomicU64,
}

impl StepClock {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), begun: AtomicU64::new(0) }
    }

    /// A step begins; it ends when the guard is dropped, also by a panic.
    pub(super) fn step(&self) -> StepGuard<'_> {
        self.begun.store(self.now() + 1, Ordering::Relaxed);
        StepGuard(self)
    }

    /// How long the present step has been running.
    fn running_for(&self) -> Option<Duration> {
        let begun = self.begun.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(self.now().saturating_sub(begun)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }
}

/// See [`StepClock::step`].
pub(super) struct StepGuard<'a>(&'a StepClock);

impl Drop for StepGuard<'_> {
    fn drop(&mut self) {
        self.0.begun.store(0, Ordering::Relaxed);
    }
}

/// Looks until a step takes longer than `bound`, and then says so in `status`.
pub(super) async fn watch(clock: &StepClock, status: &watch::Sender<EngineStatus>, bound: Duration) {
    let mut looks = interval((bound / 4).clamp(Duration::from_millis(1), LOOK_EVERY_MAX));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let age = loop {
        looks.tick().await;
        if let Some(age) = clock.running_for().filter(|age| *age > bound) {
            break age;
        }
    };
    let why = format!(
        "a step has been running for {:.0} s without an end; at most {} s are allowed (--max-step-seconds)",
        age.as_secs_f64(),
        bound.as_secs()
    );
    tracing::error!(%why, "the engine hangs; this worker takes no new work");
    status.send_if_modified(|status| {
        let healthy = *status == EngineStatus::Healthy;
        if healthy {
            *status = EngineStatus::Failed(why);
        }
        healthy
    });
}
