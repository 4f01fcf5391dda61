//! `kill -9` of each kind of process while 32 requests are under way.
//!
//! Workers are simulated; every answer is checked against the one that was given when nothing else ran.

use std::time::Duration;

use disagg_e2e::load::{Client, Outcome, Tally};
use disagg_e2e::{Deployment, eventually};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::RELEASE;
use crate::waves::{prompts, sim_plan};

const IN_FLIGHT: usize = 32;
/// All is served again after a restart: two seconds are promised; the rest is for a machine busy with other tests.
const BACK: Duration = Duration::from_secs(10);
/// A client learns of a dead router: at once, on a machine that is not busy with other tests.
const AT_ONCE: Duration = Duration::from_secs(2);
const SOME: Duration = Duration::from_secs(20);

/// Load in the background, from before the kill to after the restart.
struct Load {
    stop: oneshot::Sender<()>,
    outcomes: tokio::task::JoinHandle<Vec<(Instant, Instant, Outcome)>>,
}

impl Load {
    fn start(client: Client, seed: u64) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let outcomes = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            client.keep_busy(IN_FLIGHT, seed, stopped).await
        });
        Self { stop, outcomes }
    }

    async fn end(self) -> Vec<(Instant, Instant, Outcome)> {
        self.stop.send(()).expect("the load runs");
        self.outcomes.await.expect("every answer was right or an error")
    }
}

fn tally<'a>(outcomes: impl IntoIterator<Item = &'a (Instant, Instant, Outcome)>) -> Tally {
    let mut tally = Tally::default();
    outcomes.into_iter().for_each(|(_, _, outcome)| tally.add(outcome));
    tally
}

/// Waits until the router has placed so many more prefills with this label.
async fn placed_since(deployment: &Deployment, label: (&str, &str), before: f64, more: f64) {
    eventually(&format!("{more} prefills with {label:?}"), SOME, async || {
        let now = placed(deployment, label).await;
        if now >= before + more { Ok(()) } else { Err(format!("{before} before, {now} now")) }
    })
    .await;
}

async fn placed(deployment: &Deployment, label: (&str, &str)) -> f64 {
    let metrics = deployment.router().metrics().await;
    metrics.sum("disagg_router_placements_total", &[label]).unwrap_or(0.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_prefill_worker_fails_no_request() {
    let mut deployment = sim_plan(2).start().await;
    let client = Client::learn(deployment.router().url(), prompts()).await;
    let load = Load::start(client, 1);
    for index in 0..2 {
        let before = placed(&deployment, ("placement", "remote")).await;
        placed_since(&deployment, ("placement", "remote"), before, 20.0).await;
        deployment.prefill[index].kill_9();
        // Its own end is noticed, and the other one goes on.
        deployment.router_knows(1, 2).await;
        let before = placed(&deployment, ("placement", "remote")).await;
        placed_since(&deployment, ("placement", "remote"), before, 20.0).await;
        let begun = Instant::now();
        deployment.prefill[index].restart().await;
        deployment.router_knows(2, 2).await;
        println!("a prefill worker is used again {:?} after its start", begun.elapsed());
        assert!(begun.elapsed() < BACK);
    }
    let tally = tally(&load.end().await);
    println!("{tally:?}");
    assert_eq!((tally.failed.len(), tally.interrupted), (0, 0), "{tally:?}");
    assert!(tally.right() > 100, "{tally:?}");
    deployment.idle(RELEASE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_decode_worker_ends_only_streams_that_had_begun() {
    let mut deployment = sim_plan(3).start().await;
    let client = Client::learn(deployment.router().url(), prompts()).await;
    let load = Load::start(client.clone(), 2);
    let before = placed(&deployment, ("placement", "remote")).await;
    placed_since(&deployment, ("placement", "remote"), before, 50.0).await;
    deployment.decode[0].kill_9();
    deployment.router_knows(2, 2).await;
    let begun = Instant::now();
    deployment.decode[0].restart().await;
    deployment.router_knows(2, 3).await;
    println!("a decode worker is used again {:?} after its start", begun.elapsed());
    assert!(begun.elapsed() < BACK);
    let before = placed(&deployment, ("placement", "remote")).await;
    placed_since(&deployment, ("placement", "remote"), before, 50.0).await;
    let outcomes = load.end().await;
    let tally = tally(&outcomes);
    println!("{tally:?}");
    // What had begun was on its way at the time of the kill, so there is at most one for each request in flight.
    assert!(tally.interrupted <= IN_FLIGHT, "{tally:?}");
    assert_eq!(tally.failed.len(), 0, "{tally:?}");
    assert!(tally.right() > 100, "{tally:?}");
    deployment.idle(RELEASE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_router_is_an_error_at_once_and_soon_mended() {
    let mut deployment = sim_plan(2).start().await;
    let client = Client::learn(deployment.router().url(), prompts()).await;
    let load = Load::start(client.clone(), 3);
    let before = placed(&deployment, ("placement", "remote")).await;
    placed_since(&deployment, ("placement", "remote"), before, 50.0).await;
    // Nobody retries, so that requests under way are those of before the kill.
    let killed = Instant::now();
    deployment.router_mut().kill_9();
    let outcomes = load.end().await;
    let broken: Vec<_> = outcomes.iter().filter(|(_, ended, _)| *ended >= killed).collect();
    for (_, ended, outcome) in &broken {
        assert!(*ended - killed < AT_ONCE, "{outcome:?} {:?} after the kill", *ended - killed);
    }
    let tally = tally(&outcomes);
    println!("{tally:?}");
    assert!(tally.failed.keys().all(|outcome| outcome.starts_with("Broken")), "{tally:?}");
    assert!(tally.failed.values().sum::<usize>() > 0, "some requests were under way");
    assert_eq!(tally.interrupted, 0, "{tally:?}");
    // Its workers notice that nobody waits any more.
    deployment.idle(RELEASE).await;

    let begun = Instant::now();
    deployment.router_mut().restart().await;
    let wave = disagg_e2e::load::Wave { requests: 64, in_flight: 16, cancelled_percent: 0, seed: 4 };
    let after = client.wave(wave).await;
    println!("the router has answered {} requests {:?} after its start", after.right(), begun.elapsed());
    assert_eq!(after.right(), 64, "{after:?}");
    assert!(begun.elapsed() < BACK);
    deployment.idle(RELEASE).await;
}
