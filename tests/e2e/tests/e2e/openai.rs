//! The OpenAI API as clients use it: whole answers and streams, and what tells about the server.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use disagg_e2e::deployment::MODEL;
use disagg_e2e::openai::{self, Text, Usage};
use disagg_e2e::{Deployment, Router, eventually};
use serde_json::{Value, json};

use crate::{RELEASE, completion_request, tiny_plan};

const TOKENS: u32 = 20;

async fn deployment() -> Deployment {
    tiny_plan().router(["--max-local-prefill-length", "64"]).start().await
}

/// A conversation whose last message has so many words.
fn chat_request(words: usize) -> Value {
    let text = vec!["disaggregated"; words].join(" ");
    json!({
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": text},
        ],
        "max_tokens": TOKENS, "ignore_eos": true, "temperature": 0,
    })
}

fn streamed(mut request: Value) -> Value {
    request["stream"] = json!(true);
    request["stream_options"] = json!({"include_usage": true});
    request
}

/// What a request says however it is asked; how it was placed may differ, since the second finds a prefix.
fn said(text: &Text) -> (&str, &str, u32, u32) {
    let usage: &Usage = text.usage.as_ref().expect("usage");
    (&text.text, &text.finish_reason, usage.prompt_tokens, usage.completion_tokens)
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_says_the_same_whole_and_streamed() {
    let deployment = deployment().await;
    let router = deployment.router();
    for (words, remote) in [(1, false), (200, true)] {
        let request = chat_request(words);
        let whole = openai::chat(router.post("/v1/chat/completions", &request).await).await;
        assert_eq!(whole.placement.remote, remote, "{:?}", whole.placement);
        assert_eq!(whole.finish_reason, "length");
        assert_eq!(whole.usage.as_ref().expect("usage").completion_tokens, TOKENS);
        let pieces = openai::chat_stream(router.post("/v1/chat/completions", &streamed(request)).await).await;
        assert_eq!(said(&pieces), said(&whole));
    }
    deployment.idle(RELEASE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_say_the_same_whole_and_streamed_local_and_remote() {
    let deployment = deployment().await;
    let router = deployment.router();
    for (length, remote) in [(20, false), (64, false), (65, true), (700, true)] {
        // Another seed for each length, or a prompt would begin with the one before it.
        let request = |salt| completion_request(length, length as u32, salt, TOKENS);
        let whole = openai::completion(router.post("/v1/completions", &request("whole")).await).await;
        assert_eq!(whole.placement.remote, remote, "{length} tokens: {:?}", whole.placement);
        assert_eq!(whole.placement.reason, if remote { "above-threshold" } else { "below-threshold" });
        assert_eq!(whole.placement.decode, "decode-0");
        assert_eq!(whole.usage.as_ref().expect("usage").prompt_tokens, length as u32);
        let response = router.post("/v1/completions", &streamed(request("pieces"))).await;
        let pieces = openai::completion_stream(response).await;
        assert_eq!((said(&pieces), &pieces.placement), (said(&whole), &whole.placement));
    }
    deployment.idle(RELEASE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_usage_ends_with_the_finish_reason() {
    let deployment = deployment().await;
    let mut request = completion_request(20, 6, "", TOKENS);
    request["stream"] = json!(true);
    let text = openai::completion_stream(deployment.router().post("/v1/completions", &request).await).await;
    assert_eq!((text.finish_reason.as_str(), text.usage), ("length", None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_string_ends_the_text_before_it() {
    let deployment = deployment().await;
    let router = deployment.router();
    let mut request = completion_request(20, 7, "", 40);
    let all = openai::completion(router.post("/v1/completions", &request).await).await;
    // Some text from its middle that has not come earlier.
    let chars: Vec<char> = all.text.chars().collect();
    let middle: String = chars[chars.len() / 2..][..3].iter().collect();
    let end = all.text.find(&middle).expect("it is taken from there");
    request["stop"] = json!([middle]);
    let whole = openai::completion(router.post("/v1/completions", &request).await).await;
    assert_eq!((whole.text.as_str(), whole.finish_reason.as_str()), (&all.text[..end], "stop"));
    let pieces = openai::completion_stream(router.post("/v1/completions", &streamed(request)).await).await;
    assert_eq!((pieces.text, pieces.finish_reason), (whole.text, whole.finish_reason));
    deployment.idle(RELEASE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_listed() {
    let deployment = deployment().await;
    let list: Value = openai::json(deployment.router().get("/v1/models").await).await;
    assert_eq!(list["object"], "list");
    let [model] = list["data"].as_array().expect("data").as_slice() else { panic!("one model: {list}") };
    assert_eq!((&model["id"], &model["object"]), (&json!(MODEL), &json!("model")));
    assert!(model["owned_by"].is_string());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let created = model["created"].as_u64().expect("created");
    assert!(now - 3600 < created && created <= now, "created {created}, now {now}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_readiness() {
    // Nobody listens there yet.
    let folder = tempfile::tempdir().expect("a folder");
    let absent = disagg_e2e::ports::free_address();
    let router = Router::start(&[&absent], &["--max-wait-for-worker-seconds=0".to_owned()], folder.path());
    eventually("the router to be alive", Duration::from_secs(20), async || match disagg_e2e::router::scrape(
        &format!("{}/metrics", router.admin()),
    )
    .await
    {
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    })
    .await;
    assert_eq!(router.get("/health").await.status(), 200);
    assert_eq!(router.get("/ready").await.status(), 503);
    let response = router.post("/v1/completions", &completion_request(5, 1, "", 1)).await;
    assert!(response.headers().contains_key("retry-after"), "{:?}", response.headers());
    let (status, _) = openai::error(response).await;
    assert_eq!(status, 503);

    // Readiness latches: a router that could serve once stays ready when its only worker is gone.
    let mut deployment = deployment().await;
    assert_eq!(deployment.router().get("/ready").await.status(), 200);
    deployment.decode[0].kill_9();
    deployment.router_knows(1, 0).await;
    assert_eq!(deployment.router().get("/ready").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_requests_by_placement() {
    let deployment = deployment().await;
    let router = deployment.router();
    for length in [20, 30, 300] {
        openai::completion(router.post("/v1/completions", &completion_request(length, 8, "", 2)).await).await;
    }
    let metrics = router.metrics().await;
    for (placement, count) in [("local", 2.0), ("remote", 1.0)] {
        let labels = [("placement", placement)];
        let seen = metrics.sum("disagg_router_placements_total", &labels);
        assert_eq!(seen, Some(count), "{placement}; there are {:?}", metrics.names());
    }
}
