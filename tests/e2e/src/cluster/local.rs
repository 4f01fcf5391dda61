//! The node of `tests/cluster/`, on this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Cluster, ClusterError, repository, run};

/// The same as in `tests/cluster/testcluster/layout.py`.
const STATE: &str = "/var/lib/disagg-cluster";

/// See the module.
pub struct Local {
    kubeconfig: PathBuf,
}

impl Local {
    /// The cluster that `make cluster-up` or `make e2e` has started.
    pub fn attach() -> Result<Self, ClusterError> {
        if !Path::new(STATE).join("ready").exists() {
            return Err(ClusterError::Environment(
                "the local cluster is not up; `make e2e` starts it, `make cluster-up` for longer".to_owned(),
            ));
        }
        Ok(Self { kubeconfig: Path::new(STATE).join("admin.kubeconfig") })
    }

    fn script() -> Command {
        let mut command = Command::new("python3");
        command.arg(repository().join("tests/cluster/cluster.py"));
        command
    }
}

impl Cluster for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    fn load_image(&self, archive: &Path) -> Result<(), ClusterError> {
        run(Self::script().arg("load").arg(archive)).map(drop)
    }

    fn node_exec(&self, command: &[&str]) -> Result<String, ClusterError> {
        run(Self::script().args(["exec", "--"]).args(command))
    }

    fn audit_log(&self) -> Result<String, ClusterError> {
        let path = Path::new(STATE).join("log/audit.log");
        std::fs::read_to_string(&path)
            .map_err(|error| ClusterError::Environment(format!("{}: {error}", path.display())))
    }
}
