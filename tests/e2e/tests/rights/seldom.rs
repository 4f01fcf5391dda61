//! What the operator needs its rarer rights for: it looks at objects that have the names of its children, and makes and
//! deletes PodMonitors.

use std::fmt::Debug;

use disagg_e2e::cluster::{Cluster, Namespace, repository};
use disagg_e2e::eventually;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::CONVERGE;
use crate::audit::{self, Request};

/// A spec without pods that run.
fn nothing_runs() -> Value {
    json!({
        "model": { "source": { "random": {} } }, "prefill": { "replicas": 0 }, "decode": { "replicas": 0 },
        "router": { "replicas": 1, "podTemplate": { "nodeSelector": { "example.com/nowhere": "1" } } },
    })
}

async fn foreign<K>(namespace: &Namespace, name: &str, content: Value)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let mut object = content;
    object["metadata"] = json!({ "name": name });
    let object: K = serde_json::from_value(object).expect("an object");
    namespace.api::<K>().create(&PostParams::default(), &object).await.expect("an object of somebody else");
}

/// Every child's name but those of the pods' accounts is taken by somebody else.
pub(crate) async fn names_are_taken(namespace: &Namespace) {
    let labels = json!({ "app": "theirs" });
    let pods = json!({
        "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "c", "image": "localhost/none:1" }] },
    });
    let select = json!({ "matchLabels": labels });
    foreign::<ServiceAccount>(namespace, "taken-worker", json!({})).await;
    foreign::<Role>(namespace, "taken-router", json!({ "rules": [] })).await;
    let role = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "taken-router" });
    foreign::<RoleBinding>(namespace, "taken-router", json!({ "roleRef": role })).await;
    foreign::<ConfigMap>(namespace, "taken-router", json!({})).await;
    foreign::<NetworkPolicy>(namespace, "taken-worker", json!({ "spec": { "podSelector": select } })).await;
    foreign::<PodDisruptionBudget>(namespace, "taken-router", json!({ "spec": { "selector": select } }))
        .await;
    foreign::<Service>(namespace, "taken-router", json!({ "spec": { "ports": [{ "port": 80 }] } })).await;
    let set = json!({ "replicas": 0, "serviceName": "theirs", "selector": select, "template": pods });
    foreign::<StatefulSet>(namespace, "taken-decode", json!({ "spec": set })).await;
    let deployment = json!({ "replicas": 0, "selector": select, "template": pods });
    foreign::<Deployment>(namespace, "taken-router", json!({ "spec": deployment })).await;
    namespace.apply("taken", &nothing_runs()).await;
    let object = namespace.condition("taken", "Ready", "False", CONVERGE).await;
    let status = object.data["status"].to_string();
    assert!(status.contains("ForeignChild") && status.contains("9 of the children"), "{status}");
}

/// PodMonitors come, are watched, and go again.
pub(crate) async fn pod_monitors_come_and_go(cluster: &dyn Cluster, namespace: &Namespace) {
    let definition = "podmonitors.monitoring.coreos.com";
    let file = repository().join("tests/e2e/tests/operator/podmonitors.yaml");
    let file = file.to_str().expect("UTF-8");
    namespace.kubectl(&["apply", "--server-side", "--filename", file]).expect("the definition");
    let established = format!("crd/{definition}");
    let told = "--for=jsonpath={.status.acceptedNames.kind}=PodMonitor";
    namespace.kubectl(&["wait", told, &established, "--timeout=30s"]).expect("a definition that is served");
    let mut watched = nothing_runs();
    watched["monitoring"] = json!({ "podMonitor": {} });
    namespace.apply("watched", &watched).await;
    namespace.condition("watched", "MonitoringAvailable", "True", CONVERGE).await;
    // A definition this new is not served to everybody at once: the first list may be refused, and is tried again later.
    eventually("a watch of PodMonitors", CONVERGE, async || {
        let Ok(log) = cluster.audit_log() else { return Ok(()) };
        let watch = |request: &Request| request.verb == "watch" && request.resource == "podmonitors";
        if audit::parse(&log).iter().any(watch) { Ok(()) } else { Err("not in the audit log".to_owned()) }
    })
    .await;
    // Seen by the watch, it is put back.
    namespace.kubectl(&["delete", "podmonitor", "watched-router"]).expect("a deletion");
    eventually("the PodMonitor again", CONVERGE, async || {
        namespace.kubectl(&["get", "podmonitor", "watched-router"]).map(|_| ())
    })
    .await;
    namespace.apply("watched", &nothing_runs()).await;
    eventually("no PodMonitors", CONVERGE, async || {
        let left = namespace.kubectl(&["get", "podmonitors", "--output=name"])?;
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    let definitions: Api<CustomResourceDefinition> = Api::all(namespace.client().clone());
    definitions.delete(definition, &DeleteParams::default()).await.expect("the definition is taken away");
}
