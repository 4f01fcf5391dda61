//! A cluster of kind, in Docker.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{Cluster, ClusterError, run};

/// Name of the cluster. One that is there already is used, so that tests can be run again quickly.
const NAME: &str = "disagg-e2e";

/// See the module.
pub struct Kind {
    executable: PathBuf,
    docker: PathBuf,
    kubeconfig: PathBuf,
    _folder: TempDir,
}

impl Kind {
    /// Creates the cluster unless it is there. Both arguments are executables, by path or by name.
    pub fn create(kind: &Path, docker: &Path) -> Result<Self, ClusterError> {
        let folder = tempfile::tempdir()
            .map_err(|error| ClusterError::Environment(format!("a temporary folder: {error}")))?;
        let kubeconfig = folder.path().join("kubeconfig");
        let clusters = run(Command::new(kind).args(["get", "clusters"]))?;
        if !clusters.lines().any(|cluster| cluster == NAME) {
            let create = ["create", "cluster", "--name", NAME, "--wait", "120s", "--kubeconfig"];
            run(Command::new(kind).args(create).arg(&kubeconfig))?;
        }
        let export = ["export", "kubeconfig", "--name", NAME, "--kubeconfig"];
        run(Command::new(kind).args(export).arg(&kubeconfig))?;
        Ok(Self { executable: kind.to_owned(), docker: docker.to_owned(), kubeconfig, _folder: folder })
    }
}

impl Cluster for Kind {
    fn name(&self) -> &'static str {
        "kind"
    }

    fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    fn load_image(&self, archive: &Path) -> Result<(), ClusterError> {
        run(Command::new(&self.executable).args(["load", "image-archive", "--name", NAME]).arg(archive))
            .map(drop)
    }

    fn node_exec(&self, command: &[&str]) -> Result<String, ClusterError> {
        run(Command::new(&self.docker).args(["exec", &format!("{NAME}-control-plane")]).args(command))
    }

    fn audit_log(&self) -> Result<String, ClusterError> {
        Err(ClusterError::NotOffered {
            cluster: self.name(),
            reason: "its API server is started without an audit log",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// An executable that writes its arguments to `calls` and answers by this shell script.
    fn fake(folder: &Path, name: &str, script: &str) -> PathBuf {
        let path = folder.join(name);
        let calls = folder.join("calls");
        std::fs::write(&path, format!("#!/bin/sh\necho {name} \"$@\" >> {}\n{script}\n", calls.display()))
            .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn calls(folder: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(folder.join("calls")).unwrap();
        text.lines().map(|line| line.split(" --kubeconfig").next().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_cluster_is_created_once_and_reached_by_its_own_tools() {
        let folder = tempfile::tempdir().unwrap();
        let clusters = folder.path().join("clusters");
        let script = format!(
            "case $1 in get) cat {0} 2>/dev/null || true;; create) echo {NAME} > {0};; esac",
            clusters.display()
        );
        let kind = fake(folder.path(), "kind", &script);
        let docker = fake(folder.path(), "docker", "echo on the node");
        for _ in 0..2 {
            let cluster = Kind::create(&kind, &docker).unwrap();
            cluster.load_image(Path::new("/images/a.tar")).unwrap();
            assert_eq!(cluster.node_exec(&["ls", "/"]).unwrap(), "on the node\n");
        }
        let created = "kind create cluster --name disagg-e2e --wait 120s";
        let used = [
            "kind get clusters",
            created,
            "kind export kubeconfig --name disagg-e2e",
            "kind load image-archive --name disagg-e2e /images/a.tar",
            "docker exec disagg-e2e-control-plane ls /",
        ];
        let again = used.into_iter().filter(|&call| call != created);
        assert_eq!(calls(folder.path()), used.into_iter().chain(again).collect::<Vec<_>>());
    }

    #[test]
    fn a_tool_that_fails_is_told_with_what_it_said() {
        let folder = tempfile::tempdir().unwrap();
        let kind = fake(folder.path(), "kind", "echo no docker here >&2; exit 3");
        let error = Kind::create(&kind, Path::new("docker")).err().expect("an error").to_string();
        assert!(error.contains("kind get clusters` ended with exit status: 3: no docker here"), "{error}");
    }
}
