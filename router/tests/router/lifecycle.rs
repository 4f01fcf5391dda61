//! Start, restart and end, of the router and of workers.

use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::json;
use tokio::time::timeout;

use crate::support::fake::{FakeWorker, Options, Step, says};
use crate::support::{SOON, TestRouter, completion, read_until, streamed};

#[tokio::test]
async fn ready_once_it_can_serve_and_then_for_good() {
    let prefill = FakeWorker::prefill("p0");
    let decode = FakeWorker::decode("d0", vec![says("x")]);
    let address = decode.address;
    decode.kill();
    let addresses = [prefill.address.to_string(), address.to_string()];
    let router = TestRouter::start_for(&addresses, &[]).await;
    router.until_ready(&[&prefill]).await;
    assert_eq!(router.get("/ready").await.status, 503);
    assert_eq!(router.get("/health").await.status, 200);
    let decode = FakeWorker::start_at(Options::new("d0", vec![says("x")]), address);
    router.until_ready(&[&decode]).await;
    assert_eq!(router.get("/ready").await.status, 200);
    decode.kill();
    router.until_worker(address, "gone", |worker| worker["state"] == "gone").await;
    assert_eq!(router.get("/ready").await.status, 200);
}

#[tokio::test]
async fn a_request_waits_for_a_worker_that_is_still_to_start() {
    let first = FakeWorker::decode("d0", vec![]);
    let address = first.address;
    first.kill();
    let router = TestRouter::start_for(&[address.to_string()], &[]).await;
    let answer = router.spawn_complete(completion("p"));
    router.until_metric("disagg_router_requests_in_flight 1").await;
    let _worker = FakeWorker::start_at(Options::new("d0", vec![says("at last")]), address);
    assert_eq!(answer.await.unwrap().text(), "at last");
}

#[tokio::test]
async fn a_restarted_worker_is_known_again_within_a_second() {
    let worker = FakeWorker::decode("d0", vec![says("first life")]);
    let router = TestRouter::start(&[&worker], &[]).await;
    router.until_ready(&[&worker]).await;
    worker.kill();
    router.until_worker(worker.address, "gone", |worker| worker["state"] == "gone").await;
    let back = FakeWorker::start_at(
        Options { epoch: 0xabc, ..Options::new("d0", vec![says("second")]) },
        worker.address,
    );
    let started = Instant::now();
    let status = router.until_worker(back.address, "back", |worker| worker["state"] == "ready").await;
    assert_eq!(status["epoch"], "0000000000000abc");
    assert!(started.elapsed() < Duration::from_secs(1), "took {:?}", started.elapsed());
    assert_eq!(router.complete("p").await.text(), "second");
}

#[tokio::test]
async fn two_workers_cannot_have_one_name() {
    let first = FakeWorker::decode("d0", vec![says("first")]);
    let router = TestRouter::start(&[&first], &[]).await;
    router.until_ready(&[&first]).await;
    let second = FakeWorker::decode("d0", vec![says("second")]);
    let both = TestRouter::start(&[&first, &second], &[]).await;
    let refused = |worker: &serde_json::Value| {
        worker["problem"].as_str().is_some_and(|problem| problem.contains("the name d0 belongs"))
    };
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let wait = async {
        while !refused(&both.worker(first.address).await) && !refused(&both.worker(second.address).await) {
            ticks.tick().await;
        }
    };
    timeout(SOON, wait).await.expect("one is refused");
    assert_eq!(both.complete("p").await.status, 200);
}

#[tokio::test]
async fn a_worker_with_a_broken_card_is_not_used_and_says_why() {
    let worker = FakeWorker::start(Options { generation_config: "{", ..Options::new("d0", vec![says("x")]) });
    let router = TestRouter::start(&[&worker], &["--max-wait-for-worker-seconds", "0"]).await;
    let why = |worker: &serde_json::Value| {
        worker["problem"]
            .as_str()
            .is_some_and(|problem| problem.contains("generation_config.json is not valid JSON"))
    };
    router.until_worker(worker.address, "explained", why).await;
    assert_eq!(router.complete("p").await.status, 503);
}

#[tokio::test]
async fn a_shutdown_finishes_what_is_open() {
    let script = vec![Step::Started, Step::Text("begun"), Step::Gate, Step::Text(" and ended"), Step::Stop];
    let worker = FakeWorker::decode("d0", vec![script]);
    let mut router = TestRouter::start(&[&worker], &[]).await;
    let mut rest = read_until(router.send("/v1/completions", &streamed("p")).await, "begun").await;
    router.shut_down();
    let refused = async {
        while tokio::net::TcpStream::connect(router.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, refused).await.expect("no new connections");
    worker.open_gate();
    let mut text = String::new();
    while let Some(chunk) = timeout(SOON, rest.next()).await.expect("in time") {
        text.push_str(&chunk);
    }
    assert!(text.contains(" and ended") && text.ends_with("data: [DONE]\n\n"), "{text}");
    timeout(SOON, &mut router.task).await.expect("ended").unwrap().unwrap();
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_ever() {
    let worker = FakeWorker::decode("d0", vec![vec![Step::Started, Step::Text("begun"), Step::Hang]]);
    let mut router = TestRouter::start(&[&worker], &["--drain-timeout-seconds", "0"]).await;
    let mut rest = read_until(router.send("/v1/completions", &streamed("p")).await, "begun").await;
    router.shut_down();
    let mut text = String::new();
    while let Some(chunk) = timeout(SOON, rest.next()).await.expect("in time") {
        text.push_str(&chunk);
    }
    assert!(text.contains("shutting down") && text.ends_with("data: [DONE]\n\n"), "{text}");
    timeout(SOON, &mut router.task).await.expect("ended").unwrap().unwrap();
    worker.until("cancelled", |seen| seen.cancelled == 1).await;
}

#[tokio::test]
async fn an_operator_sees_the_settings_in_force() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &["--max-local-prefill-length", "33"]).await;
    let settings = router.admin("/internal/settings").await.json();
    let expected = json!({ "maxLocalPrefillLength": 33, "maxPrefillQueueDepth": 2, "fallbackPolicy": "Local", "overlapWeightPercent": 100 });
    assert_eq!(settings, json!({ "settings": expected, "source": "flags", "problem": null }));
}

#[tokio::test]
async fn a_router_that_leaves_still_accepts_for_a_while() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let mut router = TestRouter::start(&[&worker], &["--shutdown-delay-seconds", "300"]).await;
    router.until_ready(&[&worker]).await;
    assert_eq!(router.complete("p").await.header("connection"), "");
    router.shut_down();
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let told = async {
        loop {
            ticks.tick().await;
            let answer = router.complete("p").await;
            assert_eq!((answer.status, answer.text()), (200, "x".to_owned()));
            if answer.header("connection") == "close" {
                return;
            }
        }
    };
    timeout(SOON, told).await.expect("clients are told to go");
    // Ready all the while: where it is the last router, requests still have to come here.
    assert_eq!(router.get("/ready").await.status, 200);
    assert!(!router.task.is_finished());
}
