//! A cluster that is there already and that nothing more is known about.

use std::path::{Path, PathBuf};

use super::{Cluster, ClusterError};

/// See the module.
pub struct External {
    kubeconfig: PathBuf,
}

impl External {
    /// The cluster that the variable `KUBECONFIG` names. Its nodes must have, or be able to pull, the images.
    pub fn attach() -> Result<Self, ClusterError> {
        let Some(path) = std::env::var_os("KUBECONFIG") else {
            return Err(ClusterError::Environment("an external cluster needs KUBECONFIG".to_owned()));
        };
        Ok(Self { kubeconfig: path.into() })
    }

    fn not_offered<T>(&self, reason: &'static str) -> Result<T, ClusterError> {
        Err(ClusterError::NotOffered { cluster: self.name(), reason })
    }
}

impl Cluster for External {
    fn name(&self) -> &'static str {
        "external"
    }

    fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    fn load_image(&self, _archive: &Path) -> Result<(), ClusterError> {
        self.not_offered("its nodes get images from a registry; push them there and set DISAGG_E2E_REGISTRY and DISAGG_E2E_TAG")
    }

    fn node_exec(&self, _command: &[&str]) -> Result<String, ClusterError> {
        self.not_offered("its nodes cannot be entered")
    }

    fn audit_log(&self) -> Result<String, ClusterError> {
        self.not_offered("its audit log cannot be read")
    }
}
