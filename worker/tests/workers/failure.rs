//! Engines that fail.

use std::sync::atomic::Ordering;
use std::time::Duration;

use disagg_core::Role;
use disagg_proto::v1;
use disagg_worker::server::ServeError;
use tonic::Code;

use crate::harness::*;

#[tokio::test]
async fn a_failed_step_ends_its_sequences_and_the_worker() {
    let mut decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    decode.gate.hold_after(3);
    let request = request(1, 20, 30);
    let live = decode.client().await.generate(local("r", &request)).await.unwrap();
    until("decoding is held", || decode.gate.holds()).await;
    decode.control.fail_launch.store(true, Ordering::SeqCst);
    decode.gate.open();

    let answer = collect(live.into_inner()).await.unwrap();
    let finished = &answer.finished[&0];
    assert_eq!(finished.reason(), v1::FinishReason::Error);
    assert!(finished.message.contains("backend fake"), "{}", finished.message);
    let expected = MODEL.generate(&request, MAX_MODEL_LEN as usize).remove(0).0;
    let expected: Vec<_> = expected.iter().map(|token| token.token).collect();
    assert!(expected.starts_with(&answer.ids(0)), "what was sent before is right");

    let status = decode.state.accepts_work().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(matches!(decode.ended().await, Err(ServeError::Engine(why)) if why.contains("backend fake")));
}

#[tokio::test]
async fn a_failed_prefill_worker_leaves_the_request_to_others() {
    let mut prefill = TestWorker::start(options("prefill-0", Role::Prefill)).await;
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    prefill.control.fail_launch.store(true, Ordering::SeqCst);
    let request = request(2, 60, 8);
    let answer = generate(&decode, remote("r", &request, vec![prefill.candidate()])).await.unwrap();
    assert_right(&answer, &request);
    assert_eq!(answer.placement(), "local prefill-failed");
    decode.idle().await;
    prefill.idle().await;
    assert!(prefill.ended().await.is_err());
}

#[tokio::test]
async fn a_panic_of_the_engine_thread_ends_the_worker_with_its_message() {
    let mut decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    decode.gate.hold_after(3);
    let live = decode.client().await.generate(local("r", &request(3, 20, 30))).await.unwrap();
    until("decoding is held", || decode.gate.holds()).await;
    decode.gate.panic();
    let ended = decode.ended().await;
    assert!(
        matches!(&ended, Err(ServeError::Engine(why)) if why.contains("panicked: a test asked for this")),
        "{ended:?}"
    );
    // Told, or cut off: never a stream that ends as if all were well.
    assert!(collect(live.into_inner()).await.is_err());
}

#[tokio::test]
async fn a_step_that_does_not_end_is_noticed_and_ends_the_worker() {
    let mut decode = TestWorker::start(Options {
        metrics: true,
        step_max: Duration::from_millis(300),
        drain: Duration::from_secs(5),
        ..options("decode-0", Role::Decode)
    })
    .await;
    let address = decode.metrics_address.unwrap();
    let mut client = decode.client().await;
    // A slow worker is not a hanging one.
    assert_right(&generate(&decode, local("a", &request(4, 20, 30))).await.unwrap(), &request(4, 20, 30));
    assert!(get(address, "/health").await.starts_with("HTTP/1.1 200"));

    let mut load = client.watch_load(v1::WatchLoadRequest {}).await.unwrap().into_inner();
    assert!(!load.message().await.unwrap().unwrap().draining);
    decode.gate.hold_after(2);
    let live = client.generate(local("b", &request(5, 20, 30))).await.unwrap();
    // Routers hear of it on the stream they have.
    while !load.message().await.unwrap().unwrap().draining {}
    let health = get(address, "/health").await;
    assert!(health.starts_with("HTTP/1.1 503") && health.contains("a step has been running"), "{health}");
    assert!(get(address, "/ready").await.starts_with("HTTP/1.1 503"));
    let status = client.generate(local("late", &request(6, 20, 3))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");

    let ended = decode.ended().await;
    assert!(
        matches!(&ended, Err(ServeError::Engine(why)) if why.contains("--max-step-seconds")),
        "{ended:?}"
    );
    // The process is gone with it, whatever hangs.
    decode.kill();
    assert!(collect(live.into_inner()).await.is_err());
}
