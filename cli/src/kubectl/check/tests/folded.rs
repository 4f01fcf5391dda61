//! One trouble is told once: the cause, and under it what follows. Each fixture is what a cluster shows some minutes after
//! a resource that cannot work was applied.

#![allow(clippy::needless_pass_by_value)] // values made on the spot

use super::*;

/// The conditions of a resource of which one part does not work.
fn conditions(parts: &[(&str, &str, &str)]) -> String {
    let head = RESOURCE.split("  conditions:").next().unwrap().replace("  settings:", "  #");
    let lines = parts.iter().map(|(kind, reason, message)| condition(kind, "False", reason, message));
    format!("{head}  conditions:\n{}", lines.collect::<String>())
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> String {
    format!(
        "  - {{ type: {kind}, status: '{status}', reason: {reason}, message: {message:?}, lastTransitionTime: '{NOW}' }}\n"
    )
}

/// The report on a deployment whose parts are as `change` makes them: its routers wait, as they do whenever nothing can be
/// decoded.
fn waiting(parts: &[(&str, &str, &str)], change: impl FnOnce(&mut DeploymentSnapshot)) -> (String, usize) {
    let mut snapshot = well();
    let running = container("state: { running: {} }").replace("phase: Pending", "phase: Running");
    let it = demo(&mut snapshot);
    it.resource = Ok(yaml(&conditions(parts)));
    it.pods = Seen::It(vec![pod("demo-router-x", &running), pod("demo-router-y", &running)]);
    for name in ["demo-router-x", "demo-router-y"] {
        let waits = Ok(Some("no worker has been found yet".to_owned()));
        it.routers.insert(
            name.to_owned(),
            RouterSnapshot { not_ready_because: waits, workers: Ok(Vec::new()), ..router(512) },
        );
    }
    change(it);
    let groups = findings::findings(&snapshot);
    (report(&groups, "it"), groups.iter().map(|group| group.findings.len()).sum())
}

fn push(it: &mut DeploymentSnapshot, name: &str, status: &str) {
    let Seen::It(pods) = &mut it.pods else { panic!("pods") };
    pods.push(pod(name, status));
}

/// One finding, that names the cause; all else stands below it.
fn assert_told_once((text, findings): (String, usize), cause: &[&str], hence: &[&str]) {
    assert_eq!(findings, 1, "{text}");
    let (head, tail) = text.split_once("    hence: ").unwrap_or_else(|| panic!("nothing follows: {text}"));
    for part in cause {
        assert!(head.contains(part), "{part:?} is not the cause in {text}");
    }
    for part in hence {
        assert!(tail.contains(part), "{part:?} does not follow in {text}");
    }
}

const ROUTER_WAITS: (&str, &str, &str) = ("RouterAvailable", "Starting", "0 of 2 ready");

#[test]
fn a_child_that_is_refused_comes_before_what_lacks_because_of_it() {
    let refused = "the API server refuses StatefulSet demo-decode: tolerations: Sometimes";
    let parts = [
        ("Ready", "ChildRefused", refused),
        ("DecodeAvailable", "NotCreated", "it has not been created yet"),
        ROUTER_WAITS,
    ];
    let told = waiting(&parts, |_| {});
    let cause = [
        "dd/demo\n  error: dd/demo: Ready is False, ChildRefused: the API server refuses StatefulSet demo-decode",
    ];
    let hence = [
        "DecodeAvailable is False",
        "RouterAvailable is False",
        "pod/demo-router-x is not ready",
        "demo-router-y",
    ];
    assert_told_once(told, &cause, &hence);
    // The same where a condition of its own says it.
    let own = [("ChildrenApplied", "ChildRefused", refused), parts[0], parts[1], ROUTER_WAITS];
    assert_told_once(waiting(&own, |_| {}), &["ChildrenApplied is False, ChildRefused"], &["Ready is False"]);
}

/// Conditions that sum others up are told with them, or, where they stand alone, once.
#[test]
fn summaries_of_one_thing_are_one_finding() {
    let why = "spec.decode.replicas: must be from 0 to 1024, not -1";
    let parts = [("Ready", "InvalidSpec", why), ("Progressing", "InvalidSpec", why)];
    let told = waiting(&parts, |it| {
        it.resource = Ok(yaml(&(conditions(&parts) + &condition("Stalled", "True", "InvalidSpec", why))));
    });
    let hence = ["Progressing is False", "Stalled is True", "pod/demo-router-x is not ready"];
    assert_told_once(told, &["dd/demo: Ready is False, InvalidSpec: spec.decode.replicas"], &hence);
    // Everything serves, and a pod more than there are is wanted.
    let mut snapshot = well();
    let message = "2 of 3 pods are ready; exceeded quota: small";
    let text = RESOURCE.split("  - { type: Progressing").next().unwrap().to_owned();
    let text = text + &condition("Progressing", "True", "QuotaExceeded", message);
    demo(&mut snapshot).resource =
        Ok(yaml(&(text + &condition("Reconciling", "True", "QuotaExceeded", message))));
    let found = findings(&snapshot);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_finding(
        &found[0],
        Severity::Warning,
        "dd/demo",
        "exceeded quota: small",
        "what the condition says",
    );
}

#[test]
fn a_quota_is_told_by_the_condition_that_names_it() {
    let quota =
        "pods of demo-decode cannot be made: exceeded quota: small. Raise the namespace's ResourceQuota";
    let of_router = "pods of demo-router cannot be made: exceeded quota: small";
    let parts = [
        ("Ready", "QuotaExceeded", quota),
        ("DecodeAvailable", "QuotaExceeded", quota),
        ("RouterAvailable", "QuotaExceeded", of_router),
    ];
    let told = waiting(&parts, |it| {
        it.pods = Seen::It(Vec::new());
        it.routers.clear();
        it.events = Seen::It(vec![
            event("StatefulSet", "demo-decode", "FailedCreate", "exceeded quota: small"),
            event("DisaggDeployment", "demo", "QuotaExceeded", "exceeded quota: small"),
        ]);
    });
    let hence = [
        "Ready is False",
        "RouterAvailable is False",
        "FailedCreate of statefulset/demo-decode",
        "QuotaExceeded of",
    ];
    assert_told_once(
        told,
        &["DecodeAvailable is False, QuotaExceeded: ", "Raise the namespace's ResourceQuota"],
        &hence,
    );
}

#[test]
fn pods_that_do_not_start_are_the_cause_of_all_else() {
    let usage = "error: unexpected argument '--speed' found\n\nUsage: disagg-worker\n\nFor more information, try '--help'.\n";
    let crash = |message: &str, code: i32| {
        container(&format!(
            "state: {{ waiting: {{ reason: CrashLoopBackOff }} }}, lastState: {{ terminated: {{ reason: Error, exitCode: \
             {code}, message: {message:?} }} }}"
        ))
    };
    let waits = |reason: &str, message: &str| {
        container(&format!("state: {{ waiting: {{ reason: {reason}, message: {message:?} }} }}"))
    };
    let unscheduled = |message: &str| {
        format!(
            "phase: Pending\nconditions: [{{ type: PodScheduled, status: 'False', message: {message:?} }}]"
        )
    };
    let cases = [
        (
            waits("CreateContainerConfigError", "secret \"hub-token\" not found"),
            "secret \"hub-token\" not found",
            "make the Secret",
        ),
        (
            unscheduled("persistentvolumeclaim \"models\" not found."),
            "\"models\" not found",
            "create the PersistentVolumeClaim",
        ),
        (
            unscheduled("pod has unbound immediate PersistentVolumeClaims."),
            "unbound immediate",
            "why the claim is not bound",
        ),
        (
            waits("ErrImageNeverPull", "Container image \"r.example/disagg:1\" is not present"),
            "is not present",
            "r.example/disagg:1 (spec.images",
        ),
        (
            unscheduled("1 Insufficient nvidia.com/gpu."),
            "Insufficient nvidia.com/gpu",
            "no node has that many free GPUs",
        ),
        (unscheduled("1 Insufficient cpu."), "Insufficient cpu", "lower the resources of the role"),
        (
            unscheduled("1 node(s) didn't match Pod's node affinity/selector."),
            "affinity/selector",
            "correct nodeSelector",
        ),
        (
            crash("Error: no config.json\n", 1),
            "exit code 1: Error: no config.json",
            "kubectl logs demo-decode-0 -c worker --previous",
        ),
        (
            crash(usage, 2),
            "exit code 2: error: unexpected argument '--speed' found",
            "images and operator of one version",
        ),
    ];
    for (status, what, advice) in cases {
        let parts = [("Ready", "Broken", "x"), ("DecodeAvailable", "Broken", "x"), ROUTER_WAITS];
        let told = waiting(&parts, |it| push(it, "demo-decode-0", &status));
        let hence = [
            "DecodeAvailable is False",
            "Ready is False",
            "RouterAvailable is False",
            "pod/demo-router-x is not ready",
        ];
        assert_told_once(told, &["error: pod/demo-decode-0: ", what, advice], &hence);
    }
}

#[test]
fn pods_with_the_same_trouble_are_told_together() {
    let parts = [("Ready", "ImageNotPulled", "x"), ("DecodeAvailable", "ImageNotPulled", "x"), ROUTER_WAITS];
    let told = waiting(&parts, |it| {
        for at in 0..3 {
            let status = container("state: { waiting: { reason: ImagePullBackOff, message: no such host } }");
            push(it, &format!("demo-decode-{at}"), &status);
        }
    });
    assert_told_once(
        told,
        &["error: pod/demo-decode-0 (also pod/demo-decode-1, pod/demo-decode-2): "],
        &["Ready"],
    );
}

#[test]
fn two_troubles_are_two_findings() {
    let parts = [
        ("Ready", "ImageNotPulled", "x"),
        ("DecodeAvailable", "ImageNotPulled", "x"),
        ("PrefillAvailable", "Unschedulable", "x"),
        ROUTER_WAITS,
    ];
    let (text, findings) = waiting(&parts, |it| {
        push(
            it,
            "demo-prefill-0",
            "phase: Pending\nconditions: [{ type: PodScheduled, status: 'False', message: 'Insufficient cpu' }]",
        );
        push(
            it,
            "demo-decode-0",
            &container("state: { waiting: { reason: ErrImagePull, message: no such host } }"),
        );
    });
    assert_eq!(findings, 2, "{text}");
    let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part:?} is not in {text}"));
    assert!(
        at("pod/demo-decode-0: ") < at("pod/demo-prefill-0: "),
        "nothing is served without decode workers: {text}"
    );
    assert!(at("PrefillAvailable is False") > at("pod/demo-prefill-0: "), "{text}");
}

#[test]
fn a_container_that_a_webhook_adds_is_named_as_such() {
    let status = "phase: Running
conditions: [{ type: PodScheduled, status: 'True' }, { type: Ready, status: 'False' }]
containerStatuses:
- { name: worker, image: i, imageID: '', ready: true, restartCount: 0, state: { running: {} } }
- name: proxy
  image: mesh
  imageID: ''
  ready: false
  restartCount: 4
  state: { waiting: { reason: CrashLoopBackOff } }
  lastState: { terminated: { reason: Error, exitCode: 1, message: no control plane } }
";
    let parts = [("Ready", "CrashLoop", "x"), ("DecodeAvailable", "CrashLoop", "x"), ROUTER_WAITS];
    let told = waiting(&parts, |it| push(it, "demo-decode-0", status));
    let cause = [
        "container proxy crashes: ended with Error, exit code 1: no control plane",
        "proxy is not one of the operator's containers",
    ];
    assert_told_once(told, &cause, &["RouterAvailable is False"]);
}

#[test]
fn no_field_is_blamed_for_a_container_that_a_webhook_adds() {
    for (state, says) in [
        ("waiting: { reason: ErrImagePull, message: no such image }", "cannot start: ErrImagePull"),
        ("waiting: { reason: CreateContainerConfigError, message: no secret }", "no secret"),
        ("running: {}", "it runs and is not ready: container proxy is not"),
    ] {
        let status = format!(
            "phase: Running
conditions: [{{ type: PodScheduled, status: 'True' }}, {{ type: Ready, status: 'False' }}]
containerStatuses:
- {{ name: worker, image: i, imageID: '', ready: true, restartCount: 0, state: {{ running: {{}} }} }}
- {{ name: proxy, image: mesh, imageID: '', ready: false, restartCount: 0, state: {{ {state} }} }}
"
        );
        let parts = [("Ready", "Starting", "x"), ("DecodeAvailable", "Starting", "x"), ROUTER_WAITS];
        let told = waiting(&parts, |it| push(it, "demo-decode-0", &status));
        let cause = [says, "proxy is not one of the operator's containers"];
        assert_told_once(told, &cause, &["RouterAvailable is False"]);
    }
}

#[test]
fn an_image_of_a_volume_is_the_one_that_is_named() {
    let mut broken = pod(
        "demo-decode-0",
        &container(
            "state: { waiting: { reason: ErrImagePull, message: 'failed to pull \"r.example/models:1\"' } }",
        ),
    );
    broken.spec = Some(yaml(
        "{ containers: [], volumes: [{ name: model, image: { reference: 'r.example/models:1' } }] }",
    ));
    let found = only(|it| demo(it).pods = Seen::It(vec![broken]));
    let advice = "r.example/models:1 (spec.model.source.image.reference)";
    assert_finding(&found, Severity::Error, "pod/demo-decode-0", "failed to pull", advice);
}

#[test]
fn an_operator_that_does_not_run_is_why_deployments_hear_nothing() {
    let mut snapshot = well();
    snapshot.operators = Seen::It(vec![yaml(&OPERATOR.replace("availableReplicas: 1", "replicas: 1"))]);
    demo(&mut snapshot).resource = Ok(yaml(RESOURCE.split("status:\n").next().unwrap()));
    demo(&mut snapshot).settings = Seen::Nothing;
    let groups = findings::findings(&snapshot);
    let text = report(&groups, "it");
    assert_eq!(groups.iter().map(|group| group.findings.len()).sum::<usize>(), 1, "{text}");
    assert!(
        text.contains("dd/demo: the operator has not said anything of it; configmap/demo-router: "),
        "{text}"
    );
}

#[test]
fn bad_settings_are_told_by_the_config_map_that_holds_them() {
    let parts = [("SettingsValid", "Invalid", "maxLocalPrefillLength: x")];
    let mut snapshot = well();
    let it = demo(&mut snapshot);
    let ready = RESOURCE.split("  conditions:\n").nth(1).unwrap();
    it.resource = Ok(yaml(&format!("{}{ready}", conditions(&parts).replace("  #", "  settings:"))));
    it.settings = Seen::It(yaml(&SETTINGS.replace("'512'", "lots")));
    let mut bad = router(512);
    bad.settings.as_mut().unwrap().problem = Some("lots is not allowed".to_owned());
    it.routers.insert("demo-router-x".to_owned(), bad);
    let groups = findings::findings(&snapshot);
    let told = (report(&groups, "it"), groups.iter().map(|group| group.findings.len()).sum());
    let hence = ["SettingsValid is False", "pod/demo-router-x has other settings in force"];
    assert_told_once(
        told,
        &["error: configmap/demo-router: maxLocalPrefillLength: \"lots\" is not allowed"],
        &hence,
    );
}

#[test]
fn groups_stand_apart_the_worst_first() {
    let finding = Finding::warning("pod/a", "odd", "look");
    let mut broken = Finding::error("pod/b", "broken\n  in two lines", "mend");
    broken.more = vec!["pod/c".to_owned()];
    broken.hence = vec!["Ready is False".to_owned(), "x".to_owned()];
    let group = |of: &str, findings: Vec<Finding>| Group { of: of.to_owned(), findings };
    let groups = [
        group("the cluster", Vec::new()),
        group("dd/one", vec![finding.clone()]),
        group("dd/two", vec![broken, finding]),
    ];
    let expected = "\
dd/two
  error: pod/b (also pod/c): broken in two lines
    to do: mend
    hence: Ready is False; x
  warning: pod/a: odd
    to do: look
dd/one
  warning: pod/a: odd
    to do: look
Looked at 1 pod.
";
    assert_eq!(report(&groups, "1 pod"), expected);
    assert_eq!(report(&groups[..1], "1 pod"), "Nothing is wrong. Looked at 1 pod.\n");
}
