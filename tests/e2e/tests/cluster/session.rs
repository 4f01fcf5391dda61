//! What all tests of one run share: the cluster, with the images loaded.

use std::path::Path;
use std::sync::OnceLock;

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
