//! Reads what the check judges.

use std::collections::BTreeMap;

use anyhow::bail;
use disagg_api::DisaggDeployment;
use disagg_api::kubernetes::{Component, LABEL_DEPLOYMENT, SettingsReport, settings_config_map};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::core::DeserializeGuard;
use kube::{Api, CustomResourceExt as _, ResourceExt as _};

use super::super::cluster::Cluster;
use super::super::routers::{Routers, is_ready};
use crate::router_client::Worker;

/// The label by which the chart's operator is found.
const OPERATOR_LABELS: &str = "app.kubernetes.io/component=operator,app.kubernetes.io/part-of=disagg";

/// Something that may not be readable.
#[derive(Clone, Debug)]
pub(super) enum Seen<T> {
    It(T),
    /// There is none.
    Nothing,
    /// Why it could not be read.
    Unreadable(String),
}

/// Everything at one moment.
pub(super) struct Snapshot {
    pub(super) now: Timestamp,
    pub(super) namespace: String,
    pub(super) definition: Seen<CustomResourceDefinition>,
    pub(super) operators: Seen<Vec<Deployment>>,
    /// What runs on every node, network plugins among it.
    pub(super) agents: Seen<Vec<DaemonSet>>,
    /// The API server's, for example `v1.36.1+k3s1`.
    pub(super) version: String,
    pub(super) deployments: Seen<Vec<DeploymentSnapshot>>,
}

/// One `DisaggDeployment` and what belongs to it.
pub(super) struct DeploymentSnapshot {
    pub(super) name: String,
    /// The resource; an error where its fields cannot be read.
    pub(super) resource: Result<DisaggDeployment, String>,
    pub(super) pods: Seen<Vec<Pod>>,
    /// Warnings about the resource, its pods, and what makes them.
    pub(super) events: Seen<Vec<Event>>,
    pub(super) settings: Seen<ConfigMap>,
    /// All of the namespace.
    pub(super) policies: Seen<Vec<NetworkPolicy>>,
    /// What each router says, by the name of its pod.
    pub(super) routers: BTreeMap<String, RouterSnapshot>,
}

/// What one router says, where it can be reached.
pub(super) struct RouterSnapshot {
    /// `None`: it is ready.
    pub(super) not_ready_because: Result<Option<String>, String>,
    pub(super) settings: Result<SettingsReport, String>,
    pub(super) workers: Result<Vec<Worker>, String>,
}

impl Snapshot {
    /// For the last line.
    pub(super) fn looked_at(&self) -> String {
        let namespace = &self.namespace;
        let Seen::It(deployments) = &self.deployments else {
            return format!("the cluster, and nothing in the namespace {namespace}");
        };
        if deployments.is_empty() {
            return format!("the cluster; the namespace {namespace} has no DisaggDeployment");
        }
        let names: Vec<&str> = deployments.iter().map(|it| it.name.as_str()).collect();
        let pods: usize =
            deployments.iter().map(|it| if let Seen::It(pods) = &it.pods { pods.len() } else { 0 }).sum();
        let routers: usize = deployments.iter().map(|it| it.routers.len()).sum();
        let names = names.join(", ");
        format!(
            "the cluster and, in the namespace {namespace}, {names} with {pods} pods and {routers} routers"
        )
    }
}

/// Reads everything about `name`, or about every deployment of the namespace.
pub(super) async fn gather(cluster: &Cluster, name: Option<&str>) -> anyhow::Result<Snapshot> {
    // Whether there is a cluster at all: every other answer would only repeat this one.
    let version = cluster.client.apiserver_version().await?.git_version;
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let operators: Api<Deployment> = Api::all(cluster.client.clone());
    let agents: Api<DaemonSet> = Api::all(cluster.client.clone());
    let operator_labels = ListParams::default().labels(OPERATOR_LABELS);
    let all = ListParams::default();
    let (definition, operators, agents) = tokio::join!(
        definitions.get_opt(DisaggDeployment::crd_name()),
        operators.list(&operator_labels),
        agents.list(&all)
    );
    let resources: Api<DeserializeGuard<DisaggDeployment>> = cluster.api();
    let deployments = match resources.list(&ListParams::default()).await {
        Ok(list) => {
            let mut all = Vec::new();
            for resource in list.items {
                if name.is_none_or(|name| resource.name_any() == name) {
                    all.push(deployment(cluster, resource).await);
                }
            }
            if let (Some(name), true) = (name, all.is_empty()) {
                bail!("there is no DisaggDeployment {name} in the namespace {}", cluster.namespace);
            }
            Seen::It(all)
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Seen::Nothing,
        Err(error) => Seen::Unreadable(describe(&error)),
    };
    Ok(Snapshot {
        now: Timestamp::now(),
        namespace: cluster.namespace.clone(),
        definition: seen_opt(definition),
        operators: seen(operators.map(|list| list.items)),
        agents: seen(agents.map(|list| list.items)),
        version,
        deployments,
    })
}

async fn deployment(cluster: &Cluster, resource: DeserializeGuard<DisaggDeployment>) -> DeploymentSnapshot {
    let name = resource.name_any();
    let of_deployment = ListParams::default().labels(&format!("{LABEL_DEPLOYMENT}={name}"));
    let warnings = ListParams::default().fields("type=Warning");
    let (pods, events, maps): (Api<Pod>, Api<Event>, Api<ConfigMap>) =
        (cluster.api(), cluster.api(), cluster.api());
    let policies: Api<NetworkPolicy> = cluster.api();
    let (map, all) = (settings_config_map(&name), ListParams::default());
    let (pods, events, settings, policies) = tokio::join!(
        pods.list(&of_deployment),
        events.list(&warnings),
        maps.get_opt(&map),
        policies.list(&all)
    );
    let policies = seen(policies.map(|list| list.items));
    let pods = seen(pods.map(|list| list.items));
    let events = seen(events.map(|list| {
        let concerns = |event: &Event| concerns(&name, event.involved_object.name.as_deref());
        list.items.into_iter().filter(concerns).collect()
    }));
    let routers = match &pods {
        Seen::It(pods) => routers(cluster, &name, pods).await,
        Seen::Nothing | Seen::Unreadable(_) => BTreeMap::new(),
    };
    let resource = resource.0.map_err(|invalid| invalid.error);
    DeploymentSnapshot { name, resource, pods, events, settings: seen_opt(settings), policies, routers }
}

/// Whether an object of this name is the deployment or one of its children. (Of another deployment's, whose name goes
/// on with a hyphen, its children have the names of components after that.)
fn concerns(deployment: &str, object: Option<&str>) -> bool {
    object.is_some_and(|object| object == deployment || part_of(deployment, object).is_some())
}

/// The part that an object of this name belongs to.
pub(super) fn part_of(deployment: &str, object: &str) -> Option<Component> {
    Component::ALL.into_iter().find(|part| {
        let rest = object.strip_prefix(&part.child(deployment));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    })
}

/// Asks every router whose container runs.
async fn routers(cluster: &Cluster, deployment: &str, pods: &[Pod]) -> BTreeMap<String, RouterSnapshot> {
    let mut routers = Routers::of(cluster, deployment);
    let mut all = BTreeMap::new();
    for pod in pods {
        let is_router = Component::Router
            .selector(deployment)
            .iter()
            .all(|(key, value)| pod.labels().get(key) == Some(value));
        let running = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
        if !is_router || !(running || is_ready(pod)) || pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let said = |error: anyhow::Error| format!("{error:#}");
        let snapshot = match routers.router(&pod.name_any()).await {
            Ok(router) => RouterSnapshot {
                not_ready_because: router.client.not_ready_because().await.map_err(said),
                settings: router.client.settings_report().await.map_err(said),
                workers: router.client.workers().await.map(|answer| answer.workers).map_err(said),
            },
            Err(error) => {
                let why = said(error);
                RouterSnapshot {
                    not_ready_because: Err(why.clone()),
                    settings: Err(why.clone()),
                    workers: Err(why),
                }
            }
        };
        all.insert(pod.name_any(), snapshot);
    }
    all
}

fn seen<T>(result: kube::Result<T>) -> Seen<T> {
    result.map_or_else(|error| Seen::Unreadable(describe(&error)), Seen::It)
}

fn seen_opt<T>(result: kube::Result<Option<T>>) -> Seen<T> {
    match result {
        Ok(Some(it)) => Seen::It(it),
        Ok(None) => Seen::Nothing,
        Err(error) => Seen::Unreadable(describe(&error)),
    }
}

fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_other_deployments_are_none_of_ours() {
        for (object, ours) in [
            ("demo", true),
            ("demo-decode", true),
            ("demo-decode-0", true),
            ("demo-router-5f7c-x2", true),
            ("demo-two-decode-0", false),
            ("demolition-decode-0", false),
            ("other", false),
            ("demo-decoder", false),
        ] {
            assert_eq!(concerns("demo", Some(object)), ours, "{object}");
        }
        assert!(!concerns("demo", None));
    }
}
