//! The cluster that is meant, and the deployment in it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use disagg_api::DisaggDeployment;
use disagg_process::file;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DeserializeGuard;
use kube::{Api, Client, Config, ResourceExt};

/// Longest wait for an API server that does not answer.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Most bytes of a kubeconfig.
const KUBECONFIG_BYTES_MAX: u64 = 16 << 20;

/// Flags as kubectl has them.
#[derive(Args, Debug, Default)]
pub(super) struct Connection {
    /// Kubeconfig file [default: as kubectl: KUBECONFIG, or ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) context: Option<String>,

    /// Namespace of the DisaggDeployment [default: that of the context]
    #[arg(long, short, global = true, value_name = "NAME")]
    pub(super) namespace: Option<String>,
}

/// An API server, and a namespace.
pub(super) struct Cluster {
    pub(super) client: Client,
    pub(super) namespace: String,
}

impl Connection {
    /// Reads the kubeconfig; the first request tells whether the server is there.
    pub(super) async fn open(&self) -> anyhow::Result<Cluster> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let shown = path.display();
                // kube reads it itself, whatever it is.
                file::read(path, KUBECONFIG_BYTES_MAX).context("--kubeconfig")?;
                let config = Kubeconfig::read_from(path).with_context(|| format!("--kubeconfig {shown}"))?;
                Config::from_custom_kubeconfig(config, &options)
                    .await
                    .with_context(|| format!("--kubeconfig {shown}"))?
            }
            // In a pod there is no context to choose.
            None if self.context.is_none() => {
                Config::infer().await.context("there is no kubeconfig; name one with --kubeconfig")?
            }
            None => Config::from_kubeconfig(&options).await.context("the kubeconfig cannot be used")?,
        };
        config.connect_timeout = Some(CONNECT_MAX);
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).context("no client for the Kubernetes API can be made")?;
        Ok(Cluster { client, namespace })
    }
}

impl Cluster {
    /// The resources of a kind in the namespace.
    pub(super) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The name of the deployment that is meant: the one given, or the only one there is.
    pub(super) async fn deployment_name(&self, given: Option<&str>) -> anyhow::Result<String> {
        let api: Api<DeserializeGuard<DisaggDeployment>> = self.api();
        if let Some(name) = given {
            let found = api.get_opt(name).await.map_err(no_deployments)?;
            return match found {
                Some(_) => Ok(name.to_owned()),
                None => bail!("there is no DisaggDeployment {name} in the namespace {}", self.namespace),
            };
        }
        let all = api.list(&ListParams::default()).await.map_err(no_deployments)?;
        only(&self.namespace, all.items.iter().map(ResourceExt::name_any).collect())
    }
}

/// The only name, or what to do about there being none or several.
fn only(namespace: &str, mut names: Vec<String>) -> anyhow::Result<String> {
    names.sort();
    match names.as_slice() {
        [name] => Ok(name.clone()),
        [] => {
            bail!("there is no DisaggDeployment in the namespace {namespace}; another one is chosen with -n")
        }
        several => bail!(
            "the namespace {namespace} has several DisaggDeployments, so one has to be named: {}",
            several.join(", ")
        ),
    }
}

/// Why the deployments could not be read, with what to do.
fn no_deployments(error: kube::Error) -> anyhow::Error {
    let missing = matches!(&error, kube::Error::Api(status) if status.code == 404);
    let error = anyhow::Error::new(error).context("cannot read DisaggDeployments");
    if missing {
        return error.context("the resource definition is not installed (kubectl disagg check tells more)");
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_deployment_need_not_be_named() {
        let only = |names: &[&str]| only("llm", names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(only(&["demo"]).unwrap(), "demo");
        let none = only(&[]).unwrap_err().to_string();
        assert!(none.contains("no DisaggDeployment in the namespace llm"), "{none}");
        let several = only(&["b", "a"]).unwrap_err().to_string();
        assert!(several.ends_with("one has to be named: a, b"), "{several}");
    }
}
