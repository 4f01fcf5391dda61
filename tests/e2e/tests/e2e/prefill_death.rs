//! A prefill worker dies while it pushes: the request ends right all the same, and no block stays behind.

use disagg_e2e::generate::Ask;
use disagg_e2e::worker::LANDED_BYTES;
use disagg_e2e::{Deployment, Worker, openai};

use crate::{LONG, RELEASE, completion_request, kv_lands, landed_bytes, prompt, tiny_plan};

const TOKENS: u32 = 24;

/// `kill -9` of `prefill` once KV has begun to land on top of `before`.
async fn kill_while_pushing(prefill: &mut Worker, decode: &[Worker], before: &[f64]) {
    kv_lands(decode, before).await;
    prefill.kill_9();
}

#[tokio::test(flavor = "multi_thread")]
async fn decode_prefills_itself_when_the_only_prefill_worker_dies() {
    let mut deployment = tiny_plan().start().await;
    let Deployment { prefill, decode, .. } = &mut deployment;
    let (prefill, all_decode) = (&mut prefill[0], decode.as_slice());
    let decode = &all_decode[0];
    let prompt = prompt(LONG, 1);
    let start = (prefill.load().await, decode.load().await);
    assert_eq!((start.0.blocks_used, start.1.blocks_used), (0, 0));

    // What the answer should be, computed in a cache of its own; and what a whole transfer amounts to.
    let control =
        Ask::local(decode, &prompt, TOKENS).await.salted("control").send(decode).await.expect("control");
    let whole = Ask::remote(decode, &[prefill], &prompt, TOKENS).await.salted("whole");
    let whole = whole.send(decode).await.expect("a remote prefill");
    assert!(whole.started.remote, "{:?}", whole.started);
    assert_eq!(whole.choices, control.choices);
    let whole_bytes = decode.metric(LANDED_BYTES, &[]).await;
    assert!(whole_bytes > 0.0);

    let ask = Ask::remote(decode, &[prefill], &prompt, TOKENS).await;
    let before = [whole_bytes];
    let (answer, ()) = tokio::join!(ask.send(decode), kill_while_pushing(prefill, all_decode, &before));
    let answer = answer.expect("a request outlives its prefill worker");
    assert!(!answer.started.remote);
    assert_eq!(answer.started.reason, "prefill-failed");
    assert_eq!(answer.choices, control.choices);
    let cut_bytes = decode.metric(LANDED_BYTES, &[]).await - whole_bytes;
    assert!(
        0.0 < cut_bytes && cut_bytes < whole_bytes,
        "killed in mid-push: {cut_bytes} of {whole_bytes} bytes"
    );
    decode.idle(RELEASE).await;

    // A new life of the prefill worker holds nothing, and is used as before.
    prefill.restart().await;
    prefill.idle(RELEASE).await;
    assert_eq!(prefill.load().await.blocks_total, start.0.blocks_total);
    let again = Ask::remote(decode, &[prefill], &prompt, TOKENS).await.salted("again");
    let again = again.send(decode).await.expect("a remote prefill after the restart");
    assert!(again.started.remote, "{:?}", again.started);
    assert_eq!(again.choices, control.choices);
    deployment.idle(RELEASE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_prefill_worker_takes_over() {
    let mut deployment = tiny_plan().workers(2, 1).start().await;
    let Deployment { prefill, decode, .. } = &mut deployment;
    let [first, second] = prefill.as_mut_slice() else { panic!("two prefill workers") };
    let prompt = prompt(LONG, 2);
    let control = Ask::local(&decode[0], &prompt, TOKENS).await.salted("control");
    let control = control.send(&decode[0]).await.expect("control");

    let ask = Ask::remote(&decode[0], &[first, second], &prompt, TOKENS).await;
    let (answer, ()) = tokio::join!(ask.send(&decode[0]), kill_while_pushing(first, decode, &[0.0]));
    let answer = answer.expect("a request outlives its prefill worker");
    assert!(answer.started.remote, "{:?}", answer.started);
    assert_eq!(answer.started.prefill_worker, second.name());
    assert_eq!(answer.choices, control.choices);
    decode[0].idle(RELEASE).await;
    second.idle(RELEASE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_the_router_do_not_notice() {
    let mut deployment = tiny_plan().router(["--max-local-prefill-length", "64"]).start().await;
    let mut prefill = deployment.prefill.remove(0);
    let post = async |seed, salt| {
        let request = completion_request(LONG, seed, salt, TOKENS);
        openai::completion(deployment.router().post("/v1/completions", &request).await).await
    };
    let control = post(3, "control").await;
    assert!(control.placement.remote, "{:?}", control.placement);

    let before = landed_bytes(&deployment.decode).await;
    let (answer, ()) =
        tokio::join!(post(3, "cut"), kill_while_pushing(&mut prefill, &deployment.decode, &before));
    assert_eq!((answer.text, answer.finish_reason), (control.text, control.finish_reason));
    assert_eq!((answer.placement.remote, answer.placement.reason.as_str()), (false, "prefill-failed"));
    deployment.idle(RELEASE).await;

    // Without a prefill worker prompts are prefilled locally; when it is back, remotely again.
    deployment.router_knows(0, 1).await;
    let local = post(4, "").await;
    assert_eq!((local.placement.remote, local.placement.reason.as_str()), (false, "no-prefill-worker"));
    prefill.restart().await;
    deployment.router_knows(1, 1).await;
    let remote = post(5, "").await;
    assert!(remote.placement.remote, "{:?}", remote.placement);
    prefill.idle(RELEASE).await;
    deployment.idle(RELEASE).await;
}
