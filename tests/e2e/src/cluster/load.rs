//! Steady load from inside the cluster: a pod whose clients use the Service by its name, as other pods would.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, LogParams, PostParams};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinHandle;

use super::Namespace;
use crate::wait::{eventually, within};

/// Longest wait for the pod to run, and for its last requests to end.
const PATIENCE: Duration = Duration::from_mins(1);

/// The variable that hands the plan to `disagg-load`, as JSON.
pub const PLAN_ENV: &str = "DISAGG_LOAD_PLAN";

/// What the clients do. Each sends one request after another: prompts in turn, and streamed and whole in turn unless all
/// are to be streamed. The clients with an even number keep their connection, the others open one for each request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadPlan {
    /// Base URL.
    pub url: String,
    /// What to send as `model`.
    pub model: String,
    /// How many requests at a time, at most.
    pub clients: u32,
    /// Between two requests of a client.
    pub pause_ms: u64,
    /// Tokens of each prompt; greedy answers to the same prompt must be equal.
    pub prompt_tokens: Vec<u32>,
    /// Tokens of each answer.
    pub max_tokens: u32,
    /// Whether every request is streamed.
    pub streams_only: bool,
}

/// One request, as the client saw it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadRequest {
    /// Which client.
    pub client: u32,
    /// Index into [`LoadPlan::prompt_tokens`].
    pub prompt: usize,
    /// Whether it was streamed.
    pub stream: bool,
    /// When it was sent, in milliseconds since the Unix epoch.
    pub sent_ms: u64,
    /// Until the first token of a stream, or the whole answer otherwise.
    pub first_ms: Option<f64>,
    /// Until its end.
    pub total_ms: f64,
    /// The header `x-disagg-placement`.
    pub placement: Option<String>,
    /// `system_fingerprint` of a good answer: the model that gave it.
    pub fingerprint: Option<String>,
    /// What was answered, if it was answered whole and well.
    pub text: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
}

impl LoadRequest {
    /// It failed before its first token had come.
    pub fn failed_before_it_began(&self) -> bool {
        self.error.is_some() && self.first_ms.is_none()
    }
}

/// A line that `disagg-load` prints.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LoadLine {
    /// A request has ended.
    Request(LoadRequest),
    /// All have ended, so many in all.
    End(usize),
}

/// A load that runs.
pub struct Load {
    pods: Api<Pod>,
    pod: String,
    lines: Arc<Mutex<Vec<LoadLine>>>,
    reader: JoinHandle<()>,
}

/// All requests of a load that has ended.
pub struct LoadReport {
    /// In the order of their ends.
    pub requests: Vec<LoadRequest>,
}

impl Load {
    /// Starts the pod and waits until every prompt has been answered.
    pub async fn start(namespace: &Namespace, pod: &str, image: &str, plan: &LoadPlan) -> Self {
        let object: Pod = serde_json::from_value(json!({
            "metadata": {"name": pod},
            "spec": {
                "restartPolicy": "Never",
                "containers": [{
                    "name": "load", "image": image, "imagePullPolicy": "IfNotPresent",
                    "env": [{"name": PLAN_ENV, "value": json!(plan).to_string()}],
                }],
            },
        }))
        .expect("a pod");
        let pods = namespace.api::<Pod>();
        pods.create(&PostParams::default(), &object).await.expect("the pod of the load");
        eventually("the load to run", PATIENCE, async || {
            let status = pods.get(pod).await.map_err(|error| error.to_string())?.status.unwrap_or_default();
            if status.phase.as_deref() == Some("Running") { Ok(()) } else { Err(json!(status).to_string()) }
        })
        .await;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let follow = LogParams { follow: true, ..LogParams::default() };
        let mut log = pods.log_stream(pod, &follow).await.expect("the load's log").lines();
        let sink = lines.clone();
        let reader = tokio::spawn(async move {
            while let Some(line) = log.try_next().await.expect("the load's log") {
                // Some kubelets begin a log that is followed with an empty line.
                if line.is_empty() {
                    continue;
                }
                let line = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
                sink.lock().expect("no panic while it was held").push(line);
            }
        });
        let load = Self { pods, pod: pod.to_owned(), lines, reader };
        load.more(plan.prompt_tokens.len() * 2).await;
        load
    }

    /// Waits until so many more requests have ended.
    pub async fn more(&self, count: usize) {
        let target = self.ended() + count;
        eventually("requests of the load to end", PATIENCE, async || {
            assert!(!self.reader.is_finished(), "the load has ended by itself");
            if self.ended() >= target { Ok(()) } else { Err(format!("{} of {target}", self.ended())) }
        })
        .await;
    }

    /// How many requests have ended so far.
    pub fn ended(&self) -> usize {
        self.lines.lock().expect("no panic while it was held").len()
    }

    /// How many of them failed.
    pub fn failed(&self) -> usize {
        let lines = self.lines.lock().expect("no panic while it was held");
        let failed = |line: &&LoadLine| matches!(line, LoadLine::Request(request) if request.error.is_some());
        lines.iter().filter(failed).count()
    }

    /// The longest time to the first token of the requests that have ended since there were so many, in milliseconds.
    pub fn slowest_since(&self, ended: usize) -> f64 {
        let lines = self.lines.lock().expect("no panic while it was held");
        let time = |line: &LoadLine| match line {
            LoadLine::Request(request) if request.stream => request.first_ms,
            _ => None,
        };
        lines.iter().skip(ended).filter_map(time).fold(0.0, f64::max)
    }

    /// Ends it: what is under way is finished, and everything is told.
    pub async fn stop(self) -> LoadReport {
        let parameters =
            DeleteParams::default().grace_period(u32::try_from(PATIENCE.as_secs()).expect("small"));
        self.pods.delete(&self.pod, &parameters).await.expect("end of the load");
        within("the load's last requests", PATIENCE, self.reader).await.expect("the load's log");
        let lines = std::mem::take(&mut *self.lines.lock().expect("no panic while it was held"));
        let (mut requests, mut end) = (Vec::new(), None);
        for line in lines {
            match line {
                LoadLine::Request(request) => requests.push(request),
                LoadLine::End(count) => end = Some(count),
            }
        }
        assert_eq!(end, Some(requests.len()), "the load's log is not whole");
        LoadReport { requests }
    }
}

impl LoadReport {
    /// Those that failed.
    pub fn failures(&self) -> Vec<&LoadRequest> {
        self.requests.iter().filter(|request| request.error.is_some()).collect()
    }

    /// Panics, with the first of them, if any failed.
    pub fn assert_none_failed(&self) {
        let failures = self.failures();
        let shown: Vec<_> = failures.iter().take(5).collect();
        assert!(failures.is_empty(), "{} of {} failed: {shown:#?}", failures.len(), self.requests.len());
    }

    /// The different answers to each prompt by each model, with how often each came.
    pub fn answers(&self) -> BTreeMap<(usize, &str), BTreeMap<&str, usize>> {
        let mut answers: BTreeMap<(usize, &str), BTreeMap<&str, usize>> = BTreeMap::new();
        for request in &self.requests {
            if let (Some(text), Some(model)) = (&request.text, &request.fingerprint) {
                *answers.entry((request.prompt, model)).or_default().entry(text).or_default() += 1;
            }
        }
        answers
    }

    /// Panics if a model has given two answers to one prompt. Gives the models, in the order of their first answers.
    pub fn assert_answers_right(&self) -> Vec<&str> {
        for ((prompt, model), answers) in self.answers() {
            assert_eq!(answers.len(), 1, "prompt {prompt} has one right answer of {model}: {answers:?}");
        }
        let mut models = Vec::new();
        for model in self.requests.iter().filter_map(|request| request.fingerprint.as_deref()) {
            if !models.contains(&model) {
                models.push(model);
            }
        }
        models
    }

    /// Requests with a placement that begins so: `local` or `remote`.
    pub fn placed(&self, how: &str) -> usize {
        let placed =
            |request: &&LoadRequest| request.placement.as_deref().is_some_and(|text| text.starts_with(how));
        self.requests.iter().filter(placed).count()
    }

    /// The longest and the median time to the first token of streams, in milliseconds.
    pub fn first_token_ms(&self) -> (f64, f64) {
        let streams = self.requests.iter().filter(|request| request.stream);
        let mut times: Vec<f64> = streams.filter_map(|request| request.first_ms).collect();
        times.sort_by(f64::total_cmp);
        assert!(!times.is_empty(), "no stream had a first token");
        (times[times.len() - 1], times[times.len() / 2])
    }
}
