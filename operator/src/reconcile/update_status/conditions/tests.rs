//! Statuses of a resource in the states that it goes through.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::json;

use disagg_api::DisaggDeployment;

use super::*;
use crate::args::DefaultImages;
use crate::reconcile::apply::{MonitoringState, Why};
use crate::reconcile::subject::Subject;
use crate::reconcile::validate::validate;

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

fn resource() -> DisaggDeployment {
    let text = include_str!("../../../../../deploy/samples/demo.yaml");
    let mut resource = DisaggDeployment::from_yaml(text).unwrap();
    resource.metadata.namespace = Some("ns".to_owned());
    resource.metadata.uid = Some("1".to_owned());
    resource.metadata.generation = Some(3);
    resource
}

/// A StatefulSet that has settled at its pods.
fn set(name: &str, wanted: i32, ready: i32) -> StatefulSet {
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": { "name": name, "generation": 1 },
        "spec": { "replicas": wanted, "selector": {}, "template": {}, "serviceName": name },
        "status": {
            "observedGeneration": 1, "replicas": wanted, "readyReplicas": ready, "updatedReplicas": wanted,
            "currentRevision": "a", "updateRevision": "a",
        },
    });
    serde_json::from_value(set).unwrap()
}

fn routers(wanted: i32, ready: i32) -> Deployment {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "demo-router", "generation": 1 },
        "spec": { "replicas": wanted, "selector": {}, "template": {} },
        "status": { "observedGeneration": 1, "replicas": wanted, "readyReplicas": ready, "updatedReplicas": wanted },
    });
    serde_json::from_value(deployment).unwrap()
}

/// Ready pods of an owner, whose labels somebody has rewritten.
fn pods(kind: &str, owner: &str, ready: i32) -> Vec<Arc<Pod>> {
    let pod = |index: i32| {
        let pod = json!({
            "metadata": {
                "name": format!("{owner}-{index}"), "labels": { "app": "rewritten" },
                "ownerReferences": [{ "apiVersion": "v1", "kind": kind, "name": owner, "uid": "u", "controller": true }],
            },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    };
    (0..ready).map(pod).collect()
}

/// Settled components, as wanted and ready.
fn applied(prefill: (i32, i32), decode: (i32, i32), router: (i32, i32)) -> Applied {
    let pods = [
        pods("StatefulSet", "demo-prefill", prefill.1),
        pods("StatefulSet", "demo-decode", decode.1),
        pods("ReplicaSet", "demo-router-5d4f", router.1),
    ];
    Applied {
        prefill: Some(set("demo-prefill", prefill.0, prefill.1)),
        decode: Some(set("demo-decode", decode.0, decode.1)),
        router: Some(routers(router.0, router.1)),
        pods: Some(pods.concat()),
        settings: Some(SettingsState {
            resource_version: "7".to_owned(),
            verdict: Ok(disagg_api::RouterSettings::default()),
        }),
        ..Applied::default()
    }
}

/// A resource that asks for what [`applied`] has, all of it ready.
fn serving() -> Applied {
    applied((1, 1), (1, 1), (2, 2))
}

fn status_at(
    resource: &DisaggDeployment,
    applied: &Applied,
    pending: bool,
    now: i64,
) -> DisaggDeploymentStatus {
    let images = DefaultImages { router: "r".into(), worker: "w".into(), worker_gpu: "g".into() };
    let subject = Subject::of(resource).unwrap();
    let wanted = validate(resource, &subject, &images).unwrap();
    let in_force = InForce { settings: None, pending };
    status(subject.generation, &wanted, applied, in_force, resource.status.as_ref(), &at(now))
}

fn status_of(resource: &DisaggDeployment, applied: &Applied, now: i64) -> DisaggDeploymentStatus {
    status_at(resource, applied, false, now)
}

/// `type=status reason` of every condition.
fn shown(status: &DisaggDeploymentStatus) -> Vec<String> {
    let line =
        |condition: &Condition| format!("{}={} {}", condition.type_, condition.status, condition.reason);
    status.conditions.iter().map(line).collect()
}

fn condition<'a>(status: &'a DisaggDeploymentStatus, type_: &str) -> &'a Condition {
    let found = status.conditions.iter().find(|condition| condition.type_ == type_);
    found.unwrap_or_else(|| panic!("no {type_} in {:?}", shown(status)))
}

/// `status reason` of a condition.
fn is(status: &DisaggDeploymentStatus, type_: &str) -> String {
    let found = condition(status, type_);
    format!("{} {}", found.status, found.reason)
}

#[test]
fn from_nothing_to_serving() {
    let resource = resource();
    let nothing = status_of(&resource, &Applied { settings: serving().settings, ..Applied::default() }, 1);
    assert_eq!(
        shown(&nothing),
        [
            "Ready=False NotCreated",
            "PrefillAvailable=False NotCreated",
            "DecodeAvailable=False NotCreated",
            "RouterAvailable=False NotCreated",
            "Progressing=True ReplicasUnavailable",
            "ChildrenApplied=True Applied",
            "SettingsValid=True Valid",
            "Reconciling=True ReplicasUnavailable",
        ]
    );
    let starting = status_of(&resource, &applied((1, 1), (2, 0), (2, 0)), 1);
    assert_eq!(is(&starting, "Ready"), "False Starting");
    assert_eq!(condition(&starting, "Ready").message, "Decode: 0 of 2 ready");
    let serving = status_of(&resource, &applied((1, 1), (2, 2), (2, 2)), 1);
    assert_eq!(
        shown(&serving),
        [
            "Ready=True Serving",
            "PrefillAvailable=True AllReady",
            "DecodeAvailable=True AllReady",
            "RouterAvailable=True AllReady",
            "Progressing=False Complete",
            "ChildrenApplied=True Applied",
            "SettingsValid=True Valid",
        ]
    );
    assert!(serving.conditions.iter().all(|condition| condition.observed_generation == Some(3)));
    let decode = serving.decode.unwrap();
    assert_eq!((decode.replicas, decode.ready_replicas, decode.updated_replicas), (2, 2, 2));
    assert_eq!(decode.selector.as_deref(), Some("disagg.dev/deployment=demo,disagg.dev/role=decode"));
    assert_eq!(serving.router.unwrap().url.as_deref(), Some("http://demo-router.ns.svc:8181"));
}

#[test]
fn ready_is_about_serving_and_progressing_about_the_rest() {
    let of = |applied| {
        let status = status_of(&resource(), &applied, 1);
        (is(&status, "Ready"), is(&status, "Progressing"))
    };
    let both = |ready: &str, progressing: &str| (ready.to_owned(), progressing.to_owned());
    let unavailable = "True ReplicasUnavailable";
    assert_eq!(of(applied((3, 1), (8, 1), (2, 1))), both("True Serving", unavailable), "scaled up just now");
    assert_eq!(of(applied((1, 1), (1, 0), (2, 2))), both("False Starting", unavailable));
    assert_eq!(
        of(applied((0, 0), (1, 1), (2, 2))),
        both("True Serving", "False Complete"),
        "without prefill workers by choice"
    );
    assert_eq!(of(applied((1, 1), (0, 0), (2, 2))), both("False ScaledToZero", "False Complete"));
}

#[test]
fn what_is_applied_and_not_seen_by_its_controller_is_not_complete() {
    let mut just_applied = serving();
    let set = just_applied.decode.as_mut().unwrap();
    set.metadata.generation = Some(2);
    let status = status_of(&resource(), &just_applied, 1);
    assert_eq!(is(&status, "Progressing"), "True RollingOut");
    assert_eq!(is(&status, "Reconciling"), "True RollingOut", "for Flux and the like");
    // Scaled to nothing: what its status still counts serves no more.
    set_replicas(&mut just_applied, 0);
    let status = status_of(&resource(), &just_applied, 1);
    assert_eq!(
        (is(&status, "Ready"), is(&status, "Progressing")),
        ("False ScaledToZero".to_owned(), "True ReplicasUnavailable".to_owned())
    );
}

fn set_replicas(applied: &mut Applied, replicas: i32) {
    applied.decode.as_mut().unwrap().spec.as_mut().unwrap().replicas = Some(replicas);
}

#[test]
fn a_pod_that_is_about_to_end_does_not_make_ready() {
    let mut ending = serving();
    for pod in ending.pods.as_mut().unwrap() {
        if pod.name_any().starts_with("demo-decode") {
            Arc::make_mut(pod).metadata.deletion_timestamp = Some(at(1));
        }
    }
    let status = status_of(&resource(), &ending, 1);
    assert_eq!(is(&status, "Ready"), "False Starting", "its StatefulSet still counts it");
    assert_eq!(is(&status, "Progressing"), "True ReplicasUnavailable");
}

#[test]
fn routers_that_have_yet_to_apply_the_settings_are_a_change_under_way() {
    let status = status_at(&resource(), &serving(), true, 1);
    assert_eq!(is(&status, "Progressing"), "True ApplyingSettings");
    assert_eq!(is(&status, "Ready"), "True Serving");
}

#[test]
fn a_condition_keeps_its_time_unless_its_status_changes() {
    let mut resource = resource();
    let first = status_of(&resource, &applied((1, 1), (1, 0), (2, 2)), 100);
    resource.status = Some(first);
    let again = status_of(&resource, &applied((1, 1), (1, 0), (2, 2)), 200);
    assert_eq!(resource.status.as_ref(), Some(&again), "nothing has changed, and nothing is written");
    let ready = status_of(&resource, &serving(), 300);
    let time = |status: &DisaggDeploymentStatus, type_: &str| {
        condition(status, type_).last_transition_time.0.as_second()
    };
    assert_eq!(time(&ready, "Ready"), 300);
    assert_eq!(time(&ready, "PrefillAvailable"), 100);
}

#[test]
fn a_change_without_progress_ends_at_its_deadline_and_goes_on_with_progress() {
    let mut resource = resource();
    resource.spec.progress_deadline_seconds = Some(60);
    let turn = |resource: &mut DisaggDeployment, applied: &Applied, now: i64| {
        let status = status_of(resource, applied, now);
        resource.status = Some(status.clone());
        (is(&status, "Progressing"), status)
    };
    let progressing = |shown: &str| format!("True {shown}");
    turn(&mut resource, &serving(), 0);
    let stuck = applied((1, 1), (3, 1), (2, 2));
    // A rest of any length does not count.
    assert_eq!(turn(&mut resource, &stuck, 1000).0, progressing("ReplicasUnavailable"));
    assert_eq!(turn(&mut resource, &stuck, 1059).0, progressing("ReplicasUnavailable"));
    let better = applied((1, 1), (3, 2), (2, 2));
    assert_eq!(turn(&mut resource, &better, 1060).0, progressing("ReplicasUnavailable"), "one more is ready");
    assert_eq!(turn(&mut resource, &better, 1119).0, progressing("ReplicasUnavailable"));
    let (reason, status) = turn(&mut resource, &better, 1120);
    assert_eq!(reason, "False ProgressDeadlineExceeded");
    assert_eq!(
        (is(&status, "Ready"), is(&status, "Stalled")),
        ("True Serving".to_owned(), "True ProgressDeadlineExceeded".to_owned())
    );
    let message = &condition(&status, "Progressing").message;
    assert!(message.starts_with("no progress for 60 s (spec.progressDeadlineSeconds): "), "{message}");
    assert_eq!(turn(&mut resource, &better, 5000).1, status, "it stays, and nothing is written");
    // The spec changes: a new change, with a time of its own.
    resource.metadata.generation = Some(4);
    assert_eq!(turn(&mut resource, &better, 5001).0, progressing("ReplicasUnavailable"));
    assert_eq!(turn(&mut resource, &applied((1, 1), (3, 3), (2, 2)), 5002).0, "False Complete");
}

#[test]
fn what_cannot_be_applied_is_named_with_the_command_to_run() {
    let of = |why: Why, kind: &'static str| {
        let problem = Problem { kind, name: "demo-decode".to_owned(), why };
        let status = status_of(&resource(), &Applied { problems: vec![problem], ..serving() }, 1);
        assert_eq!(is(&status, "Ready"), "True Serving", "what was there serves on");
        let told = condition(&status, "ChildrenApplied");
        (told.reason.clone(), told.message.clone(), is(&status, "Progressing"))
    };
    let (reason, foreign, progressing) = of(Why::Foreign { owner: Some("Helm x".to_owned()) }, "Service");
    assert_eq!((reason.as_str(), progressing.as_str()), ("ForeignChild", "False Blocked"));
    assert!(foreign.contains("Service demo-decode") && foreign.contains("belongs to Helm x"), "{foreign}");
    assert!(foreign.ends_with("kubectl -n ns delete service demo-decode"), "{foreign}");
    let (reason, immutable, _) =
        of(Why::Immutable("Forbidden: updates to statefulset spec".to_owned()), "StatefulSet");
    assert_eq!(reason, "ImmutableField");
    assert!(
        immutable.ends_with("kubectl -n ns delete statefulset demo-decode --cascade=orphan"),
        "{immutable}"
    );
    let (reason, refused, _) = of(Why::Refused("no".to_owned()), "StatefulSet");
    assert_eq!(reason, "ChildRefused");
    assert!(refused.ends_with("the API server refuses StatefulSet demo-decode: no"), "{refused}");
    let (reason, _, progressing) = of(Why::Passing("timeout".to_owned()), "StatefulSet");
    assert_eq!((reason.as_str(), progressing.as_str()), ("ChildFailed", "True ChildFailed"));
}

#[test]
fn what_could_not_be_applied_comes_before_what_follows_from_it() {
    let problem = |kind, why| Problem { kind, name: "demo-decode".to_owned(), why };
    let problems = vec![
        problem("Service", Why::Passing("timeout".to_owned())),
        problem("StatefulSet", Why::Refused("no".to_owned())),
    ];
    let nothing_runs = Applied { decode: None, problems, ..applied((1, 1), (1, 0), (2, 2)) };
    let status = status_of(&resource(), &nothing_runs, 1);
    assert_eq!(
        (is(&status, "Ready"), is(&status, "Stalled")),
        ("False ChildRefused".to_owned(), "True Blocked".to_owned())
    );
    let told = &condition(&status, "ChildrenApplied").message;
    assert!(
        told.starts_with("2 of the children cannot be applied: ") && told.contains("timeout; "),
        "{told}"
    );
}

#[test]
fn a_kind_that_cannot_be_watched_is_told_and_pods_are_then_counted_by_their_controllers() {
    let blind = Applied { unwatched: vec!["pods".to_owned()], pods: None, ..serving() };
    let status = status_of(&resource(), &blind, 1);
    assert_eq!(
        (is(&status, "ChildrenApplied"), is(&status, "Ready")),
        ("False WatchFailed".to_owned(), "True Serving".to_owned())
    );
    assert!(condition(&status, "ChildrenApplied").message.contains("cannot watch pods"));
}

#[test]
fn bad_settings_are_a_condition_and_do_not_end_serving() {
    let verdict = disagg_api::RouterSettings::from_pairs([("maxLocalPrefillLength", "x")]);
    let settings = Some(SettingsState { resource_version: "7".to_owned(), verdict });
    let status = status_of(&resource(), &Applied { settings, ..serving() }, 1);
    assert_eq!(is(&status, "Ready"), "True Serving");
    assert_eq!(is(&status, "SettingsValid"), "False Invalid");
    let message = &condition(&status, "SettingsValid").message;
    assert!(message.starts_with("maxLocalPrefillLength: \"x\" is not allowed"), "{message}");
}

#[test]
fn monitoring_is_told_of_where_it_is_asked_for_and_keeps_nothing_from_serving() {
    let of = |state: MonitoringState| {
        let status = status_of(&resource(), &Applied { monitoring: Some(state), ..serving() }, 1);
        assert_eq!(is(&status, "Ready"), "True Serving");
        assert_eq!(is(&status, "ChildrenApplied"), "True Applied");
        (is(&status, "MonitoringAvailable"), condition(&status, "MonitoringAvailable").message.clone())
    };
    assert_eq!(of(MonitoringState::Applied).0, "True Applied");
    let (not_served, what_to_do) = of(MonitoringState::NotServed);
    assert_eq!(not_served, "False PodMonitorNotServed");
    assert!(what_to_do.contains("Install the definitions of the Prometheus operator"), "{what_to_do}");
    let why = Why::Foreign { owner: None };
    let (foreign, _) =
        of(MonitoringState::Bad(Problem { kind: "PodMonitor", name: "demo-worker".to_owned(), why }));
    assert_eq!(foreign, "False ForeignChild");
    let silent = status_of(&resource(), &serving(), 1);
    assert!(shown(&silent).iter().all(|line| !line.starts_with("Monitoring")), "nobody asked");
}

#[test]
fn an_invalid_resource_keeps_what_is_known_of_its_children() {
    let mut resource = resource();
    resource.status = Some(status_of(&resource, &applied((1, 1), (2, 1), (2, 2)), 1));
    let status =
        invalid_status(resource.metadata.generation, "spec.x: is wrong", resource.status.as_ref(), &at(9));
    assert_eq!(
        shown(&status)[..3],
        ["Ready=False InvalidSpec", "Progressing=False InvalidSpec", "Stalled=True InvalidSpec"]
    );
    assert!(shown(&status).contains(&"DecodeAvailable=True EnoughReady".to_owned()));
    assert!(!shown(&status).iter().any(|line| line.starts_with("Reconciling")), "nothing is under way");
    assert!(condition(&status, "Ready").message.starts_with("spec.x: is wrong"));
    assert!(status.decode.is_some());
}
