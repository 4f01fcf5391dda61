//! A client that goes away cancels its request, and every block it held is free again, wherever it was.

use std::time::Duration;

use disagg_e2e::generate::Ask;
use disagg_e2e::sse::SseBody;
use disagg_e2e::wait::within;
use disagg_e2e::{Deployment, eventually};
use serde_json::{Value, json};

use crate::{LONG, RELEASE, completion_request, kv_lands, prompt, tiny_plan};

/// More tokens than any test waits for.
const MANY: u32 = 7000;
const EVENT: Duration = Duration::from_secs(20);

fn streamed(length: usize, seed: u32, max_tokens: u32) -> Value {
    let mut request = completion_request(length, seed, "", max_tokens);
    request["stream"] = json!(true);
    request
}

/// Waits until some worker holds blocks, so that a test cannot pass because nothing had begun.
async fn busy(deployment: &Deployment) {
    eventually("blocks in use", Duration::from_secs(10), async || {
        for worker in deployment.workers() {
            if worker.load().await.blocks_used > 0 {
                return Ok(());
            }
        }
        Err("none".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle_of_a_stream() {
    let deployment = tiny_plan().router(["--max-local-prefill-length", "64"]).start().await;
    for (length, remote) in [(32, false), (200, true)] {
        let response = deployment.router().post("/v1/completions", &streamed(length, 1, MANY)).await;
        assert_eq!(disagg_e2e::router::PlacementHeader::of(&response).remote, remote);
        let mut events = SseBody::new(response);
        for _ in 0..3 {
            within("an event", EVENT, events.next()).await.expect("it is far from its end");
        }
        busy(&deployment).await;
        drop(events);
        deployment.idle(RELEASE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_prefill_is_remote() {
    let deployment = tiny_plan().router(["--max-local-prefill-length", "64"]).start().await;
    let request = streamed(LONG, 2, 100);
    // The request is dropped when KV has begun to land, which closes its connection.
    tokio::select! {
        response = deployment.router().post("/v1/completions", &request) => {
            panic!("answered before any KV had landed: {}", response.status())
        }
        _ = kv_lands(&deployment.decode, &[0.0]) => {}
    }
    deployment.idle(RELEASE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_grpc_stream() {
    let deployment = tiny_plan().start().await;
    let Deployment { prefill, decode, .. } = &deployment;
    for remote in [false, true] {
        let prompt = prompt(300, 3 + u32::from(remote));
        let mut ask = if remote {
            Ask::remote(&decode[0], &[&prefill[0]], &prompt, MANY).await
        } else {
            Ask::local(&decode[0], &prompt, MANY).await
        };
        let mut stream =
            decode[0].client().generate(ask.request().clone()).await.expect("a stream").into_inner();
        for _ in 0..3 {
            within("an event", EVENT, stream.message())
                .await
                .expect("no error")
                .expect("it is far from its end");
        }
        busy(&deployment).await;
        drop(stream);
        deployment.idle(RELEASE).await;
    }
}
