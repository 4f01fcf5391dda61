//! Armed deadlines of a handoff: one for each kind.

use disagg_core::handoff::{Deadline, DeadlineKind};
use tokio::time::{Duration, Instant};

/// Few enough that a list is the simplest map.
#[derive(Debug, Default)]
pub(super) struct Timers {
    armed: Vec<(Deadline, Instant)>,
}

impl Timers {
    /// Replaces a deadline of the same kind.
    pub(super) fn arm(&mut self, deadline: Deadline, after: Duration) {
        self.disarm(deadline.kind);
        self.armed.push((deadline, Instant::now() + after));
    }

    pub(super) fn disarm(&mut self, kind: DeadlineKind) {
        self.armed.retain(|(deadline, _)| deadline.kind != kind);
    }

    /// Waits for the next deadline; forever if there is none. Cancel safe.
    pub(super) async fn next(&mut self) -> Deadline {
        let Some((index, (deadline, at))) =
            self.armed.iter().copied().enumerate().min_by_key(|(_, (_, at))| *at)
        else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(at).await;
        self.armed.remove(index);
        deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deadline(kind: DeadlineKind, serial: u64) -> Deadline {
        Deadline { kind, serial }
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_comes_first_and_arming_again_replaces() {
        let mut timers = Timers::default();
        timers.arm(deadline(DeadlineKind::Lease, 1), Duration::from_secs(1));
        timers.arm(deadline(DeadlineKind::Prefill, 2), Duration::from_secs(5));
        timers.arm(deadline(DeadlineKind::Lease, 3), Duration::from_secs(9));
        timers.arm(deadline(DeadlineKind::Accept, 4), Duration::from_secs(2));
        timers.disarm(DeadlineKind::Accept);
        assert_eq!(timers.next().await.serial, 2);
        assert_eq!(timers.next().await.serial, 3);
        assert!(tokio::time::timeout(Duration::from_secs(100), timers.next()).await.is_err());
    }
}
