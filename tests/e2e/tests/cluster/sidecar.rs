//! A cluster that adds a container to every pod, as service meshes do. It is injected by a MutatingAdmissionPolicy, which
//! needs no server; what the operator and `kubectl disagg` see is the same as with a webhook.

use disagg_e2e::cluster::{Namespace, Plugin, is_ready};
use disagg_e2e::eventually;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::PostParams;
use serde_json::json;

use crate::serving::{CONVERGE, part, spec};
use crate::session::{POD_IMAGE, operator};

const NAMESPACE: &str = "e2e-sidecar";

/// The policy; it goes with this value.
struct Injection<'a>(&'a Namespace);

impl<'a> Injection<'a> {
    /// Adds a container `proxy` with these arguments to the decode workers' pods of the namespace from now on.
    async fn of(namespace: &'a Namespace, arguments: &str) -> Self {
        let group = "admissionregistration.k8s.io/v1";
        let proxy =
            format!("Object.spec.containers{{name: 'proxy', image: '{POD_IMAGE}', args: ['{arguments}']}}");
        let policy = json!({
            "apiVersion": group, "kind": "MutatingAdmissionPolicy", "metadata": { "name": NAMESPACE },
            "spec": {
                "failurePolicy": "Fail", "reinvocationPolicy": "Never",
                "matchConstraints": {
                    "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": NAMESPACE } },
                    "objectSelector": { "matchLabels": { "disagg.dev/role": "decode" } },
                    "resourceRules": [{
                        "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"],
                    }],
                },
                "mutations": [{
                    "patchType": "JSONPatch",
                    "jsonPatch": {
                        "expression": format!("[JSONPatch{{op: 'add', path: '/spec/containers/-', value: {proxy}}}]"),
                    },
                }],
            },
        });
        let binding = json!({
            "apiVersion": group, "kind": "MutatingAdmissionPolicyBinding", "metadata": { "name": NAMESPACE },
            "spec": { "policyName": NAMESPACE },
        });
        let file = tempfile::NamedTempFile::new().expect("a file");
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [policy, binding] });
        std::fs::write(file.path(), list.to_string()).expect("a file");
        let path = file.path().to_str().expect("UTF-8");
        namespace
            .kubectl(&["apply", "--server-side", "--force-conflicts", "--filename", path])
            .expect("a policy");
        let this = Self(namespace);
        // It is not in force at once.
        let try_out: Pod = serde_json::from_value(json!({
            "metadata": { "name": "try-out", "labels": { "disagg.dev/role": "decode" } },
            "spec": { "containers": [{ "name": "c", "image": POD_IMAGE }] },
        }))
        .expect("a pod");
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        eventually("a container to be added", CONVERGE, async || {
            let made =
                namespace.api::<Pod>().create(&dry_run, &try_out).await.map_err(|error| error.to_string())?;
            let containers = made.spec.map(|spec| spec.containers).unwrap_or_default();
            let added = containers.iter().find(|it| it.name == "proxy").and_then(|it| it.args.clone());
            if added.as_deref() == Some(&[arguments.to_owned()]) {
                Ok(())
            } else {
                Err(format!("{containers:?}"))
            }
        })
        .await;
        this
    }
}

impl Drop for Injection<'_> {
    fn drop(&mut self) {
        for kind in ["mutatingadmissionpolicybinding", "mutatingadmissionpolicy"] {
            let _ = self.0.kubectl(&["delete", kind, NAMESPACE, "--ignore-not-found"]);
        }
    }
}

#[tokio::test]
async fn pods_with_an_added_container_serve_and_one_that_crashes_is_named() {
    let namespace = Namespace::create(operator(), NAMESPACE).await;
    let plugin = Plugin::new(&namespace);
    let fine = Injection::of(&namespace, "pause").await;
    namespace.apply("mesh", &spec(1, 1)).await;
    namespace.condition("mesh", "Ready", "True", CONVERGE).await;
    let pods = namespace.pods(&part("mesh", "decode")).await;
    let containers = pods.iter().flat_map(|pod| pod.spec.iter().flat_map(|spec| &spec.containers));
    assert_eq!(containers.map(|it| it.name.as_str()).collect::<Vec<_>>(), ["worker", "proxy"]);
    let findings = plugin.findings("mesh");
    assert!(findings.iter().all(|finding| !finding.starts_with("error: ")), "{findings:#?}");

    // The next pod gets one that ends at once: the worker serves, and its pod is never ready.
    drop(fine);
    let _broken = Injection::of(&namespace, "no-such-command").await;
    let before = pods[0].uid();
    namespace.kubectl(&["delete", "pod", "mesh-decode-0"]).expect("a deletion");
    eventually("the added container to be named", CONVERGE, async || {
        let pods = namespace.pods(&part("mesh", "decode")).await;
        if pods.first().is_none_or(|pod| pod.uid() == before || is_ready(pod)) {
            return Err("the pod is not replaced yet".to_owned());
        }
        let findings = plugin.findings("mesh");
        let first = findings.first().cloned().unwrap_or_default();
        let named = first.starts_with("error: pod/mesh-decode-0: container proxy crashes: ")
            && first.contains("is not one of the operator's containers")
            && first.contains("DecodeAvailable is False");
        if named { Ok(()) } else { Err(format!("{findings:#?}")) }
    })
    .await;
    let object = namespace.condition("mesh", "Ready", "False", CONVERGE).await;
    let status = object.data["status"].to_string();
    assert!(status.contains("the container proxy of pod mesh-decode-0"), "{status}");
}
