//! A router in a cluster: its workers come from EndpointSlices, its settings from a ConfigMap.
//!
//! It reads two things and writes nothing: the EndpointSlices of one deployment's worker Services, and one ConfigMap by
//! name. Pods are not read; what a slice says of them (address, not ready, terminating) and what a worker says of
//! itself on its own connection (role, name, model, draining) is all that routing needs, so a router needs no right to
//! list pods. While the API server cannot be reached, what was learned before stays in force.

mod follow;
mod health;
mod settings;
mod workers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use disagg_api::kubernetes::{Component, LABEL_DEPLOYMENT, LABEL_ROLE, settings_config_map};
use disagg_process::file::{self, FileError};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::watch;

use crate::settings::{InForce, LiveSettings};
use crate::workers::EndpointState;
pub(crate) use health::{Feed, Health};

/// An API server that does not answer within this is tried again.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// Most bytes of a kubeconfig.
const KUBECONFIG_BYTES_MAX: u64 = 16 << 20;

/// Which deployment this router belongs to, and how its API server is reached.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Target {
    /// Name of the `DisaggDeployment`.
    pub deployment: String,
    /// Absent: the pod's own, or that of the kubeconfig's context.
    pub namespace: Option<String>,
    /// Absent: as kubectl finds it, or the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
}

/// The API server cannot even be tried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error("--kubeconfig {0}")]
    File(#[from] FileError),
    #[error("--kubeconfig {path}: {source}")]
    Kubeconfig { path: PathBuf, source: kube::config::KubeconfigError },
    #[error("neither a kubeconfig nor the service account of a pod is there: {0}")]
    NoConfig(#[from] kube::config::InferConfigError),
    #[error("no client for the Kubernetes API can be made: {0}")]
    Client(#[from] kube::Error),
}

/// The API server, for what concerns one deployment.
pub(crate) struct Cluster {
    client: Client,
    namespace: String,
    deployment: String,
    health: Arc<Health>,
}

impl Cluster {
    /// Finds out how to reach the API server; does not reach for it yet.
    pub(crate) async fn new(target: Target) -> Result<Self, ClusterError> {
        let mut config = match target.kubeconfig {
            Some(path) => {
                // kube reads it itself, whatever it is.
                file::read(&path, KUBECONFIG_BYTES_MAX)?;
                let failed = |source| ClusterError::Kubeconfig { path: path.clone(), source };
                let kubeconfig = Kubeconfig::read_from(&path).map_err(failed)?;
                let options = KubeConfigOptions::default();
                kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(failed)?
            }
            None => kube::Config::infer().await?,
        };
        config.connect_timeout = Some(CONNECT_MAX);
        let namespace = target.namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config)?;
        Ok(Self { client, namespace, deployment: target.deployment, health: Arc::default() })
    }

    /// How the watches go.
    pub(crate) fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// The workers' addresses, kept up to date by the future.
    pub(crate) fn workers(
        &self,
    ) -> (watch::Receiver<BTreeMap<String, EndpointState>>, impl Future<Output = ()> + Send + use<>) {
        let (sender, receiver) = watch::channel(BTreeMap::new());
        // The labels of a Service are also those of its EndpointSlices.
        let selector = format!(
            "{LABEL_DEPLOYMENT}={},{LABEL_ROLE} in ({},{})",
            self.deployment,
            Component::Decode.as_str(),
            Component::Prefill.as_str()
        );
        let api: Api<DeserializeGuard<EndpointSlice>> = Api::namespaced(self.client.clone(), &self.namespace);
        let health = self.health();
        let keep_up = async move {
            let config = watcher::Config::default().labels(&selector);
            follow::follow(api, config, &health, Feed::EndpointSlices, |slices| {
                let found = workers::workers(slices.values());
                sender.send_if_modified(|known| {
                    let changed = *known != found;
                    *known = found;
                    changed
                });
            })
            .await;
        };
        (receiver, keep_up)
    }

    /// The routing settings, kept up to date by the future.
    pub(crate) fn settings(&self) -> (LiveSettings, impl Future<Output = ()> + Send + use<>) {
        let name = settings_config_map(&self.deployment);
        let source = format!("ConfigMap {}/{name}", self.namespace);
        let unread = InForce {
            problem: Some(format!("{source} has not been read yet")),
            known: false,
            ..InForce::default()
        };
        let (sender, values) = watch::channel(Arc::new(unread));
        let api: Api<DeserializeGuard<ConfigMap>> = Api::namespaced(self.client.clone(), &self.namespace);
        let (health, in_messages) = (self.health(), source.clone());
        let keep_up = async move {
            // By name: a Role can then allow this one ConfigMap and no other.
            let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
            let mut reader = settings::Reader::new(in_messages);
            follow::follow(api, config, &health, Feed::ConfigMap, |maps| {
                let before = Arc::clone(&sender.borrow());
                let now = reader.read(&before, maps.get(&name));
                if now != *before {
                    now.log_change(&before);
                    sender.send_replace(Arc::new(now));
                }
            })
            .await;
        };
        (LiveSettings::new(values, source), keep_up)
    }
}
