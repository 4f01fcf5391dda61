//! Resources that are valid and cannot work: a condition says what is wrong and what to do.

use std::time::Duration;

use disagg_e2e::cluster::{Namespace, Operator, Plugin};
use disagg_e2e::eventually;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, ResourceQuota, Service};
use kube::api::PostParams;
use serde_json::{Value, json};

use super::{POD_IMAGE, cluster, no_workers_with};

/// A claim that nothing binds: it asks for no class, and there are no volumes.
const UNBOUND: &str = "nowhere";

/// Pods have to be scheduled, started and to fail.
const PODS: Duration = Duration::from_mins(2);

/// A resource, and what its condition `Ready` has to say.
struct Case {
    name: &'static str,
    spec: Value,
    reason: &'static str,
    /// What is wrong, then what to do.
    says: [&'static str; 2],
}

fn decode(name: &'static str, decode: &Value, reason: &'static str, says: [&'static str; 2]) -> Case {
    let mut decode = decode.clone();
    decode["replicas"] = json!(1);
    let mut spec = no_workers_with("/decode", decode);
    spec["images"] = json!({ "worker": POD_IMAGE, "pullPolicy": "IfNotPresent" });
    Case { name, spec, reason, says }
}

fn cases() -> Vec<Case> {
    let mut no_secret = decode(
        "no-secret",
        &json!({}),
        "ReferenceNotFound",
        ["secret \"hub-token\" not found", "correct spec.model.hubTokenSecret"],
    );
    no_secret.spec["model"] =
        json!({ "source": { "hubId": "a/b" }, "hubTokenSecret": { "name": "hub-token" } });
    let mut no_claim = decode(
        "no-claim",
        &json!({}),
        "VolumeClaimNotFound",
        ["persistentvolumeclaim \"models\" not found", "Create the PersistentVolumeClaim in this namespace"],
    );
    no_claim.spec["model"] = json!({ "source": { "pvc": { "claimName": "models" } } });
    let mut no_image =
        decode("no-image", &json!({}), "ImageNotPulled", ["ErrImageNeverPull", "Correct spec.images"]);
    no_image.spec["images"] = json!({ "worker": "localhost/none:1", "pullPolicy": "Never" });
    let mut unbound = decode(
        "unbound",
        &json!({}),
        "VolumeClaimNotBound",
        ["unbound immediate PersistentVolumeClaims", "See with kubectl get pvc,storageclass why"],
    );
    unbound.spec["model"] = json!({ "source": { "pvc": { "claimName": UNBOUND } } });
    // The worker's image is there, and that of the model is not.
    let mut no_model = decode(
        "no-model",
        &json!({}),
        "ImageNotPulled",
        ["localhost/no-model:1", "Correct spec.model.source.image.reference"],
    );
    no_model.spec["model"] = json!({ "source": { "image": { "reference": "localhost/no-model:1" } } });
    vec![
        no_secret,
        no_claim,
        unbound,
        no_image,
        no_model,
        decode(
            "no-gpu",
            &json!({ "resources": { "limits": { "nvidia.com/gpu": 1 } } }),
            "Unschedulable",
            ["Insufficient nvidia.com/gpu", "Add a node with a free GPU"],
        ),
        decode(
            "too-large",
            &json!({ "resources": { "requests": { "cpu": 4000 } } }),
            "Unschedulable",
            ["Insufficient cpu", "ask for less in spec.decode.resources"],
        ),
        decode(
            "no-node",
            &json!({ "podTemplate": { "nodeSelector": { "example.com/gpu": "h900" } } }),
            "Unschedulable",
            ["node", "Check nodeSelector, tolerations and affinity of spec.decode.podTemplate"],
        ),
        // This image's program does not know a worker's flags, as a worker does not know a wrong model.
        decode(
            "crashes",
            &json!({}),
            "CrashLoop",
            ["not \"--name=crashes-decode-0\"", "logs crashes-decode-0 -c worker --previous"],
        ),
        decode(
            "no-config",
            &json!({ "podTemplate": { "env": [
                { "name": "A", "valueFrom": { "configMapKeyRef": { "name": "absent", "key": "a" } } },
            ] } }),
            "ReferenceNotFound",
            ["configmap \"absent\" not found", "spec.decode.podTemplate.env"],
        ),
        decode(
            "no-volume",
            &json!({ "podTemplate": {
                "volumes": [{ "name": "extra", "configMap": { "name": "absent" } }],
                "volumeMounts": [{ "name": "extra", "mountPath": "/extra" }],
            } }),
            "VolumeNotMounted",
            ["configmap \"absent\" not found", "spec.decode.podTemplate.volumes"],
        ),
        decode(
            "refused",
            &json!({ "podTemplate": { "tolerations": [{ "key": "a", "operator": "Sometimes" }] } }),
            "ChildRefused",
            ["StatefulSet refused-decode", "Sometimes"],
        ),
    ]
}

async fn ready_says(namespace: &Namespace, case: &Case) {
    eventually(&format!("{} to be {}", case.name, case.reason), PODS, async || {
        let object = namespace.deployments().get(case.name).await.map_err(|error| error.to_string())?;
        let conditions = object.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready =
            conditions.iter().find(|condition| condition["type"] == "Ready").cloned().unwrap_or_default();
        let message = ready["message"].as_str().unwrap_or_default();
        let said = case.says.iter().all(|part| message.contains(part));
        if ready["reason"] == case.reason && said { Ok(()) } else { Err(ready.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn resources_that_cannot_work_say_what_to_do() {
    let namespace = Namespace::create(cluster(), "operator-broken").await;
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": { "name": UNBOUND },
        "spec": {
            "storageClassName": "", "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } },
        },
    }))
    .expect("a claim");
    let claims = namespace.api::<PersistentVolumeClaim>();
    claims.create(&PostParams::default(), &claim).await.expect("a claim");
    let _operator = Operator::start(cluster(), &namespace);
    let cases = cases();
    for case in &cases {
        namespace.apply(case.name, &case.spec).await;
    }
    for case in &cases {
        ready_says(&namespace, case).await;
    }
    let plugin = Plugin::new(&namespace);
    for case in &cases {
        check_names_the_cause(&plugin, case).await;
    }
}

/// `kubectl disagg check` begins with what keeps the decode worker from starting, and tells that once. (The routers' image
/// does not exist, which is a trouble of its own.)
async fn check_names_the_cause(plugin: &Plugin<'_>, case: &Case) {
    eventually(&format!("the check of {} to name the cause", case.name), PODS, async || {
        let findings = plugin.findings(case.name);
        let of_workers: Vec<&String> = findings
            .iter()
            .filter(|it| !it.starts_with(&format!("error: pod/{}-router-", case.name)))
            .collect();
        let first = findings.first().map(String::as_str).unwrap_or_default();
        let told_once =
            of_workers.len() == 1 && first.contains("hence: ") && first.contains("DecodeAvailable is False");
        if first.starts_with("error: ") && first.contains(case.says[0]) && told_once {
            return Ok(());
        }
        Err(format!("{findings:#?}"))
    })
    .await;
}

#[tokio::test]
async fn a_quota_and_a_taken_name_are_told() {
    let namespace = Namespace::create(cluster(), "operator-quota").await;
    let quota: ResourceQuota = serde_json::from_value(
        json!({ "metadata": { "name": "small" }, "spec": { "hard": { "pods": "0" } } }),
    )
    .expect("a quota");
    namespace.api::<ResourceQuota>().create(&PostParams::default(), &quota).await.expect("a quota");
    let service: Service = serde_json::from_value(json!({
        "metadata": { "name": "taken-decode" }, "spec": { "ports": [{ "port": 80 }] },
    }))
    .expect("a Service");
    namespace.api::<Service>().create(&PostParams::default(), &service).await.expect("a Service");
    let _operator = Operator::start(cluster(), &namespace);
    let quota = decode(
        "limited",
        &json!({}),
        "QuotaExceeded",
        ["exceeded quota: small", "Raise the namespace's ResourceQuota"],
    );
    let taken = decode(
        "taken",
        &json!({}),
        "ForeignChild",
        [
            "Service taken-decode has the name of a child",
            "kubectl -n operator-quota delete service taken-decode",
        ],
    );
    for case in [&quota, &taken] {
        namespace.apply(case.name, &case.spec).await;
    }
    ready_says(&namespace, &quota).await;
    ready_says(&namespace, &taken).await;
    let plugin = Plugin::new(&namespace);
    check_names_the_cause(&plugin, &quota).await;
    // The quota is in its way, too; that its Service is somebody else's comes first.
    let findings = plugin.findings(taken.name);
    assert!(findings[0].starts_with("error: ") && findings[0].contains(taken.says[0]), "{findings:#?}");
}
