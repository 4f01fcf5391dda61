//! The line that tells how far a run is: kept up to date on a terminal, now and then elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

const ON_TERMINAL: Duration = Duration::from_millis(200);
const ELSEWHERE: Duration = Duration::from_secs(10);

/// Counts what happens to the requests of a run.
#[derive(Default, Debug)]
pub(super) struct Progress {
    in_flight: AtomicU32,
    done: AtomicU32,
    failed: AtomicU32,
}

impl Progress {
    /// Follows one request.
    pub(super) async fn follow<T, E>(&self, request: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let result = request.await;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.done.fetch_add(1, Ordering::Relaxed);
        if result.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    fn line(&self, name: &str, all: u32) -> String {
        let load = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        let (done, in_flight, failed) = (load(&self.done), load(&self.in_flight), load(&self.failed));
        format!("{name}: {done} of {all} done, {in_flight} in flight, {failed} failed")
    }
}

/// Runs `work`, showing its progress on standard error.
pub(super) async fn shown<T>(
    progress: &Arc<Progress>,
    name: &str,
    all: u32,
    work: impl Future<Output = T>,
) -> T {
    let terminal = std::io::stderr().is_terminal();
    let mut ticks = interval(if terminal { ON_TERMINAL } else { ELSEWHERE });
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let show = |end: &str| {
        let start = if terminal { "\r\x1b[K" } else { "" };
        // Nobody reads it: nothing lost.
        let _ = write!(std::io::stderr(), "{start}{}{end}", progress.line(name, all));
    };
    // The first tick is at once.
    ticks.tick().await;
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => {
                show("\n");
                return result;
            }
            _ = ticks.tick() => show(if terminal { "" } else { "\n" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_are_counted() {
        let progress = Progress::default();
        let during = async {
            assert_eq!(progress.line("x", 3), "x: 0 of 3 done, 1 in flight, 0 failed");
            Ok::<_, ()>(())
        };
        progress.follow(during).await.unwrap();
        progress.follow(async { Err::<(), _>(()) }).await.unwrap_err();
        assert_eq!(progress.line("x", 3), "x: 2 of 3 done, 0 in flight, 1 failed");
    }
}
