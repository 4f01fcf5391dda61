//! The status never says more than is so: while one change follows the other, a program looks at every version of it, and
//! `kubectl wait` is believed each time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use disagg_e2e::cluster::{Namespace, is_ready};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use crate::serving::{CONVERGE, part, spec};
use crate::session::operator;

const NAME: &str = "truth";

/// How long the status may lag behind pods that come and go by themselves.
const LAG: Duration = Duration::from_secs(3);

/// Changes in all: ten rounds of every kind.
const ROUNDS: usize = 10;

/// What the API server has of a deployment, read between two looks at one version of its status.
struct Seen {
    object: DynamicObject,
    sets: Vec<StatefulSet>,
    router: Deployment,
    pods: Vec<Pod>,
}

impl Seen {
    /// Nothing, if the status was written anew meanwhile.
    async fn look(namespace: &Namespace) -> Option<Self> {
        let get = async || namespace.deployments().get(NAME).await.expect("the deployment");
        let object = get().await;
        let mut sets = Vec::new();
        for role in ["prefill", "decode"] {
            sets.push(namespace.api::<StatefulSet>().get(&format!("{NAME}-{role}")).await.expect("a set"));
        }
        let router = namespace.api::<Deployment>().get(&format!("{NAME}-router")).await.expect("routers");
        let pods = namespace.pods(&format!("disagg.dev/deployment={NAME}")).await;
        let same = get().await.metadata.resource_version == object.metadata.resource_version;
        same.then_some(Self { object, sets, router, pods })
    }

    fn condition(&self, type_: &str) -> Option<&Value> {
        let conditions = self.object.data["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().find(|condition| condition["type"] == type_)
    }

    fn is(&self, type_: &str) -> bool {
        self.condition(type_).is_some_and(|condition| condition["status"] == "True")
    }

    fn of(&self, role: &str) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(move |pod| pod.labels().get("disagg.dev/role").is_some_and(|is| is == role))
    }

    fn serving(&self, role: &str) -> usize {
        self.of(role).filter(|pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none()).count()
    }

    /// What the status says of a change that has been made, and is not so. This is never excused.
    fn premature(&self) -> Vec<String> {
        let mut lies = Vec::new();
        let generation = self.object.metadata.generation;
        let observed = self.object.data["status"]["observedGeneration"].as_i64();
        if observed > generation {
            lies.push(format!("observedGeneration {observed:?} of {generation:?}"));
        }
        let conditions = self.object.data["status"]["conditions"].as_array().into_iter().flatten();
        lies.extend(
            conditions.filter(|found| found["observedGeneration"].as_i64() > observed).map(Value::to_string),
        );
        let complete = self.condition("Progressing").is_some_and(|found| found["reason"] == "Complete");
        // Of an older generation it may have been said before the change.
        if !complete || observed != generation {
            return lies;
        }
        let spec = &self.object.data["spec"];
        for (role, set) in ["prefill", "decode"].into_iter().zip(&self.sets) {
            let wanted = spec[role]["replicas"].as_u64().unwrap_or(1) as usize;
            if self.serving(role) != wanted {
                lies.push(format!("Complete with {} of {wanted} {role} pods that serve", self.serving(role)));
            }
            let newest = set.status.as_ref().and_then(|status| status.update_revision.clone());
            let revision = |pod: &Pod| pod.labels().get("controller-revision-hash").cloned();
            if set.metadata.generation != set.status.as_ref().and_then(|status| status.observed_generation) {
                lies.push(format!("Complete before the controller of {role} has seen its change"));
            }
            lies.extend(
                self.of(role)
                    .filter(|pod| revision(pod) != newest)
                    .map(|pod| format!("Complete with {} of an older revision", pod.name_any())),
            );
            // The marker of the change itself, whatever the controllers of Kubernetes say.
            if let Some(sequences) = spec[role]["engine"]["maxNumSeqs"].as_u64() {
                let flag = format!("--max-num-seqs={sequences}");
                lies.extend(
                    self.of(role)
                        .filter(|pod| !argument(pod, &flag))
                        .map(|pod| format!("Complete with {} without {flag}", pod.name_any())),
                );
            }
        }
        let status = self.router.status.clone().unwrap_or_default();
        if self.router.metadata.generation != status.observed_generation
            || status.updated_replicas != status.replicas
        {
            lies.push("Complete while routers roll".to_owned());
        }
        if let Some(in_flight) = spec["router"]["maxInFlight"].as_u64() {
            let flag = format!("--max-in-flight={in_flight}");
            let current = self.of("router").filter(|pod| argument(pod, &flag) && is_ready(pod)).count();
            let wanted = spec["router"]["replicas"].as_u64().unwrap_or(2) as usize;
            if current < wanted {
                lies.push(format!("Complete with {current} of {wanted} routers with {flag}"));
            }
        }
        let (asked, applied) = (
            &spec["disaggregation"]["maxLocalPrefillLength"],
            &self.object.data["status"]["settings"]["maxLocalPrefillLength"],
        );
        if asked != applied {
            lies.push(format!("Complete with a threshold of {applied} for {asked}"));
        }
        lies
    }

    /// What the status says that is not so at this moment. It may lag.
    fn not_so(&self) -> Vec<String> {
        let mut lies = Vec::new();
        for (type_, role) in
            [("PrefillAvailable", "prefill"), ("DecodeAvailable", "decode"), ("RouterAvailable", "router")]
        {
            let available = self.serving(role) > 0;
            if self.is(type_) != available {
                lies.push(format!("{type_}={} with {} that serve", self.is(type_), self.serving(role)));
            }
        }
        let all =
            ["PrefillAvailable", "DecodeAvailable", "RouterAvailable"].iter().all(|type_| self.is(type_));
        if self.is("Ready") != all {
            lies.push(format!("Ready={} beside its parts", self.is("Ready")));
        }
        if self.is("Progressing") != self.is("Reconciling") {
            lies.push("Reconciling is not Progressing".to_owned());
        }
        lies
    }
}

fn argument(pod: &Pod, flag: &str) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers.flat_map(|container| container.args.iter().flatten()).any(|given| given == flag)
}

/// Looks at the status until `stop`, and counts the looks; gives the lies.
async fn audit(namespace: &Namespace, stop: &AtomicBool, looks: &AtomicUsize) -> Vec<String> {
    let mut lies = Vec::new();
    let mut since: Option<Instant> = None;
    while !stop.load(Ordering::Relaxed) {
        let Some(seen) = Seen::look(namespace).await else { continue };
        looks.fetch_add(1, Ordering::Relaxed);
        lies.extend(seen.premature());
        let not_so = seen.not_so();
        if not_so.is_empty() {
            since = None;
        } else if since.get_or_insert_with(Instant::now).elapsed() > LAG {
            lies.extend(not_so);
        }
        // A list of the same lie serves nobody.
        if lies.len() > 20 {
            return lies;
        }
    }
    lies
}

/// Every kind of change, a new one in each round.
fn changes(round: usize) -> [Value; 5] {
    let engine = json!({ "engine": { "maxNumSeqs": 20 + round } });
    let odd = round % 2 == 1;
    [
        json!({ "decode": engine }),
        json!({ "decode": { "replicas": if odd { 1 } else { 2 } } }),
        json!({ "router": { "maxInFlight": 100 + round } }),
        json!({ "disaggregation": { "maxLocalPrefillLength": 100 + round } }),
        json!({ "prefill": { "replicas": if odd { 1 } else { 2 }, "engine": { "maxNumSeqs": 20 + round } } }),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_never_called_complete_before_its_last_pod_is_replaced() {
    let namespace = Arc::new(Namespace::create(operator(), "e2e-truth").await);
    let mut first = spec(1, 1);
    first["drainSeconds"] = json!(1);
    namespace.apply(NAME, &first).await;
    namespace.condition(NAME, "Progressing", "False", CONVERGE).await;
    let (stop, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let auditor = tokio::spawn({
        let (namespace, stop, looks) = (Arc::clone(&namespace), Arc::clone(&stop), Arc::clone(&looks));
        async move { audit(&namespace, &stop, &looks).await }
    });
    let (mut waits, mut lies) = (0, Vec::new());
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        for change in changes(round) {
            let patch = Patch::Merge(json!({ "spec": change }));
            let start = Instant::now();
            namespace.deployments().patch(NAME, &PatchParams::default(), &patch).await.expect("a change");
            let resource = format!("disaggdeployment/{NAME}");
            let wait = ["wait", &resource, "--for=condition=Progressing=False", "--timeout=120s"];
            namespace.kubectl(&wait).expect("kubectl wait");
            times.push(start.elapsed());
            waits += 1;
            // One look at the moment at which a user would go on.
            let seen = loop {
                if let Some(seen) = Seen::look(&namespace).await {
                    break seen;
                }
            };
            lies.extend(seen.premature().into_iter().map(|lie| format!("after {change}: {lie}")));
            let complete = seen.condition("Progressing").cloned().unwrap_or_default();
            assert_eq!(complete["reason"], "Complete", "after {change}: {complete}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    lies.extend(auditor.await.expect("the auditor"));
    times.sort();
    let looks = looks.load(Ordering::Relaxed);
    eprintln!(
        "{waits} changes, {looks} looks at the status; a change took {:.1} s in the median, {:.1} s at most",
        times[times.len() / 2].as_secs_f64(),
        times[times.len() - 1].as_secs_f64(),
    );
    assert!(lies.is_empty(), "{lies:#?}");
    assert!(looks > waits, "the status was looked at {looks} times");
    // One that the last change has replaced may still finish its answers, and is ready until it ends.
    let stays = |pod: &&Pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none();
    assert_eq!(namespace.pods(&part(NAME, "router")).await.iter().filter(stays).count(), 2);
}
