//! Operators and NetworkPolicies: what no condition of a deployment tells.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::*;

fn operator(namespace: &str, args: &str) -> Deployment {
    let text = OPERATOR.replace("disagg-system", namespace);
    yaml(&text.replace("args: ['--listen=[::]:8080']", args))
}

#[test]
fn one_operator_looks_after_the_namespace_and_no_more() {
    let (all, theirs, ours) = ("args: []", "args: ['--namespace=other']", "args: ['--namespace', llm]");
    let by_variable = "env: [{ name: DISAGG_WATCH_NAMESPACE, value: other }]";
    let with = |operators: Vec<Deployment>| {
        let mut snapshot = well();
        snapshot.operators = Seen::It(operators);
        findings(&snapshot)
    };
    for fine in [
        vec![operator("a", all)],
        vec![operator("a", ours), operator("b", theirs), operator("c", by_variable)],
        // The one for all namespaces sees the other's Lease, and leaves this namespace to it.
        vec![operator("a", all), operator("b", ours)],
    ] {
        assert_eq!(with(fine), []);
    }
    let mut unused = operator("b", all);
    unused.spec.as_mut().unwrap().replicas = Some(0);
    assert_eq!(with(vec![operator("a", all), unused]), []);

    let no_lease = "args: ['--namespace=llm', '--no-leader-election']";
    for other in [no_lease, ours] {
        let first = if other == ours { ours } else { all };
        let found = with(vec![operator("a", first), operator("b", other)]);
        assert_eq!(found.len(), 1, "{found:?}");
        let what = "one alone may work there: disagg in a, disagg in b";
        assert_finding(&found[0], Severity::Error, "namespace/llm", what, "uninstall all but one");
    }

    // One that waits for the other is not available.
    let mut waits = operator("b", all);
    waits.status.as_mut().unwrap().available_replicas = Some(0);
    let found = with(vec![operator("a", all), waits.clone()]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(with(vec![waits.clone(), waits]).len(), 3, "and none of them works");

    let found = with(vec![operator("b", theirs), operator("c", by_variable)]);
    assert_eq!(found.len(), 1, "{found:?}");
    let what = "no operator looks after this namespace: disagg in b is for other, disagg in c is for other";
    assert_finding(&found[0], Severity::Error, "namespace/llm", what, "scope.watchNamespace=llm");
}

fn policy(name: &str, spec: &str) -> NetworkPolicy {
    yaml(&format!("{{ metadata: {{ name: {name} }}, spec: {spec} }}"))
}

const DENY_IN: &str = "{ podSelector: {}, policyTypes: [Ingress] }";
const DENY_OUT: &str = "{ podSelector: { matchExpressions: [{ key: disagg.dev/role, operator: Exists }] }, policyTypes: [Egress] }";

#[test]
fn an_operator_that_cannot_reach_the_routers_is_noticed() {
    let untold = || yaml(&RESOURCE.replace("  settings:", "  #"));
    let found = only(|it| {
        demo(it).resource = Ok(untold());
        demo(it).policies = Seen::It(vec![policy("default-deny", DENY_IN), policy("out", DENY_OUT)]);
    });
    let advice = "let NetworkPolicy default-deny allow the operator's namespace to reach port";
    assert_finding(&found, Severity::Warning, "dd/demo", "cannot ask the routers", advice);
    let found = only(|it| demo(it).resource = Ok(untold()));
    assert_finding(
        &found,
        Severity::Warning,
        "dd/demo",
        "status.settings is empty",
        "a NetworkPolicy of the operator's",
    );

    // Routers that differ, or have only just come, are no sign of it.
    let mut young = well();
    young.now = "2026-01-01T11:01:30Z".parse().unwrap();
    demo(&mut young).resource = Ok(untold());
    assert_eq!(findings(&young), []);
    let found = only(|it| {
        demo(it).resource = Ok(untold());
        demo(it).routers.insert("demo-router-y".to_owned(), router(64));
    });
    assert!(found.what.contains("different settings"), "{found:?}");
}

#[test]
fn the_policy_that_is_in_the_way_is_named() {
    let lost = Worker {
        state: "gone".to_owned(),
        problem: Some("cannot connect: timed out".to_owned()),
        ..worker("demo-decode-0", "decode", "a")
    };
    let not_ready = "no decode worker has been ready yet: demo-decode-0 (gone): cannot connect: timed out";
    let found = only(|it| {
        // The operator's own policy lets routers through.
        let mut own = policy("demo-worker", DENY_IN);
        own.metadata.labels = Some([("disagg.dev/deployment".to_owned(), "demo".to_owned())].into());
        demo(it).policies = Seen::It(vec![own, policy("in", DENY_IN), policy("out", DENY_OUT)]);
        let waits = Ok(Some(not_ready.to_owned()));
        let router = RouterSnapshot { workers: Ok(vec![lost]), not_ready_because: waits, ..router(512) };
        demo(it).routers.insert("demo-router-x".to_owned(), router);
    });
    let advice = "NetworkPolicy in, out lets the routers of this deployment reach port 9000";
    assert_finding(
        &found,
        Severity::Error,
        "pod/demo-router-x",
        "cannot reach the worker demo-decode-0",
        advice,
    );
    assert_eq!(found.hence, ["pod/demo-router-x is not ready"]);

    let reason = "cannot read endpointslices from the Kubernetes API, trying again: timed out".to_owned();
    let found = only(|it| {
        demo(it).policies = Seen::It(vec![policy("in", DENY_IN), policy("out", DENY_OUT)]);
        let router = RouterSnapshot { not_ready_because: Ok(Some(reason)), ..router(512) };
        demo(it).routers.insert("demo-router-x".to_owned(), router);
    });
    let advice = "that NetworkPolicy out lets routers reach the API server";
    assert_finding(&found, Severity::Error, "pod/demo-router-x", "timed out", advice);
}

#[test]
fn policies_that_nobody_enforces_are_told_of() {
    let plain = |it: &mut Snapshot| it.agents = Seen::It(vec![yaml("metadata: { name: kube-flannel-ds }")]);
    let found = only(plain);
    assert_finding(&found, Severity::Warning, "networkpolicies", "nothing that enforces", "Calico, Cilium");
    // A distribution's own process; nobody who can tell; nothing to protect.
    for change in [
        |it: &mut Snapshot| it.version = "v1.36.1+k3s1".to_owned(),
        |it: &mut Snapshot| it.agents = Seen::Unreadable("forbidden".to_owned()),
        |it: &mut Snapshot| it.deployments = Seen::It(Vec::new()),
    ] {
        let mut snapshot = well();
        plain(&mut snapshot);
        change(&mut snapshot);
        assert_eq!(findings(&snapshot), []);
    }
}

#[test]
fn more_workers_are_waited_for_than_there_are() {
    let reason = "1 of the 3 workers that --min-workers asks for are ready".to_owned();
    let waits = || RouterSnapshot { not_ready_because: Ok(Some(reason.clone())), ..router(512) };
    let found = only(|it| _ = demo(it).routers.insert("demo-router-x".to_owned(), waits()));
    assert_finding(&found, Severity::Error, "pod/demo-router-x", &reason, "lower spec.router.minWorkers");
    // A worker that does not start is why, and of what the operator says of the routers, too.
    let found = only(|it| {
        let starting = "  - { type: RouterAvailable, status: 'False', reason: Starting, message: '', lastTransitionTime: ";
        demo(it).resource = Ok(yaml(&format!("{RESOURCE}{starting}'{NOW}' }}\n")));
        demo(it).routers.insert("demo-router-x".to_owned(), waits());
        let status = container("state: { waiting: { reason: ErrImagePull, message: no such host } }");
        demo(it).pods = Seen::It(vec![pod("demo-prefill-0", &status)]);
    });
    assert_finding(&found, Severity::Error, "pod/demo-prefill-0", "no such host", "r.example/disagg:1");
    assert_eq!(found.hence, ["pod/demo-router-x is not ready", "RouterAvailable is False"]);
}
