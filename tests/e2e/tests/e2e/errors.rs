//! Requests that are wrong or too many: the right status, a message that names the fault, and nothing left behind.

use disagg_e2e::deployment::MODEL;
use disagg_e2e::openai;
use disagg_e2e::sse::SseBody;
use serde_json::{Value, json};

use crate::{RELEASE, completion_request, prompt, tiny_plan};

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_refused_by_name() {
    let deployment = tiny_plan().router(["--max-body-bytes", "262144"]).start().await;
    let router = deployment.router();
    let with = |field: &str, value: Value| {
        let mut request = completion_request(10, 1, "", 5);
        request[field] = value;
        request.to_string()
    };
    let chat = |messages: Value| json!({"model": MODEL, "messages": messages}).to_string();
    let completions = "/v1/completions";
    let chats = "/v1/chat/completions";
    // Path, body, status, a word that the message has.
    let cases = [
        (completions, "{\"model\": ".to_owned(), 400, ""),
        (completions, "[]".to_owned(), 400, ""),
        (completions, "{\"model\": \"small\"}".to_owned(), 400, "prompt"),
        (completions, with("max_tokns", json!(5)), 400, "max_tokns"),
        (completions, with("max_tokens", json!("five")), 400, "max_tokens"),
        (completions, with("max_tokens", json!(-1)), 400, "max_tokens"),
        (completions, with("temperature", json!(9)), 400, "temperature"),
        (completions, with("prompt", json!([])), 400, "prompt"),
        (completions, with("prompt", json!([4_000_000])), 400, "4000000"),
        (completions, with("prompt", json!(prompt(9000, 1))), 400, "8192"),
        (completions, with("prompt", json!("word ".repeat(9000))), 400, "8192"),
        (completions, with("prompt", json!("x".repeat(300_000))), 413, ""),
        (completions, with("model", json!("another")), 404, "another"),
        (chats, chat(json!([])), 400, "messages"),
        (chats, chat(json!([{"role": "user"}])), 400, "content"),
        (chats, chat(json!("hello")), 400, "messages"),
        ("/v1/nothing", "{}".to_owned(), 404, ""),
    ];
    for (path, body, want, word) in cases {
        let shown: String = body.chars().take(80).collect();
        let response = router.post_text(path, body).await;
        let content_type = response.headers().get("content-type").expect("content-type").clone();
        assert_eq!(content_type, "application/json", "{path} {shown}");
        let (status, error) = openai::error(response).await;
        assert_eq!(status, want, "{path} {shown}: {error:?}");
        assert!(error.message.contains(word), "{path} {shown}: {word:?} is not in {error:?}");
    }
    assert_eq!(router.get(completions).await.status(), 405);
    deployment.idle(RELEASE).await;
    let after = openai::completion(router.post(completions, &completion_request(10, 1, "", 5)).await).await;
    assert_eq!(after.finish_reason, "length");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_too_many_is_told_to_come_back() {
    let deployment = tiny_plan().router(["--max-in-flight", "1"]).start().await;
    let router = deployment.router();
    let mut long = completion_request(10, 2, "", 7000);
    long["stream"] = json!(true);
    let mut first = SseBody::new(router.post("/v1/completions", &long).await);
    first.next().await.expect("a token");

    let response = router.post("/v1/completions", &completion_request(10, 3, "", 5)).await;
    let after: u32 = response.headers()["retry-after"].to_str().expect("text").parse().expect("seconds");
    assert!(after >= 1);
    let (status, error) = openai::error(response).await;
    assert_eq!(status, 429, "{error:?}");

    // When the first has gone, its place is free.
    drop(first);
    deployment.idle(RELEASE).await;
    let answer =
        openai::completion(router.post("/v1/completions", &completion_request(10, 3, "", 5)).await).await;
    assert_eq!(answer.finish_reason, "length");
}
