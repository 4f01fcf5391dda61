//! Load generation: when each request is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::args::Arrivals;
use super::client::{Answer, Failure};
use super::random::Random;

const ARRIVALS: u64 = 4;

/// One request that was sent, and what became of it.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) sent: Instant,
    pub(super) ended: Instant,
    /// How much later it was sent than it should have been. More than a little tells that the load generator, not the
    /// server, is too slow.
    pub(super) late: Duration,
    pub(super) result: Result<Answer, Failure>,
}

/// Sends requests 0 to `count` - 1 and waits for all; `send` sends the one of this number. The samples come in no
/// particular order.
pub(super) async fn drive<F>(
    arrivals: Arrivals,
    seed: u64,
    count: u32,
    send: impl Fn(u32) -> F + Clone + Send + Sync + 'static,
) -> Vec<Sample>
where
    F: Future<Output = Result<Answer, Failure>> + Send,
{
    let mut tasks = JoinSet::new();
    match arrivals {
        Arrivals::Concurrency(lanes) => {
            let next = Arc::new(AtomicU32::new(0));
            for _ in 0..lanes.min(count as usize) {
                let (next, send) = (Arc::clone(&next), send.clone());
                tasks.spawn(async move {
                    let mut samples = Vec::new();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            return samples;
                        }
                        samples.push(sample(Duration::ZERO, send(number)).await);
                    }
                });
            }
        }
        Arrivals::Rate(rate) => {
            let mut random = Random::new(seed, ARRIVALS, 0);
            let mut due = tokio::time::Instant::now();
            for number in 0..count {
                tokio::time::sleep_until(due).await;
                let (send, late) = (send.clone(), due.elapsed());
                tasks.spawn(async move { vec![sample(late, send(number)).await] });
                due += Duration::from_secs_f64(random.exponential(rate));
            }
        }
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

async fn sample(late: Duration, request: impl Future<Output = Result<Answer, Failure>>) -> Sample {
    let sent = Instant::now();
    let result = request.await;
    Sample { sent, ended: Instant::now(), late, result }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use tokio::time::sleep;

    #[allow(clippy::unnecessary_wraps)] // in the place of a request
    fn answer() -> Result<Answer, Failure> {
        Ok(Answer { chunks: vec![], whole: Duration::ZERO, usage: None, placement: None })
    }

    #[tokio::test]
    async fn a_closed_loop_keeps_so_many_in_flight_and_sends_each_once() {
        let seen = Arc::new(Mutex::new((0, 0, Vec::new())));
        let state = Arc::clone(&seen);
        let samples = drive(Arrivals::Concurrency(4), 1, 50, move |number| {
            let state = Arc::clone(&state);
            async move {
                {
                    let mut state = state.lock();
                    state.0 += 1;
                    state.1 = state.1.max(state.0);
                    state.2.push(number);
                }
                sleep(Duration::from_millis(1)).await;
                state.lock().0 -= 1;
                answer()
            }
        })
        .await;
        let (left, most, numbers) = &mut *seen.lock();
        numbers.sort_unstable();
        assert_eq!((samples.len(), *left, *most), (50, 0, 4));
        assert_eq!(*numbers, (0..50).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_loop_does_not_wait_for_answers() {
        let start = tokio::time::Instant::now();
        let times = Arc::new(Mutex::new(Vec::new()));
        let sent = Arc::clone(&times);
        drive(Arrivals::Rate(100.0), 7, 1000, move |_| {
            sent.lock().push(start.elapsed());
            async {
                // Far longer than all arrivals take.
                sleep(Duration::from_mins(5)).await;
                answer()
            }
        })
        .await;
        let last = times.lock().last().unwrap().as_secs_f64();
        // A thousand gaps of 10 ms; the standard deviation of their sum is 0.32 s.
        assert!((last - 10.0).abs() < 2.0, "{last}");
    }
}
