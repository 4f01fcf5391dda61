//! What goes to the API server, against one of a few lines that keeps objects in memory: applies, patches and gets, each
//! noted down.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::Parser as _;
use http::{Method, Request, Response, StatusCode};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Client;
use kube::client::Body;
use kube::runtime::{reflector, watcher};
use parking_lot::Mutex;
use serde_json::{Value, json};

use disagg_api::DisaggDeployment;

use super::child::MANAGER;
use super::*;
use crate::args::OperatorArgs;
use crate::prometheus::Served;
use crate::reconcile::build::build;
use crate::reconcile::validate::{Replicas, validate};
use crate::stores::Stores;

const NAMESPACE: &str = "ns";
const SPEC: &str =
    "{model: {source: {random: {}}}, prefill: {replicas: 0}, decode: {replicas: 1}, router: {replicas: 1}}";

/// Objects by path, and the requests so far.
#[derive(Default)]
struct Server {
    objects: BTreeMap<String, Value>,
    requests: Vec<String>,
    version: u64,
    /// Answered once instead of the next write, with this code.
    refusal: Option<(u16, &'static str)>,
    /// What is answered instead of every write of a kind, by its plural, until it is taken away.
    refused: BTreeMap<&'static str, Refusal>,
}

/// How writes of a kind are answered.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    Code(u16, &'static str),
    /// Never.
    Silence,
}

impl Server {
    fn answer(&mut self, method: &Method, path: &str, query: &str, body: &Value) -> (u16, Value) {
        let child = path.rsplit('/').take(2).collect::<Vec<_>>();
        let manager = query.split('&').find_map(|part| part.strip_prefix("fieldManager="));
        let by = manager.map(|manager| format!(" by {manager}")).unwrap_or_default();
        self.requests.push(format!("{method} {}/{}{by}", child[1], child[0]));
        let status = |code: u16, message: &str| {
            let reason = if code == 404 { "NotFound" } else { "Conflict" };
            (
                code,
                json!({ "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message }),
            )
        };
        let known = self.objects.get(path).cloned();
        if *method == Method::GET {
            return known.map_or_else(|| status(404, "not found"), |object| (200, object));
        }
        if *method == Method::DELETE {
            self.objects.remove(path);
            return (200, json!({ "kind": "Status", "status": "Success" }));
        }
        if let Some((code, message)) = self.refusal.take() {
            return status(code, message);
        }
        if let Some(Refusal::Code(code, message)) = self.refused.get(child[1]) {
            return status(*code, message);
        }
        let metadata = &body["metadata"];
        let bound = |field: &str| {
            let given = &metadata[field];
            given.is_null() || known.as_ref().is_none_or(|known| known["metadata"][field] == *given)
        };
        // As the real one: a version means nothing for an object that is not there.
        if !bound("resourceVersion") || !bound("uid") {
            return status(409, "the object has been modified");
        }
        let mut object = known.unwrap_or_else(|| json!({}));
        merge(&mut object, body);
        self.version += 1;
        let uid = format!("uid-{}", self.version);
        let metadata = &mut object["metadata"];
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(uid);
        }
        // Versions of the real one begin above 1, too.
        metadata["resourceVersion"] = json!((self.version + 100).to_string());
        if object.get("spec").is_some() {
            object["metadata"]["generation"] = json!(self.version);
        }
        self.objects.insert(path.to_owned(), object.clone());
        (200, object)
    }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// A server, and a context whose client speaks to it.
struct Bench {
    server: Arc<Mutex<Server>>,
    context: Context,
    memory: Memory<Remembered>,
    resource: DisaggDeployment,
    subject: Subject,
    wanted: Wanted,
}

impl Bench {
    fn new(spec: &str) -> Self {
        let server = Arc::new(Mutex::new(Server::default()));
        let shared = Arc::clone(&server);
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = Arc::clone(&shared);
            async move {
                let (head, body) = request.into_parts();
                let bytes = body.collect_bytes().await?;
                let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                let query = head.uri.query().unwrap_or_default();
                let plural = head.uri.path().rsplit('/').nth(1).unwrap_or_default();
                let silent = matches!(server.lock().refused.get(plural), Some(Refusal::Silence));
                if silent && head.method == Method::PATCH {
                    std::future::pending::<()>().await;
                }
                let (code, answer) = server.lock().answer(&head.method, head.uri.path(), query, &body);
                let code = StatusCode::from_u16(code).unwrap();
                let answer =
                    Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, kube::Error>(answer.unwrap())
            }
        });
        let client = Client::new(service, NAMESPACE);
        // A test before this one may have been the first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let arguments = ["operator", "--router-image", "r", "--worker-image", "w"];
        let args = OperatorArgs::parse_from(arguments);
        let served = Served::default();
        let (stores, _triggers) = Stores::new(&client, &args, &served.once());
        let context = Context::new(client, stores, served, &args, "me".to_owned()).unwrap();
        let text = format!(
            "apiVersion: disagg.dev/v1alpha1\nkind: DisaggDeployment\nmetadata: {{name: demo}}\nspec: {spec}\n"
        );
        let mut resource = DisaggDeployment::from_yaml(&text).unwrap();
        resource.metadata.namespace = Some(NAMESPACE.to_owned());
        resource.metadata.uid = Some("owner".to_owned());
        let subject = Subject::of(&resource).unwrap();
        let wanted = validate(&resource, &subject, &(&args).into()).unwrap();
        Self { server, context, memory: Memory::default(), resource, subject, wanted }
    }

    fn applying(&self) -> Applying<'_> {
        Applying::new(&self.context, &self.subject, &self.memory)
    }

    /// The spec has changed.
    fn validate_again(&mut self) {
        let images = OperatorArgs::parse_from(["operator", "--router-image", "r", "--worker-image", "w"]);
        self.wanted = validate(&self.resource, &self.subject, &(&images).into()).unwrap();
    }

    fn children(&self) -> Children {
        build(&self.wanted).unwrap()
    }

    /// A whole apply.
    async fn apply(&self) -> Applied {
        let children = self.children();
        let (context, memory) = (&self.context, &self.memory);
        let applying = apply(&self.subject, &self.wanted, &children, Observed::default(), context, memory);
        Box::pin(applying).await.unwrap()
    }

    /// The requests since the last call.
    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.server.lock().requests)
    }

    fn object(&self, path: &str) -> Value {
        self.server.lock().objects[path].clone()
    }

    fn put(&self, path: &str, object: Value) {
        self.server.lock().objects.insert(path.to_owned(), object);
    }
}

const SERVICE: &str = "/api/v1/namespaces/ns/services/demo-router";
const DECODE: &str = "/apis/apps/v1/namespaces/ns/statefulsets/demo-decode";
const ROUTER: &str = "/apis/apps/v1/namespaces/ns/deployments/demo-router";
const SETTINGS: &str = "/api/v1/namespaces/ns/configmaps/demo-router";
const MONITOR: &str = "/apis/monitoring.coreos.com/v1/namespaces/ns/podmonitors/demo-worker";

/// A store that shows these objects.
fn showing<K>(objects: impl IntoIterator<Item = K>) -> reflector::Store<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + 'static,
{
    let (store, mut writer) = reflector::store();
    for object in objects {
        writer.apply_watcher_event(&watcher::Event::Apply(object));
    }
    store
}

fn typed<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// The router's Service of the children.
fn service(children: &Children) -> &Service {
    &children.services[2]
}

#[tokio::test]
async fn a_new_resource_costs_one_request_for_each_child_and_one_for_the_settings() {
    let bench = Bench::new(SPEC);
    let applied = bench.apply().await;
    assert!(applied.made && applied.problems.is_empty(), "{applied:?}");
    let requests = bench.requests();
    let children = 15;
    assert_eq!(bench.server.lock().objects.len(), children);
    assert_eq!(requests.len(), children + 1, "{requests:#?}");
    assert!(requests.iter().all(|request| request.starts_with("PATCH ")), "{requests:#?}");
    assert_eq!(bench.object(SETTINGS)["data"]["maxLocalPrefillLength"], "512");
}

#[tokio::test]
async fn somebody_elses_object_is_neither_changed_nor_taken() {
    let bench = Bench::new(SPEC);
    let theirs = json!({ "metadata": {
        "name": "demo-router", "uid": "u", "resourceVersion": "7",
        "ownerReferences": [{ "apiVersion": "v1", "kind": "Shop", "name": "s", "uid": "x", "controller": true }],
    } });
    bench.put(SERVICE, theirs.clone());
    let applying = bench.applying();
    let problem = applying.apply(service(&bench.children())).await;
    let why = Why::Foreign { owner: Some("Shop s".to_owned()) };
    assert_eq!(problem, Some(Problem { kind: "Service", name: "demo-router".to_owned(), why }));
    assert_eq!(bench.object(SERVICE), theirs);
    assert!(!applying.noted.made.into_inner());
}

#[tokio::test]
async fn what_the_watches_do_not_show_yet_is_not_sent_again() {
    let bench = Bench::new(SPEC);
    let children = bench.children();
    assert_eq!(bench.applying().apply(service(&children)).await, None);
    let (made, _) = (bench.object(SERVICE), bench.requests());
    let applying = bench.applying();
    assert_eq!(applying.apply(service(&children)).await, None);
    assert_eq!(bench.object(SERVICE), made);
    assert_eq!(
        bench.requests(),
        ["PATCH services/demo-router by disagg-operator", "GET services/demo-router"]
    );
    assert!(!applying.noted.made.into_inner(), "it was there");
    assert!(applying.noted.unseen.into_inner(), "and is looked at again before long");
}

#[tokio::test]
async fn what_is_as_it_was_applied_costs_nothing_and_an_edit_is_put_back() {
    let mut bench = Bench::new(SPEC);
    let children = bench.children();
    assert_eq!(bench.applying().apply(service(&children)).await, None);
    bench.requests();
    bench.context.stores.services = showing([typed(bench.object(SERVICE))]);
    assert_eq!(bench.applying().apply(service(&children)).await, None);
    assert_eq!(bench.requests(), [""; 0], "nothing has changed");

    // Somebody edits it.
    let mut edited = bench.object(SERVICE);
    edited["metadata"]["resourceVersion"] = json!("900");
    edited["spec"]["selector"]["disagg.dev/role"] = json!("decode");
    edited["metadata"]["generation"] = json!(900);
    bench.put(SERVICE, edited.clone());
    bench.context.stores.services = showing([typed(edited)]);
    assert_eq!(bench.applying().apply(service(&children)).await, None);
    assert_eq!(bench.requests(), ["PATCH services/demo-router by disagg-operator"]);
    assert_eq!(bench.object(SERVICE)["spec"]["selector"]["disagg.dev/role"], "router");
}

#[tokio::test]
async fn a_child_that_was_replaced_meanwhile_is_not_written_over() {
    let mut bench = Bench::new(SPEC);
    let children = bench.children();
    assert_eq!(bench.applying().apply(service(&children)).await, None);
    let mut old = bench.object(SERVICE);
    old["metadata"]["generation"] = json!(900);
    bench.context.stores.services = showing([typed(old)]);
    let theirs = json!({ "metadata": { "name": "demo-router", "uid": "another" } });
    bench.put(SERVICE, theirs.clone());
    let problem = bench.applying().apply(service(&children)).await.unwrap();
    assert_eq!(problem.why, Why::Foreign { owner: None });
    assert_eq!(bench.object(SERVICE), theirs);
}

#[tokio::test]
async fn a_conflict_that_is_not_about_the_object_is_tried_again() {
    let bench = Bench::new(SPEC);
    bench.server.lock().refusal = Some((409, "Operation cannot be fulfilled on resourcequotas"));
    let applying = bench.applying();
    assert_eq!(applying.apply(service(&bench.children())).await, None);
    assert!(applying.noted.made.into_inner());
}

#[tokio::test]
async fn a_number_of_nobody_is_held_by_a_manager_of_its_own() {
    let bench = Bench::new(SPEC);
    let children = bench.children();
    let number = Replicas::Free { initial: 2 };
    let applying = bench.applying();
    let now = replicas::apply::<Deployment>(&applying, &children.router, number).await;
    assert_eq!(now.problem, None);
    assert_eq!(now.object.unwrap().spec.unwrap().replicas, Some(2), "as the API server has it now");
    assert_eq!(
        bench.requests(),
        [
            "PATCH deployments/demo-router by disagg-operator",
            "PATCH deployments/demo-router by disagg-initial"
        ]
    );
    assert_eq!(bench.object(ROUTER)["spec"]["replicas"], 2);
}

#[tokio::test]
async fn a_number_that_leaves_the_resource_is_taken_over_as_it_is() {
    let mut bench = Bench::new(SPEC);
    let fixed = bench.children().decode;
    let mut free = fixed.clone();
    if let Some(spec) = &mut free.spec {
        spec.replicas = None;
    }
    let owned_by = |manager: &str, replicas: i32| {
        json!({
            "metadata": {
                "name": "demo-decode", "namespace": NAMESPACE, "uid": "u", "resourceVersion": "7",
                "ownerReferences": fixed.metadata.owner_references,
                "managedFields": [{ "manager": manager, "fieldsV1": { "f:spec": { "f:replicas": {} } } }],
            },
            "spec": { "replicas": replicas, "selector": {}, "serviceName": "s", "template": {} },
        })
    };
    for (manager, requests) in [
        (MANAGER, &["disagg-initial", MANAGER][..]),
        // An autoscaler has it: nothing but the template is ours.
        ("autoscaler", &[MANAGER]),
    ] {
        let live = owned_by(manager, 3);
        bench.put(DECODE, live.clone());
        bench.context.stores.stateful_sets = showing([typed(live)]);
        let number = Replicas::Free { initial: 1 };
        let now = replicas::apply::<StatefulSet>(&bench.applying(), &free, number).await;
        assert_eq!(now.problem, None);
        let expected: Vec<_> =
            requests.iter().map(|by| format!("PATCH statefulsets/demo-decode by {by}")).collect();
        assert_eq!(bench.requests(), expected, "{manager}");
        assert_eq!(bench.object(DECODE)["spec"]["replicas"], 3);
    }
}

#[tokio::test]
async fn settings_that_somebody_else_writes_meanwhile_are_read_again() {
    let bench = Bench::new(SPEC);
    bench.server.lock().refusal = None;
    let children = bench.children();
    settings::apply(&bench.applying(), &bench.wanted, &children.settings).await.state.unwrap();
    assert_eq!(bench.requests().len(), 2, "the object, then its data");
    let mut edited = bench.object(SETTINGS);
    edited["data"]["maxLocalPrefillLength"] = json!("64");
    bench.put(SETTINGS, edited);
    let state = settings::apply(&bench.applying(), &bench.wanted, &children.settings).await.state.unwrap();
    assert_eq!(bench.object(SETTINGS)["data"]["maxLocalPrefillLength"], "64", "a direct edit stands");
    assert_eq!(state.verdict.unwrap().max_local_prefill_length, 64);
}

#[tokio::test]
async fn pod_monitors_are_asked_for_only_where_a_resource_wants_them() {
    let spec = SPEC.replace("{model:", "{monitoring: {podMonitor: {}}, model:");
    let mut bench = Bench::new(&spec);
    let state = async |bench: &Bench| {
        let monitors = bench.children().pod_monitors;
        let names = pod_monitor_names(&bench.wanted);
        monitoring::apply(&bench.applying(), &monitors, &names).await
    };
    assert_eq!(state(&bench).await, Some(MonitoringState::NotServed));
    assert_eq!(bench.requests(), ["GET monitoring.coreos.com/v1"]);
    assert_eq!(state(&bench).await, Some(MonitoringState::NotServed));
    assert_eq!(bench.requests(), [""; 0], "the answer is believed for a while");

    let list = json!({
        "kind": "APIResourceList", "groupVersion": "monitoring.coreos.com/v1",
        "resources": [{ "name": "podmonitors", "singularName": "", "namespaced": true, "kind": "PodMonitor", "verbs": [] }],
    });
    bench.put("/apis/monitoring.coreos.com/v1", list);
    bench.context.pod_monitors.forget();
    assert_eq!(state(&bench).await, Some(MonitoringState::Applied));
    assert_eq!(bench.object(MONITOR)["spec"]["podMetricsEndpoints"][0]["port"], "metrics");
    bench.requests();

    // No word of them in the status: nobody ever asked, and nothing is looked for.
    bench.resource.spec.monitoring = disagg_api::crd::MonitoringSpec::default();
    bench.wanted.pod_monitor = None;
    assert_eq!(state(&bench).await, None);
    assert_eq!(bench.requests(), [""; 0]);
    let condition = Condition {
        type_: "MonitoringAvailable".to_owned(),
        status: "True".to_owned(),
        reason: "Applied".to_owned(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH),
    };
    bench.subject.status.get_or_insert_default().conditions = vec![condition];
    // One of the two has been somebody else's since. As long as ours cannot be deleted, the condition stays.
    let router_monitor = MONITOR.replace("worker", "router");
    bench.put(&router_monitor, json!({ "metadata": { "name": "demo-router", "uid": "theirs" } }));
    assert_eq!(state(&bench).await, None);
    assert!(!bench.server.lock().objects.contains_key(MONITOR), "ours is deleted");
    assert!(bench.server.lock().objects.contains_key(&router_monitor), "theirs is not");
}

#[tokio::test]
async fn an_orphan_with_all_our_labels_is_adopted_and_told_once() {
    let mut bench = Bench::new(SPEC);
    let children = bench.children();
    bench.apply().await;
    let mut orphan = bench.object(SERVICE);
    orphan["metadata"]["ownerReferences"] = json!([]);
    bench.put(SERVICE, orphan.clone());
    bench.context.stores.services = showing([typed(orphan.clone())]);
    let applying = bench.applying();
    assert_eq!(applying.apply(service(&children)).await, None);
    assert_eq!(*applying.noted.adopted.lock(), [("Service", "demo-router".to_owned())]);
    assert_eq!(bench.object(SERVICE)["metadata"]["ownerReferences"][0]["uid"], "owner");
    bench.context.stores.services = showing([typed(bench.object(SERVICE))]);
    let again = bench.applying();
    assert_eq!(again.apply(service(&children)).await, None);
    assert_eq!(*again.noted.adopted.lock(), [], "told once");

    // One label is another: it is not a child of ours that was lost.
    orphan["metadata"]["labels"]["app.kubernetes.io/managed-by"] = json!("somebody");
    bench.put(SERVICE, orphan.clone());
    bench.context.stores.services = showing([typed(orphan)]);
    let why = bench.applying().apply(service(&children)).await.unwrap().why;
    assert_eq!(why, Why::Foreign { owner: None });
}

#[tokio::test]
async fn the_sets_are_told_as_they_are_after_the_apply() {
    let mut bench = Bench::new(SPEC);
    bench.apply().await;
    let before = bench.object(DECODE);
    bench.context.stores.stateful_sets = showing([typed(before.clone())]);
    bench.resource.spec.drain_seconds = Some(7);
    bench.validate_again();
    let applied = bench.apply().await;
    let generation = applied.decode.unwrap().metadata.generation;
    assert_eq!(generation, bench.object(DECODE)["metadata"]["generation"].as_i64());
    assert_ne!(generation, before["metadata"]["generation"].as_i64(), "not as the watch still has it");
}

mod refusals;
