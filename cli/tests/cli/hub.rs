//! `disagg up` with a model from a hub.

use disagg_e2e::ports::free_port;
use disagg_e2e::router::http_client;
use serde_json::{Value, json};

use crate::fake_hub::{Behaviour, COMMIT, FakeHub};
use crate::harness::{DONE, Up};

/// A model that can be served, as publishers lay it out.
async fn hub() -> FakeHub {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    disagg_worker::model::tiny::write(&model, 3).unwrap();
    std::fs::write(model.join("README.md"), "# A model").unwrap();
    FakeHub::of_folder("org/tiny", &model).await
}

fn up(hub: &FakeHub, arguments: &[&str], env: &[(&str, &str)]) -> Up {
    let port = free_port().to_string();
    let env = [&[("HF_ENDPOINT", hub.url.as_str())], env].concat();
    Up::start_with(tempfile::tempdir().unwrap(), &port, arguments, &env)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_the_hub_is_downloaded_once_and_served_by_its_name() {
    let hub = hub().await;
    hub.behave(Behaviour { gated: Some("hf_mine".to_owned()), ..Behaviour::default() });
    let mut up = up(&hub, &["--model", "org/tiny@main"], &[("HF_TOKEN", "hf_mine")]);
    up.ready().await;
    let weights: Vec<_> = hub.seen().into_iter().filter(|request| request.storage).collect();
    let whole = |request: &&crate::fake_hub::Seen| request.path.ends_with("model.safetensors");
    assert_eq!(weights.iter().filter(whole).count(), 1, "once for both workers: {weights:?}");
    let log = up.process.log();
    assert!(
        log.contains("downloading org/tiny@main: ") && log.contains("model: org/tiny@main from the hub"),
        "{log}"
    );
    let snapshot = format!(".cache/huggingface/hub/models--org--tiny/snapshots/{COMMIT}");
    assert!(up.home.path().join(snapshot).join("config.json").is_file());

    let body = json!({"model": "org/tiny", "prompt": "Hello", "max_tokens": 4});
    let answer = http_client().post(format!("{}/v1/completions", up.url)).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["model"], "org/tiny");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gated_model_ends_up_with_what_to_do() {
    let hub = hub().await;
    hub.behave(Behaviour { gated: Some("hf_mine".to_owned()), ..Behaviour::default() });
    let log = up(&hub, &["--model", "org/tiny"], &[]).failure().await;
    let wanted = format!("org/tiny is gated: accept its licence at {}/org/tiny, then set HF_TOKEN", hub.url);
    assert!(log.contains(&wanted) && !log.contains("starting"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_download() {
    let hub = hub().await;
    hub.behave(Behaviour { always_stalls: true, ..Behaviour::default() });
    let mut up = up(&hub, &["--model", "org/tiny"], &[]);
    disagg_e2e::eventually("the download to begin", DONE, async || {
        if hub.seen().iter().any(|request| request.storage) { Ok(()) } else { Err(up.process.log()) }
    })
    .await;
    up.process.signal("INT");
    assert_eq!(up.process.end(DONE).await.code(), Some(0), "{}", up.process.log());
    assert!(up.process.log().contains("Ctrl-C: stopped before anything was started"));
}
