//! The operator against a real API server, as a process of its own for each test's namespace: so it can be killed, and
//! its requests counted. `make e2e` runs this before it installs the chart, since two operators would undo each other's
//! work. Few of these tests need a pod that runs.

// A figure is said where people look.
#![allow(clippy::print_stderr)]

mod admission;
mod broken;
mod converge;
mod definition;
mod election;
mod monitoring;
mod refusals;
mod rules;
mod settings;

use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use disagg_e2e::cluster::{Cluster, ClusterError, from_environment, repository};
use serde_json::{Value, json};

/// Small program; see `tests/cluster/pod`. It knows no worker's flags.
const POD_IMAGE: &str = "localhost/pod:1";

/// Held to read by tests that count requests, and to write by who changes the definition: the API server then ends all
/// watches of the resource, and they begin with a list.
static DEFINITION: tokio::sync::RwLock<()> = tokio::sync::RwLock::const_new(());

/// Longest wait for what needs no pod.
const SOON: Duration = Duration::from_mins(1);

/// A spec that wants no workers. Its routers never start, since their image does not exist.
fn no_workers() -> Value {
    json!({
        "model": { "source": { "random": {} } },
        "prefill": { "replicas": 0 },
        "decode": { "replicas": 0 },
        "router": { "replicas": 1 },
        "images": { "pullPolicy": "Never" },
        "disaggregation": { "maxLocalPrefillLength": 128 },
    })
}

/// [`no_workers`] with `value` at `pointer`, whose parent exists.
fn no_workers_with(pointer: &str, value: Value) -> Value {
    let mut spec = no_workers();
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer begins with a slash");
    let parent = spec.pointer_mut(parent).expect("the parent is there");
    parent[field] = value;
    spec
}

/// The cluster, with our definition and the image, reached for the first time by whoever asks first. Panics if there
/// is none, or if an operator is installed that works in every namespace.
fn cluster() -> &'static dyn Cluster {
    static CLUSTER: OnceLock<Box<dyn Cluster>> = OnceLock::new();
    &**CLUSTER.get_or_init(|| {
        let cluster = from_environment().unwrap_or_else(|error| panic!("no cluster: {error}"));
        let kubectl = |arguments: &[&str]| {
            let mut command = Command::new("kubectl");
            let output =
                command.env("KUBECONFIG", cluster.kubeconfig()).args(arguments).output().expect("kubectl");
            assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let others =
            kubectl(&["get", "clusterroles", "--selector=app.kubernetes.io/name=disagg", "--output=name"]);
        assert!(others.trim().is_empty(), "an operator is installed and would interfere: {others}");
        let crds = repository().join("crds");
        kubectl(&[
            "apply",
            "--server-side",
            "--force-conflicts",
            "--filename",
            crds.to_str().expect("UTF-8"),
        ]);
        // A definition just made has no conditions, on which `kubectl wait` fails; it has some when its names are taken.
        for told in ["jsonpath={.status.acceptedNames.kind}=DisaggDeployment", "condition=Established"] {
            let (told, definition) = (format!("--for={told}"), "crd/disaggdeployments.disagg.dev");
            kubectl(&["wait", &told, definition, "--timeout=30s"]);
        }
        let archive = repository().join("target/images/pod.tar");
        match cluster.load_image(&archive) {
            // Then it has to be there already.
            Ok(()) | Err(ClusterError::NotOffered { .. }) => {}
            Err(error) => panic!("load {}: {error}", archive.display()),
        }
        cluster
    })
}
