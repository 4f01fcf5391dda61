//! `kill -9` of each kind of process while 32 requests are under way.
//!
//! Workers are simulated; every answer is checked against the one that was given when nothing else ran.

use std::time::Duration;

use disagg_e2e::deployment::MODEL;
use disagg_e2e::load::{Client, Outcome, Tally, Wave};
use disagg_e2e::procfs::kill_9;
use disagg_e2e::router::{http_client, scrape};
use disagg_e2e::{Deployment, eventually};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::up::Up;
use crate::waves::{SIM, THRESHOLD, prompts, sim_plan};
use crate::{RELEASE, tiny};

const IN_FLIGHT: usize = 32;
/// A worker is used again after its restart, on a machine that is busy with other tests.
const BACK: Duration = Duration::from_secs(10);
/// All is served again after the start of another router. A promise, so without room for a busy machine.
const MENDED: Duration = Duration::from_secs(2);
/// A client learns of a dead router: at once, on a machine that is not busy with other tests.
const AT_ONCE: Duration = Duration::from_secs(1);
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

/// Every request that was under way when the router was killed ended at once, with a broken connection.
#[allow(clippy::print_stdout)] // figures, for --nocapture
fn check_broken(outcomes: &[(Instant, Instant, Outcome)], killed: Instant) {
    for (_, ended, outcome) in outcomes.iter().filter(|(_, ended, _)| *ended >= killed) {
        assert!(*ended - killed < AT_ONCE, "{outcome:?} {:?} after the kill", *ended - killed);
    }
    let tally = tally(outcomes);
    println!("{tally:?}");
    assert!(tally.failed.keys().all(|outcome| outcome.starts_with("Broken")), "{tally:?}");
    assert!(tally.failed.values().sum::<usize>() > 0, "some requests were under way");
    assert_eq!(tally.interrupted, 0, "{tally:?}");
}

/// What a router has to answer after its restart, of both placements.
const AFTER: Wave = Wave { requests: 64, in_flight: 16, cancelled_percent: 0, seed: 4 };

#[allow(clippy::print_stdout)] // figures, for --nocapture
fn check_mended(after: &Tally, since_start: Duration) {
    println!("the router has answered {} requests {since_start:?} after its start", after.right());
    assert_eq!(after.right(), AFTER.requests, "{after:?}");
    assert!(after.local > 0 && after.remote > 0, "{after:?}");
    assert!(since_start < MENDED, "all was served {since_start:?} after the router's start");
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
    check_broken(&load.end().await, killed);
    // Its workers notice that nobody waits any more.
    deployment.idle(RELEASE).await;

    let begun = Instant::now();
    deployment.router_mut().restart().await;
    check_mended(&client.wave(AFTER).await, begun.elapsed());
    deployment.idle(RELEASE).await;
}

/// The same with a router that `disagg up` starts again. Its age is that of its process, as the kernel has it.
#[tokio::test(flavor = "multi_thread")]
async fn of_the_router_under_disagg_up_is_mended_by_it() {
    let model = tiny().to_str().expect("a path in UTF-8");
    let mut up = Up::start(&[
        "--model",
        model,
        "--served-model-name",
        MODEL,
        "--device",
        SIM,
        "--prefill",
        "2",
        "--decode",
        "2",
        "--num-blocks",
        "192",
        "--max-num-batched-tokens",
        "512",
        "--max-local-prefill-length",
        THRESHOLD,
    ]);
    let (url, _) = up.ready().await;
    let client = Client::learn(&url, prompts()).await;
    let load = Load::start(client.clone(), 5);
    let admin = up.admin.clone();
    let placements = || async {
        let metrics = scrape(&format!("{admin}/metrics")).await?;
        Ok::<_, String>(
            metrics.sum("disagg_router_placements_total", &[("placement", "remote")]).unwrap_or(0.0),
        )
    };
    let before = placements().await.expect("metrics");
    eventually("50 more remote prefills", SOME, async || match placements().await? {
        now if now >= before + 50.0 => Ok(()),
        now => Err(format!("{before} before, {now} now")),
    })
    .await;
    let old = up.router().expect("a router");
    let killed = Instant::now();
    kill_9(old.pid);
    check_broken(&load.end().await, killed);

    let new = eventually("another router", SOME, async || match up.router() {
        Some(new) if new.pid != old.pid => Ok(new),
        other => Err(format!("{other:?}")),
    })
    .await;
    let http = http_client();
    eventually("the router to be ready", SOME, async || {
        match http.get(format!("{url}/ready")).send().await {
            Ok(response) if response.status() == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    check_mended(&client.wave(AFTER).await, new.age());
    assert_eq!(up.router().map(|router| router.pid), Some(new.pid), "it has not died again");
}
