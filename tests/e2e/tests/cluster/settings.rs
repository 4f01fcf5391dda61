//! The threshold while it is used: edits of the ConfigMap reach every live router within a second or so and restart
//! nothing, and whatever becomes of the ConfigMap, the routers go on by values that were good.
//!
//! The operator's own tests have every rule of who owns which key; here are the routers that read them.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use disagg_e2e::cluster::{Forward, Namespace};
use disagg_e2e::router::http_client;
use disagg_e2e::{eventually, openai};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::serving::{CONVERGE, THRESHOLD, part, spec};
use crate::session::operator;

const NAME: &str = "tuned";

/// Ports of a router's container: for clients, and for whoever runs it.
const API_PORT: u16 = 8181;
const ADMIN_PORT: u16 = 8182;

/// Longest wait for an edit to be in force. What it took is printed; a second is the aim, on a machine that does little
/// else.
const IN_FORCE: Duration = Duration::from_secs(20);

struct Tuned {
    namespace: Namespace,
    /// By name of the pod.
    routers: BTreeMap<String, Ports>,
}

/// Port-forwards to a router.
struct Ports {
    api: Forward,
    admin: Forward,
}

impl Tuned {
    async fn new(name: &str) -> Self {
        let namespace = Namespace::create(operator(), name).await;
        namespace.apply(NAME, &spec(1, 1)).await;
        namespace.condition(NAME, "Ready", "True", CONVERGE).await;
        let mut this = Self { namespace, routers: BTreeMap::new() };
        this.reach_routers().await;
        this
    }

    /// Port-forwards to the two routers that there are.
    async fn reach_routers(&mut self) {
        self.routers.clear();
        for pod in self.namespace.ready_pods(&part(NAME, "router"), 2, CONVERGE).await {
            let name = pod.name_any();
            let api = self.namespace.forward_pod(&name, API_PORT).await;
            let admin = self.namespace.forward_pod(&name, ADMIN_PORT).await;
            self.routers.insert(name, Ports { api, admin });
        }
    }

    /// What each router says of its settings.
    async fn reports(&self) -> Result<Vec<Value>, String> {
        let mut reports = Vec::new();
        for router in self.routers.values() {
            let url = format!("{}/internal/settings", router.admin.url());
            let answer = http_client().get(url).send().await.map_err(|error| error.to_string())?;
            reports.push(answer.json().await.map_err(|error| error.to_string())?);
        }
        Ok(reports)
    }

    /// Waits until every router places by this threshold, with or without a problem that has these words. Gives how
    /// long it took.
    async fn in_force(&self, threshold: u32, problem: Option<&str>) -> Duration {
        let start = Instant::now();
        eventually(&format!("{threshold} on every router"), IN_FORCE, async || {
            let reports = self.reports().await?;
            let as_wanted = |report: &Value| {
                let told = report["problem"].as_str();
                report["settings"]["maxLocalPrefillLength"] == threshold
                    && match problem {
                        Some(words) => told.is_some_and(|told| told.contains(words)),
                        None => told.is_none(),
                    }
            };
            if reports.iter().all(as_wanted) { Ok(()) } else { Err(json!(reports).to_string()) }
        })
        .await;
        start.elapsed()
    }

    fn patch(&self, data: &Value) {
        let patch = json!({"data": data}).to_string();
        let arguments = ["patch", "configmap", "tuned-router", "--type=merge", "--patch", &patch];
        self.namespace.kubectl(&arguments).expect("kubectl patch");
    }

    /// `kubectl edit`, with an editor that replaces one text by another.
    fn edit(&self, old: &str, new: &str) {
        let folder = tempfile::tempdir().expect("a folder");
        let editor = folder.path().join("editor");
        let script = format!("#!/bin/sh\ngrep -q '{old}' \"$1\" && sed -i 's/{old}/{new}/' \"$1\"\n");
        std::fs::write(&editor, script).expect("an editor");
        std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).expect("an editor");
        let mut command = self.namespace.kubectl_command();
        let output = command.args(["edit", "configmap", "tuned-router"]).env("KUBE_EDITOR", &editor).output();
        let output = output.expect("kubectl edit");
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("edited"), "{output:?}");
    }

    /// Asks each router for a completion of so many tokens that are nowhere cached, and gives which were placed remotely.
    async fn placements(&self, tokens: u32, salt: impl Debug) -> Vec<bool> {
        let mut remote = Vec::new();
        for (pod, router) in &self.routers {
            let request = json!({
                "model": "small", "max_tokens": 2, "temperature": 0, "cache_salt": format!("{salt:?}-{pod}"),
                "prompt": (0..tokens).map(|at| 3 + at * 7 % 250).collect::<Vec<_>>(),
            });
            let url = format!("{}/v1/completions", router.api.url());
            let answer = http_client().post(url).json(&request).send().await.expect("an answer");
            remote.push(openai::completion(answer).await.placement.remote);
        }
        remote
    }

    /// Every pod with its restarts. Equal before and after: nothing was restarted or replaced.
    async fn lives(&self) -> BTreeMap<String, i32> {
        let pods = self.namespace.pods(&format!("disagg.dev/deployment={NAME}")).await;
        let restarts = |pod: &Pod| {
            let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
            statuses.into_iter().flatten().map(|status| status.restart_count).sum()
        };
        pods.iter().map(|pod| (pod.uid().unwrap_or_default(), restarts(pod))).collect()
    }

    /// Waits until the status tells of this threshold: the operator has asked the routers.
    async fn told(&self, threshold: u32) {
        eventually(&format!("{threshold} in the status"), IN_FORCE, async || {
            let object = self.namespace.deployments().get(NAME).await.map_err(|error| error.to_string())?;
            let settings = &object.data["status"]["settings"];
            if settings["maxLocalPrefillLength"] == threshold { Ok(()) } else { Err(settings.to_string()) }
        })
        .await;
    }
}

#[tokio::test]
async fn an_edited_threshold_is_in_force_at_once_and_restarts_nothing() {
    let tuned = Tuned::new("e2e-settings").await;
    let lives = tuned.lives().await;
    assert_eq!(lives.len(), 4, "{lives:?}");
    tuned.in_force(THRESHOLD, None).await;
    assert_eq!(tuned.placements(200, "first").await, [true, true]);

    let mut worst = Duration::ZERO;
    for (round, (old, new)) in [(THRESHOLD, 400), (400, 100), (100, 300)].into_iter().enumerate() {
        if round == 1 {
            tuned.edit(
                &format!("maxLocalPrefillLength: \"{old}\""),
                &format!("maxLocalPrefillLength: \"{new}\""),
            );
        } else {
            tuned.patch(&json!({"maxLocalPrefillLength": new.to_string()}));
        }
        worst = worst.max(tuned.in_force(new, None).await);
        assert_eq!(tuned.placements(200, new).await, [new < 200, new < 200], "by {new}");
        tuned.told(new).await;
    }
    eprintln!("an edit of the threshold was in force on every router after at most {} ms", worst.as_millis());

    // The resource once more, as it was: the edit stands. Then another key of the resource, and of the ConfigMap.
    tuned.namespace.apply(NAME, &spec(1, 1)).await;
    let mut other = spec(1, 1);
    other["disaggregation"]["maxPrefillQueueDepth"] = json!(5);
    tuned.namespace.apply(NAME, &other).await;
    eventually("the other key on every router", IN_FORCE, async || {
        let reports = tuned.reports().await?;
        let depth = |report: &Value| report["settings"]["maxPrefillQueueDepth"] == 5;
        if reports.iter().all(depth) { Ok(()) } else { Err(json!(reports).to_string()) }
    })
    .await;
    tuned.in_force(300, None).await;
    // A change of the resource in that key is written through.
    other["disaggregation"]["maxLocalPrefillLength"] = json!(150);
    tuned.namespace.apply(NAME, &other).await;
    tuned.in_force(150, None).await;

    assert_eq!(tuned.lives().await, lives, "a pod was restarted");
}

#[tokio::test]
async fn routers_go_on_by_the_last_good_settings() {
    let mut tuned = Tuned::new("e2e-settings-bad").await;
    tuned.patch(&json!({"maxLocalPrefillLength": "300"}));
    tuned.in_force(300, None).await;
    tuned.told(300).await;

    // A bad value and an unknown key change nothing but what is said of them.
    tuned.patch(&json!({"maxLocalPrefillLength": "lots"}));
    tuned.in_force(300, Some("maxLocalPrefillLength: \"lots\" is not allowed")).await;
    tuned.namespace.condition(NAME, "SettingsValid", "False", CONVERGE).await;
    tuned.namespace.condition(NAME, "Ready", "True", CONVERGE).await;
    assert_eq!(tuned.placements(200, "bad").await, [false, false]);

    // A router that starts now has not seen the good values; the annotation has.
    let victim = tuned.routers.keys().next().expect("a router").clone();
    let pods = tuned.namespace.api::<Pod>();
    pods.delete(&victim, &DeleteParams::default().grace_period(1)).await.expect("a deletion");
    eventually("the router to be gone", CONVERGE, async || {
        let found = pods.get_opt(&victim).await.map_err(|error| error.to_string())?;
        found.map_or(Ok(()), |_| Err("it is there".to_owned()))
    })
    .await;
    tuned.reach_routers().await;
    assert!(!tuned.routers.contains_key(&victim));
    tuned.in_force(300, Some("\"lots\" is not allowed")).await;
    assert_eq!(tuned.placements(200, "restarted").await, [false, false]);

    tuned.patch(&json!({"maxLocalPrefillLength": "100", "speed": "1"}));
    tuned.in_force(300, Some("speed: unknown key")).await;
    tuned.patch(&json!({"speed": null}));
    tuned.in_force(100, None).await;
    tuned.namespace.condition(NAME, "SettingsValid", "True", CONVERGE).await;

    // Deleted, it comes back as it was, and the routers never leave it.
    let config_maps = tuned.namespace.api::<ConfigMap>();
    config_maps.delete("tuned-router", &DeleteParams::default()).await.expect("a deletion");
    eventually("the ConfigMap to be back", IN_FORCE, async || {
        let found = config_maps.get_opt("tuned-router").await.map_err(|error| error.to_string())?;
        let data = found.and_then(|map| map.data).unwrap_or_default();
        let reports = tuned.reports().await?;
        let stays = |report: &Value| report["settings"]["maxLocalPrefillLength"] == 100;
        assert!(reports.iter().all(stays), "another value was in force meanwhile: {reports:?}");
        if data.get("maxLocalPrefillLength").is_some_and(|value| value == "100") {
            Ok(())
        } else {
            Err(format!("{data:?}"))
        }
    })
    .await;
    tuned.in_force(100, None).await;

    // Emptied, too.
    let empty = Patch::Merge(json!({"data": null}));
    config_maps.patch("tuned-router", &PatchParams::default(), &empty).await.expect("a patch");
    tuned.in_force(100, None).await;
    tuned.told(100).await;
}
