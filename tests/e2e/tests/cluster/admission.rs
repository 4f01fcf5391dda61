//! The chart's admission policy: what RBAC lets the operator's ServiceAccount do to everybody's objects, it may do to the
//! children of DisaggDeployments alone.

use disagg_e2e::cluster::Namespace;
use disagg_e2e::eventually;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::serving::{CONVERGE, spec};
use crate::session::{RELEASE, operator};

/// `kubectl` with the rights of the operator's ServiceAccount.
fn as_operator(namespace: &Namespace, arguments: &[&str]) -> Result<String, String> {
    let (home, name) = RELEASE;
    let account = format!("--as=system:serviceaccount:{home}:{name}");
    namespace.kubectl(&[&[account.as_str()], arguments].concat())
}

fn patch(namespace: &Namespace, object: &str, patch: &Value) -> Result<String, String> {
    as_operator(namespace, &["patch", object, "--type=merge", "--patch", &patch.to_string()])
}

fn assert_denied(result: Result<String, String>, message: &str) {
    let error = result.expect_err("it was allowed");
    assert!(error.contains("ValidatingAdmissionPolicy") && error.contains(message), "{error}");
}

#[tokio::test]
async fn the_operators_account_writes_only_what_belongs_to_a_deployment() {
    let namespace = Namespace::create(operator(), "e2e-admission").await;
    let create = PostParams::default();
    let foreign: ConfigMap =
        serde_json::from_value(json!({ "metadata": { "name": "foreign" }, "data": { "a": "1" } }))
            .expect("a ConfigMap");
    namespace.api::<ConfigMap>().create(&create, &foreign).await.expect("a ConfigMap of somebody else");
    let set: StatefulSet = serde_json::from_value(json!({
        "metadata": { "name": "foreign" },
        "spec": {
            "replicas": 0, "serviceName": "foreign", "selector": { "matchLabels": { "app": "foreign" } },
            "template": {
                "metadata": { "labels": { "app": "foreign" } },
                "spec": { "containers": [{ "name": "c", "image": "localhost/none:1" }] },
            },
        },
    }))
    .expect("a StatefulSet");
    namespace.api::<StatefulSet>().create(&create, &set).await.expect("a StatefulSet of somebody else");

    // The policy of a chart that was installed just now is not in force at once. RBAC itself allows the change.
    let change = json!({ "data": { "a": "2" } });
    eventually("the policy to be in force", CONVERGE, async || {
        match patch(&namespace, "configmap/foreign", &change) {
            Ok(_) => Err("a foreign ConfigMap could be changed".to_owned()),
            Err(error) if error.contains("ValidatingAdmissionPolicy") => Ok(()),
            Err(error) => panic!("refused for another reason: {error}"),
        }
    })
    .await;
    let not_ours = "changes only what belongs to a DisaggDeployment";
    assert_denied(patch(&namespace, "statefulset/foreign", &json!({ "spec": { "replicas": 1 } })), not_ours);
    assert_denied(
        as_operator(&namespace, &["create", "configmap", "new"]),
        "makes only what a DisaggDeployment owns",
    );

    namespace.apply("mine", &spec(1, 1)).await;
    let object = namespace.condition("mine", "Ready", "True", CONVERGE).await;
    let uid = object.metadata.uid.expect("a uid");
    let owner = json!({ "metadata": { "ownerReferences": [{
        "apiVersion": "disagg.dev/v1alpha1", "kind": "DisaggDeployment", "name": "mine", "uid": uid, "controller": true,
    }]}});
    // What is not ours does not become so by saying it.
    assert_denied(patch(&namespace, "configmap/foreign", &owner), not_ours);
    // Our own child, and an orphan with our labels.
    patch(&namespace, "configmap/mine-router", &json!({ "data": { "maxPrefillQueueDepth": "3" } }))
        .expect("our child");
    let orphan: ConfigMap = serde_json::from_value(json!({ "metadata": { "name": "orphan", "labels": {
        "disagg.dev/deployment": "mine", "app.kubernetes.io/managed-by": "disagg-operator",
    }}}))
    .expect("a ConfigMap");
    namespace.api::<ConfigMap>().create(&create, &orphan).await.expect("an orphan");
    assert_denied(patch(&namespace, "configmap/orphan", &change), "makes only what a DisaggDeployment owns");
    patch(&namespace, "configmap/orphan", &owner).expect("an orphan is adopted");
}
