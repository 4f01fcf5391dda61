//! Greedy tokens equal those of Hugging Face transformers, whichever way the prompt is prefilled.

use disagg_e2e::generate::{Answer, Ask};
use disagg_e2e::golden::{Golden, GoldenPrompt};
use disagg_e2e::{Deployment, Plan, Worker, openai};
use disagg_proto::v1::FinishReason;
use futures::future::join_all;
use serde_json::json;

use crate::RELEASE;

const BLOCK_SIZE: u32 = 16;

fn golden() -> Golden {
    Golden::load("llama")
}

/// Workers that compute at most `chunk` tokens in a step.
fn plan(golden: &Golden, chunk: &'static str) -> Plan {
    let flags = [
        "--max-num-batched-tokens",
        chunk,
        "--max-num-seqs",
        "16",
        "--block-size",
        "16",
        "--num-blocks",
        "1024",
    ];
    Plan::of(&golden.model).worker_flags(flags)
}

fn max_tokens(prompt: &GoldenPrompt) -> u32 {
    prompt.output.len() as u32
}

/// Tokens of a prompt that a worker which has seen it finds again: all full blocks, but never the last token.
fn cacheable(prompt: &GoldenPrompt) -> u32 {
    (prompt.prompt.len() as u32 - 1) / BLOCK_SIZE * BLOCK_SIZE
}

async fn local(decode: &Worker, prompt: &GoldenPrompt, salt: &str) -> Answer {
    let ask = Ask::local(decode, &prompt.prompt, max_tokens(prompt)).await.salted(salt);
    let answer = ask.send(decode).await.expect("an answer");
    check(prompt, &answer);
    assert!(!answer.started.remote, "{:?}", answer.started);
    assert_eq!(answer.started.prefill_worker, "");
    answer
}

async fn remote(decode: &Worker, prefill: &Worker, prompt: &GoldenPrompt, salt: &str) -> Answer {
    let ask = Ask::remote(decode, &[prefill], &prompt.prompt, max_tokens(prompt)).await.salted(salt);
    let answer = ask.send(decode).await.expect("an answer");
    check(prompt, &answer);
    assert!(answer.started.remote, "{} tokens: {:?}", prompt.prompt.len(), answer.started);
    assert_eq!(answer.started.prefill_worker, prefill.name());
    assert_eq!(answer.started.reason, "above-threshold");
    answer
}

fn check(prompt: &GoldenPrompt, answer: &Answer) {
    assert_eq!(answer.tokens(), prompt.output, "prompt of {} tokens", prompt.prompt.len());
    assert_eq!(answer.choices[0].finish, Some(FinishReason::Length));
}

/// Every prompt on every path, one at a time and all at once.
async fn every_path(chunk: &'static str) {
    let golden = golden();
    let deployment = plan(&golden, chunk).workers(1, 2).start().await;
    let Deployment { prefill, decode, .. } = &deployment;
    let prefill = &prefill[0];
    for prompt in &golden.prompts {
        for overlap in [0, cacheable(prompt)] {
            let answer = local(&decode[0], prompt, "local").await;
            assert_eq!(answer.started.overlap_tokens, overlap);
        }
        for overlap in [0, cacheable(prompt)] {
            let answer = remote(&decode[0], prefill, prompt, "remote").await;
            assert_eq!(answer.started.overlap_tokens, overlap);
        }
        // The prefill worker has this prompt cached by now; this decode worker has nothing of it.
        let answer = remote(&decode[1], prefill, prompt, "remote").await;
        assert_eq!(answer.started.overlap_tokens, 0);
    }
    deployment.idle(RELEASE).await;

    assert!(golden.prompts.len() >= 8);
    join_all(golden.prompts.iter().map(|prompt| local(&decode[0], prompt, "all local"))).await;
    // As many as a prefill worker queues.
    for prompts in golden.prompts.chunks(8) {
        join_all(prompts.iter().map(|prompt| remote(&decode[0], prefill, prompt, "all remote"))).await;
    }
    // Both at once: the decode worker's steps mix prefill chunks with decodes of prompts prefilled elsewhere.
    let mixed = golden.prompts.iter().enumerate().map(async |(i, prompt)| {
        if i % 2 == 0 {
            local(&decode[0], prompt, "mixed").await
        } else {
            remote(&decode[0], prefill, prompt, "mixed").await
        }
    });
    join_all(mixed).await;
    deployment.idle(RELEASE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_16() {
    every_path("16").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_512() {
    every_path("512").await;
}

/// A worker on a CPU beside one on a GPU rounds keys and values to the GPU's format: the same for what it computes itself
/// as for what it gets.
#[tokio::test(flavor = "multi_thread")]
async fn keys_and_values_in_16_bits() {
    let golden = golden();
    let deployment =
        plan(&golden, "512").worker_flags(["--kv-cache-dtype", "bfloat16"]).workers(1, 2).start().await;
    let Deployment { prefill, decode, .. } = &deployment;
    for GoldenPrompt { prompt, output, .. } in &golden.prompts {
        let max_tokens = output.len() as u32;
        let local =
            Ask::local(&decode[0], prompt, max_tokens).await.send(&decode[0]).await.expect("an answer");
        let remote = Ask::remote(&decode[1], &[&prefill[0]], prompt, max_tokens).await;
        let remote = remote.send(&decode[1]).await.expect("an answer");
        assert!(!local.started.remote && remote.started.remote, "{:?}", remote.started);
        assert_eq!(local.tokens(), remote.tokens(), "prompt of {} tokens", prompt.len());
    }
    deployment.idle(RELEASE).await;
}

/// KV in another format is never handed over; every prompt is prefilled where it is decoded.
#[tokio::test(flavor = "multi_thread")]
async fn other_formats_of_keys_and_values_do_not_meet() {
    let golden = golden();
    let plan = plan(&golden, "512").router(["--max-local-prefill-length", "64"]);
    let deployment = plan.prefill_flags(["--kv-cache-dtype", "float16"]).start().await;
    let prompt = golden.prompts.iter().find(|prompt| prompt.prompt.len() > 64).expect("a long one");
    let request = json!({
        "model": disagg_e2e::deployment::MODEL, "prompt": prompt.prompt, "max_tokens": prompt.output.len(),
        "ignore_eos": true, "temperature": 0,
    });
    let answer = openai::completion(deployment.router().post("/v1/completions", &request).await).await;
    assert_eq!(answer.text, golden.text(&prompt.output));
    assert_eq!((answer.placement.remote, answer.placement.reason.as_str()), (false, "no-prefill-worker"));
}

#[tokio::test(flavor = "multi_thread")]
async fn through_the_router() {
    let golden = golden();
    let threshold = 64;
    let plan = plan(&golden, "512").router(["--max-local-prefill-length", "64"]);
    let deployment = plan.start().await;
    for prompt in &golden.prompts {
        let request = json!({
            "model": disagg_e2e::deployment::MODEL, "prompt": prompt.prompt, "max_tokens": prompt.output.len(),
            "ignore_eos": true, "temperature": 0,
        });
        let response = deployment.router().post("/v1/completions", &request).await;
        let answer = openai::completion(response).await;
        assert_eq!(answer.text, golden.text(&prompt.output), "prompt of {} tokens", prompt.prompt.len());
        assert_eq!(answer.finish_reason, "length");
        let placement = answer.placement;
        assert_eq!(placement.decode, "decode-0");
        if prompt.prompt.len() > threshold {
            assert_eq!(placement.reason, "above-threshold");
            assert_eq!(placement.prefill.as_deref(), Some("prefill-0"));
        } else {
            assert_eq!((placement.remote, placement.reason.as_str()), (false, "below-threshold"));
        }
    }
    let lengths: Vec<_> = golden.prompts.iter().map(|prompt| prompt.prompt.len()).collect();
    assert!(
        lengths.iter().any(|length| *length > threshold) && lengths.iter().any(|length| *length <= threshold)
    );
    deployment.idle(RELEASE).await;
}
