//! PodMonitors against an API server that first does not know them, and then does.

use std::time::Duration;

use disagg_e2e::cluster::{Namespace, Operator, repository};
use disagg_e2e::eventually;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::json;

use super::{SOON, cluster, no_workers, no_workers_with};

/// The operator asks again every now and then whether PodMonitors are known.
const NOTICED: Duration = Duration::from_mins(1);

fn pod_monitors(namespace: &Namespace) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("monitoring.coreos.com", "v1", "PodMonitor");
    let resource = ApiResource::from_gvk_with_plural(&kind, "podmonitors");
    Api::namespaced_with(namespace.client().clone(), namespace.name(), &resource)
}

#[tokio::test]
async fn pod_monitors_follow_the_resource_and_what_the_cluster_knows() {
    let namespace = Namespace::create(cluster(), "operator-monitoring").await;
    let definitions: Api<CustomResourceDefinition> = Api::all(namespace.client().clone());
    let name = "podmonitors.monitoring.coreos.com";
    // Of a run that was cut short.
    let _ = definitions.delete(name, &DeleteParams::default()).await;
    eventually("no definition of PodMonitors", SOON, async || {
        let found = definitions.get_opt(name).await.map_err(|error| error.to_string())?;
        found.map_or(Ok(()), |_| Err("it is there".to_owned()))
    })
    .await;

    let _operator = Operator::start(cluster(), &namespace);
    let asks = no_workers_with("/monitoring", json!({ "podMonitor": { "labels": { "release": "p" } } }));
    namespace.apply("watched", &asks).await;
    let object = namespace.condition("watched", "MonitoringAvailable", "False", SOON).await;
    let status = object.data["status"].to_string();
    assert!(status.contains("PodMonitorNotServed") && status.contains("Install the definitions"), "{status}");
    // Everything else is made all the same.
    namespace.condition("watched", "SettingsValid", "True", SOON).await;

    let file = repository().join("tests/e2e/tests/operator/podmonitors.yaml");
    let file = file.to_str().expect("UTF-8");
    namespace.kubectl(&["apply", "--server-side", "--filename", file]).expect("the definition");
    namespace.condition("watched", "MonitoringAvailable", "True", NOTICED).await;
    let monitors = pod_monitors(&namespace);
    for (child, port) in [("watched-worker", "metrics"), ("watched-router", "admin")] {
        let found = monitors.get(child).await.expect("a PodMonitor");
        assert_eq!(found.data["spec"]["podMetricsEndpoints"][0]["port"], port);
        assert_eq!(found.metadata.labels.unwrap_or_default()["release"], "p");
    }

    // Edits and deletions are put back.
    let edit = json!({ "spec": { "podMetricsEndpoints": [{ "port": "other" }] } });
    monitors.patch("watched-worker", &PatchParams::default(), &Patch::Merge(&edit)).await.expect("an edit");
    eventually("the PodMonitor as it was", SOON, async || {
        let found = monitors.get("watched-worker").await.map_err(|error| error.to_string())?;
        let port = &found.data["spec"]["podMetricsEndpoints"][0]["port"];
        if port == "metrics" { Ok(()) } else { Err(port.to_string()) }
    })
    .await;
    monitors.delete("watched-router", &DeleteParams::default()).await.expect("a deletion");
    eventually("the PodMonitor again", SOON, async || {
        let found = monitors.get_opt("watched-router").await.map_err(|error| error.to_string())?;
        found.map(|_| ()).ok_or_else(|| "gone".to_owned())
    })
    .await;

    // Nobody asks any more.
    namespace.apply("watched", &no_workers()).await;
    eventually("no PodMonitors and no word of them", SOON, async || {
        for child in ["watched-worker", "watched-router"] {
            if monitors.get_opt(child).await.map_err(|error| error.to_string())?.is_some() {
                return Err(format!("{child} is there"));
            }
        }
        let found = namespace.deployments().get("watched").await.map_err(|error| error.to_string())?;
        let status = found.data["status"].to_string();
        if status.contains("MonitoringAvailable") { Err(status) } else { Ok(()) }
    })
    .await;
    definitions.delete(name, &DeleteParams::default()).await.expect("the definition is taken away");
}
