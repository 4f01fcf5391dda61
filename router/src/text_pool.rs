//! Where text is worked on: parsing, templates and tokenizing take milliseconds for long prompts, which async threads
//! do not have.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::openai::ApiError;

/// Requests of at most so many bytes are short, and medium; what is larger is long.
const SHORT_BYTES_MAX: usize = 64 * 1024;
const MEDIUM_BYTES_MAX: usize = 1024 * 1024;

/// Runs work on blocking threads, at most so much at once. Requests take turns among others of their size: a short one
/// never waits behind a long one, but shares the processors with it. Whoever waits for a turn is a request in progress,
/// and these are bounded.
#[derive(Clone)]
pub(crate) struct TextPool {
    short: Arc<Semaphore>,
    medium: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

impl TextPool {
    /// A pool that works on `threads` short requests at once, on half as many of medium size, and a quarter as many long
    /// ones; on one of each at least.
    pub(crate) fn new(threads: usize) -> Self {
        let turns = |threads: usize| Arc::new(Semaphore::new(threads.max(1)));
        Self { short: turns(threads), medium: turns(threads / 2), long: turns(threads / 4) }
    }

    /// Runs `work` on a request of `bytes`. The turn lasts as long as the work does, even if nobody waits for it any
    /// more.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let failed = || ApiError::internal("Processing the text of the request failed.");
        let turns = if bytes <= SHORT_BYTES_MAX {
            &self.short
        } else if bytes <= MEDIUM_BYTES_MAX {
            &self.medium
        } else {
            &self.long
        };
        let turn = Arc::clone(turns).acquire_owned().await.map_err(|_| failed())?;
        let task = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        task.await.map_err(|error| {
            tracing::error!(%error, "a text task ended abnormally");
            failed()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(20);

    /// Every long turn is taken by work that ends only when it is told to, and more wait; sizes below go on.
    #[tokio::test]
    async fn a_short_request_does_not_wait_behind_long_ones() {
        let pool = TextPool::new(1);
        let (release, held) = mpsc::channel::<()>();
        let (began, mut begun) = tokio::sync::mpsc::unbounded_channel();
        let held = Arc::new(std::sync::Mutex::new(held));
        let spawn = |bytes: usize| {
            let (pool, held, began) = (pool.clone(), Arc::clone(&held), began.clone());
            tokio::spawn(async move {
                let work = move || {
                    let _ = began.send(bytes);
                    let _ = held.lock().unwrap().recv_timeout(SOON);
                };
                pool.run(bytes, work).await
            })
        };
        let long: Vec<_> = (0..3).map(|_| spawn(MEDIUM_BYTES_MAX + 1)).collect();
        assert_eq!(timeout(SOON, begun.recv()).await.unwrap(), Some(MEDIUM_BYTES_MAX + 1));
        for bytes in [2, SHORT_BYTES_MAX, SHORT_BYTES_MAX + 1, MEDIUM_BYTES_MAX] {
            assert_eq!(timeout(SOON, pool.run(bytes, || 7)).await.unwrap().unwrap(), 7);
        }
        assert!(begun.try_recv().is_err(), "one long request at a time");
        for task in long {
            release.send(()).unwrap();
            timeout(SOON, task).await.unwrap().unwrap().unwrap();
        }
    }
}
