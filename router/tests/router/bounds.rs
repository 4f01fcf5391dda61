//! What one client can take from the others: nothing beyond its bounds, whatever it sends or leaves unread.

use std::time::Instant;

use serde_json::{Value, json};

use crate::support::fake::{FakeWorker, Step, says};
use crate::support::raw::RawClient;
use crate::support::{SOON, TestRouter, completion, streamed};

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn only_json_is_taken() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let body = completion("p").to_string();
    for path in ["/v1/completions", "/v1/chat/completions"] {
        for refused in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
        {
            let answer = router.post_as(refused, path, body.clone()).await;
            let code = answer.json()["error"]["code"].clone();
            assert_eq!((answer.status, code.as_str()), (415, Some("unsupported_content_type")));
        }
    }
    let refused = router.post_as("text/plain", "/v1/completions", "").await;
    insta::assert_snapshot!(refused.json()["error"].to_string());
    let answer = router.post_as("application/json; charset=utf-8", "/v1/completions", body).await;
    assert_eq!(answer.status, 200);
    // Nothing of the body is waited for.
    for headers in [&["content-type: text/plain", "content-length: 1000"][..], &["content-length: 1000"]] {
        let mut client = RawClient::post(router.address, "/v1/completions", headers).await;
        let answer = client.read_until("}}").await;
        assert!(answer.starts_with("HTTP/1.1 415 "), "{answer}");
    }
    assert_eq!(worker.requests().len(), 1);
}

#[tokio::test]
async fn a_body_that_is_announced_too_large_is_refused_at_once() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &[]).await;
    for length in [8 * MIB + 1, 1 << 40] {
        let answer = RawClient::completion(router.address, length).await.read_until("}}").await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }
    // Who asks first is not told to go on.
    let expecting = async |length: usize| {
        let length = format!("content-length: {length}");
        let headers = ["content-type: application/json", "expect: 100-continue", &length];
        RawClient::post(router.address, "/v1/completions", &headers).await
    };
    let answer = expecting(8 * MIB + 1).await.read_until("}}").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let body = completion("p").to_string();
    let mut client = expecting(body.len()).await;
    assert_eq!(client.read_until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send(body.as_bytes()).await;
    let answer = client.read_until("}}").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn every_choice_counts() {
    let three =
        vec![Step::Started, Step::Says(0, "a"), Step::Gate, Step::Ends(0), Step::Ends(1), Step::Ends(2)];
    let worker = FakeWorker::decode("d0", vec![three, says("x")]);
    let router = TestRouter::start(&[&worker], &["--max-in-flight", "4"]).await;
    let with = |prompt: Value, n: u32| json!({ "model": "tiny", "prompt": prompt, "n": n });
    // More than there can ever be: refused by the field's name.
    let mut refusals = String::new();
    let (five, three) = (json!(["a", "b", "c", "d", "e"]), json!(["a", "b", "c"]));
    for body in [with(json!("p"), 5), with(five, 1), with(three, 2)] {
        let answer = router.post("/v1/completions", &body).await;
        assert_eq!(answer.status, 400);
        refusals.push_str(&format!("{}\n", answer.json()["error"]));
    }
    insta::assert_snapshot!(refusals);
    let held = router.spawn_complete(with(json!("p"), 3));
    router.until_metric("disagg_router_choices_in_flight 3").await;
    worker.until("asked", |seen| seen.requests.len() == 1).await;
    let refused = router.post("/v1/completions", &with(json!("p"), 2)).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, "1"));
    assert_eq!(router.complete("p").await.status, 200, "there is room for one");
    worker.open_gate();
    assert_eq!(held.await.unwrap().status, 200);
    router.until_idle().await;
}

/// A handful of requests with many choices each fills what may be in progress, but for a quarter.
#[tokio::test]
async fn many_choices_leave_room() {
    let open = |choices: u32| {
        let ends = (0..choices).map(Step::Ends);
        [Step::Started, Step::Says(0, "a"), Step::Gate].into_iter().chain(ends).collect::<Vec<_>>()
    };
    let worker = FakeWorker::decode("d0", vec![open(12), open(12), open(8), open(8)]);
    let router = TestRouter::start(&[&worker], &["--max-in-flight", "40"]).await;
    let with = |n: u32| json!({ "model": "tiny", "prompt": "p", "n": n });
    let mut held = Vec::new();
    let mut in_flight = 0;
    // The third of 12 would leave 4 of 40.
    for (choices, fits) in [(12, true), (12, true), (12, false), (8, true), (8, true)] {
        if !fits {
            let refused = router.post("/v1/completions", &with(choices)).await;
            assert_eq!((refused.status, refused.header("retry-after")), (429, "1"));
            continue;
        }
        held.push(router.spawn_complete(with(choices)));
        in_flight += choices;
        router.until_metric(&format!("disagg_router_choices_in_flight {in_flight}")).await;
        // The worker answers in the order in which it is asked.
        worker.until("asked", |seen| seen.requests.len() == held.len()).await;
    }
    worker.open_gate();
    for answer in held {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    router.until_idle().await;
}

#[tokio::test]
async fn slow_bodies_keep_nobody_out() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &["--max-in-flight", "2"]).await;
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut client = RawClient::completion(router.address, 1000).await;
        client.send(b"{\"model\":").await;
        slow.push(client);
    }
    router.until_metric("disagg_router_bodies_arriving 50").await;
    assert_eq!(router.complete("p").await.status, 200);
    // They are given up by themselves.
    let answer = slow.remove(0).read_until("}}").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    drop(slow);
    router.until_idle().await;
}

#[tokio::test]
async fn memory_that_is_full_refuses_and_recovers() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &["--max-request-memory-mib", "64"]).await;
    // Large bodies, all but their last byte: together the three quarters that large requests may take.
    let mut open = Vec::new();
    for _ in 0..6 {
        let mut client = RawClient::completion(router.address, 8 * MIB).await;
        client.send(&vec![b' '; 8 * MIB - 1]).await;
        open.push(client);
    }
    router.until_metric(&format!("disagg_router_request_memory_bytes {}", 6 * (8 * MIB - 1))).await;
    let large = vec![b' '; 4 * MIB];
    let refused = router.post_raw("/v1/completions", large.clone()).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"));
    insta::assert_snapshot!(refused.json()["error"].to_string());
    // The rest is for those who want little.
    assert_eq!(router.complete("p").await.status, 200);
    drop(open);
    router.until_idle().await;
    let answer = router.post_raw("/v1/completions", large).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (400, Some("invalid_json")));
}

/// A message of many tokens, each of them nearly two hundred bytes of a chat's answer.
fn much() -> Step {
    Step::Logprobs(Box::leak("0123456789".repeat(400).into_boxed_str()))
}

#[tokio::test]
async fn an_answer_that_is_not_read_counts_until_its_reader_is_cut() {
    for stream in [false, true] {
        // More than the kernel keeps for the two ends of a connection.
        let script = [vec![Step::Started], vec![much(); 6], vec![Step::Stop]].concat();
        let worker = FakeWorker::decode("d0", vec![script, says("other")]);
        let flags = ["--max-in-flight", "1", "--reader-timeout-seconds", "4"];
        let router = TestRouter::start(&[&worker], &flags).await;
        let text = json!({
            "model": "tiny", "messages": [{ "role": "user", "content": "p" }], "stream": stream, "logprobs": true,
            "top_logprobs": 2,
        })
        .to_string();
        let mut unread = RawClient::json(router.address, "/v1/chat/completions", text.len()).await;
        unread.send(text.as_bytes()).await;
        worker.until("asked", |seen| seen.requests.len() == 1).await;
        let begun = Instant::now();
        loop {
            let held = router.metric("disagg_router_request_memory_bytes").await;
            if worker.seen().messages >= 7 && held >= MIB as f64 {
                break;
            }
            assert!(begun.elapsed() < SOON, "the answer is never held: {held} bytes");
        }
        // The worker has said nearly all; the answer still is one in progress.
        assert_eq!(router.complete("p").await.status, 429, "stream: {stream}");
        router
            .until_metric(
                r#"disagg_router_requests_total{endpoint="chat_completions",status="reader_timeout"} 1"#,
            )
            .await;
        router.until_metric("disagg_router_choices_in_flight 0").await;
        assert_eq!(router.complete("p").await.text(), "other");
        drop(unread);
        router.until_idle().await;
    }
}

#[tokio::test]
async fn a_whole_answer_that_would_take_all_memory_is_ended() {
    let endless = [vec![Step::Started], vec![much(); 50], vec![Step::Stop]].concat();
    let worker = FakeWorker::decode("d0", vec![endless, says("x")]);
    let flags = ["--max-request-memory-mib", "16", "--max-body-bytes", "1048576"];
    let router = TestRouter::start(&[&worker], &flags).await;
    let mut body = completion("p");
    body["logprobs"] = 2.into();
    let answer = router.post("/v1/completions", &body).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (400, Some("answer_too_large")));
    worker.until("cancelled", |seen| seen.cancelled == 1).await;
    router.until_idle().await;
    assert_eq!(router.complete("p").await.status, 200);
}

/// What cannot fit the model is refused before it is tokenized, and what there are too many of before it is parsed.
#[tokio::test]
async fn huge_prompts_cost_next_to_nothing() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &[]).await;
    router.until_ready(&[&worker]).await;
    let message = r#"{"role":"user","content":"x"}"#;
    let list = |entry: &str| format!("[{}]", vec![entry; (7 * MIB) / (entry.len() + 1)].join(","));
    let text = format!("\"{}\"", "the \u{e9}".repeat(MIB));
    let chat = format!(r#"[{{"role":"user","content":{text}}}]"#);
    for (path, field, value, code) in [
        ("completions", "prompt", text, "context_length_exceeded"),
        ("completions", "prompt", list("1"), "context_length_exceeded"),
        ("completions", "prompt", list("[1]"), "invalid_value"),
        ("completions", "prompt", list("\"a\""), "invalid_value"),
        ("chat/completions", "messages", list(message), "invalid_value"),
        ("chat/completions", "messages", chat, "context_length_exceeded"),
    ] {
        let body = format!(r#"{{"model":"tiny","{field}":{value}}}"#);
        let answer = router.post_raw(&format!("/v1/{path}"), body).await;
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, error["code"].as_str()), (400, Some(code)), "{path}: {error}");
        assert_eq!(error["param"], field);
    }
    let tokenized = r#"disagg_router_request_stage_seconds_count{stage="tokenize"}"#;
    assert_eq!(router.metric(tokenized).await, 0.0);
    router.until_idle().await;
    assert_eq!(router.complete("p").await.status, 200);
    assert_eq!(router.metric(tokenized).await, 1.0);
}

/// Whatever becomes of a request, what it held is given back.
#[tokio::test]
async fn nothing_is_left_of_any_request() {
    let scripts = vec![
        says("text"),
        vec![Step::Started, Step::Error],
        vec![Step::Started, Step::Error],
        vec![Step::Fail(tonic::Code::InvalidArgument)],
        vec![Step::Started, Step::Text("begun"), Step::Error],
        vec![Step::Started, Step::Text("begun"), Step::Hang],
        vec![Step::Started, Step::Hang],
        says("last"),
    ];
    let worker = FakeWorker::decode("d0", scripts);
    let router = TestRouter::start(&[&worker], &[]).await;
    router.until_ready(&[&worker]).await;
    let mut statuses = Vec::new();
    for body in [completion("p"), completion("p"), completion("p"), streamed("p")] {
        statuses.push(router.post("/v1/completions", &body).await.status);
    }
    assert_eq!(statuses, [200, 502, 400, 200]);
    // A stream and a whole answer whose clients go away.
    for (body, asked) in [(streamed("p"), 6), (completion("p"), 7)] {
        let given_up = router.spawn_complete(body);
        worker.until("asked", |seen| seen.requests.len() == asked).await;
        given_up.abort();
        worker.until("cancelled", |seen| seen.cancelled == asked - 5).await;
    }
    for body in [json!({}), json!({ "model": "other", "prompt": "p" }), completion(&"x".repeat(600))] {
        assert!(router.post("/v1/completions", &body).await.status >= 400);
    }
    let mut half = RawClient::completion(router.address, 100).await;
    half.send(b"{").await;
    router.until_metric("disagg_router_bodies_arriving 1").await;
    drop(half);
    router.until_idle().await;
    assert_eq!(router.complete("p").await.text(), "last");
    router.until_idle().await;
}
