//! The release's later life: an upgrade disturbs no deployment, and its uninstallation is the end of the operator, and of
//! nothing else.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use disagg_e2e::cluster::{Cluster, Namespace, repository};
use disagg_e2e::eventually;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use crate::{CONVERGE, SYSTEM};

/// Name of the `DisaggDeployment`.
pub(crate) const NAME: &str = "rights";

/// Name of the release.
const RELEASE: &str = "disagg";

/// Its labels.
const OURS: &str = "app.kubernetes.io/name=disagg";

/// When the release was installed, as [`crate::audit::Request::at`]. Panics if it is not.
pub(crate) async fn installed_at(namespace: &Namespace) -> String {
    let operators = Api::<Deployment>::namespaced(namespace.client().clone(), SYSTEM);
    let operator = operators.get_opt(RELEASE).await.expect("Deployments");
    let operator =
        operator.expect("the operator is installed: the tests in tests/cluster do it, run them before");
    let created = json!(operator.metadata.creation_timestamp);
    created.as_str().and_then(|text| text.get(..19)).expect("a time").to_owned()
}

fn helm(cluster: &dyn Cluster, arguments: &[&str]) {
    let mut helm = Command::new("helm");
    helm.env("KUBECONFIG", cluster.kubeconfig()).args(arguments);
    helm.args(["--namespace", SYSTEM, "--wait", "--timeout", "120s"]);
    let output = helm.output().expect("helm");
    assert!(output.status.success(), "helm {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The versions of what serves, and the pods, by kind and name. A change of one is a disturbance.
async fn versions(namespace: &Namespace) -> BTreeMap<String, String> {
    async fn add<K>(
        namespace: &Namespace,
        versions: &mut BTreeMap<String, String>,
        of: fn(&K) -> Option<String>,
    ) where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let list = namespace.api::<K>().list(&ListParams::default().labels("disagg.dev/deployment")).await;
        for object in list.expect("a list") {
            let name = format!("{} {}", K::kind(&()), object.name_any());
            versions.insert(name, of(&object).unwrap_or_default());
        }
    }
    let mut versions = BTreeMap::new();
    add::<StatefulSet>(namespace, &mut versions, ResourceExt::resource_version).await;
    add::<Deployment>(namespace, &mut versions, ResourceExt::resource_version).await;
    add::<Service>(namespace, &mut versions, ResourceExt::resource_version).await;
    add::<Pod>(namespace, &mut versions, ResourceExt::uid).await;
    versions
}

/// Two replicas instead of one, which also replaces the one there was.
pub(crate) async fn upgraded(cluster: &dyn Cluster, namespace: &Namespace) {
    let before = versions(namespace).await;
    let chart = repository().join("charts/disagg");
    let chart = chart.to_str().expect("UTF-8");
    helm(cluster, &["upgrade", RELEASE, chart, "--reuse-values", "--set", "replicas=2,logLevel=debug"]);
    let operators = Api::<Pod>::namespaced(namespace.client().clone(), SYSTEM);
    eventually("the two new operators alone", CONVERGE, async || {
        let pods =
            operators.list(&ListParams::default().labels(OURS)).await.map_err(|error| error.to_string())?;
        let new = |pod: &&Pod| json!(pod.spec).to_string().contains("debug");
        let found = (pods.items.len(), pods.items.iter().filter(new).count());
        if found == (2, 2) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    // The new leader works, and has found nothing else to do.
    let change = json!({"spec": {"disaggregation": {"maxLocalPrefillLength": 77}}});
    let deployments = namespace.deployments();
    deployments.patch(NAME, &PatchParams::default(), &Patch::Merge(change)).await.expect("a change");
    eventually("the change to be written through", CONVERGE, async || {
        let map =
            namespace.api::<ConfigMap>().get("rights-router").await.map_err(|error| error.to_string())?;
        let data = map.data.unwrap_or_default();
        if data["maxLocalPrefillLength"] == "77" { Ok(()) } else { Err(format!("{data:?}")) }
    })
    .await;
    namespace.condition(NAME, "Ready", "True", CONVERGE).await;
    assert_eq!(versions(namespace).await, before, "the upgrade of the operator touched a deployment");
}

/// `helm uninstall`. The definition stays, and what serves goes on.
pub(crate) async fn uninstalled(cluster: &dyn Cluster, namespace: &Namespace) {
    let before = versions(namespace).await;
    helm(cluster, &["uninstall", RELEASE]);
    let client = namespace.client();
    let ours = ListParams::default().labels(OURS);
    eventually("the operators to be gone", Duration::from_mins(1), async || {
        let pods = Api::<Pod>::namespaced(client.clone(), SYSTEM).list(&ours).await;
        let left = pods.map_err(|error| error.to_string())?.items.len();
        if left == 0 { Ok(()) } else { Err(format!("{left} pods")) }
    })
    .await;
    let roles = Api::<ClusterRole>::all(client.clone()).list(&ours).await.expect("roles").items;
    let bindings = Api::<ClusterRoleBinding>::all(client.clone()).list(&ours).await.expect("bindings").items;
    assert_eq!((roles.len(), bindings.len()), (0, 0), "rights of an operator that is gone");
    let policies =
        Api::<ValidatingAdmissionPolicy>::all(client.clone()).list(&ours).await.expect("policies").items;
    assert_eq!(policies.len(), 0, "a policy on an operator that is gone");

    namespace.deployments().get(NAME).await.expect("the definition and its resources stay");
    assert_eq!(versions(namespace).await, before, "the uninstallation touched a deployment");
    let forward = namespace.forward("rights-router", "http").await;
    let url = format!("{}/v1/models", forward.url());
    let models = disagg_e2e::router::http_client().get(url).send().await.expect("an answer");
    assert!(models.status().is_success(), "{models:?}");
}
