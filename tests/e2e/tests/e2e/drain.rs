//! Everything that ends in an orderly way ends unnoticed: SIGTERM to each kind of process, under load, fails no request,
//! and every answer is right.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use disagg_e2e::router::http_client;
use disagg_e2e::{Deployment, Router, Worker, eventually, openai};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::{RELEASE, completion_request, tiny_plan};

const TOKENS: u32 = 24;
/// A prompt under the threshold of these tests, and one over it.
const LENGTHS: [usize; 2] = [40, 900];
/// Different prompts of each length.
const PROMPTS: u32 = 3;
/// Requests in flight.
const CLIENTS: usize = 6;
/// Answers between two disturbances, so that each meets a load that flows.
const FLOWING: u64 = 12;
/// How long a router goes on to accept after its SIGTERM: longer than that many answers take on a busy machine.
const ACCEPTS_SECONDS: &str = "10";
/// A process that was told to end has ended, on a busy machine.
const END: Duration = Duration::from_mins(1);

/// What each prompt is answered.
type Answers = BTreeMap<(usize, u32), String>;

/// What a failed client leaves behind is still of interest.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Clients that send one request after the other, and what came of it.
struct Load {
    /// Where requests go, as the endpoints of a Service are.
    routers: Arc<Mutex<Vec<String>>>,
    answered: Arc<AtomicU64>,
    wrong: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    /// Asks for every prompt once, then begins.
    async fn start(routers: &[&Router]) -> Self {
        let mut expected = Answers::new();
        for length in LENGTHS {
            for seed in 0..PROMPTS {
                let request = completion_request(length, seed, "control", TOKENS);
                let answer = openai::completion(routers[0].post("/v1/completions", &request).await).await;
                expected.insert((length, seed), answer.text);
            }
        }
        let expected = Arc::new(expected);
        let mut load = Self {
            routers: Arc::new(Mutex::new(routers.iter().map(|router| router.url().to_owned()).collect())),
            answered: Arc::default(),
            wrong: Arc::default(),
            stop: Arc::default(),
            clients: JoinSet::new(),
        };
        for client in 0..CLIENTS {
            let (routers, answered, wrong) =
                (Arc::clone(&load.routers), Arc::clone(&load.answered), Arc::clone(&load.wrong));
            let (expected, stop) = (Arc::clone(&expected), Arc::clone(&load.stop));
            load.clients.spawn(async move {
                let http = http_client();
                for number in 0_u32.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let length = LENGTHS[(client + number as usize) % LENGTHS.len()];
                    let seed = number % PROMPTS;
                    // A cache of its own for each, so that long prompts are prefilled remotely every time.
                    let mut request = completion_request(length, seed, &format!("{client}-{number}"), TOKENS);
                    let streamed = (client + number as usize).is_multiple_of(3);
                    request["stream"] = streamed.into();
                    let url = {
                        let routers = locked(&routers);
                        routers[number as usize % routers.len()].clone()
                    };
                    match text(&http, &url, &request).await {
                        Ok(text) if text == expected[&(length, seed)] => {}
                        Ok(text) => locked(&wrong).push(format!("prompt {length}/{seed}: {text:?}")),
                        Err(error) => locked(&wrong).push(error),
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        load
    }

    /// Waits until more answers have come; fails as soon as one is wrong.
    async fn flows(&self) {
        let target = self.answered.load(Ordering::Relaxed) + FLOWING;
        eventually("the load to flow", END, async || {
            assert_eq!(*locked(&self.wrong), [""; 0]);
            let now = self.answered.load(Ordering::Relaxed);
            if now >= target { Ok(()) } else { Err(format!("{now} of {target} answers")) }
        })
        .await;
    }

    /// Waits for the open answers, none of which may be wrong.
    async fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(client) = self.clients.join_next().await {
            client.expect("a client");
        }
        assert_eq!(*locked(&self.wrong), [""; 0]);
    }
}

/// One answer, whole or streamed.
async fn text(http: &reqwest::Client, url: &str, request: &Value) -> Result<String, String> {
    let post = http.post(format!("{url}/v1/completions")).json(request);
    let response = post.send().await.map_err(|error| format!("{url}: {error:?}"))?;
    let status = response.status();
    let body = response.text().await.map_err(|error| format!("{url}: {status}, then {error:?}"))?;
    if !status.is_success() || body.contains("\"error\"") {
        return Err(format!("{url}: {status}: {body}"));
    }
    let text_of = |json: &str| -> Result<String, String> {
        let value: Value = serde_json::from_str(json).map_err(|error| format!("{error}: {json}"))?;
        Ok(value["choices"][0]["text"].as_str().unwrap_or_default().to_owned())
    };
    if request["stream"] == false {
        return text_of(&body);
    }
    let events = body.strip_suffix("data: [DONE]\n\n").ok_or_else(|| format!("no end: {body}"))?;
    events.split_terminator("\n\n").map(|event| text_of(event.trim_start_matches("data: "))).collect()
}

/// SIGTERM; it ends by itself, and well.
async fn terminate(worker: &mut Worker) {
    worker.process().signal("TERM");
    let status = worker.process().end(END).await;
    assert!(status.success(), "{}: {status}", worker.name());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_when_any_process_is_told_to_end() {
    let plan = tiny_plan().workers(2, 2).router(["--max-local-prefill-length", "128"]);
    let mut deployment = plan.start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let addresses: Vec<String> = deployment.workers().map(|worker| worker.address().to_owned()).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let flags =
        ["--max-local-prefill-length", "128", "--shutdown-delay-seconds", ACCEPTS_SECONDS].map(str::to_owned);
    let mut second = Router::start(&addresses, &flags, folder.path());
    second.ready().await;

    let load = Load::start(&[deployment.router(), &second]).await;
    load.flows().await;
    for number in 0..2 {
        let Deployment { prefill, decode, .. } = &mut deployment;
        terminate(&mut decode[number]).await;
        load.flows().await;
        decode[number].restart().await;
        load.flows().await;
        terminate(&mut prefill[number]).await;
        load.flows().await;
        prefill[number].restart().await;
        deployment.router_knows(2, 2).await;
    }
    let remote = deployment.router().metrics().await;
    let placed = remote.sum("disagg_router_placements_total", &[("placement", "remote")]);
    assert!(placed.unwrap_or(0.0) > 0.0, "long prompts were prefilled remotely");

    // A router: clients still come after its SIGTERM, until they have learned of it.
    second.process().signal("TERM");
    load.flows().await;
    assert!(second.process().ended().is_none(), "it still accepts");
    locked(&load.routers).pop();
    let status = second.process().end(END).await;
    assert!(status.success(), "{status}");
    load.flows().await;
    load.finish().await;
    deployment.idle(RELEASE).await;
}

/// Where there is one of each, requests wait for the next.
#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_while_the_only_worker_is_replaced() {
    let plan =
        tiny_plan().router(["--max-local-prefill-length", "128", "--max-wait-for-worker-seconds", "60"]);
    let mut deployment = plan.start().await;
    let load = Load::start(&[deployment.router()]).await;
    load.flows().await;
    let Deployment { prefill, decode, .. } = &mut deployment;
    terminate(&mut prefill[0]).await;
    load.flows().await;
    terminate(&mut decode[0]).await;
    decode[0].restart().await;
    load.flows().await;
    prefill[0].restart().await;
    load.flows().await;
    load.finish().await;
    deployment.router_knows(1, 1).await;
    deployment.idle(RELEASE).await;
}
