//! What `kubectl disagg` says and does.

use disagg_e2e::cluster::{Namespace, Plugin};
use serde_json::{Value, json};

use crate::serving::{CONVERGE, THRESHOLD, spec};
use crate::session::operator;

fn contains(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
}

#[tokio::test]
async fn the_plugin_checks_shows_tunes_and_measures() {
    let namespace = Namespace::create(operator(), "e2e-plugin").await;
    let plugin = Plugin::new(&namespace);
    contains(&plugin.complains(&["status"]), &["DisaggDeployment", "e2e-plugin"]);

    namespace.apply("tool", &spec(1, 1)).await;
    namespace.condition("tool", "Ready", "True", CONVERGE).await;
    // There may be a warning about what was so while the pods started.
    let check = plugin.prints(&["check"]);
    contains(
        &check,
        &["ooked at the cluster and, in the namespace e2e-plugin, tool with 4 pods and 2 routers."],
    );
    assert!(!check.contains("error:"), "{check}");
    let status = plugin.prints(&["status"]);
    contains(&status, &["DisaggDeployment tool", "Ready", "True", "tool-prefill-0", "tool-decode-0"]);

    assert_eq!(plugin.prints(&["threshold", "get"]).trim(), THRESHOLD.to_string());
    assert_eq!(plugin.prints(&["threshold", "set", "64", "tool"]).trim(), "64");
    assert_eq!(plugin.prints(&["threshold", "get", "tool"]).trim(), "64");
    contains(&plugin.complains(&["threshold", "set", "99999999"]), &["maxLocalPrefillLength", "16777216"]);

    let small = ["--isl", "100", "--osl", "8", "--requests", "12", "--warmup", "1", "--concurrency", "3"];
    let bench = plugin.prints(&[&["bench", "tool", "--json", "-"], &small[..]].concat());
    let result: Value = serde_json::from_str(&bench).unwrap_or_else(|error| panic!("{error}: {bench}"));
    contains(&result.to_string(), &["ttft"]);
    eprintln!("kubectl disagg bench: {result}");

    // What is wrong, and what to do.
    let mut broken = spec(1, 1);
    broken["model"] = json!({"source": {"pvc": {"claimName": "models"}}, "servedName": "small"});
    namespace.apply("broken", &broken).await;
    namespace.condition("broken", "Ready", "False", CONVERGE).await;
    disagg_e2e::eventually("the check to name the claim", CONVERGE, async || {
        let text = plugin.complains(&["check"]);
        let told =
            text.contains("\"models\" not found") && text.contains("to do: create the PersistentVolumeClaim");
        if told { Ok(()) } else { Err(text) }
    })
    .await;
    contains(&plugin.complains(&["status"]), &["broken", "tool"]);
}
