//! Statuses of a resource in the states that it goes through.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::*;
use crate::args::DefaultImages;
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

fn set(name: &str, wanted: i32, ready: i32) -> Arc<StatefulSet> {
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": { "name": name, "generation": 1 },
        "spec": { "replicas": wanted, "selector": {}, "template": {}, "serviceName": name },
        "status": {
            "observedGeneration": 1, "replicas": wanted, "readyReplicas": ready,
            "currentRevision": "a", "updateRevision": "a",
        },
    });
    Arc::new(serde_json::from_value(set).unwrap())
}

fn routers(wanted: i32, ready: i32) -> Arc<Deployment> {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "demo-router", "generation": 1 },
        "spec": { "replicas": wanted, "selector": {}, "template": {} },
        "status": { "observedGeneration": 1, "replicas": wanted, "readyReplicas": ready, "updatedReplicas": wanted },
    });
    Arc::new(serde_json::from_value(deployment).unwrap())
}

fn observed(prefill: (i32, i32), decode: (i32, i32), router: (i32, i32)) -> Observed {
    Observed {
        prefill: Some(set("demo-prefill", prefill.0, prefill.1)),
        decode: Some(set("demo-decode", decode.0, decode.1)),
        router: Some(routers(router.0, router.1)),
        ..Observed::default()
    }
}

fn settled() -> Outcome {
    Outcome {
        problems: Vec::new(),
        settings: Some(SettingsState {
            resource_version: "7".to_owned(),
            verdict: Ok(disagg_api::RouterSettings::default()),
        }),
        monitoring: None,
        made: false,
    }
}

fn status_of(
    resource: &DisaggDeployment,
    observed: &Observed,
    outcome: &Outcome,
    now: i64,
) -> DisaggDeploymentStatus {
    let images = DefaultImages { router: "r".into(), worker: "w".into(), worker_gpu: "g".into() };
    status(resource, &validate(resource, &images).unwrap(), observed, outcome, None, &at(now))
}

/// `type=status reason` of every condition.
fn shown(status: &DisaggDeploymentStatus) -> Vec<String> {
    let line =
        |condition: &Condition| format!("{}={} {}", condition.type_, condition.status, condition.reason);
    status.conditions.iter().map(line).collect()
}

#[test]
fn from_nothing_to_serving() {
    let resource = resource();
    let nothing = status_of(&resource, &Observed::default(), &settled(), 1);
    assert_eq!(
        shown(&nothing),
        [
            "Ready=False NotCreated",
            "PrefillAvailable=False NotCreated",
            "DecodeAvailable=False NotCreated",
            "RouterAvailable=False NotCreated",
            "Progressing=True RollingOut",
            "SettingsValid=True Valid",
        ]
    );
    let starting = status_of(&resource, &observed((1, 1), (2, 0), (2, 0)), &settled(), 1);
    assert_eq!(shown(&starting)[0], "Ready=False Starting");
    assert_eq!(starting.conditions[0].message, "Decode: 0 of 2 ready");
    let serving = status_of(&resource, &observed((1, 1), (2, 2), (2, 2)), &settled(), 1);
    assert_eq!(
        shown(&serving),
        [
            "Ready=True Serving",
            "PrefillAvailable=True AllReady",
            "DecodeAvailable=True AllReady",
            "RouterAvailable=True AllReady",
            "Progressing=False Complete",
            "SettingsValid=True Valid",
        ]
    );
    assert!(serving.conditions.iter().all(|condition| condition.observed_generation == Some(3)));
    let decode = serving.decode.unwrap();
    assert_eq!((decode.replicas, decode.ready_replicas), (2, 2));
    assert_eq!(decode.selector.as_deref(), Some("disagg.dev/deployment=demo,disagg.dev/role=decode"));
    assert_eq!(serving.router.unwrap().url.as_deref(), Some("http://demo-router.ns.svc:8181"));
}

#[test]
fn one_pod_less_is_enough_but_not_of_one() {
    let ready = |observed| shown(&status_of(&resource(), &observed, &settled(), 1))[0].clone();
    assert_eq!(ready(observed((3, 2), (3, 2), (2, 1))), "Ready=True Serving", "a roll under way");
    assert_eq!(ready(observed((3, 1), (3, 3), (2, 2))), "Ready=False Starting");
    assert_eq!(ready(observed((1, 1), (1, 0), (2, 2))), "Ready=False Starting");
    assert_eq!(
        ready(observed((0, 0), (1, 1), (2, 2))),
        "Ready=True Serving",
        "without prefill workers by choice"
    );
    assert_eq!(ready(observed((1, 1), (0, 0), (2, 2))), "Ready=False ScaledToZero");
}

#[test]
fn a_condition_keeps_its_time_unless_its_status_changes() {
    let mut resource = resource();
    let first = status_of(&resource, &observed((1, 1), (1, 0), (2, 2)), &settled(), 100);
    resource.status = Some(first);
    let again = status_of(&resource, &observed((1, 1), (1, 0), (2, 2)), &settled(), 200);
    assert_eq!(resource.status.as_ref(), Some(&again), "nothing has changed, and nothing is written");
    let ready = status_of(&resource, &observed((1, 1), (1, 1), (2, 2)), &settled(), 300);
    let time = |status: &DisaggDeploymentStatus, type_: &str| {
        let found = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
        found.last_transition_time.0.as_second()
    };
    assert_eq!(time(&ready, "Ready"), 300);
    assert_eq!(time(&ready, "PrefillAvailable"), 100);
}

#[test]
fn problems_of_children_name_the_command_to_run() {
    let of = |problem: Problem| {
        let outcome = Outcome { problems: vec![problem], ..settled() };
        let status = status_of(&resource(), &observed((1, 1), (1, 1), (2, 2)), &outcome, 1);
        assert_eq!(shown(&status)[4], "Progressing=False Blocked");
        format!("{}: {}", status.conditions[0].reason, status.conditions[0].message)
    };
    let name = || "demo-decode".to_owned();
    let foreign = of(Problem::Foreign { kind: "Service", name: name(), owner: Some("Helm x".to_owned()) });
    assert!(foreign.starts_with("ForeignChild: Service demo-decode"), "{foreign}");
    assert!(
        foreign.contains("belongs to Helm x")
            && foreign.ends_with("kubectl -n ns delete service demo-decode")
    );
    let message = "Forbidden: updates to statefulset spec".to_owned();
    let immutable = of(Problem::Immutable { kind: "StatefulSet", name: name(), message });
    assert!(immutable.starts_with("ImmutableField: "), "{immutable}");
    assert!(
        immutable.ends_with("kubectl -n ns delete statefulset demo-decode --cascade=orphan"),
        "{immutable}"
    );
    let refused = of(Problem::Refused { kind: "StatefulSet", name: name(), message: "no".to_owned() });
    assert_eq!(refused, "ChildRefused: the API server refuses StatefulSet demo-decode: no");
}

#[test]
fn bad_settings_are_a_condition_and_do_not_end_serving() {
    let verdict = disagg_api::RouterSettings::from_pairs([("maxLocalPrefillLength", "x")]);
    let settings = Some(SettingsState { resource_version: "7".to_owned(), verdict });
    let outcome = Outcome { settings, ..settled() };
    let status = status_of(&resource(), &observed((1, 1), (1, 1), (2, 2)), &outcome, 1);
    assert_eq!(shown(&status)[0], "Ready=True Serving");
    assert_eq!(shown(&status)[5], "SettingsValid=False Invalid");
    assert!(status.conditions[5].message.starts_with("maxLocalPrefillLength: \"x\" is not allowed"));
}

#[test]
fn monitoring_is_told_of_where_it_is_asked_for_and_keeps_nothing_from_serving() {
    let of = |state: MonitoringState| {
        let outcome = Outcome { monitoring: Some(state), ..settled() };
        let status = status_of(&resource(), &observed((1, 1), (1, 1), (2, 2)), &outcome, 1);
        assert_eq!(shown(&status)[0], "Ready=True Serving");
        (shown(&status)[6].clone(), status.conditions[6].message.clone())
    };
    assert_eq!(of(MonitoringState::Applied).0, "MonitoringAvailable=True Applied");
    let (not_served, what_to_do) = of(MonitoringState::NotServed);
    assert_eq!(not_served, "MonitoringAvailable=False PodMonitorNotServed");
    assert!(what_to_do.contains("Install the definitions of the Prometheus operator"), "{what_to_do}");
    let name = "demo-worker".to_owned();
    let (foreign, _) = of(MonitoringState::Bad(Problem::Foreign { kind: "PodMonitor", name, owner: None }));
    assert_eq!(foreign, "MonitoringAvailable=False ForeignChild");
    let silent = status_of(&resource(), &observed((1, 1), (1, 1), (2, 2)), &settled(), 1);
    assert!(shown(&silent).iter().all(|line| !line.starts_with("Monitoring")), "nobody asked");
}

#[test]
fn an_invalid_resource_keeps_what_is_known_of_its_children() {
    let mut resource = resource();
    resource.status = Some(status_of(&resource, &observed((1, 1), (1, 1), (2, 2)), &settled(), 1));
    let status = invalid_status(&resource, "spec.x: is wrong", &at(9));
    assert_eq!(shown(&status)[..2], ["Ready=False InvalidSpec", "Progressing=False InvalidSpec"]);
    assert!(shown(&status).contains(&"DecodeAvailable=True AllReady".to_owned()));
    assert!(status.conditions[0].message.starts_with("spec.x: is wrong"));
    assert!(status.decode.is_some());
}
