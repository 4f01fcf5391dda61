//! The first minutes of a user: install the chart, apply the sample, ask something.

use std::time::Instant;

use disagg_e2e::cluster::{Namespace, repository};
use disagg_e2e::router::http_client;
use serde_json::json;

use crate::serving::{CONVERGE, part};
use crate::session::operator;

#[tokio::test]
async fn the_demo_is_applied_becomes_ready_and_answers() {
    let namespace = Namespace::create(operator(), "e2e-install").await;
    let demo = repository().join("deploy/samples/demo.yaml");
    let start = Instant::now();
    namespace.kubectl(&["apply", "--filename", demo.to_str().expect("UTF-8")]).expect("kubectl apply");
    let wait = ["wait", "disaggdeployment/demo", "--for=condition=Ready", "--timeout=120s"];
    namespace.kubectl(&wait).expect("kubectl wait");
    eprintln!("the demo is Ready {:.1} s after kubectl apply (aim: 30 s)", start.elapsed().as_secs_f64());

    // Both placements, through the Service.
    let forward = namespace.forward("demo-router", "http").await;
    let models = http_client().get(format!("{}/v1/models", forward.url())).send().await.expect("an answer");
    let models: serde_json::Value = models.json().await.expect("a list of models");
    let model = models["data"][0]["id"].as_str().expect("a model").to_owned();
    for (words, remote) in [(4, false), (600, true)] {
        let request = json!({
            "model": model, "max_tokens": 8, "temperature": 0,
            "messages": [{"role": "user", "content": "tell me ".repeat(words)}],
        });
        let url = format!("{}/v1/chat/completions", forward.url());
        let answer =
            disagg_e2e::openai::chat(http_client().post(url).json(&request).send().await.expect("an answer"))
                .await;
        assert_eq!(answer.placement.remote, remote, "{words} words: {:?}", answer.placement);
        assert!(answer.placement.decode.contains("demo-decode-0"), "{:?}", answer.placement);
    }

    // What `kubectl` shows of it.
    let columns = namespace.kubectl(&["get", "dd", "demo"]).expect("kubectl get");
    let row: Vec<_> = columns.lines().nth(1).expect("a row").split_whitespace().take(5).collect();
    assert_eq!(row, ["demo", "True", "1", "1", "128"], "{columns}");
    let explained =
        namespace.kubectl(&["explain", "dd.spec.disaggregation.maxLocalPrefillLength"]).expect("explain");
    assert!(explained.contains("net-new tokens"), "{explained}");

    // Pods are what a restricted namespace would allow.
    for role in ["prefill", "decode", "router"] {
        let pods =
            namespace.ready_pods(&part("demo", role), if role == "router" { 2 } else { 1 }, CONVERGE).await;
        let spec = json!(pods[0].spec);
        let container = &spec["containers"][0]["securityContext"];
        assert_eq!(container["readOnlyRootFilesystem"], true, "{role}: {spec}");
        assert_eq!(container["allowPrivilegeEscalation"], false, "{role}: {spec}");
        assert_eq!(container["capabilities"]["drop"], json!(["ALL"]), "{role}: {spec}");
        let pod = &spec["securityContext"];
        assert_eq!(
            (&pod["runAsNonRoot"], &pod["seccompProfile"]["type"]),
            (&json!(true), &json!("RuntimeDefault"))
        );
    }
}
