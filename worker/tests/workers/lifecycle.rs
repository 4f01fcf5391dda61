//! Draining and ending.

use disagg_core::Role;
use disagg_proto::v1;
use tonic::Code;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::harness::*;

pub async fn health(worker: &TestWorker) -> ServingStatus {
    let mut client = HealthClient::new(worker.channel().await);
    client.check(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner().status()
}

#[tokio::test]
async fn a_drain_refuses_new_work_and_finishes_the_old() {
    let mut decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    assert_eq!(health(&decode).await, ServingStatus::Serving);
    decode.gate.hold_after(2);
    let request = request(1, 40, 30);
    let mut client = decode.client().await;
    let live = client.generate(local("r", &request)).await.unwrap();
    until("decoding is held", || decode.gate.holds()).await;

    decode.begin_shutdown();
    until("the worker drains", || decode.state.lifecycle.is_draining()).await;
    let status = client.generate(local("late", &request)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let mut status = health(&decode).await;
    while status == ServingStatus::Serving {
        tokio::task::yield_now().await;
        status = health(&decode).await;
    }
    let mut load = client.watch_load(v1::WatchLoadRequest {}).await.unwrap().into_inner();
    assert!(load.message().await.unwrap().unwrap().draining);

    decode.gate.open();
    assert_right(&collect(live.into_inner()).await.unwrap(), &request);
    decode.ended().await.unwrap();
    // The stream of load has no end of its own; the end of the worker ends it.
    while let Ok(Some(_)) = load.message().await {}
}

#[tokio::test]
async fn a_prefill_worker_ends_after_its_pushes() {
    let mut prefill = TestWorker::start(options("prefill-0", Role::Prefill)).await;
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let request = request(2, 300, 8);
    prefill.gate.hold_after(3);
    let wire = remote("r", &request, vec![prefill.candidate()]);
    let mut client = decode.client().await;
    let call = tokio::spawn(async move { collect(client.generate(wire).await?.into_inner()).await });
    until("the prefill is held", || prefill.gate.holds()).await;

    prefill.begin_shutdown();
    until("the prefill worker drains", || prefill.state.lifecycle.is_draining()).await;
    // New prefills are refused meanwhile.
    let late = request_with_salt(&request);
    let answer = generate(&decode, remote("late", &late, vec![prefill.candidate()])).await.unwrap();
    assert_right(&answer, &late);
    assert_eq!(answer.placement(), "local prefill-refused");

    prefill.gate.open();
    let answer = call.await.unwrap().unwrap();
    assert_right(&answer, &request);
    assert_eq!(answer.placement(), "remote above-threshold prefill-0");
    prefill.ended().await.unwrap();
    decode.idle().await;
}

fn request_with_salt(like: &disagg_engine::Request) -> disagg_engine::Request {
    disagg_engine::Request { cache_salt: "salt".to_owned(), ..like.clone() }
}
