//! What the other tests take for granted of a cluster. When this fails, look at the cluster first.

use std::time::Duration;

use disagg_e2e::cluster::Namespace;
use disagg_e2e::eventually;
use disagg_e2e::router::http_client;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::session::{POD_IMAGE, cluster, offered};

/// Longest wait for one thing.
const SOON: Duration = Duration::from_mins(1);

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

fn stateful_set() -> StatefulSet {
    object(json!({
        "metadata": {"name": "web"},
        "spec": {
            "serviceName": "web", "replicas": 2, "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "terminationGracePeriodSeconds": 2,
                    "containers": [{
                        "name": "web", "image": POD_IMAGE, "imagePullPolicy": "IfNotPresent", "args": ["serve"],
                        "env": [{"name": "VERSION", "value": "one"}],
                        "ports": [{"name": "http", "containerPort": 8080}],
                        "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1},
                        "securityContext": {
                            "runAsNonRoot": true, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
                        },
                        "volumeMounts": [{"name": "config", "mountPath": "/config"}],
                    }],
                    "volumes": [{"name": "config", "configMap": {"name": "config"}}],
                },
            },
        },
    }))
}

fn service(name: &str, cluster_ip: Option<&str>) -> Service {
    object(json!({
        "metadata": {"name": name},
        "spec": {
            "clusterIP": cluster_ip, "selector": {"app": "web"},
            "ports": [{"name": "http", "port": if cluster_ip.is_some() { 8080 } else { 80 }, "targetPort": "http"}],
        },
    }))
}

/// Waits until a pod's own client gets an answer that contains this.
async fn pod_gets(namespace: &Namespace, address: &str, wanted: &str) {
    eventually(&format!("web-0 to get {wanted:?} from {address}"), SOON, async || {
        let answer = namespace.kubectl(&["exec", "web-0", "--", "/usr/local/bin/pod", "get", address])?;
        if answer.contains(wanted) { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[tokio::test]
async fn the_cluster_runs_pods_services_names_and_volumes() {
    let cluster = cluster();
    let namespace = Namespace::create(cluster, "e2e-smoke").await;
    let sets = namespace.api::<StatefulSet>();
    let pods = namespace.api::<Pod>();
    let (create, patch) = (PostParams::default(), PatchParams::default());

    let config: ConfigMap = object(json!({"metadata": {"name": "config"}, "data": {"value": "first"}}));
    namespace.api::<ConfigMap>().create(&create, &config).await.expect("a ConfigMap");
    for service in [service("web", Some("None")), service("web-all", None)] {
        namespace.api::<Service>().create(&create, &service).await.expect("a Service");
    }
    sets.create(&create, &stateful_set()).await.expect("a StatefulSet");
    namespace.ready_pods("app=web", 2, SOON).await;

    // Pods are reached from here, and reach each other by the names of Services and of single pods.
    let forward = namespace.forward("web-all", "http").await;
    let answer =
        http_client().get(forward.url()).send().await.expect("an answer").text().await.expect("a body");
    assert!(answer.contains("version=one config=first"), "{answer}");
    pod_gets(&namespace, "web-1.web:8080", "host=web-1").await;
    pod_gets(&namespace, "web-all", "version=one").await;
    let lookup = ["exec", "web-0", "--", "/usr/local/bin/pod", "lookup", "kubernetes.default"];
    namespace.kubectl(&lookup).expect("the API server's name");
    let refused = ["exec", "web-0", "--", "/usr/local/bin/pod", "lookup", "nothing.default"];
    namespace.kubectl(&refused).expect_err("a name of nothing");
    assert!(namespace.log("web-1").await.contains("listening"));

    // An edit of a ConfigMap reaches the volume.
    let edit = Patch::Merge(json!({"data": {"value": "second"}}));
    namespace.api::<ConfigMap>().patch("config", &patch, &edit).await.expect("an edit");
    pod_gets(&namespace, "web-0.web:8080", "config=second").await;

    // A pod that is deleted, by force too, comes back as another; a process that dies, in the same pod.
    for parameters in [DeleteParams::default(), DeleteParams::default().grace_period(0)] {
        let before = pods.get("web-1").await.expect("web-1").uid();
        pods.delete("web-1", &parameters).await.expect("a deletion");
        eventually("another web-1", SOON, async || {
            let now = pods.get_opt("web-1").await.map_err(|error| error.to_string())?;
            now.filter(|pod| pod.uid() != before).map(drop).ok_or_else(|| "the old one, or none".to_owned())
        })
        .await;
        namespace.ready_pods("app=web", 2, SOON).await;
    }
    if let Some(processes) =
        offered("the end of a process", cluster.node_exec(&["pgrep", "-f", "/usr/local/bin/pod serve"]))
    {
        let first = processes.lines().next().expect("a process of the pods");
        cluster.node_exec(&["kill", "-9", first]).expect("kill");
        eventually("a restart", SOON, async || {
            let restarts = |pod: &Pod| {
                pod.status.clone()?.container_statuses?.first().map(|status| status.restart_count)
            };
            let all: Vec<_> = namespace.pods("app=web").await.iter().map(restarts).collect();
            if all.contains(&Some(1)) { Ok(()) } else { Err(format!("restarts {all:?}")) }
        })
        .await;
        namespace.ready_pods("app=web", 2, SOON).await;
    }

    // A rollout, a scale, and an eviction that a disruption budget forbids.
    let roll = json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "env": [{"name": "VERSION", "value": "two"}]}]}}}});
    sets.patch("web", &patch, &Patch::Strategic(roll)).await.expect("a rollout");
    pod_gets(&namespace, "web-1.web:8080", "version=two").await;
    sets.patch_scale("web", &patch, &Patch::Merge(json!({"spec": {"replicas": 3}}))).await.expect("a scale");
    namespace.ready_pods("app=web", 3, SOON).await;
    namespace
        .kubectl(&["create", "pdb", "web", "--selector=app=web", "--min-available=3"])
        .expect("a budget");
    eventually("an eviction to be refused", SOON, async || {
        match pods.evict("web-2", &EvictParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 429 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}
