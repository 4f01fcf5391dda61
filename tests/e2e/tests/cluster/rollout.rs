//! Steady load while everything changes under it: no request may fail.

use std::time::Instant;

use disagg_e2e::cluster::{ClusterError, Load, Namespace};
use disagg_e2e::eventually;
use disagg_e2e::router::http_client;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams};
use serde_json::json;

use crate::serving::{CONVERGE, load_image, load_plan, part, spec};
use crate::session::{offered, operator};

const NAME: &str = "steady";

/// The port of a worker's metrics.
const WORKER_METRICS_PORT: u16 = 9090;

/// When something is done to a deployment.
struct Step {
    start: Instant,
    /// Requests that had ended by then.
    ended: usize,
}

impl Step {
    fn begin(load: &Load) -> Self {
        Self { start: Instant::now(), ended: load.ended() }
    }
}

/// A deployment under load, and what is done to it.
struct Scene {
    namespace: Namespace,
    prefill: usize,
    decode: usize,
}

impl Scene {
    async fn start(name: &str, decode: u32) -> Self {
        let namespace = Namespace::create(operator(), name).await;
        namespace.apply(NAME, &spec(1, decode)).await;
        namespace.condition(NAME, "Ready", "True", CONVERGE).await;
        Self { namespace, prefill: 1, decode: decode as usize }
    }

    /// Waits until it is as its spec asks, and then for some more requests.
    async fn settled(&self, load: &Load, what: &str, step: Step) {
        for (role, count) in [("prefill", self.prefill), ("decode", self.decode), ("router", 2)] {
            self.namespace.ready_pods(&part(NAME, role), count, CONVERGE).await;
        }
        self.namespace.condition(NAME, "Ready", "True", CONVERGE).await;
        load.more(8).await;
        eprintln!(
            "{}: {what}: {:.1} s, first token at worst {:.0} ms",
            self.namespace.name(),
            step.start.elapsed().as_secs_f64(),
            load.slowest_since(step.ended),
        );
    }

    async fn patch(&self, patch: serde_json::Value) {
        let patched =
            self.namespace.deployments().patch(NAME, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.expect("a patch of the deployment");
    }

    /// Scales prefill by the spec.
    async fn scale_prefill(&mut self, load: &Load, replicas: usize) {
        let step = Step::begin(load);
        self.patch(json!({"spec": {"prefill": {"replicas": replicas}}})).await;
        self.prefill = replicas;
        self.settled(load, &format!("prefill scaled to {replicas}"), step).await;
    }

    /// Scales decode by the scale subresource, as an autoscaler or `kubectl scale` does.
    async fn scale_decode(&mut self, load: &Load, replicas: usize) {
        let step = Step::begin(load);
        let count = format!("--replicas={replicas}");
        self.namespace.kubectl(&["scale", "disaggdeployment", NAME, &count]).expect("kubectl scale");
        self.decode = replicas;
        self.settled(load, &format!("decode scaled to {replicas}"), step).await;
    }

    /// Changes an option that both kinds of workers read at their start, and waits until every pod is another one.
    async fn change_engine(&self, load: &Load) {
        let step = Step::begin(load);
        let before = self.worker_uids().await;
        let engine = json!({"engine": {"maxNumSeqs": 32}});
        self.patch(json!({"spec": {"prefill": engine, "decode": engine}})).await;
        self.replaced(&before).await;
        self.settled(load, "engine option changed", step).await;
    }

    async fn worker_uids(&self) -> Vec<String> {
        let mut uids = Vec::new();
        for role in ["prefill", "decode"] {
            uids.extend(self.namespace.pods(&part(NAME, role)).await.iter().filter_map(Pod::uid));
        }
        uids
    }

    async fn replaced(&self, before: &[String]) {
        eventually("every worker to be another pod", CONVERGE, async || {
            let now = self.worker_uids().await;
            let old = now.iter().filter(|uid| before.contains(uid)).count();
            if old == 0 { Ok(()) } else { Err(format!("{old} old of {}", now.len())) }
        })
        .await;
    }

    /// Restarts the routers as `kubectl rollout restart` does.
    async fn roll_routers(&self, load: &Load) {
        let step = Step::begin(load);
        let router = format!("deployment/{NAME}-router");
        self.namespace.kubectl(&["rollout", "restart", &router]).expect("kubectl rollout restart");
        eventually("the routers to be rolled", CONVERGE, async || {
            let deployment = self.namespace.api::<Deployment>().get(&format!("{NAME}-router")).await;
            let deployment = deployment.map_err(|error| error.to_string())?;
            let (generation, status) =
                (deployment.metadata.generation, deployment.status.unwrap_or_default());
            let rolled = status.observed_generation == generation && status.updated_replicas == Some(2);
            if rolled && status.replicas == Some(2) { Ok(()) } else { Err(json!(status).to_string()) }
        })
        .await;
        self.settled(load, "routers rolled", step).await;
    }

    /// Ends one pod of a role, and waits until it is gone.
    async fn end_pod(&self, load: &Load, role: &str, how: End) {
        let step = Step::begin(load);
        let pods = self.namespace.api::<Pod>();
        let victim = self.namespace.pods(&part(NAME, role)).await.remove(0);
        let (name, uid) = (victim.name_any(), victim.uid());
        match how {
            End::Delete => drop(pods.delete(&name, &DeleteParams::default()).await.expect("a deletion")),
            End::Force => {
                drop(pods.delete(&name, &DeleteParams::default().grace_period(0)).await.expect("a deletion"));
            }
            // The disruption budget may refuse it while another pod is on its way.
            End::Evict => {
                eventually("an eviction to be granted", CONVERGE, async || {
                    pods.evict(&name, &EvictParams::default())
                        .await
                        .map(drop)
                        .map_err(|error| error.to_string())
                })
                .await;
            }
        }
        eventually("the pod to be gone", CONVERGE, async || {
            let now = pods.get_opt(&name).await.map_err(|error| error.to_string())?;
            if now.is_none_or(|pod| pod.uid() != uid) { Ok(()) } else { Err("it is there".to_owned()) }
        })
        .await;
        self.settled(load, &format!("{how:?} of {name}"), step).await;
    }
}

#[derive(Clone, Copy, Debug)]
enum End {
    Delete,
    Force,
    Evict,
}

/// Everything that a careful administrator does, with so many decode workers at the beginning.
async fn steady_load(name: &str, decode: u32) {
    let mut scene = Scene::start(name, decode).await;
    let load = Load::start(&scene.namespace, "load", &load_image(), &load_plan(NAME, 4)).await;
    scene.scale_prefill(&load, 3).await;
    scene.scale_prefill(&load, 1).await;
    if decode == 1 {
        scene.scale_decode(&load, 2).await;
        scene.scale_decode(&load, 1).await;
    }
    scene.change_engine(&load).await;
    scene.roll_routers(&load).await;
    for role in ["prefill", "decode", "router"] {
        scene.end_pod(&load, role, End::Delete).await;
    }
    scene.end_pod(&load, if decode == 1 { "prefill" } else { "decode" }, End::Evict).await;
    scene.end_pod(&load, "prefill", End::Force).await;
    let report = load.stop().await;
    let (worst, median) = report.first_token_ms();
    eprintln!(
        "{name}: {} requests, {} of them prefilled remotely; first token: median {median:.0} ms, at worst {:.0} ms more",
        report.requests.len(),
        report.placed("remote"),
        worst - median,
    );
    report.assert_none_failed();
    assert!(report.placed("remote") > 0 && report.placed("local") > 0, "both placements were used");
    assert_eq!(report.assert_answers_right().len(), 1, "one model served");
}

#[tokio::test]
async fn no_request_fails_while_everything_changes_with_one_decode_worker() {
    steady_load("e2e-steady-1", 1).await;
}

#[tokio::test]
async fn no_request_fails_while_everything_changes_with_two_decode_workers() {
    steady_load("e2e-steady-2", 2).await;
}

/// Waits until streams that have begun are under way on a decode worker.
async fn streaming(namespace: &Namespace, pod: &str) {
    let forward = namespace.forward_pod(pod, WORKER_METRICS_PORT).await;
    let url = format!("{}/metrics", forward.url());
    let mut before = None;
    eventually("streams on the decode worker", CONVERGE, async || {
        let answer = http_client().get(&url).send().await.map_err(|error| error.to_string())?;
        let text = answer.text().await.map_err(|error| error.to_string())?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.trim().parse::<f64>().ok()).unwrap_or(0.0)
        };
        let (running, tokens) = (value("disagg_worker_running"), value("disagg_worker_decode_tokens_total"));
        if running < 2.0 {
            before = None;
        } else if tokens >= *before.get_or_insert(tokens) + 8.0 {
            return Ok(());
        }
        Err(format!("{running} running, {tokens} tokens"))
    })
    .await;
}

/// Kills the process of a worker's pod on its node; gives its process id.
fn kill_worker(pod: &Pod) -> Result<String, ClusterError> {
    // Part of the path of the pod's control group, in which systemd allows no dashes.
    let uid = pod.uid().expect("a pod has one").replace('-', ".");
    let script = format!(
        "for process in $(pgrep -f '^/usr/local/bin/disagg-worker'); do \
           if grep -q '{uid}' /proc/$process/cgroup; then kill -9 $process && echo $process; fi; done"
    );
    operator().node_exec(&["sh", "-c", &script])
}

#[tokio::test]
async fn a_decode_worker_that_is_killed_ends_only_the_streams_that_had_begun() {
    let scene = Scene::start("e2e-kill-decode", 2).await;
    // Longer answers, so that some are under way at any time.
    let mut plan = load_plan(NAME, 4);
    (plan.max_tokens, plan.pause_ms, plan.streams_only) = (200, 0, true);
    let load = Load::start(&scene.namespace, "load", &load_image(), &plan).await;
    scene.end_pod(&load, "decode", End::Force).await;
    // Its process by `kill -9`, too: a pod that is deleted by force may still have had its SIGTERM.
    let mut kills = 1;
    let victim = scene.namespace.pods(&part(NAME, "decode")).await.remove(0);
    streaming(&scene.namespace, &victim.name_any()).await;
    let step = Step::begin(&load);
    if let Some(killed) = offered("kill -9 of a decode worker", kill_worker(&victim)) {
        assert_eq!(killed.lines().count(), 1, "one worker was killed: {killed:?}");
        kills += 1;
        eventually("the worker to be started again", CONVERGE, async || {
            let pod = scene.namespace.api::<Pod>().get(&victim.name_any()).await;
            let status = pod.map_err(|error| error.to_string())?.status.unwrap_or_default();
            let restarts =
                status.container_statuses.iter().flatten().map(|status| status.restart_count).sum::<i32>();
            if restarts > 0 { Ok(()) } else { Err(format!("{restarts} restarts")) }
        })
        .await;
        scene.settled(&load, "kill -9 of a decode worker", step).await;
        assert!(load.failed() > 0, "streams were under way on the worker that was killed, and none was cut");
    }
    let report = load.stop().await;
    let before: Vec<_> = report.requests.iter().filter(|request| request.failed_before_it_began()).collect();
    assert!(before.is_empty(), "{} of {}: {before:#?}", before.len(), report.requests.len());
    assert_eq!(report.assert_answers_right().len(), 1, "one model served");
    eprintln!("{} of {} streams were cut by {kills} kills", report.failures().len(), report.requests.len());
    assert!(report.failures().len() <= kills * plan.clients as usize, "more failed than were under way");
}
