//! What clients get when all goes well.

use disagg_proto::v1;
use serde_json::json;

use crate::support::fake::{FakeWorker, Options, Step, says};
use crate::support::tokenizer::{BOS, EOS, byte_token};
use crate::support::{TestRouter, completion, streamed};

fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(byte_token).collect()
}

#[tokio::test]
async fn a_completion() {
    let worker = FakeWorker::decode("d0", vec![says("hello")]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let answer = router.complete("ab").await;
    insta::assert_snapshot!(answer.transcript());
    assert_eq!(answer.header("x-request-id").len(), 32);
    let asked = worker.requests().remove(0);
    let prompt = asked.prompt.unwrap();
    assert_eq!(prompt.token_ids, [vec![BOS], ids("ab")].concat());
    assert_eq!(prompt.model_fingerprint, Some(v1::Hash128 { high: 0, low: 7 }));
    assert_eq!((prompt.choices, prompt.request_id.len()), (1, 36));
    assert_eq!((asked.remote, asked.placement_reason.as_str()), (None, "below-threshold"));
}

#[tokio::test]
async fn a_streamed_completion() {
    let script = vec![Step::Started, Step::Text("hel"), Step::Text("lo"), Step::Length];
    let worker = FakeWorker::decode("d0", vec![script]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let mut body = streamed("ab");
    insta::assert_snapshot!(router.post("/v1/completions", &body).await.transcript());
    body["stream_options"] = json!({ "include_usage": true });
    let answer = router.post("/v1/completions", &body).await;
    let chunks = answer.chunks();
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["usage"]["total_tokens"], 3 + 5);
    assert_eq!(last["choices"], json!([]));
    assert!(others.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
    assert_eq!(answer.text(), "hello");
}

#[tokio::test]
async fn a_chat_whole_and_streamed() {
    let worker = FakeWorker::decode("d0", vec![says("hi €")]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let mut body = json!({ "model": "tiny", "messages": [
        { "role": "developer", "content": "Be bold." },
        { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] },
    ]});
    insta::assert_snapshot!("chat_whole", router.post("/v1/chat/completions", &body).await.transcript());
    body["stream"] = true.into();
    body["stream_options"] = json!({ "include_usage": true });
    insta::assert_snapshot!("chat_streamed", router.post("/v1/chat/completions", &body).await.transcript());

    // The begin-of-text token that the template writes is not doubled by the tokenizer.
    let turn = |text: &str| [ids(text), vec![262]].concat();
    let expected = [vec![BOS], turn("system:Be bold."), turn("user:a\nb"), ids("assistant:")].concat();
    for request in worker.requests() {
        let prompt = request.prompt.unwrap();
        assert_eq!(prompt.token_ids, expected);
        assert_eq!(prompt.stop.unwrap().max_tokens, 512 - expected.len() as u32, "as much as fits");
    }
}

#[tokio::test]
async fn no_begin_of_text_is_added_when_the_model_has_none() {
    let without = FakeWorker::start(Options { bos: false, ..Options::new("d0", vec![says("x")]) });
    let router = TestRouter::start(&[&without], &[]).await;
    router.complete("ab").await;
    assert_eq!(without.requests()[0].prompt.as_ref().unwrap().token_ids, ids("ab"));
}

#[tokio::test]
async fn token_ids_are_taken_as_they_are() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &[]).await;
    for prompt in [json!([5, 6, 7]), json!([[5, 6, 7]])] {
        let body = json!({ "model": "tiny", "prompt": prompt });
        assert_eq!(router.post("/v1/completions", &body).await.status, 200);
    }
    for request in worker.requests() {
        let prompt = request.prompt.unwrap();
        assert_eq!(prompt.token_ids, [5, 6, 7]);
        assert_eq!(prompt.stop.unwrap().max_tokens, 16, "OpenAI's default for completions");
    }
}

#[tokio::test]
async fn parameters_reach_the_worker() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let body = json!({
        "model": "tiny", "prompt": "p", "temperature": 0.5, "top_p": 0.25, "top_k": 40, "min_p": 0.125,
        "presence_penalty": -1, "frequency_penalty": 1.5, "repetition_penalty": 1.25,
        "logit_bias": { "5": -100, "6": 2.5 }, "seed": -1, "max_tokens": 20, "min_tokens": 3, "ignore_eos": true,
        "stop_token_ids": [9], "cache_salt": "mine", "n": 1, "echo": false, "user": "me", "best_of": null,
    });
    assert_eq!(router.post("/v1/completions", &body).await.status, 200);
    let prompt = worker.requests().remove(0).prompt.unwrap();
    let bias = |token_id, bias| v1::LogitBias { token_id, bias };
    let expected = v1::Sampling {
        temperature: 0.5,
        top_p: 0.25,
        top_k: 40,
        min_p: 0.125,
        presence_penalty: -1.0,
        frequency_penalty: 1.5,
        repetition_penalty: 1.25,
        logit_bias: vec![bias(5, -100.0), bias(6, 2.5)],
        seed: u64::MAX,
        top_logprobs: None,
    };
    assert_eq!(prompt.sampling.unwrap(), expected);
    let stop = v1::StopRules {
        max_tokens: 20,
        min_tokens: 3,
        eos_token_ids: vec![EOS],
        stop_token_ids: vec![9],
        ignore_eos: true,
    };
    assert_eq!((prompt.stop.unwrap(), prompt.cache_salt.as_str()), (stop, "mine"));
}

#[tokio::test]
async fn what_a_request_leaves_open_the_model_decides() {
    let advised = r#"{"temperature": 0.25, "top_k": 7, "eos_token_id": [261, 5]}"#;
    let worker =
        FakeWorker::start(Options { generation_config: advised, ..Options::new("d0", vec![says("x")]) });
    let router = TestRouter::start(&[&worker], &[]).await;
    router.complete("p").await;
    router
        .post("/v1/completions", &json!({ "model": "tiny", "prompt": "p", "temperature": 0, "top_k": -1 }))
        .await;
    let requests = worker.requests();
    let sampling = |at: usize| requests[at].prompt.as_ref().unwrap().sampling.as_ref().unwrap();
    assert_eq!((sampling(0).temperature, sampling(0).top_k, sampling(0).top_p), (0.25, 7, 1.0));
    assert_eq!((sampling(1).temperature, sampling(1).top_k), (0.0, 0));
    assert_ne!(sampling(0).seed, sampling(1).seed, "each request has a seed of its own");
    assert_eq!(requests[0].prompt.as_ref().unwrap().stop.as_ref().unwrap().eos_token_ids, [5, 261]);

    let silent =
        FakeWorker::start(Options { generation_config: "{}", ..Options::new("d1", vec![says("x")]) });
    let router = TestRouter::start(&[&silent], &[]).await;
    router.complete("p").await;
    let prompt = silent.requests().remove(0).prompt.unwrap();
    assert_eq!(prompt.sampling.unwrap().temperature, 1.0);
    assert_eq!(prompt.stop.unwrap().eos_token_ids, [EOS], "the tokenizer's own");
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_and_the_work() {
    let endless = vec![
        Step::Started,
        Step::Text("on"),
        Step::Text("e E"),
        Step::Text("N"),
        Step::Text("D two"),
        Step::Hang,
    ];
    let worker = FakeWorker::decode("d0", vec![endless]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let (mut whole, mut stream) = (completion("p"), streamed("p"));
    whole["stop"] = "END".into();
    stream["stop"] = json!(["never", "END"]);
    for (body, calls) in [(whole, 1), (stream, 2)] {
        let answer = router.post("/v1/completions", &body).await;
        assert_eq!((answer.text().as_str(), answer.status), ("one ", 200));
        assert!(answer.body.contains(r#""finish_reason":"stop""#));
        worker.until("cancelled", |seen| seen.cancelled == calls).await;
    }
}

#[tokio::test]
async fn logprobs() {
    let script = vec![Step::Started, Step::Logprobs("aé"), Step::Stop];
    let worker = FakeWorker::decode("d0", vec![script]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let mut body = completion("p");
    body["logprobs"] = 2.into();
    insta::assert_snapshot!("logprobs_completion", router.post("/v1/completions", &body).await.transcript());
    let messages = json!([{ "role": "user", "content": "p" }]);
    let body =
        json!({ "model": "tiny", "messages": messages, "logprobs": true, "top_logprobs": 2, "stream": true });
    insta::assert_snapshot!("logprobs_chat", router.post("/v1/chat/completions", &body).await.transcript());
    let asked =
        |at: usize| worker.requests()[at].prompt.as_ref().unwrap().sampling.as_ref().unwrap().top_logprobs;
    assert_eq!((asked(0), asked(1)), (Some(2), Some(2)));
}

#[tokio::test]
async fn the_model_is_listed() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &[]).await;
    router.until_ready(&[&worker]).await;
    let models = router.get("/v1/models").await.json();
    assert_eq!(models["object"], "list");
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(models["data"][0]["created"], 1_700_000_007);
    assert_eq!(router.get("/v1/models/tiny").await.json()["object"], "model");
    assert_eq!(router.get("/v1/models/org/other").await.status, 404);
}

#[tokio::test]
async fn metrics_and_status_tell_what_happened() {
    let worker = FakeWorker::decode("d0", vec![says("hello")]);
    let router = TestRouter::start(&[&worker], &[]).await;
    router.until_ready(&[&worker]).await;
    router.complete("ab").await;
    router.post("/v1/completions", &streamed("ab")).await;
    router.post("/v1/completions", &json!({ "model": "tiny" })).await;
    for line in [
        r#"disagg_router_requests_total{endpoint="completions",status="200"} 2"#,
        r#"disagg_router_requests_total{endpoint="completions",status="400"} 1"#,
        "disagg_router_requests_in_flight 0",
        r#"disagg_router_placements_total{placement="local",reason="below-threshold"} 2"#,
        r#"disagg_router_time_to_first_token_seconds_count{endpoint="completions"} 2"#,
        r#"disagg_router_inter_token_latency_seconds_count{endpoint="completions"} 2"#,
        // The third is refused once it has been read.
        r#"disagg_router_request_stage_seconds_count{stage="read"} 3"#,
        r#"disagg_router_request_stage_seconds_count{stage="parse"} 2"#,
        r#"disagg_router_request_stage_seconds_count{stage="text_queue"} 3"#,
        r#"disagg_router_request_stage_seconds_count{stage="tokenize"} 2"#,
        r#"disagg_router_request_stage_seconds_count{stage="choose"} 2"#,
        r#"disagg_router_request_stage_seconds_count{stage="worker"} 2"#,
        "disagg_router_completion_tokens_total 12",
        r#"disagg_router_workers{role="decode",state="ready"} 1"#,
        "disagg_router_settings_valid 1",
    ] {
        router.until_metric(line).await;
    }
    let status = router.worker(worker.address).await;
    for (field, value) in [
        ("name", json!("d0")),
        ("epoch", json!("0000000000000001")),
        ("role", json!("decode")),
        ("model", json!("tiny")),
        ("in_flight", json!(0)),
        ("problem", json!(null)),
        ("transports", json!(["tcp"])),
    ] {
        assert_eq!(status[field], value, "{field}");
    }
    assert_eq!(status["load"]["blocks_total"], 1000);
}
