//! What all tests of one run share: the cluster with the images loaded, and the operator as the chart installs it.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use disagg_e2e::cluster::{self, Cluster, ClusterError, repository};

/// Small HTTP server and client; see `tests/cluster/pod`.
pub(crate) const POD_IMAGE: &str = "localhost/pod:1";

/// The cluster, reached for the first time by whoever asks first. Panics if there is none.
pub(crate) fn cluster() -> &'static dyn Cluster {
    static CLUSTER: OnceLock<Box<dyn Cluster>> = OnceLock::new();
    &**CLUSTER.get_or_init(|| {
        let cluster = cluster::from_environment().unwrap_or_else(|error| panic!("no cluster: {error}"));
        load_images(&*cluster);
        cluster
    })
}

/// Namespace and name of the release.
pub(crate) const RELEASE: (&str, &str) = ("disagg-system", "disagg");

/// Registry and tag of the images, as `tests/cluster/testcluster/product.py` names them; other nodes pull others.
pub(crate) fn image_source() -> (String, String) {
    let or = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    (or("DISAGG_E2E_REGISTRY", "localhost"), or("DISAGG_E2E_TAG", env!("CARGO_PKG_VERSION")))
}

/// The cluster, with the operator installed by the chart and ready. It stays for the whole run, so that its rights and
/// its requests can be looked at afterwards.
pub(crate) fn operator() -> &'static dyn Cluster {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    let cluster = cluster();
    INSTALLED.get_or_init(|| {
        let (registry, tag) = image_source();
        let start = Instant::now();
        let (namespace, name) = RELEASE;
        let chart = repository().join("charts/disagg");
        let mut helm = Command::new("helm");
        helm.env("KUBECONFIG", cluster.kubeconfig()).args(["upgrade", "--install", name]).arg(chart);
        helm.args(["--namespace", namespace, "--create-namespace", "--wait", "--timeout", "120s"]);
        // The definition may be there already, by kubectl or from a release that was uninstalled.
        helm.args(["--take-ownership", "--force-conflicts"]);
        helm.args(["--set", &format!("images.registry={registry},images.tag={tag}")]);
        let output = helm.output().unwrap_or_else(|error| panic!("helm: {error}"));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "helm upgrade --install: {told}");
        eprintln!("operator installed in {:.1} s", start.elapsed().as_secs_f64());
    });
    cluster
}

/// Loads the archives that `make cluster-images` writes.
fn load_images(cluster: &dyn Cluster) {
    let folder = repository().join("target/images");
    let archives = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for archive in archives {
        let path = archive.expect("a folder that can be read").path();
        if path.extension().is_none_or(|extension| extension != "tar") {
            continue;
        }
        offered(&format!("load {}", path.display()), cluster.load_image(Path::new(&path)));
    }
}

/// The value, or `None` with the reason printed when this kind of cluster does not offer it. Panics on other errors.
pub(crate) fn offered<T>(what: &str, result: Result<T, ClusterError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error @ ClusterError::NotOffered { .. }) => {
            eprintln!("SKIPPED: {what}: {error}");
            None
        }
        Err(error) => panic!("{what}: {error}"),
    }
}
