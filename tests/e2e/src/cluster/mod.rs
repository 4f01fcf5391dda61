//! A Kubernetes cluster to test on, whichever it is.
//!
//! `make e2e CLUSTER=…` chooses: `local` is the node of `tests/cluster/`, `kind` runs in Docker, `external` is whatever
//! `KUBECONFIG` names. Tests see only the trait [`Cluster`]. They reach pods through port-forward or the Service's name
//! inside the cluster, never by an address that only some clusters route.

mod external;
mod forward;
mod kind;
mod load;
mod local;
mod namespace;
mod objects;
mod operator;
mod plugin;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use external::External;
pub use forward::Forward;
pub use kind::Kind;
pub use load::{Load, LoadLine, LoadPlan, LoadReport, LoadRequest, PLAN_ENV};
pub use local::Local;
pub use namespace::{Namespace, is_ready};
pub use objects::{deployment_resource, strings};
pub use operator::{LEASE, Operator, Requests};
pub use plugin::Plugin;

/// The variable that names the cluster.
pub const CLUSTER_ENV: &str = "DISAGG_E2E_CLUSTER";

/// What the tests need of a cluster beside its API.
pub trait Cluster: Send + Sync {
    /// `local`, `kind` or `external`.
    fn name(&self) -> &'static str;

    /// A kubeconfig whose current context is an administrator of the cluster.
    fn kubeconfig(&self) -> &Path;

    /// Gives an image (an archive as `docker save` makes it) to the cluster's nodes.
    fn load_image(&self, archive: &Path) -> Result<(), ClusterError>;

    /// Runs a command on the node and gives its standard output.
    fn node_exec(&self, command: &[&str]) -> Result<String, ClusterError>;

    /// The API server's audit log as JSON lines: all requests of ServiceAccounts outside `kube-system`.
    fn audit_log(&self) -> Result<String, ClusterError>;
}

/// Why a cluster did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// This kind of cluster cannot do it; a test that needs it prints the reason and is skipped.
    #[error("{cluster}: {reason}")]
    NotOffered {
        /// [`Cluster::name`].
        cluster: &'static str,
        /// What it cannot do.
        reason: &'static str,
    },
    /// A command that does it failed.
    #[error("`{command}` ended with {status}: {stderr}")]
    Command {
        /// The whole command line.
        command: String,
        /// Its end.
        status: String,
        /// The end of what it printed.
        stderr: String,
    },
    /// The environment does not say enough to use the cluster.
    #[error("{0}")]
    Environment(String),
}

/// The cluster that [`CLUSTER_ENV`] names, ready to be used.
pub fn from_environment() -> Result<Box<dyn Cluster>, ClusterError> {
    match std::env::var(CLUSTER_ENV).as_deref() {
        Ok("local") => Ok(Box::new(Local::attach()?)),
        Ok("kind") => Ok(Box::new(Kind::create(Path::new("kind"), Path::new("docker"))?)),
        Ok("external") => Ok(Box::new(External::attach()?)),
        other => Err(ClusterError::Environment(format!(
            "{CLUSTER_ENV} must be local, kind or external, and is {other:?}; `make e2e` sets it, and for local starts \
             the cluster"
        ))),
    }
}

/// Runs a command to its end and gives its standard output.
fn run(command: &mut Command) -> Result<String, ClusterError> {
    let line = || {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    };
    let line = line();
    let failed =
        |status: String, stderr: String| ClusterError::Command { command: line.clone(), status, stderr };
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| failed(error.to_string(), String::new()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(output.status.to_string(), String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// The repository, which is where the tests were built.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("tests/e2e lies in the repository").to_owned()
}

/// A client of this cluster. Each test makes its own: a client does not outlive the runtime it was made in.
pub async fn client(cluster: &dyn Cluster) -> kube::Client {
    let file = kube::config::Kubeconfig::read_from(cluster.kubeconfig()).expect("a kubeconfig");
    let mut config = kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
        .await
        .expect("a kubeconfig that can be used");
    // An outbound proxy of the environment does not know the cluster.
    config.proxy_url = None;
    // A test wants to see a refusal, not to have it tried again.
    config.default_retry = false;
    kube::Client::try_from(config).expect("a client")
}
