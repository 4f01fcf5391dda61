//! Findings on fixtures: what kubectl would show, in YAML.

mod folded;
mod network;

use std::collections::BTreeMap;

use disagg_api::RouterSettings;
use disagg_api::kubernetes::SettingsReport;
use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::findings;
use super::gather::{DeploymentSnapshot, RouterSnapshot, Seen, Snapshot, part_of};
use super::{Finding, Group, Severity, report};
use crate::router_client::Worker;

const NOW: &str = "2026-01-01T12:00:00Z";

fn yaml<T: DeserializeOwned>(text: &str) -> T {
    serde_yaml::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

const DEFINITION: &str = "
metadata: { name: disaggdeployments.disagg.dev }
spec:
  group: disagg.dev
  scope: Namespaced
  names: { kind: DisaggDeployment, plural: disaggdeployments }
  versions: [{ name: v1alpha1, served: true, storage: true }]
status: { conditions: [{ type: Established, status: 'True' }] }
";

const OPERATOR: &str = "
metadata: { name: disagg, namespace: disagg-system }
spec:
  selector: {}
  template: { spec: { containers: [{ name: operator, args: ['--listen=[::]:8080'] }] } }
status: { availableReplicas: 1 }
";

const NETWORK_PLUGIN: &str = "metadata: { name: calico-node, namespace: kube-system }";

const RESOURCE: &str = "
apiVersion: disagg.dev/v1alpha1
kind: DisaggDeployment
metadata: { name: demo, generation: 3, creationTimestamp: '2026-01-01T11:00:00Z' }
spec: { model: { source: { random: {} } } }
status:
  observedGeneration: 3
  settings: { maxLocalPrefillLength: 512, maxPrefillQueueDepth: 2, fallbackPolicy: Local, overlapWeightPercent: 100 }
  conditions:
  - { type: Ready, status: 'True', reason: Serving, message: '', lastTransitionTime: '2026-01-01T11:01:00Z' }
  - { type: Progressing, status: 'False', reason: Complete, message: '', lastTransitionTime: '2026-01-01T11:01:00Z' }
";

const SETTINGS: &str = "
metadata: { name: demo-router }
data: { maxLocalPrefillLength: '512' }
";

/// All is well.
fn well() -> Snapshot {
    let deployment = DeploymentSnapshot {
        name: "demo".to_owned(),
        resource: Ok(yaml(RESOURCE)),
        pods: Seen::It(vec![pod("demo-decode-0", READY), pod("demo-router-x", READY)]),
        events: Seen::It(Vec::new()),
        settings: Seen::It(yaml(SETTINGS)),
        policies: Seen::It(Vec::new()),
        routers: BTreeMap::from([("demo-router-x".to_owned(), router(512))]),
    };
    Snapshot {
        now: NOW.parse::<Timestamp>().unwrap(),
        namespace: "llm".to_owned(),
        definition: Seen::It(yaml(DEFINITION)),
        operators: Seen::It(vec![yaml(OPERATOR)]),
        agents: Seen::It(vec![yaml(NETWORK_PLUGIN)]),
        version: "v1.36.1".to_owned(),
        deployments: Seen::It(vec![deployment]),
    }
}

const READY: &str = "
phase: Running
conditions:
- { type: PodScheduled, status: 'True' }
- { type: Ready, status: 'True', lastTransitionTime: '2026-01-01T11:01:00Z' }
containerStatuses: [{ name: worker, image: i, imageID: '', ready: true, restartCount: 0, state: { running: {} } }]
";

/// A pod of an hour ago.
fn pod(name: &str, status: &str) -> k8s_openapi::api::core::v1::Pod {
    let indented = status.trim().replace('\n', "\n  ");
    let role = part_of("demo", name).expect("a pod of the demo").as_str();
    yaml(&format!(
        "metadata:\n  name: {name}\n  creationTimestamp: '2026-01-01T11:00:00Z'\n  labels: {{ disagg.dev/deployment: demo, \
         disagg.dev/role: {role} }}\nstatus:\n  {indented}\n"
    ))
}

/// The state of its only container, one that is not ready.
fn container(state: &str) -> String {
    format!(
        "phase: Pending\nconditions: [{{ type: PodScheduled, status: 'True' }}, {{ type: Ready, status: 'False' }}]\n\
         containerStatuses: [{{ name: worker, image: 'r.example/disagg:1', imageID: '', ready: false, \
         restartCount: 3, {state} }}]"
    )
}

fn router(tokens: u32) -> RouterSnapshot {
    let settings = RouterSettings { max_local_prefill_length: tokens, ..RouterSettings::default() };
    let report = SettingsReport {
        settings: (&settings).into(),
        source: "ConfigMap llm/demo-router".to_owned(),
        resource_version: Some("1".to_owned()),
        problem: None,
    };
    let workers = vec![worker("demo-prefill-0", "prefill", "a"), worker("demo-decode-0", "decode", "a")];
    RouterSnapshot { not_ready_because: Ok(None), settings: Ok(report), workers: Ok(workers) }
}

fn worker(name: &str, role: &str, kv_compat: &str) -> Worker {
    Worker {
        name: Some(name.to_owned()),
        role: Some(role.to_owned()),
        state: "ready".to_owned(),
        kv_compat: Some(kv_compat.to_owned()),
        ..Worker::default()
    }
}

/// The deployment of a snapshot, to be changed.
fn demo(snapshot: &mut Snapshot) -> &mut DeploymentSnapshot {
    let Seen::It(deployments) = &mut snapshot.deployments else { panic!("deployments") };
    &mut deployments[0]
}

/// All findings, of whatever group.
fn findings(snapshot: &Snapshot) -> Vec<Finding> {
    findings::findings(snapshot).into_iter().flat_map(|group| group.findings).collect()
}

/// The only finding after `change`.
fn only(change: impl FnOnce(&mut Snapshot)) -> Finding {
    let mut snapshot = well();
    change(&mut snapshot);
    let mut found = findings(&snapshot);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

fn assert_finding(found: &Finding, severity: Severity, subject: &str, what: &str, advice: &str) {
    assert_eq!((found.severity, found.subject.as_str()), (severity, subject), "{found:#?}");
    assert!(found.what.contains(what), "{what:?} is not in {found:#?}");
    assert!(found.advice.contains(advice), "{advice:?} is not in {found:#?}");
}

#[test]
fn nothing_is_wrong_with_what_is_well() {
    assert_eq!(findings(&well()), []);
}

#[test]
fn the_cluster_lacks_what_was_to_be_installed() {
    let found = only(|it| {
        it.definition = Seen::Nothing;
        it.deployments = Seen::Nothing;
    });
    assert_finding(
        &found,
        Severity::Error,
        "crd/disaggdeployments.disagg.dev",
        "not installed",
        "helm install",
    );
    let found = only(|it| it.definition = Seen::It(yaml(&DEFINITION.replace("v1alpha1", "v1"))));
    assert_finding(
        &found,
        Severity::Error,
        "crd/disaggdeployments.disagg.dev",
        "no version v1alpha1",
        "crds/",
    );
    let found = only(|it| it.operators = Seen::It(Vec::new()));
    assert_finding(
        &found,
        Severity::Warning,
        "deployment/disagg",
        "no operator is found",
        "install the chart",
    );
    let found = only(|it| {
        it.operators = Seen::It(vec![yaml(&OPERATOR.replace("availableReplicas: 1", "replicas: 1"))]);
    });
    let advice = "kubectl -n disagg-system describe deployment disagg";
    assert_finding(&found, Severity::Error, "deployment/disagg", "is not running", advice);
}

/// Users of one namespace see less, and are told nothing wrong because of it.
#[test]
fn what_may_not_be_read_is_no_trouble_of_the_deployment() {
    let mut snapshot = well();
    snapshot.definition = Seen::Unreadable("forbidden".to_owned());
    snapshot.operators = Seen::Unreadable("forbidden".to_owned());
    assert_eq!(findings(&snapshot), []);
    let found = only(|it| demo(it).pods = Seen::Unreadable("pods is forbidden".to_owned()));
    assert_finding(&found, Severity::Warning, "dd/demo", "pods is forbidden", "the right to list pods");
    let found = only(|it| it.deployments = Seen::Unreadable("no".to_owned()));
    assert_finding(
        &found,
        Severity::Error,
        "namespace/llm",
        "cannot be read: no",
        "the right to get and list",
    );
}

#[test]
fn the_operator_is_slow_or_says_no() {
    let with = |text: String| only(|it| demo(it).resource = Ok(yaml(&text)));
    let found = with(RESOURCE.replace("observedGeneration: 3", "observedGeneration: 2"));
    assert_finding(
        &found,
        Severity::Error,
        "dd/demo",
        "has not taken its last change over",
        "operator's log",
    );
    let found = with(RESOURCE.split("status:\n").next().unwrap().to_owned());
    assert_finding(&found, Severity::Error, "dd/demo", "has not said anything", "operator's log");

    let no = RESOURCE.replace(
        "type: Ready, status: 'True', reason: Serving, message: ''",
        "type: Ready, status: 'False', reason: NoModel, message: 'the claim is missing'",
    );
    let found = with(no.clone());
    let what = "Ready is False, NoModel: the claim is missing";
    assert_finding(&found, Severity::Error, "dd/demo", what, "what the condition says to do");
    // A change that is under way excuses what it brings with it, and nothing else.
    let changing = no.replace("Progressing, status: 'False'", "Progressing, status: 'True'");
    assert_finding(
        &with(changing.clone()),
        Severity::Error,
        "dd/demo",
        what,
        "what the condition says to do",
    );
    let found = with(changing.replace("NoModel", "Starting"));
    assert_finding(&found, Severity::Warning, "dd/demo", "Ready is False, Starting", "a change is under way");
    let found = only(|it| demo(it).resource = Err("missing field `model`".to_owned()));
    assert_finding(&found, Severity::Error, "dd/demo", "missing field `model`", "of the version");
}

#[test]
fn settings_are_missing_or_bad() {
    let found = only(|it| demo(it).settings = Seen::Nothing);
    assert_finding(
        &found,
        Severity::Error,
        "configmap/demo-router",
        "is not there",
        "the operator makes it again",
    );
    let found = only(|it| demo(it).settings = Seen::It(yaml(&SETTINGS.replace("'512'", "lots"))));
    let what = "maxLocalPrefillLength: \"lots\" is not allowed";
    assert_finding(
        &found,
        Severity::Error,
        "configmap/demo-router",
        what,
        "kubectl edit configmap demo-router",
    );
}

#[test]
fn a_pod_that_no_node_takes() {
    for (message, advice) in [
        ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "fewer replicas or GPUs"),
        ("0/3 nodes are available: 3 Insufficient memory.", "lower the resources"),
        ("persistentvolumeclaim \"weights\" not found", "create the PersistentVolumeClaim"),
        ("pod has unbound immediate PersistentVolumeClaims. not found", "kubectl get pvc,storageclass"),
        ("1 node(s) didn't find available persistent volumes to bind.", "a StorageClass that makes one"),
        ("0/1 nodes are available: 1 node(s) had untolerated taint {gpu: }", "toleration"),
        ("1 node(s) didn't match Pod's node affinity/selector", "nodeSelector"),
        ("no nodes available to schedule pods", "kubectl get nodes"),
    ] {
        let status = format!(
            "phase: Pending\nconditions: [{{ type: PodScheduled, status: 'False', message: {message:?} }}]"
        );
        let found = only(|it| demo(it).pods = Seen::It(vec![pod("demo-decode-0", &status)]));
        assert_finding(&found, Severity::Error, "pod/demo-decode-0", message, advice);
    }
}

#[test]
fn a_container_that_does_not_start() {
    let waiting = |reason: &str, message: &str| {
        container(&format!("state: {{ waiting: {{ reason: {reason}, message: {message:?} }} }}"))
    };
    let ended = |reason: &str, message: &str| {
        container(&format!(
            "state: {{ waiting: {{ reason: CrashLoopBackOff, message: '' }} }}, lastState: {{ terminated: \
             {{ reason: {reason}, exitCode: 1, message: {message:?} }} }}"
        ))
    };
    for (status, what, advice) in [
        (waiting("ImagePullBackOff", "no such host"), "ImagePullBackOff: no such host", "r.example/disagg:1"),
        (
            waiting("CreateContainerConfigError", "secret \"hub\" not found"),
            "secret \"hub\" not found",
            "Secret",
        ),
        (ended("Error", "loading\nerror: no config.json"), "error: no config.json", "--previous"),
        (ended("OOMKilled", ""), "ended with OOMKilled, exit code 1", "raise the memory limit"),
    ] {
        let found = only(|it| demo(it).pods = Seen::It(vec![pod("demo-decode-0", &status)]));
        assert_finding(&found, Severity::Error, "pod/demo-decode-0", what, advice);
    }
}

#[test]
fn a_pod_that_is_not_ready_or_does_not_go() {
    let running = container("state: { running: {} }").replace("phase: Pending", "phase: Running");
    let found = only(|it| demo(it).pods = Seen::It(vec![pod("demo-decode-0", &running)]));
    assert_finding(&found, Severity::Error, "pod/demo-decode-0", "runs and is not ready", "kubectl logs");
    // One that has just begun is left alone.
    let mut young = well();
    young.now = "2026-01-01T11:00:30Z".parse().unwrap();
    demo(&mut young).pods = Seen::It(vec![pod("demo-decode-0", &running)]);
    assert_eq!(findings(&young), []);

    let creating = container("state: { waiting: { reason: ContainerCreating } }");
    let found = only(|it| {
        demo(it).events = Seen::It(vec![event("Pod", "demo-decode-0", "FailedMount", "secret not found")]);
        demo(it).pods = Seen::It(vec![pod("demo-decode-0", &creating)]);
    });
    let what = "its container is not made: FailedMount: secret not found";
    assert_finding(&found, Severity::Error, "pod/demo-decode-0", what, "make what it names");

    let mut going = pod("demo-decode-0", READY);
    going.metadata.deletion_timestamp = Some(yaml("2026-01-01T11:50:00Z"));
    let found = only(|it| demo(it).pods = Seen::It(vec![going]));
    assert_finding(
        &found,
        Severity::Error,
        "pod/demo-decode-0",
        "grace period is long over",
        "kubectl get nodes",
    );
}

#[test]
fn a_pod_that_has_restarted_lately() {
    let state = "state: { running: {} }, lastState: { terminated: { reason: OOMKilled, exitCode: 137, \
                 finishedAt: '2026-01-01T11:30:00Z' } }";
    let status =
        READY.replace("restartCount: 0, state: { running: {} }", &format!("restartCount: 2, {state}"));
    let found = only(|it| demo(it).pods = Seen::It(vec![pod("demo-decode-0", &status)]));
    let what = "container worker has restarted 2 times, last since it ended with OOMKilled, exit code 137";
    assert_finding(&found, Severity::Warning, "pod/demo-decode-0", what, "raise the memory limit");
    let old = status.replace("11:30:00", "10:30:00");
    let mut snapshot = well();
    demo(&mut snapshot).pods = Seen::It(vec![pod("demo-decode-0", &old)]);
    assert_eq!(findings(&snapshot), []);
}

fn event(kind: &str, name: &str, reason: &str, message: &str) -> k8s_openapi::api::core::v1::Event {
    yaml(&format!(
        "metadata: {{}}\ninvolvedObject: {{ kind: {kind}, name: {name} }}\nreason: {reason}\n\
         message: {message:?}\nlastTimestamp: '2026-01-01T11:59:00Z'\n"
    ))
}

#[test]
fn warnings_that_nothing_else_tells() {
    let quota = event("StatefulSet", "demo-decode", "FailedCreate", "exceeded quota");
    let found = only(|it| demo(it).events = Seen::It(vec![quota.clone(), quota.clone()]));
    assert_finding(
        &found,
        Severity::Warning,
        "statefulset/demo-decode",
        "(60 s ago): exceeded quota",
        "describe",
    );
    let old =
        k8s_openapi::api::core::v1::Event { last_timestamp: Some(yaml("2026-01-01T11:00:00Z")), ..quota };
    let mut snapshot = well();
    demo(&mut snapshot).events = Seen::It(vec![old]);
    assert_eq!(findings(&snapshot), []);
}

#[test]
fn routers_that_are_not_ready_or_differ() {
    let with = |name: &str, router: RouterSnapshot| {
        let name = name.to_owned();
        only(|it| {
            demo(it).routers.insert(name, router);
        })
    };
    let reason = "cannot read endpointslices from the Kubernetes API, trying again: forbidden".to_owned();
    let found = with("demo-router-x", RouterSnapshot { not_ready_because: Ok(Some(reason)), ..router(512) });
    assert_finding(&found, Severity::Error, "pod/demo-router-x", "forbidden", "Role and RoleBinding");
    // Told once, and by the one that knows why.
    let running = container("state: { running: {} }").replace("phase: Pending", "phase: Running");
    let found = only(|it| {
        demo(it).pods = Seen::It(vec![pod("demo-router-x", &running)]);
        let waits = Ok(Some("no worker has been found yet".to_owned()));
        demo(it)
            .routers
            .insert("demo-router-x".to_owned(), RouterSnapshot { not_ready_because: waits, ..router(512) });
    });
    assert_finding(&found, Severity::Error, "pod/demo-router-x", "no worker has been found", "decode worker");
    let found =
        with("demo-router-x", RouterSnapshot { not_ready_because: Err("no".to_owned()), ..router(512) });
    assert_finding(&found, Severity::Warning, "pod/demo-router-x", "cannot be asked: no", "pods/portforward");
    let found = with("demo-router-y", router(64));
    assert_finding(
        &found,
        Severity::Error,
        "dd/demo",
        "demo-router-x 512, demo-router-y 64",
        "a few seconds",
    );

    let mut bad = router(512);
    bad.settings.as_mut().unwrap().problem = Some("x is unknown".to_owned());
    let found = with("demo-router-x", bad);
    assert_finding(
        &found,
        Severity::Error,
        "pod/demo-router-x",
        "x is unknown",
        "repair ConfigMap llm/demo-router",
    );
}

#[test]
fn workers_that_a_router_cannot_use() {
    let with = |workers: Vec<Worker>| {
        only(|it| {
            let router = RouterSnapshot { workers: Ok(workers), ..router(512) };
            demo(it).routers.insert("demo-router-x".to_owned(), router);
        })
    };
    let found = with(vec![Worker {
        state: "gone".to_owned(),
        problem: Some("cannot connect: timed out".to_owned()),
        ..worker("demo-decode-0", "decode", "a")
    }]);
    assert_finding(
        &found,
        Severity::Warning,
        "pod/demo-router-x",
        "cannot reach the worker demo-decode-0",
        "service mesh",
    );
    let found = with(vec![worker("p", "prefill", "a"), worker("d", "decode", "b")]);
    assert_finding(&found, Severity::Warning, "dd/demo", "no prefill worker can hand KV", "the same options");
}
