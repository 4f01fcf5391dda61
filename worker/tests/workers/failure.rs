//! Engines that fail.

use std::net::TcpStream;
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

/// One prompt that drives the model to numbers that are none is one failed request: neither worker keeps its blocks.
#[tokio::test]
async fn kv_that_could_not_be_drawn_from_is_cached_on_neither_worker() {
    let prefill = TestWorker::start(options("prefill-0", Role::Prefill)).await;
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let request = request(9, 60, 8);
    let cached = async |worker: &TestWorker| {
        worker.state.engine.overlap_tokens(request.prompt.clone(), String::new()).await.unwrap()
    };

    // P cannot draw: D computes the prompt itself and gives it back a token at a time.
    prefill.control.fail_sample.store(true, Ordering::SeqCst);
    decode.gate.hold_after(0);
    let wire = remote("p", &request, vec![prefill.candidate()]);
    let mut client = decode.client().await;
    let call = tokio::spawn(async move { collect(client.generate(wire).await?.into_inner()).await });
    until("D computes it itself", || decode.gate.holds()).await;
    assert_eq!(cached(&prefill).await, 0);
    assert_eq!(prefill.state.engine.kv_snapshot().await.unwrap().events, []);
    // And it cannot draw either.
    decode.control.fail_sample.store(true, Ordering::SeqCst);
    decode.gate.open();
    let answer = call.await.unwrap().unwrap();
    assert_eq!(answer.finished[&0].reason(), v1::FinishReason::Error);
    assert_eq!(cached(&decode).await, 0);

    // P can, and what it pushed is not what D can draw from.
    decode.control.fail_sample.store(true, Ordering::SeqCst);
    let answer = generate(&decode, remote("d", &request, vec![prefill.candidate()])).await.unwrap();
    assert_eq!(answer.placement(), "remote above-threshold prefill-0");
    assert_eq!(answer.finished[&0].reason(), v1::FinishReason::Error);
    assert_eq!((cached(&prefill).await, cached(&decode).await), (56, 0));
    assert_eq!(decode.state.engine.kv_snapshot().await.unwrap().events, []);

    // The worker is well, and the next request with that prompt is answered.
    let answer = generate(&decode, remote("next", &request, vec![prefill.candidate()])).await.unwrap();
    assert_right(&answer, &request);
    assert_eq!(cached(&decode).await, 56);
    decode.idle().await;
    prefill.idle().await;
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

/// As when a GPU falls off its bus: one error for everything that ran or waited, no new work, and the process ends.
#[tokio::test]
async fn a_lost_device_ends_every_request_with_one_error_and_the_worker() {
    let mut decode = TestWorker::start(Options { metrics: true, ..options("decode-0", Role::Decode) }).await;
    let address = decode.metrics_address.unwrap();
    decode.control.lose_at_step.store(6, Ordering::SeqCst);
    decode.gate.hold_after(1);
    // More than may run at once, all longer than the device lives.
    let mut calls = tokio::task::JoinSet::new();
    for seed in 0..24 {
        let mut client = decode.client().await;
        calls.spawn(async move {
            let wire = local(&format!("r{seed}"), &request(seed, 20, 400));
            collect(client.generate(wire).await?.into_inner()).await
        });
    }
    until("all are there", || decode.state.lifecycle.sequences() == 24).await;
    decode.gate.open();
    let mut ended = 0;
    while let Some(answer) = calls.join_next().await {
        match answer.unwrap() {
            Ok(answer) => {
                ended += 1;
                let finished = &answer.finished[&0];
                assert_eq!(finished.reason(), v1::FinishReason::Error);
                assert!(finished.message.contains("the device is lost"), "{}", finished.message);
            }
            // It came too late.
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
    }
    assert!(ended > 0);
    assert_eq!(decode.state.accepts_work().unwrap_err().code(), Code::Unavailable);
    let ended = decode.ended().await;
    assert!(
        matches!(&ended, Err(ServeError::Engine(why)) if why.contains("the device is lost")),
        "{ended:?}"
    );
    // Their task is told to end, and ends when the runtime comes to it.
    until("the probes end with the worker", || TcpStream::connect(address).is_err()).await;
}

#[tokio::test]
async fn a_prefill_worker_whose_device_is_lost_leaves_the_request_to_others() {
    let mut prefill = TestWorker::start(options("prefill-0", Role::Prefill)).await;
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    prefill.control.lose_at_step.store(3, Ordering::SeqCst);
    let request = request(7, 200, 8);
    let answer = generate(&decode, remote("r", &request, vec![prefill.candidate()])).await.unwrap();
    assert_right(&answer, &request);
    assert_eq!(answer.placement(), "local prefill-failed");
    decode.idle().await;
    let ended = prefill.ended().await;
    assert!(
        matches!(&ended, Err(ServeError::Engine(why)) if why.contains("the device is lost")),
        "{ended:?}"
    );
}

/// The request waits for KV from another worker, so that no step of this one is there to fail.
#[tokio::test]
async fn a_device_lost_while_kv_lands_ends_the_request_and_the_worker() {
    let prefill = TestWorker::start(options("prefill-0", Role::Prefill)).await;
    let mut decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    prefill.gate.hold_after(4);
    let wire = remote("r", &request(8, 480, 10), vec![prefill.candidate()]);
    let mut client = decode.client().await;
    let call = tokio::spawn(async move { collect(client.generate(wire).await?.into_inner()).await });
    until("the prefill is held", || prefill.gate.holds()).await;
    until("a part has landed", || decode.metric("disagg_worker_kv_landed_bytes_total") > 0).await;
    decode.control.lost.store(true, Ordering::SeqCst);
    prefill.gate.open();
    match call.await.unwrap() {
        Ok(answer) => {
            assert_eq!(answer.finished[&0].reason(), v1::FinishReason::Error);
            assert!(answer.ids(0).is_empty(), "no token came before");
        }
        Err(status) => panic!("the stream broke: {status}"),
    }
    let ended = decode.ended().await;
    assert!(
        matches!(&ended, Err(ServeError::Engine(why)) if why.contains("the device is lost")),
        "{ended:?}"
    );
    prefill.idle().await;
}
