//! A definition in the cluster that is older than the operator: it has let a resource in that the operator cannot read.

use disagg_e2e::cluster::{Namespace, Operator};
use disagg_e2e::eventually;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::converge::all_children;
use super::{SOON, cluster, no_workers};

const DEFINITION: &str = "disaggdeployments.disagg.dev";

/// Where the definition says what `spec.drainSeconds` may be.
const DRAIN_SECONDS: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/drainSeconds";

/// Replaces what the definition says of one field; gives what it said. Other tests do not set that field to anything
/// but numbers.
async fn redefine(namespace: &Namespace, schema: &Value) -> Value {
    let definitions: Api<CustomResourceDefinition> = Api::all(namespace.client().clone());
    let now = serde_json::to_value(definitions.get(DEFINITION).await.expect("the definition")).expect("JSON");
    let said = now.pointer(DRAIN_SECONDS).expect("the field").clone();
    let patch = json!([{ "op": "replace", "path": DRAIN_SECONDS, "value": schema }]).to_string();
    namespace.kubectl(&["patch", "crd", DEFINITION, "--type=json", "--patch", &patch]).expect("a patch");
    said
}

#[tokio::test]
async fn a_resource_that_cannot_be_read_hides_no_other_and_is_told() {
    let _alone = super::DEFINITION.write().await;
    let namespace = Namespace::create(cluster(), "operator-definition").await;
    let object = |drain: Value| {
        let mut spec = no_workers();
        spec["drainSeconds"] = drain;
        json!({
            "apiVersion": "disagg.dev/v1alpha1", "kind": "DisaggDeployment", "metadata": { "name": "old" }, "spec": spec,
        })
    };
    let apply = async |drain: Value| {
        let params = PatchParams::apply("e2e").force();
        namespace.deployments().patch("old", &params, &Patch::Apply(&object(drain))).await
    };
    let strict = redefine(&namespace, &json!({ "x-kubernetes-preserve-unknown-fields": true })).await;
    eventually("the API server to let it in", SOON, async || {
        apply(json!("half a minute")).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    redefine(&namespace, &strict).await;
    let operator = Operator::start(cluster(), &namespace);
    namespace.apply("good", &no_workers()).await;
    all_children(&namespace, 1).await;
    let object = namespace.condition("old", "Ready", "False", SOON).await;
    let status = object.data["status"].to_string();
    assert!(status.contains("Undecodable") && status.contains("half a minute"), "{status}");
    assert!(operator.log().lines().all(|line| line.len() < 2000), "{}", operator.log());
    assert!(operator.log().contains("a resource is left as it is"), "{}", operator.log());
    let events = namespace.api::<Event>().list(&ListParams::default()).await.expect("Events").items;
    let told = events.iter().filter(|event| event.reason.as_deref() == Some("Undecodable")).count();
    assert_eq!(told, 1);
    // It is put right, and is looked after as any other.
    // Not by an apply, which the API server can only do to what is valid.
    namespace
        .kubectl(&["patch", "dd", "old", "--type=merge", "--patch", r#"{"spec": {"drainSeconds": 7}}"#])
        .expect("a correction");
    all_children(&namespace, 2).await;
    namespace.api::<StatefulSet>().get("old-decode").await.expect("a child");
    eventually("no word of it any more", SOON, async || {
        let object = namespace.deployments().get("old").await.map_err(|error| error.to_string())?;
        let status = object.data["status"].to_string();
        if status.contains("Undecodable") { Err(status) } else { Ok(()) }
    })
    .await;
}
