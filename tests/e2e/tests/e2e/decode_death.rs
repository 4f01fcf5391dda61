//! A decode worker dies while KV is pushed to it: the prefill worker frees its blocks, and clients get an answer or
//! an error, never silence.

use std::time::Duration;

use disagg_e2e::generate::Ask;
use disagg_e2e::{Deployment, Worker, eventually, openai};
use serde_json::{Value, json};

use crate::{LONG, RELEASE, completion_request, kv_lands, landed_bytes, prompt, tiny_plan};

const TOKENS: u32 = 24;

/// `kill -9` of the worker on which KV begins to land on top of `before`; its index.
async fn kill_where_kv_lands(decode: &mut [Worker], before: &[f64]) -> usize {
    let target = kv_lands(decode, before).await;
    decode[target].kill_9();
    target
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prefill_worker_frees_its_blocks_and_serves_on() {
    let mut deployment = tiny_plan().start().await;
    let Deployment { prefill, decode, .. } = &mut deployment;
    let prefill = &prefill[0];
    let prompt = prompt(LONG, 1);
    let mut ask = Ask::remote(&decode[0], &[prefill], &prompt, TOKENS).await;

    let mut client = decode[0].client();
    let request = ask.request().clone();
    let send = tokio::spawn(async move {
        let mut stream = client.generate(request).await?.into_inner();
        while stream.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    });
    kill_where_kv_lands(decode, &[0.0]).await;
    prefill.idle(RELEASE).await;
    assert!(send.await.expect("the task").is_err(), "a dead worker cannot have finished the stream");

    // The decode worker's next life, with another epoch, is served by the same prefill worker.
    decode[0].restart().await;
    let control = Ask::local(&decode[0], &prompt, TOKENS).await.salted("control");
    let control = control.send(&decode[0]).await.expect("control");
    let again = Ask::remote(&decode[0], &[prefill], &prompt, TOKENS).await;
    let again = again.send(&decode[0]).await.expect("a remote prefill after the restart");
    assert!(again.started.remote, "{:?}", again.started);
    assert_eq!(again.choices, control.choices);
    deployment.idle(RELEASE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_router_sends_the_request_to_another_decode_worker() {
    let plan = tiny_plan().workers(1, 2).router(["--max-local-prefill-length", "64"]);
    let mut deployment = plan.start().await;
    let mut decode = std::mem::take(&mut deployment.decode);
    let post = async |salt| {
        let request = completion_request(LONG, 2, salt, TOKENS);
        openai::completion(deployment.router().post("/v1/completions", &request).await).await
    };
    let control = post("control").await;
    let before = landed_bytes(&decode).await;
    let (answer, killed) = tokio::join!(post("again"), kill_where_kv_lands(&mut decode, &before));
    assert_eq!((answer.text, answer.finish_reason), (control.text, control.finish_reason));
    let left = decode.remove(1 - killed);
    assert_eq!(answer.placement.decode, left.name());
    deployment.idle(RELEASE).await;
    left.idle(RELEASE).await;
}

/// Two choices, drawn: an answer of which nothing was sent is the same when another worker begins it anew.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_being_decoded_is_drawn_anew() {
    let plan = tiny_plan().workers(1, 2).router(["--max-local-prefill-length", "64"]);
    let mut deployment = plan.start().await;
    let mut decode = std::mem::take(&mut deployment.decode);
    for (length, remote) in [(20, false), (300, true)] {
        let post = async |salt: &str| {
            let mut request = completion_request(length, 4, salt, 1500);
            for (name, value) in [("temperature", json!(1)), ("seed", json!(9)), ("n", json!(2))] {
                request[name] = value;
            }
            let response = deployment.router().post("/v1/completions", &request).await;
            let placement = response.headers()["x-disagg-placement"].to_str().expect("text").to_owned();
            (openai::json(response).await, placement)
        };
        let texts = |answer: &Value| [0, 1].map(|index| answer["choices"][index]["text"].clone());
        let (control, placement) = post("control").await;
        assert_eq!(placement.starts_with("remote"), remote, "{placement}");
        assert_ne!(texts(&control)[0], texts(&control)[1]);
        let before = decoded(&decode).await;
        let kill = async {
            let target = eventually("a worker to decode", Duration::from_secs(30), async || {
                let now = decoded(&decode).await;
                let busy = now.iter().zip(&before).position(|(now, before)| *now > before + 20.0);
                busy.ok_or_else(|| format!("{now:?}, before {before:?}"))
            })
            .await;
            decode[target].kill_9();
            target
        };
        let ((answer, placement), killed) = tokio::join!(post("again"), kill);
        assert_eq!(texts(&answer), texts(&control));
        assert!(placement.ends_with(decode[1 - killed].name()), "{placement}");
        decode[killed].restart().await;
        deployment.router_knows(1, 2).await;
    }
}

/// Tokens decoded by each of these so far.
async fn decoded(decode: &[Worker]) -> Vec<f64> {
    let mut tokens = Vec::new();
    for worker in decode {
        tokens.push(worker.metric("disagg_worker_decode_tokens_total", &[]).await);
    }
    tokens
}

#[tokio::test(flavor = "multi_thread")]
async fn the_router_answers_an_error_when_there_is_no_other() {
    let plan = tiny_plan().router(["--max-local-prefill-length", "64", "--max-wait-for-worker-seconds", "1"]);
    let mut deployment = plan.start().await;
    let mut decode = std::mem::take(&mut deployment.decode);
    let request = completion_request(LONG, 3, "", TOKENS);
    let post = async { openai::error(deployment.router().post("/v1/completions", &request).await).await };
    let ((status, error), _) = tokio::join!(post, kill_where_kv_lands(&mut decode, &[0.0]));
    assert!([502, 503].contains(&status), "{status}: {error:?}");
    deployment.idle(RELEASE).await;

    decode[0].restart().await;
    deployment.router_knows(1, 1).await;
    let answer = openai::completion(deployment.router().post("/v1/completions", &request).await).await;
    assert_eq!(answer.finish_reason, "length");
}
