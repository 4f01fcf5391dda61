//! What clients get when a request cannot be served as it is.

use serde_json::{Value, json};

use crate::support::TestRouter;
use crate::support::fake::{FakeWorker, Step, says};

#[tokio::test]
async fn every_bad_field_is_named() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let ok = json!({ "model": "tiny", "prompt": "p" });
    let mut report = String::new();
    for change in [
        json!({ "temprature": 1 }),
        json!({ "temperature": 2.5 }),
        json!({ "temperature": "hot" }),
        json!({ "top_p": 0 }),
        json!({ "top_k": -2 }),
        json!({ "min_p": 1.5 }),
        json!({ "presence_penalty": 3 }),
        json!({ "repetition_penalty": 0 }),
        json!({ "n": 0 }),
        json!({ "n": 129 }),
        json!({ "n": 100, "prompt": ["a", "b", "c"] }),
        json!({ "best_of": 2 }),
        json!({ "best_of": 2, "n": 3 }),
        json!({ "echo": true, "logprobs": 1 }),
        json!({ "echo": 1 }),
        json!({ "suffix": "end" }),
        json!({ "seed": 1.5 }),
        json!({ "max_tokens": 0 }),
        json!({ "max_tokens": 600 }),
        json!({ "min_tokens": 17 }),
        json!({ "logit_bias": { "abc": 1 } }),
        json!({ "logit_bias": { "263": 1 } }),
        json!({ "logprobs": 21 }),
        json!({ "stop": ["", "x"] }),
        json!({ "stop_token_ids": [-1] }),
        json!({ "stream_options": { "include_usage": true } }),
        json!({ "stream": true, "stream_options": { "usage": true } }),
        json!({ "stream": true, "stream_options": { "include_obfuscation": true } }),
        json!({ "prompt_logprobs": 1 }),
        json!({ "use_beam_search": true }),
        json!({ "guided_json": {} }),
        json!({ "structured_outputs": {} }),
        json!({ "add_special_tokens": "no" }),
        json!({ "prompt": null }),
        json!({ "prompt": ["a", 1] }),
        json!({ "prompt": [] }),
        json!({ "prompt": [[1], []] }),
        json!({ "prompt": [263] }),
        json!({ "prompt": [[1], [263]] }),
        json!({ "prompt": ["a", "x".repeat(600)] }),
        json!({ "prompt": "x".repeat(600) }),
        json!({ "prompt": vec![1; 512] }),
        json!({ "model": null }),
        json!({ "model": "other" }),
    ] {
        let mut body = ok.clone();
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        let answer = router.post("/v1/completions", &body).await;
        let mut shown = change.to_string();
        shown.truncate(60);
        report.push_str(&format!("{shown}\n  {} {}\n", answer.status, answer.json()["error"]));
    }
    insta::assert_snapshot!(report);
    assert_eq!(worker.requests().len(), 0);
}

#[tokio::test]
async fn every_bad_field_of_a_chat_is_named() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let user = json!([{ "role": "user", "content": "p" }]);
    let mut report = String::new();
    for change in [
        json!({ "messages": [] }),
        json!({ "messages": null }),
        json!({ "messages": "hi" }),
        json!({ "messages": [{ "role": "robot", "content": "p" }] }),
        json!({ "messages": [{ "role": "user" }] }),
        json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }] }),
        json!({ "messages": [{ "role": "user", "content": "p", "mood": "good" }] }),
        json!({ "messages": [{ "role": "user", "content": [] }] }),
        json!({ "messages": [{ "role": "user", "content": 5 }] }),
        json!({ "messages": [{ "role": "user", "content": [{ "type": "text" }] }] }),
        json!({ "messages": [{ "role": "assistant", "content": null, "tool_calls": [{}] }] }),
        json!({ "messages": [{ "role": "assistant", "content": null, "tool_calls": null }] }),
        json!({ "messages": [{ "role": "assistant", "content": null, "refusal": "No." }] }),
        json!({ "messages": [{ "role": "assistant", "content": "p", "annotations": [{}] }] }),
        json!({ "messages": [{ "role": "tool", "content": "p", "tool_call_id": 5 }] }),
        json!({ "tools": [{ "type": "function" }] }),
        json!({ "response_format": { "type": "json_object" } }),
        json!({ "tool_choice": "required" }),
        json!({ "reasoning_effort": "high" }),
        json!({ "chat_template": "{{ messages }}" }),
        json!({ "continue_final_message": true }),
        json!({ "prompt_cache_retention": "24h" }),
        json!({ "store": true }),
        json!({ "n": 0 }),
        json!({ "echo": true }),
        json!({ "max_tokens": 5, "max_completion_tokens": 6 }),
        json!({ "max_completion_tokens": 600 }),
        json!({ "top_logprobs": 3 }),
        json!({ "logprobs": 3 }),
        json!({ "messages": [{ "role": "user", "content": "x".repeat(600) }] }),
    ] {
        let mut body = json!({ "model": "tiny", "messages": user });
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        let answer = router.post("/v1/chat/completions", &body).await;
        let mut shown = change.to_string();
        shown.truncate(90);
        report.push_str(&format!("{shown}\n  {} {}\n", answer.status, answer.json()["error"]));
    }
    insta::assert_snapshot!(report);
    assert_eq!(worker.requests().len(), 0);
}

#[tokio::test]
async fn what_asks_for_nothing_is_accepted() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let body = json!({
        "model": "tiny", "messages": [{ "role": "user", "content": "p", "name": "me" }], "n": null, "tools": [],
        "tool_choice": "none", "response_format": { "type": "text" }, "max_tokens": 5, "max_completion_tokens": 5,
        "stop": null, "seed": null, "logit_bias": null, "stream": false, "stream_options": null, "store": false,
        "safety_identifier": "me", "prompt_cache_key": "k", "user": "me", "metadata": {}, "verbosity": "medium",
        "parallel_tool_calls": true, "service_tier": "auto", "priority": 0, "spaces_between_special_tokens": true,
    });
    assert_eq!(router.post("/v1/chat/completions", &body).await.status, 200);
    let body =
        json!({ "model": "tiny", "prompt": "p", "n": 2, "best_of": 2, "suffix": "", "stream_options": null });
    let two = FakeWorker::decode("d0", vec![vec![Step::Started, Step::Ends(0), Step::Ends(1)]]);
    let router = TestRouter::start(&[&two], &[]).await;
    assert_eq!(router.post("/v1/completions", &body).await.status, 200);
}

/// What openai-python's `model_dump()` and vLLM's answers have in every message, and a client's own `null`s.
#[tokio::test]
async fn fields_that_are_null_are_as_absent_everywhere() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let dumped = json!({
        "role": "assistant", "content": "a", "refusal": null, "annotations": [], "audio": null, "function_call": null,
        "tool_calls": null, "reasoning_content": null, "reasoning": null, "name": null, "tool_call_id": null,
        "of_the_future": null,
    });
    let parts = json!([{ "type": "text", "text": "u", "annotations": null, "of_the_future": null }]);
    let mut body = json!({
        "model": "tiny", "of_the_future": null, "stream": true,
        "stream_options": { "include_usage": null, "of_the_future": null },
        "messages": [{ "role": "user", "content": parts }, dumped, { "role": "user", "content": "v" }],
    });
    assert_eq!(router.post("/v1/chat/completions", &body).await.status, 200);
    body["messages"] = json!([
        { "role": "user", "content": "u" }, { "role": "assistant", "content": "a" }, { "role": "user", "content": "v" },
    ]);
    assert_eq!(router.post("/v1/chat/completions", &body).await.status, 200);
    let prompts: Vec<_> =
        worker.requests().into_iter().map(|request| request.prompt.unwrap().token_ids).collect();
    assert_eq!(prompts[0], prompts[1]);

    let body = json!({ "model": "tiny", "prompt": "p", "of_the_future": null, "suffix": null });
    assert_eq!(router.post("/v1/completions", &body).await.status, 200);
}

#[tokio::test]
async fn half_a_surrogate_pair_is_called_that() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let message = r#"{"model": "tiny", "messages": [{"role": "user", "content": "\ud83dX"}]}"#;
    let part = r#"{"model": "tiny", "messages": [{"role": "user", "content": [{"type": "text", "text": "\ude00"}]}]}"#;
    for (path, body, param) in [
        ("/v1/completions", r#"{"model": "tiny", "prompt": "a\ud83d"}"#, "prompt"),
        ("/v1/completions", r#"{"model": "tiny", "prompt": ["a", "\ud83d\ud83d"]}"#, "prompt"),
        ("/v1/completions", r#"{"model": "tiny", "prompt": "a", "stop": "\udfff"}"#, "stop"),
        ("/v1/chat/completions", message, "messages[0].content"),
        ("/v1/chat/completions", part, "messages[0].content[0].text"),
    ] {
        let answer = router.post_raw(path, body.to_owned()).await;
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, error["param"].as_str()), (400, Some(param)), "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("half of a surrogate pair"), "{message}");
    }
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &["--max-body-bytes", "2000"]).await;
    let error = |value: Value| value["error"]["code"].as_str().unwrap().to_owned();
    for (body, status, code) in [
        ("{", 400, "invalid_json"),
        ("[]", 400, "invalid_json"),
        ("", 400, "invalid_json"),
        ("\u{0}", 400, "invalid_json"),
        (&*format!(r#"{{"model": "tiny", "prompt": "{}"}}"#, "x".repeat(2000)), 413, "request_too_large"),
    ] {
        let answer = router.post_raw("/v1/completions", body.to_owned()).await;
        assert_eq!((answer.status, error(answer.json()).as_str()), (status, code), "{body}");
    }
    let unknown = router.get("/v1/nothing").await;
    assert_eq!((unknown.status, error(unknown.json()).as_str()), (404, "unknown_url"));
    let wrong = router.get("/v1/completions").await;
    assert_eq!((wrong.status, error(wrong.json()).as_str()), (405, "method_not_allowed"));
}
