//! Every way in which the API server may refuse a child, for every kind of child: the others are applied, the condition
//! names the child and the reason, and when the refusal goes, so does the condition.

use disagg_api::crd::DisaggDeploymentStatus;

use super::*;
use crate::reconcile::update_status::status_for_tests;

/// Kinds of children, by their plurals, and as conditions name them.
const KINDS: [(&str, &str); 10] = [
    ("serviceaccounts", "ServiceAccount"),
    ("roles", "Role"),
    ("rolebindings", "RoleBinding"),
    ("configmaps", "ConfigMap"),
    ("networkpolicies", "NetworkPolicy"),
    ("poddisruptionbudgets", "PodDisruptionBudget"),
    ("services", "Service"),
    ("statefulsets", "StatefulSet"),
    ("deployments", "Deployment"),
    ("podmonitors", "PodMonitor"),
];

/// What the API server may say, and the reason of the condition.
const REFUSALS: [(Refusal, &str); 9] = [
    (Refusal::Code(403, "exceeded quota: small, requested: count/x=1, used: 0, limited: 0"), "ChildRefused"),
    (Refusal::Code(403, "x is forbidden: User \"operator\" cannot patch resource"), "ChildRefused"),
    (
        Refusal::Code(403, "x is forbidden: maximum cpu usage per Container is 1, but limit is 2"),
        "ChildRefused",
    ),
    (Refusal::Code(403, "admission webhook \"policy.example.com\" denied the request: no"), "ChildRefused"),
    (Refusal::Code(422, "x is invalid: spec: Forbidden: updates to statefulset spec"), "ImmutableField"),
    (Refusal::Code(422, "data: Forbidden: field is immutable when `immutable` is set"), "ImmutableField"),
    (Refusal::Code(500, "failed calling webhook \"policy.example.com\": connection refused"), "ChildFailed"),
    (Refusal::Code(503, "the server is currently unable to handle the request"), "ChildFailed"),
    (Refusal::Silence, "ChildFailed"),
];

/// Everything of a resource that asks for PodMonitors, too.
fn bench() -> Bench {
    let bench = Bench::new(&SPEC.replace("{model:", "{monitoring: {podMonitor: {}}, model:"));
    let list = json!({
        "kind": "APIResourceList", "groupVersion": "monitoring.coreos.com/v1",
        "resources": [{ "name": "podmonitors", "singularName": "", "namespaced": true, "kind": "PodMonitor", "verbs": [] }],
    });
    bench.put("/apis/monitoring.coreos.com/v1", list);
    bench
}

fn condition<'a>(status: &'a DisaggDeploymentStatus, type_: &str) -> &'a Condition {
    status.conditions.iter().find(|condition| condition.type_ == type_).unwrap()
}

/// Children on the server, but for those of a kind.
fn others(bench: &Bench, plural: &str) -> Vec<String> {
    let of_kind = format!("/{plural}/");
    let server = bench.server.lock();
    server.objects.keys().filter(|path| !path.contains(&of_kind)).cloned().collect()
}

#[tokio::test(start_paused = true)]
async fn every_refusal_of_every_kind_is_told_and_hinders_no_other_child() {
    let whole = bench();
    whole.apply().await;
    for (plural, kind) in KINDS {
        for (refusal, reason) in REFUSALS {
            let bench = bench();
            bench.server.lock().refused.insert(plural, refusal);
            let applied = bench.apply().await;
            let case = format!("{refusal:?} of {plural}");
            assert_eq!(others(&bench, plural), others(&whole, plural), "{case}");

            let status = status_for_tests(&bench.subject, &bench.wanted, &applied);
            // PodMonitors have a condition of their own: nothing is served less without them.
            let told = if kind == "PodMonitor" { "MonitoringAvailable" } else { "ChildrenApplied" };
            let told = condition(&status, told);
            assert_eq!((told.status.as_str(), told.reason.as_str()), ("False", reason), "{case}: {told:?}");
            assert!(told.message.contains(&format!("{kind} demo-")), "{case}: {}", told.message);
            let said = match refusal {
                Refusal::Code(_, message) => message,
                Refusal::Silence => "has not answered within 20 s",
            };
            assert!(told.message.contains(said), "{case}: {}", told.message);
            if kind != "PodMonitor" {
                let names = applied.problems.iter().map(|problem| problem.kind).collect::<Vec<_>>();
                assert!(names.iter().all(|&name| name == kind), "{case}: {names:?}");
                let progressing = condition(&status, "Progressing");
                let expected = if reason == "ChildFailed" { ("True", reason) } else { ("False", "Blocked") };
                assert_eq!((progressing.status.as_str(), progressing.reason.as_str()), expected, "{case}");
            }

            bench.server.lock().refused.clear();
            let applied = bench.apply().await;
            assert_eq!(applied.problems, [], "{case}: it has gone");
            let status = status_for_tests(&bench.subject, &bench.wanted, &applied);
            assert_eq!(condition(&status, "ChildrenApplied").status, "True", "{case}");
            assert_eq!(condition(&status, "MonitoringAvailable").status, "True", "{case}");
        }
    }
}

#[tokio::test]
async fn settings_that_cannot_be_written_are_told_and_those_in_force_are_judged() {
    let mut bench = bench();
    bench.apply().await;
    bench.context.stores.config_maps = showing([typed(bench.object(SETTINGS))]);
    bench.resource.spec.disaggregation.max_local_prefill_length = Some(64);
    bench.validate_again();
    let refusal = Refusal::Code(422, "data: Forbidden: field is immutable when `immutable` is set");
    bench.server.lock().refused.insert("configmaps", refusal);
    let applied = bench.apply().await;
    let settings = applied.settings.clone().unwrap();
    assert_eq!(settings.verdict.unwrap().max_local_prefill_length, 512, "what routers go on with");
    let status = status_for_tests(&bench.subject, &bench.wanted, &applied);
    let told = condition(&status, "ChildrenApplied");
    assert_eq!(told.reason, "ImmutableField");
    assert!(told.message.ends_with("kubectl -n ns delete configmap demo-router"), "{}", told.message);
}

#[tokio::test]
async fn a_namespace_that_goes_away_ends_the_turn() {
    let bench = bench();
    let ending =
        Refusal::Code(403, "unable to create new content in namespace ns because it is being terminated");
    bench.server.lock().refused.insert("services", ending);
    let children = bench.children();
    let (context, memory) = (&bench.context, &bench.memory);
    let ended = apply(&bench.subject, &bench.wanted, &children, Observed::default(), context, memory).await;
    assert_eq!(ended, Err(NamespaceIsEnding));
}
