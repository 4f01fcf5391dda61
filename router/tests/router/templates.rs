//! Chat templates as clients notice them: what reaches a template, what a request may not change of it, and whose fault
//! an error is.

use serde_json::{Value, json};

use crate::support::TestRouter;
use crate::support::fake::{FakeWorker, Options, says};
use crate::support::tokenizer::{BOS, byte_token};

/// The token ids of a text without the tokenizer's merges.
fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(byte_token).collect()
}

async fn serving(chat_template: &'static str) -> (FakeWorker, TestRouter) {
    let worker =
        FakeWorker::start(Options { chat_template, bos: false, ..Options::new("d0", vec![says("x")]) });
    let router = TestRouter::start(&[&worker], &[]).await;
    (worker, router)
}

fn prompt(worker: &FakeWorker) -> Vec<u32> {
    worker.requests().pop().unwrap().prompt.unwrap().token_ids
}

fn chat(kwargs: &Value) -> Value {
    json!({ "model": "tiny", "messages": [{ "role": "user", "content": "hi" }], "chat_template_kwargs": kwargs })
}

#[tokio::test]
async fn objects_keep_the_order_of_their_keys() {
    let (worker, router) =
        serving("{{ messages[0] | tojson }}|{{ d | tojson }}|{{ d.items() | list }}").await;
    let message = r#"{"content": "hi", "name": "ann", "role": "user"}"#;
    let body = format!(
        r#"{{"model": "tiny", "messages": [{message}], "chat_template_kwargs": {{"d": {{"z": 1, "a": {{"y": 2, "b": 3}}}}}}}}"#
    );
    assert_eq!(router.post_raw("/v1/chat/completions", body).await.status, 200);
    let text =
        format!(r#"{message}|{{"z": 1, "a": {{"y": 2, "b": 3}}}}|[('z', 1), ('a', {{'y': 2, 'b': 3}})]"#);
    assert_eq!(prompt(&worker), ids(&text));
}

#[tokio::test]
async fn a_variable_of_the_request_acts_or_is_refused_by_name() {
    let (worker, router) = serving("{{ tone }}|{{ bos_token }}|{{ tools }}").await;
    let answer = router.post("/v1/chat/completions", &chat(&json!({ "tone": "warm" }))).await;
    assert_eq!(answer.status, 200);
    assert_eq!(prompt(&worker), [ids("warm|"), vec![BOS], ids("|None")].concat());
    for name in [
        "messages",
        "add_generation_prompt",
        "tools",
        "documents",
        "bos_token",
        "eos_token",
        "image_token",
        "raise_exception",
        "strftime_now",
        "namespace",
        "range",
        "dict",
        "loop",
        "none",
        "chat_template",
        "continue_final_message",
        "tokenize",
        "_op",
        ".rendering",
        "",
    ] {
        let answer = router.post("/v1/chat/completions", &chat(&json!({ "tone": 1, name: "mine" }))).await;
        let error = &answer.json()["error"];
        assert_eq!(answer.status, 400, "{name}: {error}");
        // A name that is no name is shown in the message.
        let named = name.starts_with(|first: char| first.is_ascii_lowercase());
        let param =
            if named { format!("chat_template_kwargs.{name}") } else { "chat_template_kwargs".to_owned() };
        assert_eq!(error["param"], param, "{error}");
        assert_eq!(error["code"], "invalid_value");
    }
    assert_eq!(worker.requests().len(), 1);
}

#[tokio::test]
async fn a_refusal_is_the_clients_and_an_error_the_models() {
    let (worker, router) = serving(
        "{% if fault == 'raise' %}{{ raise_exception('Roles must alternate') }}\
         {% elif fault == 'type' %}\n{{ 1 + 'a' }}{% elif fault == 'none' %}{% for x in none %}{% endfor %}\
         {% elif fault == 'long' %}{{ 'x' * 10 ** 9 }}{% endif %}ok",
    )
    .await;
    let send = async |fault: &str| {
        let answer = router.post("/v1/chat/completions", &chat(&json!({ "fault": fault }))).await;
        (answer.status, answer.json()["error"].clone())
    };
    let (status, error) = send("raise").await;
    assert_eq!(
        (status, &error["code"], &error["param"]),
        (400, &json!("invalid_messages"), &json!("messages"))
    );
    assert!(error["message"].as_str().unwrap().ends_with(": Roles must alternate"), "{error}");
    for (fault, says) in [("type", "unsupported operand"), ("none", "'NoneType' object is not iterable")] {
        let (status, error) = send(fault).await;
        assert_eq!(
            (status, &error["type"], &error["code"]),
            (500, &json!("server_error"), &json!("chat_template_error"))
        );
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("`tiny`") && message.contains(says), "{message}");
    }
    let (status, error) = send("long").await;
    assert_eq!((status, &error["code"]), (400, &json!("chat_template_limit")));
    assert_eq!(send("no").await.0, 200);
    assert_eq!(prompt(&worker), ids("ok"));
}

#[tokio::test]
async fn requests_that_burn_end_and_others_go_on() {
    let (_worker, router) = serving(
        "{% if burn %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}ok",
    )
    .await;
    // More of them than there are threads for text.
    let burning = chat(&json!({ "burn": true }));
    let burn = || router.post("/v1/chat/completions", &burning);
    let honest = chat(&json!({}));
    let (a, b, c, d, after) =
        tokio::join!(burn(), burn(), burn(), burn(), router.post("/v1/chat/completions", &honest));
    for answer in [a, b, c, d] {
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("chat_template_limit")));
    }
    assert_eq!(after.status, 200);
}
