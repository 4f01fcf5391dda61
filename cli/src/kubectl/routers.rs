//! The routers of a deployment, each reached through a port-forward of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use disagg_api::kubernetes::{Component, ROUTER_ADMIN_PORT, ROUTER_HTTP_PORT};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::cluster::Cluster;
use super::forward::Forward;
use crate::router_client::RouterClient;

/// The routers of one deployment, with the port-forwards that were opened.
pub(super) struct Routers {
    pods: Api<Pod>,
    deployment: String,
    open: BTreeMap<String, Router>,
}

/// One router, reachable as long as this lives.
#[derive(Clone)]
pub(super) struct Router {
    pub(super) pod: String,
    pub(super) client: RouterClient,
    /// Of its admin port; kept, so that it stays open.
    _forward: Arc<Forward>,
}

impl Routers {
    pub(super) fn of(cluster: &Cluster, deployment: &str) -> Self {
        Self { pods: cluster.api(), deployment: deployment.to_owned(), open: BTreeMap::new() }
    }

    /// Names of the pods that are ready and stay.
    pub(super) async fn ready(&self) -> anyhow::Result<Vec<String>> {
        let pods = self.pods.list(&ListParams::default().labels(&selector(&self.deployment))).await;
        let pods = pods.context("cannot list the routers' pods")?;
        let mut names: Vec<String> =
            pods.items.iter().filter(|pod| is_ready(pod)).map(ResourceExt::name_any).collect();
        names.sort();
        Ok(names)
    }

    /// The router in this pod.
    pub(super) async fn router(&mut self, pod: &str) -> anyhow::Result<Router> {
        if let Some(router) = self.open.get(pod) {
            return Ok(router.clone());
        }
        let forward = Forward::open(self.pods.clone(), pod, ROUTER_ADMIN_PORT).await?;
        let client = RouterClient::new(&forward.url())?;
        let router = Router { pod: pod.to_owned(), client, _forward: Arc::new(forward) };
        self.open.insert(pod.to_owned(), router.clone());
        Ok(router)
    }

    /// Some ready router.
    pub(super) async fn any(&mut self) -> anyhow::Result<Router> {
        let pod = self.any_ready().await?;
        self.router(&pod).await
    }

    /// The API of some ready router, and the name of its pod.
    pub(super) async fn any_api(&self) -> anyhow::Result<(String, Forward)> {
        let pod = self.any_ready().await?;
        let forward = Forward::open(self.pods.clone(), &pod, ROUTER_HTTP_PORT).await?;
        Ok((pod, forward))
    }

    async fn any_ready(&self) -> anyhow::Result<String> {
        let ready = self.ready().await?;
        let Some(pod) = ready.into_iter().next() else {
            bail!("no router of {} is ready; kubectl disagg check tells why", self.deployment);
        };
        Ok(pod)
    }
}

/// The label selector of the routers' pods.
fn selector(deployment: &str) -> String {
    let labels = Component::Router.selector(deployment);
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Ready, and not being deleted.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}
