//! What clients get when workers fail, and workers when clients do.

use std::time::{Duration, Instant};

use futures::StreamExt;
use tokio::time::timeout;
use tonic::Code;

use crate::support::fake::{FakeWorker, Options, Step, says};
use crate::support::{SOON, TestRouter, completion, read_until, streamed};

/// Dies in the first answer after these steps; then would say "late".
fn dies_after(steps: &[Step]) -> Vec<Vec<Step>> {
    vec![[steps, &[Step::Die]].concat(), says("late")]
}

#[tokio::test]
async fn a_worker_that_dies_before_the_first_token_costs_nothing() {
    for steps in [&[][..], &[Step::Started]] {
        let (dying, other) =
            (FakeWorker::decode("d0", dies_after(steps)), FakeWorker::decode("d1", vec![says("other")]));
        let workers = [&dying, &other];
        let router = TestRouter::start(&workers, &[]).await;
        router.until_ready(&workers).await;
        let answer = router.post("/v1/completions", &streamed("p")).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "other"));
        assert_eq!(answer.header("x-disagg-placement"), "local; reason=below-threshold; decode=d1");
        let (first, second) =
            (dying.requests().remove(0).prompt.unwrap(), other.requests().remove(0).prompt.unwrap());
        assert_eq!(first.sampling, second.sampling, "the same seed, so the same tokens");
        assert_ne!(first.request_id, second.request_id);
        router.until_metric("disagg_router_retries_total 1").await;
    }
}

#[tokio::test]
async fn the_only_worker_is_asked_again_when_it_is_back() {
    let dying = FakeWorker::decode("d0", dies_after(&[Step::Started]));
    let router = TestRouter::start(&[&dying], &[]).await;
    router.until_ready(&[&dying]).await;
    let answer = router.spawn_complete(completion("p"));
    router.until_worker(dying.address, "gone", |worker| worker["state"] == "gone").await;
    let back =
        FakeWorker::start_at(Options { epoch: 2, ..Options::new("d0", vec![says("back")]) }, dying.address);
    let answer = answer.await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "back"));
    assert_eq!(back.requests().len(), 1);
}

#[tokio::test]
async fn a_worker_that_dies_after_the_first_token_ends_the_stream_with_one_error() {
    let dying = FakeWorker::decode("d0", dies_after(&[Step::Started, Step::Text("begun"), Step::Gate]));
    let other = FakeWorker::decode("d1", vec![says("other")]);
    let workers = [&dying, &other];
    let router = TestRouter::start(&workers, &[]).await;
    router.until_ready(&workers).await;
    let answer = router.spawn_complete(streamed("p"));
    // The token has reached the router.
    router.until_metric(r#"disagg_router_time_to_first_token_seconds_count{endpoint="completions"} 1"#).await;
    dying.open_gate();
    let answer = answer.await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "begun"));
    let chunks = answer.chunks();
    let errors: Vec<_> = chunks.iter().filter(|chunk| chunk.get("error").is_some()).collect();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0]["choices"][0]["finish_reason"], "error");
    assert_eq!(errors[0]["error"]["code"], "worker_failed");
    assert_eq!(chunks.last(), errors.last().copied(), "nothing but the end follows");
    assert_eq!(other.requests().len(), 0);
    router
        .until_metric(r#"disagg_router_requests_total{endpoint="completions",status="interrupted"} 1"#)
        .await;
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_can_be_begun_anew() {
    let dying = FakeWorker::decode("d0", dies_after(&[Step::Started, Step::Text("begun"), Step::Gate]));
    let other = FakeWorker::decode("d1", vec![says("other")]);
    let workers = [&dying, &other];
    let router = TestRouter::start(&workers, &[]).await;
    router.until_ready(&workers).await;
    let answer = router.spawn_complete(completion("p"));
    router.until_metric(r#"disagg_router_time_to_first_token_seconds_count{endpoint="completions"} 1"#).await;
    dying.open_gate();
    let answer = answer.await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "other"));
}

#[tokio::test]
async fn two_failures_are_the_clients() {
    for (script, status, code) in [
        (vec![Step::Fail(Code::Unavailable)], 502, "worker_failed"),
        (vec![Step::Started, Step::Error], 502, "worker_failed"),
        (vec![Step::Text("no start")], 502, "worker_failed"),
        (vec![Step::Fail(Code::ResourceExhausted)], 429, "rate_limit_exceeded"),
    ] {
        let (a, b) =
            (FakeWorker::decode("d0", vec![script.clone()]), FakeWorker::decode("d1", vec![script.clone()]));
        let workers = [&a, &b];
        let router = TestRouter::start(&workers, &[]).await;
        router.until_ready(&workers).await;
        for body in [completion("p"), streamed("p")] {
            let answer = router.post("/v1/completions", &body).await;
            assert_eq!(answer.status, status, "{script:?}");
            assert_eq!(
                (answer.json()["error"]["code"].as_str(), answer.header("retry-after")),
                (Some(code), "1")
            );
        }
        assert_eq!((a.requests().len(), b.requests().len()), (2, 2));
    }
}

/// A worker that begins to drain refuses what was sent before its router knew.
#[tokio::test]
async fn a_worker_that_takes_no_new_work_costs_no_attempt() {
    // One after the other, each refuses once more than there are attempts; then one of them answers.
    let refusing = || vec![vec![Step::Refuse], vec![Step::Refuse], vec![Step::Refuse], says("at last")];
    let (a, b) = (FakeWorker::decode("d0", refusing()), FakeWorker::decode("d1", refusing()));
    let workers = [&a, &b];
    let router = TestRouter::start(&workers, &[]).await;
    router.until_ready(&workers).await;
    assert_eq!(router.complete("p").await.text(), "at last");
    let asked = (a.requests().len(), b.requests().len());
    assert!(asked == (4, 3) || asked == (3, 4), "{asked:?}");
    router.until_metric("disagg_router_retries_total 0").await;
}

#[tokio::test]
async fn a_refusal_for_good_is_not_tried_again() {
    let (a, b) = (
        FakeWorker::decode("d0", vec![vec![Step::Fail(Code::InvalidArgument)]]),
        FakeWorker::decode("d1", vec![says("x")]),
    );
    let workers = [&a, &b];
    let router = TestRouter::start(&workers, &[]).await;
    router.until_ready(&workers).await;
    assert_eq!(router.complete("p").await.status, 400);
    assert_eq!(b.requests().len(), 0);
}

#[tokio::test]
async fn a_busy_worker_is_passed_over_and_the_only_one_is_429() {
    let busy = FakeWorker::decode("d0", vec![vec![Step::Fail(Code::ResourceExhausted)]]);
    let other = FakeWorker::decode("d1", vec![says("other")]);
    let both = TestRouter::start(&[&busy, &other], &[]).await;
    both.until_ready(&[&busy, &other]).await;
    assert_eq!(both.complete("p").await.text(), "other");
    let alone = TestRouter::start(&[&busy], &[]).await;
    assert_eq!(alone.complete("p").await.status, 429);
}

#[tokio::test]
async fn requests_beyond_the_limit_are_429() {
    let worker = FakeWorker::decode("d0", vec![vec![Step::Started, Step::Text("a"), Step::Gate, Step::Stop]]);
    let router = TestRouter::start(&[&worker], &["--max-in-flight", "2"]).await;
    let held = [router.spawn_complete(completion("p")), router.spawn_complete(streamed("p"))];
    worker.until("both asked", |seen| seen.requests.len() == 2).await;
    let refused = router.complete("p").await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, "1"));
    insta::assert_snapshot!(refused.json()["error"].to_string());
    worker.open_gate();
    for answer in held {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    router.until_metric("disagg_router_requests_in_flight 0").await;
    assert_eq!(router.complete("p").await.status, 200);
}

#[tokio::test]
async fn without_a_worker_a_request_waits_and_is_then_503() {
    let nobody = FakeWorker::decode("d0", vec![says("x")]);
    nobody.kill();
    let router = TestRouter::start(&[&nobody], &["--max-wait-for-worker-seconds", "1"]).await;
    let started = Instant::now();
    let answer = router.complete("p").await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "5"));
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!(answer.json()["error"]["code"], "no_worker_ready");
    let impatient = TestRouter::start(&[&nobody], &["--max-wait-for-worker-seconds", "0"]).await;
    assert_eq!(impatient.complete("p").await.status, 503);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_ended() {
    let hangs = vec![vec![Step::Hang], vec![Step::Started, Step::Text("begun"), Step::Hang]];
    let worker = FakeWorker::decode("d0", hangs);
    let router = TestRouter::start(&[&worker], &["--request-timeout-seconds", "1"]).await;
    let answer = router.complete("p").await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (504, Some("request_timeout")));
    let answer = router.post("/v1/completions", &streamed("p")).await;
    assert_eq!(answer.text(), "begun");
    assert_eq!(answer.chunks().last().unwrap()["error"]["code"], "request_timeout");
    worker.until("both cancelled", |seen| seen.cancelled == 2).await;
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_request() {
    let scripts = vec![vec![Step::Started, Step::Hang], vec![Step::Started, Step::Text("begun"), Step::Hang]];
    let worker = FakeWorker::decode("d0", scripts);
    let router = TestRouter::start(&[&worker], &[]).await;
    let before_the_first_token = router.spawn_complete(streamed("p"));
    worker.until("asked", |seen| seen.requests.len() == 1).await;
    before_the_first_token.abort();
    worker.until("cancelled", |seen| seen.cancelled == 1).await;

    let in_the_stream = read_until(router.send("/v1/completions", &streamed("p")).await, "begun").await;
    drop(in_the_stream);
    worker.until("cancelled", |seen| seen.cancelled == 2).await;

    let whole = router.spawn_complete(completion("p"));
    worker.until("asked", |seen| seen.requests.len() == 3).await;
    whole.abort();
    worker.until("cancelled", |seen| seen.cancelled == 3).await;
    router.until_metric(r#"disagg_router_requests_total{endpoint="completions",status="cancelled"} 3"#).await;
    router.until_metric("disagg_router_requests_in_flight 0").await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_its_worker_and_nobody_else() {
    let worker =
        FakeWorker::decode("d0", vec![vec![Step::Started, Step::Forever("0123456789")], says("other")]);
    let router = TestRouter::start(&[&worker], &["--reader-timeout-seconds", "2"]).await;
    let mut unread = read_until(router.send("/v1/completions", &streamed("p")).await, "0123").await;
    // Given up only because its chunks were not taken: the worker alone would go on for ever.
    let stalled = worker.until("given up", |seen| seen.cancelled == 1).await;
    assert_eq!(router.complete("p").await.text(), "other");
    router
        .until_metric(r#"disagg_router_requests_total{endpoint="completions",status="reader_timeout"} 1"#)
        .await;
    let mut last = String::new();
    let rest = async {
        while let Some(chunk) = unread.next().await {
            last = chunk;
        }
    };
    timeout(SOON, rest).await.expect("the connection is closed");
    assert!(
        last.starts_with("broken"),
        "half an answer is no answer: {last} after {} messages",
        stalled.messages
    );
}
