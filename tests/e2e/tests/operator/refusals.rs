//! Children that the cluster refuses, and children that it changes: the others are applied, the status says which and
//! why, and when the reason goes, so does the condition, without a restart.

use std::time::Duration;

use disagg_e2e::cluster::{Namespace, Operator};
use disagg_e2e::eventually;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Event};
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

use super::admission::{Match, Rules};
use super::converge::all_children;
use super::{POD_IMAGE, SOON, cluster, no_workers, no_workers_with};

/// A failure that may pass is tried again after half a second, then later each time, up to a minute.
const TRIED_AGAIN: Duration = Duration::from_mins(2);

const BOTH: &[&str] = &["CREATE", "UPDATE"];

/// Waits until a condition has this reason for the present generation, and gives its message.
async fn reason(namespace: &Namespace, name: &str, type_: &str, reason: &str, within: Duration) -> String {
    eventually(&format!("{type_} of {name} to be {reason}"), within, async || {
        let object = namespace.deployments().get(name).await.map_err(|error| error.to_string())?;
        let conditions = object.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|found| found["type"] == type_).cloned().unwrap_or_default();
        let current = found["observedGeneration"].as_i64() == object.metadata.generation;
        if current && found["reason"] == reason {
            Ok(found["message"].as_str().unwrap_or_default().to_owned())
        } else {
            Err(json!(conditions).to_string())
        }
    })
    .await
}

/// Events with this reason.
async fn events_of(namespace: &Namespace, reason: &str) -> Vec<Event> {
    let events = namespace.api::<Event>().list(&ListParams::default()).await.expect("Events").items;
    events.into_iter().filter(|event| event.reason.as_deref() == Some(reason)).collect()
}

/// How often an Event with this reason was told.
async fn told(namespace: &Namespace, reason: &str) -> i32 {
    let of_reason = events_of(namespace, reason).await.into_iter();
    of_reason.map(|event| event.count.or(event.series.and_then(|series| series.count)).unwrap_or(1)).sum()
}

/// Waits until the decode workers have this time to drain.
async fn drains(namespace: &Namespace, set: &str, seconds: i64) {
    eventually(&format!("{set} to drain within {seconds} s"), SOON, async || {
        let set = namespace.api::<StatefulSet>().get(set).await.map_err(|error| error.to_string())?;
        let pod = set.spec.and_then(|spec| spec.template.spec);
        let grace = pod.and_then(|pod| pod.termination_grace_period_seconds);
        // Ten more than the workers themselves take.
        if grace == Some(seconds + 10) { Ok(()) } else { Err(format!("{grace:?}")) }
    })
    .await;
}

#[tokio::test]
async fn settings_that_cannot_be_written_hinder_nothing_else() {
    let namespace = Namespace::create(cluster(), "operator-immutable").await;
    let _operator = Operator::start(cluster(), &namespace);
    namespace.apply("fixed", &no_workers()).await;
    reason(&namespace, "fixed", "ChildrenApplied", "Applied", SOON).await;
    let patch = |patch: &str| {
        namespace.kubectl(&["patch", "configmap", "fixed-router", "--type=merge", "--patch", patch])
    };
    patch(r#"{"immutable": true}"#).expect("a patch");
    let mut changed = no_workers_with("/disaggregation/maxLocalPrefillLength", json!(256));
    changed["drainSeconds"] = json!(7);
    namespace.apply("fixed", &changed).await;
    let message = reason(&namespace, "fixed", "ChildrenApplied", "ImmutableField", SOON).await;
    assert!(message.contains("ConfigMap fixed-router") && message.contains("immutable"), "{message}");
    drains(&namespace, "fixed-decode", 7).await;
    reason(&namespace, "fixed", "Progressing", "Blocked", SOON).await;
    let config_maps = namespace.api::<ConfigMap>();
    let data = config_maps.get("fixed-router").await.expect("it is there").data.unwrap_or_default();
    assert_eq!(data["maxLocalPrefillLength"], "128", "what was good stays in force");
    // As the message says.
    config_maps.delete("fixed-router", &DeleteParams::default()).await.expect("a deletion");
    reason(&namespace, "fixed", "ChildrenApplied", "Applied", SOON).await;
    let data = config_maps.get("fixed-router").await.expect("it is there").data.unwrap_or_default();
    assert_eq!(data["maxLocalPrefillLength"], "256");
    assert_eq!(told(&namespace, "ImmutableField").await, 1);

    // A key where no text is looked for.
    patch(r#"{"data": {"maxLocalPrefillLength": null}, "binaryData": {"maxLocalPrefillLength": "NjQ="}}"#)
        .expect("a patch");
    let message = reason(&namespace, "fixed", "SettingsValid", "Invalid", SOON).await;
    assert!(message.starts_with("maxLocalPrefillLength: is in binaryData"), "{message}");
    changed["drainSeconds"] = json!(9);
    changed["disaggregation"]["maxPrefillQueueDepth"] = json!(5);
    namespace.apply("fixed", &changed).await;
    drains(&namespace, "fixed-decode", 9).await;
    eventually("the other key to follow", SOON, async || {
        let data = config_maps.get("fixed-router").await.map_err(|error| error.to_string())?.data;
        let data = data.unwrap_or_default();
        if data.get("maxPrefillQueueDepth").is_some_and(|depth| depth == "5") {
            Ok(())
        } else {
            Err(format!("{data:?}"))
        }
    })
    .await;
    patch(r#"{"binaryData": null}"#).expect("a patch");
    reason(&namespace, "fixed", "SettingsValid", "Valid", SOON).await;
    let data = config_maps.get("fixed-router").await.expect("it is there").data.unwrap_or_default();
    assert_eq!(data["maxLocalPrefillLength"], "256", "as it was last good");
}

#[tokio::test]
async fn a_policy_that_refuses_one_kind_leaves_the_others_and_is_named() {
    let namespace = Namespace::create(cluster(), "operator-policy").await;
    let budgets = Match { group: "policy", resources: &["poddisruptionbudgets"], operations: BOTH };
    let policy = Rules::refuse(&namespace, &budgets, "no budgets in this namespace");
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": "probe" },
        "spec": { "maxUnavailable": 1, "selector": { "matchLabels": { "a": "b" } } },
    });
    policy.followed(&budget, |answer| answer.as_ref().is_err_and(|said| said.contains("no budgets"))).await;
    let _operator = Operator::start(cluster(), &namespace);
    namespace.apply("limited", &no_workers()).await;
    let message = reason(&namespace, "limited", "ChildrenApplied", "ChildRefused", SOON).await;
    assert!(message.starts_with("3 of the children cannot be applied: "), "{message}");
    assert!(
        message.contains("PodDisruptionBudget limited-decode") && message.contains("no budgets"),
        "{message}"
    );
    namespace.api::<StatefulSet>().get("limited-decode").await.expect("the others are there");
    reason(&namespace, "limited", "RouterAvailable", "ImageNotPulled", SOON).await;
    assert_eq!(told(&namespace, "ChildRefused").await, 1);
    drop(policy);
    all_children(&namespace, 1).await;
    reason(&namespace, "limited", "ChildrenApplied", "Applied", SOON).await;
}

#[tokio::test]
async fn a_webhook_that_is_away_is_told_with_what_it_keeps_back() {
    let namespace = Namespace::create(cluster(), "operator-webhook").await;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "probe" }, "spec": { "ports": [{ "port": 80 }] },
    });
    let failing = |answer: &Result<String, String>| {
        answer.as_ref().is_err_and(|said| said.contains("failed calling webhook"))
    };
    let services = Match { group: "", resources: &["services"], operations: BOTH };
    let _operator = Operator::start(cluster(), &namespace);
    // Nobody listens; then nobody answers.
    for (name, url) in [("refused", "https://127.0.0.1:1/"), ("silent", "https://10.255.255.1/")] {
        let webhook = Rules::webhook(&namespace, &services, url);
        webhook.followed(&service, failing).await;
        namespace.apply(name, &no_workers()).await;
        let message = reason(&namespace, name, "ChildrenApplied", "ChildFailed", SOON).await;
        assert!(message.contains(&format!("Service {name}-decode")), "{message}");
        assert!(message.contains("failed calling webhook \"away.example.com\""), "{message}");
        reason(&namespace, name, "Progressing", "ChildFailed", SOON).await;
        namespace.api::<StatefulSet>().get(&format!("{name}-decode")).await.expect("the others are there");
        drop(webhook);
        reason(&namespace, name, "ChildrenApplied", "Applied", TRIED_AGAIN).await;
    }
    all_children(&namespace, 2).await;
    assert_eq!(told(&namespace, "ChildFailed").await, 2, "once for each");
}

#[tokio::test]
async fn children_whose_labels_a_policy_rewrites_are_found() {
    let namespace = Namespace::create(cluster(), "operator-relabel").await;
    let sets = Match { group: "apps", resources: &["statefulsets", "deployments"], operations: BOTH };
    let at = |label: &str| format!("path: \"/metadata/labels/\" + jsonpatch.escapeKey(\"{label}\")");
    let expression = format!(
        "[JSONPatch{{op: \"replace\", {}, value: \"policy\"}}, JSONPatch{{op: \"remove\", {}}}]",
        at("app.kubernetes.io/managed-by"),
        at("disagg.dev/deployment"),
    );
    let mutation = json!({ "patchType": "JSONPatch", "jsonPatch": { "expression": expression } });
    let policy = Rules::change(&namespace, &sets, &mutation);
    let probe = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {
            "name": "probe",
            "labels": { "app.kubernetes.io/managed-by": "somebody", "disagg.dev/deployment": "probe" },
        },
        "spec": {
            "selector": { "matchLabels": { "a": "b" } },
            "template": {
                "metadata": { "labels": { "a": "b" } },
                "spec": { "containers": [{ "name": "c", "image": "localhost/none:1" }] },
            },
        },
    });
    policy.followed(&probe, |answer| answer.as_ref().is_ok_and(|made| made.contains("\"policy\""))).await;
    let operator = Operator::start(cluster(), &namespace);
    namespace.apply("renamed", &no_workers()).await;
    reason(&namespace, "renamed", "DecodeAvailable", "ScaledToZero", SOON).await;
    reason(&namespace, "renamed", "RouterAvailable", "ImageNotPulled", SOON).await;
    let mut changed = no_workers();
    changed["drainSeconds"] = json!(7);
    namespace.apply("renamed", &changed).await;
    drains(&namespace, "renamed-decode", 7).await;
    // Nobody writes what somebody else writes back.
    let version = async || {
        let set = namespace.api::<StatefulSet>().get("renamed-decode").await;
        set.expect("it is there").metadata.resource_version
    };
    eventually("turns that change nothing", SOON * 2, async || {
        let (before, turns) = (version().await, operator.reconciles().await["success"]);
        eventually("two more turns", SOON, async || {
            let now = operator.reconciles().await["success"];
            if now >= turns + 2 { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
        if version().await == before { Ok(()) } else { Err("it was written again".to_owned()) }
    })
    .await;
}

#[tokio::test]
async fn an_injected_init_container_that_fails_is_named() {
    let namespace = Namespace::create(cluster(), "operator-init").await;
    let pods = Match { group: "", resources: &["pods"], operations: &["CREATE"] };
    let expression = "Object{spec: Object.spec{initContainers: [Object.spec.initContainers{name: \"mesh-init\", \
                      image: \"localhost/no-mesh:1\", imagePullPolicy: \"Never\"}]}}";
    let mutation =
        json!({ "patchType": "ApplyConfiguration", "applyConfiguration": { "expression": expression } });
    let policy = Rules::change(&namespace, &pods, &mutation);
    let probe = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "probe" },
        "spec": { "containers": [{ "name": "c", "image": POD_IMAGE }] },
    });
    policy.followed(&probe, |answer| answer.as_ref().is_ok_and(|made| made.contains("mesh-init"))).await;
    let _operator = Operator::start(cluster(), &namespace);
    let mut spec: Value = no_workers_with("/decode", json!({ "replicas": 1 }));
    spec["images"] = json!({ "worker": POD_IMAGE, "pullPolicy": "IfNotPresent" });
    namespace.apply("meshed", &spec).await;
    let message = reason(&namespace, "meshed", "DecodeAvailable", "InitContainerFailed", TRIED_AGAIN).await;
    let says = "init container mesh-init of pod meshed-decode-0 does not start: ErrImageNeverPull";
    assert!(message.contains(says), "{message}");
    assert!(message.contains("logs meshed-decode-0 -c mesh-init"), "{message}");
    reason(&namespace, "meshed", "Ready", "InitContainerFailed", SOON).await;
}

#[tokio::test]
async fn a_change_without_progress_is_told_at_its_deadline() {
    let namespace = Namespace::create(cluster(), "operator-deadline").await;
    let _operator = Operator::start(cluster(), &namespace);
    let mut spec = no_workers();
    spec["progressDeadlineSeconds"] = json!(3);
    namespace.apply("stuck", &spec).await;
    let message = reason(&namespace, "stuck", "Progressing", "ProgressDeadlineExceeded", SOON).await;
    assert!(message.starts_with("no progress for 3 s (spec.progressDeadlineSeconds): "), "{message}");
    reason(&namespace, "stuck", "Stalled", "ProgressDeadlineExceeded", SOON).await;
    assert_eq!(told(&namespace, "ProgressDeadlineExceeded").await, 1);
}

#[tokio::test]
async fn orphans_are_adopted_and_told_of_once() {
    let namespace = Namespace::create(cluster(), "operator-orphans").await;
    let _operator = Operator::start(cluster(), &namespace);
    namespace.apply("lost", &no_workers()).await;
    let before = all_children(&namespace, 1).await;
    reason(&namespace, "lost", "ChildrenApplied", "Applied", SOON).await;
    namespace.kubectl(&["delete", "dd", "lost", "--cascade=orphan", "--timeout=60s"]).expect("a deletion");
    let owner = namespace.apply("lost", &no_workers()).await.metadata.uid.expect("a uid");
    reason(&namespace, "lost", "ChildrenApplied", "Applied", SOON).await;
    let after = eventually("every child to have its new owner", SOON, async || {
        let children = all_children(&namespace, 1).await;
        let not_ours = |child: &&Value| child["metadata"]["ownerReferences"][0]["uid"] != json!(owner);
        match children.values().find(not_ours) {
            None => Ok(children),
            Some(child) => Err(child["metadata"].to_string()),
        }
    })
    .await;
    for (name, child) in &before {
        assert_eq!(child["metadata"]["uid"], after[name]["metadata"]["uid"], "{name} is the same object");
    }
    let told = events_of(&namespace, "ChildAdopted").await;
    assert_eq!(told.len(), 1, "{told:?}");
    let note = told[0].message.as_deref().unwrap_or_default();
    assert!(note.starts_with("objects that belonged to nobody"), "{note}");
    assert!(note.contains("StatefulSet lost-decode"), "{note}");
    assert!(events_of(&namespace, "ForeignChild").await.is_empty(), "what is ours is not called foreign");
}
