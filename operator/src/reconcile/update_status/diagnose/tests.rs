//! Pods in trouble, and what is said of each.

use serde_json::{Value, json};

use super::*;

fn pod(status: Value) -> Pod {
    serde_json::from_value(json!({ "metadata": { "name": "demo-decode-0" }, "status": status })).unwrap()
}

fn trouble(status: Value) -> Trouble {
    diagnose(Component::Decode, [&pod(status)].into_iter(), &[], "ns").expect("there is trouble")
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({ "containerStatuses": [{
        "name": "worker", "image": "example.com/worker:1", "imageID": "", "ready": false, "restartCount": 0,
        "state": { "waiting": { "reason": reason, "message": message } },
    }]})
}

fn ended(state: Value, last: Value) -> Value {
    json!({ "containerStatuses": [{
        "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 3,
        "state": state, "lastState": last,
    }]})
}

fn unscheduled(message: &str) -> Value {
    json!({ "conditions": [
        { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message }
    ]})
}

#[test]
fn a_container_that_somebody_added_is_blamed_on_no_field() {
    let of = |state: Value, last: Value| {
        let mut status = ended(state, last);
        status["containerStatuses"][0]["name"] = json!("proxy");
        trouble(status)
    };
    let oom = json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } });
    let waiting = |reason: &str| json!({ "waiting": { "reason": reason, "message": "no such thing" } });
    for (found, reason, says) in [
        (of(waiting("ErrImagePull"), Value::Null), "ContainerNotStarted", "ErrImagePull: no such thing"),
        (of(waiting("CreateContainerConfigError"), Value::Null), "ContainerNotStarted", "no such thing"),
        (of(oom.clone(), Value::Null), "CrashLoop", "ended with code 137 (restarts: 3): it left no message"),
        (of(waiting("CrashLoopBackOff"), oom), "CrashLoop", "ended with code 137"),
    ] {
        assert_eq!(found.reason, reason, "{found:?}");
        assert!(found.message.contains("the container proxy of pod demo-decode-0"), "{}", found.message);
        assert!(found.message.contains(says) && !found.message.contains("spec."), "{}", found.message);
    }
    let running = json!({ "containerStatuses": [{
        "name": "proxy", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": { "running": {} },
    }]});
    assert_eq!(diagnose(Component::Decode, [&pod(running)].into_iter(), &[], "ns"), None);
}

#[test]
fn every_trouble_has_a_reason_and_an_advice() {
    let crash = json!({ "terminated": { "exitCode": 1, "message": "INFO loading\nError: cannot load /model\n\nCaused by:\n    no config.json\n" } });
    let oom = json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } });
    let back_off = json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 10s" } });
    let cases = [
        (
            unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
            "Unschedulable",
            "3 Insufficient nvidia.com/gpu. Add a node with a free GPU",
        ),
        (
            unscheduled("0/1 nodes are available: 1 Insufficient cpu."),
            "Unschedulable",
            "ask for less in spec.decode.resources",
        ),
        (
            unscheduled("persistentvolumeclaim \"models\" not found."),
            "VolumeClaimNotFound",
            "\"models\" not found. Create the PersistentVolumeClaim in this namespace",
        ),
        (
            unscheduled(
                "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found",
            ),
            "VolumeClaimNotBound",
            "See with kubectl get pvc,storageclass why the claim is not bound",
        ),
        (
            unscheduled(
                "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind.",
            ),
            "VolumeClaimNotBound",
            "needs a PersistentVolume that fits",
        ),
        (
            waiting("ImagePullBackOff", "Back-off pulling image"),
            "ImageNotPulled",
            "the image example.com/worker:1: ImagePullBackOff: Back-off pulling image. Correct spec.images",
        ),
        (
            waiting("CreateContainerConfigError", "secret \"hub\" not found"),
            "ReferenceNotFound",
            "secret \"hub\" not found. Create it in namespace ns",
        ),
        (
            ended(back_off.clone(), crash),
            "CrashLoop",
            "code 1 (restarts: 3): Error: cannot load /model Caused by: no config.json. Check spec.model and spec.decode",
        ),
        (ended(back_off, oom), "OutOfMemory", "Raise spec.decode.resources.limits.memory"),
    ];
    for (status, reason, part) in cases {
        let found = trouble(status);
        assert_eq!(found.reason, reason);
        assert!(found.message.contains(part), "{}", found.message);
        assert!(found.message.contains("demo-decode-0"), "{}", found.message);
    }
}

#[test]
fn one_kill_is_no_crash_loop() {
    let running = json!({ "running": {} });
    let killed = json!({ "terminated": { "exitCode": 137, "reason": "Error" } });
    let after = |restarts: i32| {
        let mut status = ended(running.clone(), killed.clone());
        status["containerStatuses"][0]["restartCount"] = json!(restarts);
        trouble(status)
    };
    assert_eq!(after(1).reason, "Restarted");
    assert!(after(1).message.contains("It is being started again"), "{}", after(1).message);
    assert_eq!(after(2).reason, "CrashLoop");
}

#[test]
fn what_knows_no_worker_arguments_is_an_image_of_another_version() {
    let said = "error: unexpected argument '--speed' found\n\nUsage: disagg-worker [OPTIONS]\n\nFor more information, try '--help'.\n";
    let last = json!({ "terminated": { "exitCode": 2, "message": said } });
    let mut status = ended(json!({ "waiting": { "reason": "CrashLoopBackOff" } }), last);
    status["containerStatuses"][0]["image"] = json!("example.com/worker:0.0.9");
    let found = trouble(status);
    assert_eq!(found.reason, "ArgumentsRefused");
    let parts = [
        "unexpected argument '--speed' found. The image example.com/worker:0.0.9",
        "of one version (spec.images)",
    ];
    assert!(parts.iter().all(|part| found.message.contains(part)), "{}", found.message);
    assert!(!found.message.contains("--help"), "{}", found.message);
}

#[test]
fn a_container_that_somebody_added_is_named() {
    let last = json!({ "terminated": { "exitCode": 1, "message": "no mesh" } });
    let mut status = ended(json!({ "waiting": { "reason": "CrashLoopBackOff" } }), last);
    status["containerStatuses"][0]["name"] = json!("proxy");
    let found = trouble(status);
    assert!(found.message.starts_with("the container proxy of pod demo-decode-0"), "{}", found.message);
    assert!(found.message.contains("what adds it to the pod") && !found.message.contains("spec.model"));
}

#[test]
fn the_image_that_is_missing_is_the_one_that_is_named() {
    let with_model = |why: &str| {
        let mut pod = pod(waiting("ErrImagePull", why));
        pod.spec = serde_json::from_value(json!({
            "containers": [], "volumes": [{ "name": "model", "image": { "reference": "example.com/models:1" } }],
        }))
        .unwrap();
        diagnose(Component::Decode, [&pod].into_iter(), &[], "ns").unwrap().message
    };
    let found = with_model("Back-off pulling image \"example.com/models:1\": not found");
    assert!(found.contains("the image example.com/models:1: "), "{found}");
    assert!(found.contains("Correct spec.model.source.image.reference"), "{found}");
    let found = with_model("Back-off pulling image \"example.com/worker:1\": not found");
    assert!(
        found.contains("the image example.com/worker:1: ") && found.contains("Correct spec.images,"),
        "{found}"
    );
}

#[test]
fn pods_that_are_not_made_are_told_by_their_controller() {
    let quota = Warning {
        object: "demo-decode".to_owned(),
        reason: "FailedCreate".to_owned(),
        message: "pods \"demo-decode-0\" is forbidden: exceeded quota: small".to_owned(),
    };
    let found = diagnose(Component::Decode, [].into_iter(), std::slice::from_ref(&quota), "ns").unwrap();
    assert_eq!(found.reason, "QuotaExceeded");
    assert!(found.message.contains("lower spec.decode.replicas"), "{}", found.message);
    assert_eq!(diagnose(Component::Prefill, [].into_iter(), &[quota], "ns"), None, "not its own");
}

#[test]
fn a_pod_that_starts_or_serves_is_no_trouble() {
    for status in [
        json!({}),
        waiting("ContainerCreating", ""),
        ended(json!({ "running": {} }), json!({})),
        json!({ "containerStatuses": [{
            "name": "worker", "image": "", "imageID": "", "ready": true, "restartCount": 3,
            "state": { "running": {} }, "lastState": { "terminated": { "exitCode": 1 } },
        }]}),
    ] {
        assert_eq!(diagnose(Component::Decode, [&pod(status)].into_iter(), &[], "ns"), None);
    }
}

#[test]
fn messages_from_elsewhere_are_cut() {
    let found = trouble(waiting("ErrImagePull", &"long ".repeat(1000)));
    assert!(found.message.len() < 800);
}
