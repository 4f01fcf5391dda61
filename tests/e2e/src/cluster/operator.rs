//! An operator as a process of this machine, for one namespace: it can be killed, and its requests counted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Cluster, Namespace};
use crate::metrics::Metrics;
use crate::process::{Process, disagg};
use crate::router::http_client;
use crate::wait::eventually;

/// Images of containers that need not run.
const NO_IMAGE: &str = "localhost/not-there:1";

/// Name of the Lease of operators that are elected.
pub const LEASE: &str = "operator";

/// Longest wait for the process to serve its metrics.
const STARTED: Duration = Duration::from_secs(30);

/// Numbers of requests to the API server, by verb and resource.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Requests(pub BTreeMap<String, u64>);

impl Requests {
    /// What came after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let more = |(what, count): (&String, &u64)| {
            (what.clone(), count - before.0.get(what).copied().unwrap_or_default())
        };
        Self(self.0.iter().map(more).filter(|(_, count)| *count > 0).collect())
    }

    /// All of them but watches, which are begun anew as time goes by.
    pub fn all(&self) -> u64 {
        self.0.iter().filter(|(what, _)| !what.starts_with("watch ")).map(|(_, count)| count).sum()
    }

    /// Those that change something.
    pub fn writes(&self) -> u64 {
        let reads = ["watch ", "list ", "get "];
        self.0
            .iter()
            .filter(|(what, _)| !reads.iter().any(|verb| what.starts_with(verb)))
            .map(|(_, n)| n)
            .sum()
    }
}

/// A running operator.
pub struct Operator {
    process: Process,
    kubeconfig: PathBuf,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    starts: u32,
}

impl Operator {
    /// Starts one for `namespace`; routers and workers of resources that name no image have one that does not exist.
    pub fn start(cluster: &dyn Cluster, namespace: &Namespace) -> Self {
        Self::with_images(cluster, namespace, NO_IMAGE, NO_IMAGE)
    }

    /// Starts one for `namespace` with these images of routers and workers.
    pub fn with_images(cluster: &dyn Cluster, namespace: &Namespace, router: &str, worker: &str) -> Self {
        let images = ["--router-image", router, "--worker-image", worker].map(str::to_owned);
        Self::run(cluster, namespace, images.into_iter().chain(["--no-leader-election".to_owned()]))
    }

    /// Starts one of several for `namespace`, of which the holder of the Lease `operator` there leads.
    pub fn elected(cluster: &dyn Cluster, namespace: &Namespace, identity: &str, lease: Duration) -> Self {
        let seconds = lease.as_secs().to_string();
        let lease =
            ["--lease-name", LEASE, "--lease-namespace", namespace.name(), "--lease-seconds", &seconds];
        let identity = ["--identity", identity, "--router-image", NO_IMAGE, "--worker-image", NO_IMAGE];
        Self::run(cluster, namespace, lease.into_iter().chain(identity).map(str::to_owned))
    }

    /// Starts one of a release for `namespace`, with a Lease where the chart has it.
    pub fn of_release(cluster: &dyn Cluster, namespace: &Namespace, release: &str, lease: Duration) -> Self {
        let seconds = lease.as_secs().to_string();
        // A pod of this name is not there; Events about it can be written all the same.
        let pod = ["--identity", "operator-pod", "--pod-namespace", namespace.name()];
        let images = ["--router-image", NO_IMAGE, "--worker-image", NO_IMAGE];
        let arguments =
            ["--release", release, "--lease-seconds", &seconds].into_iter().chain(pod).chain(images);
        Self::run(cluster, namespace, arguments.map(str::to_owned))
    }

    fn run(
        cluster: &dyn Cluster,
        namespace: &Namespace,
        arguments: impl IntoIterator<Item = String>,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder for logs");
        let kubeconfig = cluster.kubeconfig().to_owned();
        let first = ["--namespace", namespace.name(), "--listen", "127.0.0.1:0"].map(str::to_owned);
        let arguments: Vec<String> = first.into_iter().chain(arguments).collect();
        let process = run(&folder, &kubeconfig, &arguments, 0);
        Self { process, kubeconfig, folder, arguments, starts: 0 }
    }

    /// `kill -9`, as a node that fails.
    pub fn kill(&mut self) {
        self.process.kill_9();
    }

    /// Starts it again after [`Self::kill`].
    pub fn start_again(&mut self) {
        self.starts += 1;
        self.process = run(&self.folder, &self.kubeconfig, &self.arguments, self.starts);
    }

    /// Asks it to end, and waits.
    pub async fn end(&mut self) {
        self.process.signal("TERM");
        let status = self.process.end(Duration::from_secs(30)).await;
        assert!(status.success(), "the operator ended with {status}");
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// All it has logged since it was started last.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Requests to the API server since it was started last, by verb and resource: `patch services`.
    pub async fn requests(&self) -> Requests {
        Requests(self.counters("disagg_operator_api_requests_total", ["verb", "resource"]).await)
    }

    /// Reconciles since it was started last, by outcome.
    pub async fn reconciles(&self) -> BTreeMap<String, u64> {
        self.counters("disagg_operator_reconciles_total", ["outcome"]).await
    }

    /// Whether it says that it is the one that reconciles.
    pub async fn leads(&self) -> bool {
        self.metrics().await.lines().any(|line| line == "disagg_operator_leader 1")
    }

    /// Status and text of `/readyz`.
    pub async fn readiness(&self) -> (u16, String) {
        let answer = self.get("/readyz").await;
        (answer.status().as_u16(), answer.text().await.expect("text"))
    }

    async fn counters<const N: usize>(&self, name: &str, labels: [&str; N]) -> BTreeMap<String, u64> {
        let metrics = Metrics::parse(&self.metrics().await);
        let samples = metrics.samples(name);
        let key = |of: &BTreeMap<String, String>| labels.map(|label| of[label].clone()).join(" ");
        samples.map(|(of, count)| (key(of), count as u64)).collect()
    }

    async fn metrics(&self) -> String {
        self.get("/metrics").await.text().await.expect("metrics as text")
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        let address = eventually("the operator's address", STARTED, async || {
            let log = self.process.log();
            let found = log.lines().find_map(|line| line.split_once("health and metrics address="));
            found.map(|(_, address)| address.trim().to_owned()).ok_or(log)
        })
        .await;
        http_client().get(format!("http://{address}{path}")).send().await.expect("an answer of the operator")
    }
}

fn run(folder: &tempfile::TempDir, kubeconfig: &Path, arguments: &[String], start: u32) -> Process {
    let mut command = Command::new(disagg().with_file_name("disagg-operator"));
    command.env("KUBECONFIG", kubeconfig).env("NO_COLOR", "1").args(arguments);
    Process::start(&format!("operator-{start}"), folder.path(), command)
}
