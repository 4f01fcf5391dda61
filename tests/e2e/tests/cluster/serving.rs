//! What the tests of serving share: the resource they apply, its parts, and requests to it.

use std::time::Duration;

use disagg_e2e::cluster::{LoadPlan, Namespace};
use disagg_e2e::openai;
use disagg_e2e::router::http_client;
use serde_json::{Value, json};

use crate::session::image_source;

/// Longest wait for a deployment to be as its spec asks. The machine runs other tests meanwhile.
pub(crate) const CONVERGE: Duration = Duration::from_mins(2);

/// Prompts with more tokens are prefilled remotely.
pub(crate) const THRESHOLD: u32 = 128;

/// A small random model on so many workers, with two routers.
pub(crate) fn spec(prefill: u32, decode: u32) -> Value {
    json!({
        "model": {"source": {"random": {}}, "servedName": "small"},
        "prefill": {"replicas": prefill},
        "decode": {"replicas": decode},
        "router": {"replicas": 2},
        "disaggregation": {"maxLocalPrefillLength": THRESHOLD},
        "drainSeconds": 10,
    })
}

/// Label selector of the pods of one part of a deployment: `prefill`, `decode` or `router`.
pub(crate) fn part(deployment: &str, role: &str) -> String {
    format!("disagg.dev/deployment={deployment},disagg.dev/role={role}")
}

/// Load of so many clients on a deployment's Service, with short and long prompts in turn.
pub(crate) fn load_plan(deployment: &str, clients: u32) -> LoadPlan {
    LoadPlan {
        url: format!("http://{deployment}-router:8181"),
        model: "small".to_owned(),
        clients,
        pause_ms: 150,
        prompt_tokens: vec![24, 400, 60, 300],
        max_tokens: 12,
        streams_only: false,
    }
}

/// The image of the load's pod.
pub(crate) fn load_image() -> String {
    let (registry, tag) = image_source();
    format!("{registry}/disagg-load:{tag}")
}

/// One chat completion through a deployment's Service. The message has about this many words.
pub(crate) async fn chat(namespace: &Namespace, deployment: &str, words: usize) -> openai::Text {
    let forward = namespace.forward(&format!("{deployment}-router"), "http").await;
    let request = json!({
        "model": "small", "max_tokens": 8, "temperature": 0,
        "messages": [{"role": "user", "content": "tell me ".repeat(words / 2)}],
    });
    let url = format!("{}/v1/chat/completions", forward.url());
    let response = http_client().post(url).json(&request).send().await.expect("an answer");
    openai::chat(response).await
}
