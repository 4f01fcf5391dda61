//! Several choices, several prompts, and prompts that are echoed.

use serde_json::{Value, json};

use crate::support::fake::{FakeWorker, Step};
use crate::support::tokenizer::byte_token;
use crate::support::{Answer, TestRouter, completion};

/// Two choices whose tokens come mixed.
fn two_choices() -> Vec<Step> {
    vec![
        Step::Started,
        Step::Says(1, "b1"),
        Step::Says(0, "a1"),
        Step::Says(1, " b2"),
        Step::Ends(1),
        Step::Says(0, " a2"),
        Step::Ends(0),
    ]
}

/// Repeats its prompt and ends.
fn repeats() -> Vec<Step> {
    vec![Step::Started, Step::Repeat, Step::Length]
}

/// The texts of a completion by index, streamed or not.
fn texts(answer: &Answer) -> Vec<String> {
    let answers = if answer.body.starts_with("data:") { answer.chunks() } else { vec![answer.json()] };
    let mut texts: Vec<String> = Vec::new();
    for choice in answers.iter().flat_map(|answer| answer["choices"].as_array().expect("choices")) {
        let index = choice["index"].as_u64().expect("an index") as usize;
        texts.resize(texts.len().max(index + 1), String::new());
        texts[index].push_str(choice["text"].as_str().expect("text"));
    }
    texts
}

fn with(mut body: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else { panic!("fields: {fields}") };
    for (name, value) in fields {
        body[name] = value;
    }
    body
}

#[tokio::test]
async fn two_choices_of_a_chat() {
    let worker = FakeWorker::decode("d0", vec![two_choices()]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let messages = json!([{ "role": "user", "content": "p" }]);
    let body = json!({ "model": "tiny", "messages": messages, "n": 2 });
    insta::assert_snapshot!("chat_whole", router.post("/v1/chat/completions", &body).await.transcript());
    let body = with(body, json!({ "stream": true, "stream_options": { "include_usage": true } }));
    insta::assert_snapshot!("chat_streamed", router.post("/v1/chat/completions", &body).await.transcript());
    assert_eq!(worker.requests()[0].prompt.as_ref().unwrap().choices, 2);
}

#[tokio::test]
async fn two_choices_of_a_completion() {
    let worker = FakeWorker::decode("d0", vec![two_choices()]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let body = with(completion("p"), json!({ "n": 2, "echo": true }));
    let whole = router.post("/v1/completions", &body).await;
    assert_eq!(texts(&whole), ["pa1 a2", "pb1 b2"]);
    let usage = &whole.json()["usage"];
    assert_eq!((usage["prompt_tokens"].as_u64(), usage["completion_tokens"].as_u64()), (Some(2), Some(10)));
    let body = with(body, json!({ "stream": true }));
    insta::assert_snapshot!("completion_streamed", router.post("/v1/completions", &body).await.transcript());
    // One time to first token a request, and one gap for each choice.
    router.until_metric(r#"disagg_router_time_to_first_token_seconds_count{endpoint="completions"} 2"#).await;
    router.until_metric(r#"disagg_router_inter_token_latency_seconds_count{endpoint="completions"} 4"#).await;
}

#[tokio::test]
async fn prompts_of_a_batch_are_answered_in_their_order() {
    let worker = FakeWorker::decode("d0", vec![repeats()]);
    let router = TestRouter::start(&[&worker], &[]).await;
    for prompts in [json!(["one", "two", "three"]), json!([ids("one"), ids("two"), ids("three")])] {
        for stream in [false, true] {
            let options = json!({ "prompt": prompts, "stream": stream, "skip_special_tokens": true });
            let answer = router.post("/v1/completions", &with(completion(""), options)).await;
            assert_eq!(texts(&answer), ["one", "two", "three"]);
            assert_eq!(answer.header("x-disagg-placement").split(", ").count(), 3);
        }
    }
    let bodies = router.post("/v1/completions", &with(completion(""), json!({ "prompt": ["a", "a"] }))).await;
    // Each text begins with the begin-of-text token.
    assert_eq!(
        bodies.json()["usage"],
        json!({
            "prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8,
            "prompt_tokens_details": { "cached_tokens": 0 },
        })
    );
    let requests = worker.requests();
    let [.., first, second] = requests.as_slice() else { panic!("two") };
    let seed =
        |at: &disagg_proto::v1::GenerateRequest| at.prompt.as_ref().unwrap().sampling.as_ref().unwrap().seed;
    assert_ne!(seed(first), seed(second), "equal prompts draw different tokens");
}

fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(byte_token).collect()
}

#[tokio::test]
async fn choices_of_a_batch_are_counted_prompt_by_prompt() {
    let script = vec![Step::Started, Step::Repeat, Step::Says(1, "!"), Step::Ends(1), Step::Ends(0)];
    let worker = FakeWorker::decode("d0", vec![script]);
    let router = TestRouter::start(&[&worker], &[]).await;
    for stream in [false, true] {
        let options = json!({ "prompt": ["x", "y"], "n": 2, "echo": true, "stream": stream });
        let answer = router.post("/v1/completions", &with(completion(""), options)).await;
        assert_eq!(texts(&answer), ["xx", "x!", "yy", "y!"]);
    }
}

#[tokio::test]
async fn an_echo_is_the_prompt_as_it_was_sent() {
    let worker =
        FakeWorker::decode("d0", vec![vec![Step::Started, Step::Text("!"), Step::Text("?"), Step::Length]]);
    let router = TestRouter::start(&[&worker], &[]).await;
    for (prompt, shown) in [(json!("Grüße € "), "Grüße € "), (json!(ids("Grüße")), "Grüße")] {
        for stream in [false, true] {
            // A stop string counts in the output alone.
            let options = json!({ "prompt": prompt, "echo": true, "stream": stream, "stop": "ü" });
            let answer = router.post("/v1/completions", &with(completion(""), options)).await;
            assert_eq!(texts(&answer), [format!("{shown}!?")]);
        }
    }
}

#[tokio::test]
async fn a_stop_string_ends_one_choice_alone() {
    let script = vec![
        Step::Started,
        Step::Says(0, "oneEND"),
        Step::Says(1, "two"),
        Step::Says(0, " late"),
        Step::Says(1, "EN"),
        Step::Ends(0),
        Step::Ends(1),
    ];
    let worker = FakeWorker::decode("d0", vec![script]);
    let router = TestRouter::start(&[&worker], &[]).await;
    for stream in [false, true] {
        let body = with(completion("p"), json!({ "n": 2, "stop": "END", "stream": stream }));
        let answer = router.post("/v1/completions", &body).await;
        assert_eq!(texts(&answer), ["one", "twoEN"]);
        let ends = if stream { answer.chunks() } else { vec![answer.json()] };
        let ends: Vec<&Value> = ends
            .iter()
            .flat_map(|chunk| chunk["choices"].as_array().expect("choices"))
            .map(|choice| &choice["finish_reason"])
            .filter(|reason| !reason.is_null())
            .collect();
        assert_eq!(ends, ["stop", "length"]);
    }
}

#[tokio::test]
async fn a_choice_that_was_not_asked_for_breaks_the_contract() {
    let worker = FakeWorker::decode("d0", vec![vec![Step::Started, Step::Says(1, "x"), Step::Length]]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let answer = router.complete("p").await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (502, Some("worker_failed")));
}

#[tokio::test]
async fn one_error_ends_all_choices_that_are_open() {
    let script = vec![
        Step::Started,
        Step::Says(0, "a"),
        Step::Says(1, "b"),
        Step::Ends(1),
        Step::Says(2, "c"),
        Step::Error,
    ];
    let worker = FakeWorker::decode("d0", vec![script]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let body = with(completion("p"), json!({ "n": 3, "stream": true }));
    let answer = router.post("/v1/completions", &body).await;
    let chunks = answer.chunks();
    let last = chunks.last().expect("chunks");
    assert_eq!(last["error"]["code"], "worker_failed");
    let ended: Vec<_> = last["choices"].as_array().unwrap().iter().map(|choice| &choice["index"]).collect();
    assert_eq!(ended, [0, 2]);
    assert_eq!(chunks.iter().filter(|chunk| chunk.get("error").is_some()).count(), 1);
}

#[tokio::test]
async fn a_prompt_that_fails_fails_the_batch_and_cancels_the_others() {
    let hangs = vec![Step::Started, Step::Hang];
    let worker = FakeWorker::decode("d0", vec![hangs]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let body = with(completion(""), json!({ "prompt": [[1, 2], vec![1; 511]], "max_tokens": 2 }));
    let answer = router.post("/v1/completions", &body).await;
    assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (400, Some("max_tokens")));
    router.until_metric("disagg_router_requests_in_flight 0").await;
    let sent = worker.requests().len();
    worker.until("the other cancelled", |seen| seen.cancelled == sent).await;
}

#[tokio::test]
async fn each_prompt_of_a_batch_counts_as_a_request_in_progress() {
    let gated = vec![Step::Started, Step::Text("a"), Step::Gate, Step::Length];
    let worker = FakeWorker::decode("d0", vec![gated]);
    let router = TestRouter::start(&[&worker], &["--max-in-flight", "3"]).await;
    let batch = |prompts: usize| with(completion(""), json!({ "prompt": vec!["x"; prompts] }));
    let too_many = router.post("/v1/completions", &batch(4)).await;
    assert_eq!((too_many.status, too_many.json()["error"]["param"].as_str()), (400, Some("prompt")));
    let held = router.spawn_complete(batch(2));
    worker.until("both asked", |seen| seen.requests.len() == 2).await;
    let refused = router.post("/v1/completions", &batch(2)).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, "1"));
    let one = router.spawn_complete(batch(1));
    worker.until("one more asked", |seen| seen.requests.len() == 3).await;
    worker.open_gate();
    assert_eq!((held.await.unwrap().status, one.await.unwrap().status), (200, 200));
    router.until_metric("disagg_router_requests_in_flight 0").await;
    assert_eq!(router.post("/v1/completions", &batch(3)).await.status, 200);
}
