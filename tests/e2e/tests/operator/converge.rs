//! Wherever it starts from and however often it is killed, the operator ends at the same place, and stays there
//! quietly. What belongs to others stays theirs.

use std::collections::BTreeMap;
use std::time::Duration;

use disagg_e2e::cluster::{Namespace, Operator};
use disagg_e2e::eventually;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{DEFINITION, SOON, cluster, no_workers, no_workers_with};

/// Children of one resource.
const CHILDREN: usize = 15;

/// Every child in the namespace, without what the API server and other controllers write: by kind and name.
async fn children(namespace: &Namespace) -> BTreeMap<String, Value> {
    async fn add<K>(namespace: &Namespace, into: &mut BTreeMap<String, Value>)
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Serialize,
    {
        let ours = ListParams::default().labels("app.kubernetes.io/managed-by=disagg-operator");
        for object in namespace.api::<K>().list(&ours).await.expect("a list").items {
            let name = format!("{} {}", K::kind(&()), object.name_any());
            into.insert(name, serde_json::to_value(object).expect("JSON"));
        }
    }
    let mut found = BTreeMap::new();
    add::<ConfigMap>(namespace, &mut found).await;
    add::<Service>(namespace, &mut found).await;
    add::<ServiceAccount>(namespace, &mut found).await;
    add::<StatefulSet>(namespace, &mut found).await;
    add::<Deployment>(namespace, &mut found).await;
    add::<Role>(namespace, &mut found).await;
    add::<RoleBinding>(namespace, &mut found).await;
    add::<PodDisruptionBudget>(namespace, &mut found).await;
    add::<NetworkPolicy>(namespace, &mut found).await;
    found
}

/// A child without what differs from one life to the next.
fn essence(child: &Value) -> Value {
    let mut child = child.clone();
    child["metadata"] = json!({
        "labels": child["metadata"]["labels"],
        "annotations": {
            "seeded": child["metadata"]["annotations"]["disagg.dev/seeded"],
            "last-good": child["metadata"]["annotations"]["disagg.dev/last-good"],
        },
    });
    if let Some(fields) = child.as_object_mut() {
        fields.remove("status");
    }
    for address in ["clusterIP", "clusterIPs"] {
        if let Some(spec) = child["spec"].as_object_mut() {
            spec.remove(address);
        }
    }
    child
}

pub(super) fn versions(children: &BTreeMap<String, Value>) -> BTreeMap<String, String> {
    let version =
        |child: &Value| child["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    children.iter().map(|(name, child)| (name.clone(), version(child))).collect()
}

pub(super) async fn all_children(namespace: &Namespace, resources: usize) -> BTreeMap<String, Value> {
    eventually(&format!("children of {resources} resources"), SOON * 2, async || {
        let found = children(namespace).await;
        if found.len() == resources * CHILDREN { Ok(found) } else { Err(format!("{} children", found.len())) }
    })
    .await
}

/// The children of one resource of [`no_workers`] once the controllers of Kubernetes have told all they have to tell of
/// them, which is not our operator's doing: until then their versions change by themselves.
pub(super) async fn settled_children(namespace: &Namespace) -> BTreeMap<String, Value> {
    let unsettled = |(name, child): (&String, &Value)| {
        let (kind, status) = (name.split(' ').next().unwrap_or_default(), &child["status"]);
        let told = status["observedGeneration"] == child["metadata"]["generation"];
        let settled = match kind {
            "Deployment" | "StatefulSet" => told,
            // The one pod is the router's.
            "PodDisruptionBudget" => {
                told && status["expectedPods"] == json!(i32::from(name.ends_with("-router")))
            }
            _ => true,
        };
        (!settled).then(|| format!("{name}: {status}"))
    };
    eventually("what Kubernetes tells of the children", SOON * 2, async || {
        let found = children(namespace).await;
        match found.iter().find_map(unsettled) {
            None => Ok(found),
            Some(why) => Err(why),
        }
    })
    .await
}

/// Events about our resources, each with how often it was told.
pub(super) async fn events(namespace: &Namespace) -> Vec<(Option<String>, Option<i32>)> {
    let all = namespace.api::<Event>().list(&ListParams::default()).await.expect("events").items;
    let ours = |event: &Event| event.involved_object.kind.as_deref() == Some("DisaggDeployment");
    all.into_iter().filter(ours).map(|event| (event.metadata.name, event.count)).collect()
}

/// The router's pod fails to start, and that is told by an operator that has seen every child as it stays; from then on
/// nothing is new.
pub(super) async fn trouble_is_told(namespace: &Namespace, name: &str) {
    eventually("the router's trouble", SOON, async || {
        let found = namespace.deployments().get(name).await.map_err(|error| error.to_string())?;
        let status = &found.data["status"];
        let reason = |type_: &str| {
            let conditions = status["conditions"].as_array().into_iter().flatten();
            conditions.clone().find(|found| found["type"] == type_).map(|found| found["reason"].clone())
        };
        let told = reason("RouterAvailable") == Some(json!("ImageNotPulled"));
        // The numbers of every set are those of its present generation.
        let router = &status["router"];
        let current = (&router["replicas"], &router["updatedReplicas"]) == (&json!(1), &json!(1));
        if told && current { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
}

/// Lets the operator reconcile `name` once more than `reconciles`, by an annotation that is nobody's.
pub(super) async fn force_reconcile(namespace: &Namespace, operator: &Operator, name: &str, reconciles: u64) {
    let patch = json!({ "metadata": { "annotations": { "example.com/turn": reconciles.to_string() } } });
    let params = PatchParams::default();
    namespace.deployments().patch(name, &params, &Patch::Merge(&patch)).await.expect("an annotation");
    eventually("a reconcile", SOON, async || {
        let now = operator.reconciles().await["success"];
        if now > reconciles { Ok(()) } else { Err(format!("{now}")) }
    })
    .await;
}

#[tokio::test]
async fn killed_at_any_point_it_ends_at_the_same_place() {
    const RESOURCES: usize = 20;
    let name = |index: usize| format!("r{index}");
    let spec = |index: usize| no_workers_with("/disaggregation/maxLocalPrefillLength", json!(index));

    let calm = Namespace::create(cluster(), "operator-calm").await;
    let _operator = Operator::start(cluster(), &calm);
    for index in 0..RESOURCES {
        calm.apply(&name(index), &spec(index)).await;
    }
    let expected = all_children(&calm, RESOURCES).await;
    for index in 0..RESOURCES {
        calm.condition(&name(index), "SettingsValid", "True", SOON).await;
    }

    let stormy = Namespace::create(cluster(), "operator-stormy").await;
    let mut operator = Operator::start(cluster(), &stormy);
    for index in 0..RESOURCES {
        stormy.apply(&name(index), &spec(index)).await;
    }
    // Fixed, so that a failure replays; odd, so that it stops in different places.
    for round in 0..12u64 {
        tokio::time::sleep(Duration::from_millis(70 + round * 137 % 400)).await;
        operator.kill();
        operator.start_again();
    }
    let found = all_children(&stormy, RESOURCES).await;
    for index in 0..RESOURCES {
        stormy.condition(&name(index), "SettingsValid", "True", SOON).await;
    }
    let essences = |children: &BTreeMap<String, Value>, namespace: &str| -> BTreeMap<String, String> {
        let text = |child: &Value| essence(child).to_string().replace(namespace, "NAMESPACE");
        children.iter().map(|(name, child)| (name.clone(), text(child))).collect()
    };
    let _ = found;
    let expected = essences(&children(&calm).await.into_iter().chain(expected).collect(), calm.name());
    eventually("the same children", SOON, async || {
        let found = essences(&children(&stormy).await, stormy.name());
        let different: Vec<_> =
            expected.iter().filter(|(name, child)| found.get(*name) != Some(*child)).collect();
        if different.is_empty() { Ok(()) } else { Err(format!("{different:?}")) }
    })
    .await;
}

#[tokio::test]
async fn once_converged_it_changes_nothing_and_says_nothing() {
    let _as_it_is = DEFINITION.read().await;
    let namespace = Namespace::create(cluster(), "operator-quiet").await;
    let operator = Operator::start(cluster(), &namespace);
    // No routers that come and go: nothing changes by itself.
    namespace.apply("quiet", &no_workers()).await;
    all_children(&namespace, 1).await;
    namespace.condition("quiet", "RouterAvailable", "False", SOON).await;
    trouble_is_told(&namespace, "quiet").await;
    let before = settled_children(&namespace).await;
    // Its Events follow the status; one turn more, and the one that wrote it has ended.
    force_reconcile(&namespace, &operator, "quiet", operator.reconciles().await["success"]).await;
    let events_before = events(&namespace).await;
    let (requests, reconciles) = (operator.requests().await, operator.reconciles().await["success"]);
    for turn in 0..100 {
        force_reconcile(&namespace, &operator, "quiet", reconciles + turn).await;
    }
    let after = children(&namespace).await;
    assert_eq!(versions(&before), versions(&after));
    assert_eq!(events_before, events(&namespace).await);
    let sent = operator.requests().await.since(&requests);
    eprintln!("requests for a new resource: {:?}; for 100 forced reconciles: {:?}", requests.0, sent.0);
    assert_eq!(sent.all(), 0, "what has not changed costs no request: {sent:?}");
}

#[tokio::test]
async fn edits_of_children_are_put_back_and_what_others_own_is_left_alone() {
    let namespace = Namespace::create(cluster(), "operator-edits").await;
    let _operator = Operator::start(cluster(), &namespace);
    namespace.apply("edited", &no_workers()).await;
    all_children(&namespace, 1).await;

    let services = namespace.api::<Service>();
    let edit = json!({
        "metadata": { "annotations": { "example.com/mine": "1" }, "labels": { "disagg.dev/role": "other" } },
        "spec": { "selector": { "disagg.dev/role": "decode" } },
    });
    services.patch("edited-router", &PatchParams::default(), &Patch::Merge(&edit)).await.expect("an edit");
    eventually("the Service as it was", SOON, async || {
        let found = services.get("edited-router").await.map_err(|error| error.to_string())?;
        let selector = found.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
        let back = selector["disagg.dev/role"] == "router" && found.labels()["disagg.dev/role"] == "router";
        if back { Ok(found) } else { Err(format!("{selector:?} {:?}", found.labels())) }
    })
    .await
    .annotations()
    .get("example.com/mine")
    .expect("an annotation of somebody else stays");

    let budgets = namespace.api::<PodDisruptionBudget>();
    budgets.delete("edited-decode", &DeleteParams::default()).await.expect("a deletion");
    eventually("the budget again", SOON, async || {
        let found = budgets.get_opt("edited-decode").await.map_err(|error| error.to_string())?;
        found.filter(|found| found.metadata.deletion_timestamp.is_none()).map(|_| ()).ok_or("gone".to_owned())
    })
    .await;
}

#[tokio::test]
async fn a_number_that_leaves_the_resource_stays_and_an_autoscalers_is_its_own() {
    let namespace = Namespace::create(cluster(), "operator-scale").await;
    let _operator = Operator::start(cluster(), &namespace);
    // Pods that never get a node: only their number matters here.
    let nowhere = |replicas: Option<u32>| {
        let mut decode = json!({ "podTemplate": { "nodeSelector": { "example.com/nowhere": "1" } } });
        if let Some(replicas) = replicas {
            decode["replicas"] = json!(replicas);
        }
        no_workers_with("/decode", decode)
    };
    let sets = namespace.api::<StatefulSet>();
    let replicas = async |wanted: i32| {
        eventually(&format!("{wanted} replicas"), SOON, async || {
            let set = sets.get("scaled-decode").await.map_err(|error| error.to_string())?;
            let found = set.spec.as_ref().and_then(|spec| spec.replicas);
            if found == Some(wanted) { Ok(set) } else { Err(format!("{found:?}")) }
        })
        .await
    };
    namespace.apply("scaled", &nowhere(None)).await;
    let set = replicas(1).await;
    let owners = |set: &StatefulSet| {
        let owns = |fields: &Value| fields.pointer("/f:spec/f:replicas").is_some();
        let entries = set.metadata.managed_fields.clone().unwrap_or_default();
        let entries =
            entries.into_iter().filter(|entry| entry.fields_v1.as_ref().is_some_and(|f| owns(&f.0)));
        entries.filter_map(|entry| entry.manager).collect::<Vec<_>>()
    };
    eventually("an owner of the first number", SOON, async || {
        let owners = owners(&sets.get("scaled-decode").await.map_err(|error| error.to_string())?);
        if owners == ["disagg-initial"] { Ok(()) } else { Err(format!("{owners:?}")) }
    })
    .await;
    drop(set);

    namespace.apply("scaled", &nowhere(Some(3))).await;
    replicas(3).await;
    namespace.apply("scaled", &nowhere(None)).await;
    eventually("the number to be nobody's", SOON, async || {
        let set = sets.get("scaled-decode").await.map_err(|error| error.to_string())?;
        let owners = owners(&set);
        if owners == ["disagg-initial"] { Ok(()) } else { Err(format!("{owners:?}")) }
    })
    .await;
    assert_eq!(replicas(3).await.spec.and_then(|spec| spec.replicas), Some(3), "3 without an owner stays 3");

    // As an autoscaler does it.
    let scale = json!({ "spec": { "replicas": 2 } });
    let params = PatchParams { field_manager: Some("autoscaler".to_owned()), ..PatchParams::default() };
    sets.patch_scale("scaled-decode", &params, &Patch::Merge(&scale)).await.expect("a scale");
    namespace
        .apply("scaled", &{
            let mut spec = nowhere(None);
            spec["drainSeconds"] = json!(7);
            spec
        })
        .await;
    eventually("the template to follow", SOON, async || {
        let set = sets.get("scaled-decode").await.map_err(|error| error.to_string())?;
        let spec = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
        let grace = spec.and_then(|spec| spec.termination_grace_period_seconds);
        if grace == Some(17) { Ok(()) } else { Err(format!("{grace:?}")) }
    })
    .await;
    replicas(2).await;
    // `kubectl scale` of the resource itself is a number in the resource.
    namespace.kubectl(&["scale", "dd/scaled", "--replicas=4"]).expect("kubectl scale");
    replicas(4).await;
}

#[tokio::test]
async fn somebody_elses_object_is_never_adopted() {
    let namespace = Namespace::create(cluster(), "operator-foreign").await;
    let foreign: ConfigMap =
        serde_json::from_value(json!({ "metadata": { "name": "taken-router" }, "data": { "mine": "1" } }))
            .expect("one");
    let config_maps = namespace.api::<ConfigMap>();
    config_maps.create(&PostParams::default(), &foreign).await.expect("a ConfigMap");
    let _operator = Operator::start(cluster(), &namespace);
    namespace.apply("taken", &no_workers()).await;
    let object = namespace.condition("taken", "Ready", "False", SOON).await;
    let status = object.data["status"].to_string();
    assert!(status.contains("ForeignChild"), "{status}");
    assert!(status.contains("kubectl -n operator-foreign delete configmap taken-router"), "{status}");
    let found = config_maps.get("taken-router").await.expect("the ConfigMap");
    assert_eq!(found.data.unwrap_or_default().len(), 1);
    assert!(found.metadata.owner_references.is_none());
    // When it is out of the way, all is made.
    config_maps.delete("taken-router", &DeleteParams::default()).await.expect("a deletion");
    all_children(&namespace, 1).await;
}

#[tokio::test]
async fn a_deleted_resource_takes_everything_with_it() {
    let namespace = Namespace::create(cluster(), "operator-gone").await;
    let mut operator = Operator::start(cluster(), &namespace);
    for name in ["one", "two"] {
        namespace.apply(name, &no_workers()).await;
    }
    all_children(&namespace, 2).await;
    namespace.deployments().delete("one", &DeleteParams::default()).await.expect("a deletion");
    let left = all_children(&namespace, 1).await;
    assert!(left.keys().all(|name| name.contains(" two-")), "{:?}", left.keys());
    operator.end().await;
}
