//! A namespace of a test's own.

use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace as NamespaceObject, Pod};
use kube::api::{DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde_json::{Value, json};

use super::{Cluster, Forward, client, deployment_resource};
use crate::wait::eventually;

/// Longest wait for a namespace to go with all that is in it.
const GONE: Duration = Duration::from_secs(90);

/// Field manager of what tests apply.
const MANAGER: &str = "e2e";

/// A namespace that was empty at the start and is deleted at the end, when the time it was used for is printed. When
/// the test panics, its objects, events and logs are printed, and with `DISAGG_E2E_KEEP=1` it stays.
pub struct Namespace {
    name: String,
    client: Client,
    kubeconfig: std::path::PathBuf,
    created: Instant,
}

impl Namespace {
    /// Creates it; one of an earlier run is removed before.
    pub async fn create(cluster: &dyn Cluster, name: &str) -> Self {
        let client = client(cluster).await;
        let kubeconfig = cluster.kubeconfig().to_owned();
        let this = Self { name: name.to_owned(), client, kubeconfig, created: Instant::now() };
        this.delete().await;
        let object: NamespaceObject =
            serde_json::from_value(json!({"metadata": {"name": name}})).expect("a namespace");
        this.namespaces().create(&PostParams::default(), &object).await.expect("a namespace");
        this
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Objects of one kind in it.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// The `DisaggDeployment`s in it.
    pub fn deployments(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.name, &deployment_resource())
    }

    /// Applies a `DisaggDeployment` with this spec, as `kubectl apply --server-side` would.
    pub async fn apply(&self, name: &str, spec: &Value) -> DynamicObject {
        let object = json!({
            "apiVersion": "disagg.dev/v1alpha1", "kind": "DisaggDeployment", "metadata": {"name": name}, "spec": spec,
        });
        let parameters = PatchParams::apply(MANAGER).force();
        self.deployments()
            .patch(name, &parameters, &Patch::Apply(&object))
            .await
            .unwrap_or_else(|error| panic!("apply {name}: {error}"))
    }

    /// Waits until a condition of a `DisaggDeployment` has this status for its present generation, and gives the object.
    pub async fn condition(&self, name: &str, kind: &str, status: &str, within: Duration) -> DynamicObject {
        eventually(&format!("{kind}={status} of {}/{name}", self.name), within, async || {
            let object = self.deployments().get(name).await.map_err(|error| error.to_string())?;
            let generation = object.metadata.generation;
            let conditions = object.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let Some(found) = conditions.iter().find(|condition| condition["type"] == kind) else {
                return Err(format!("conditions {}", json!(conditions)));
            };
            let current = found["observedGeneration"].as_i64() == generation;
            if current && found["status"] == status { Ok(object) } else { Err(found.to_string()) }
        })
        .await
    }

    /// Pods with these labels, as a label selector.
    pub async fn pods(&self, selector: &str) -> Vec<Pod> {
        let list = self.api::<Pod>().list(&ListParams::default().labels(selector)).await;
        list.unwrap_or_else(|error| panic!("list pods {selector}: {error}")).items
    }

    /// Waits until exactly so many pods with these labels are there, all ready and none on its way out.
    pub async fn ready_pods(&self, selector: &str, count: usize, within: Duration) -> Vec<Pod> {
        eventually(&format!("{count} ready pods {selector}"), within, async || {
            let pods = self.pods(selector).await;
            let fine =
                pods.iter().filter(|pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none()).count();
            if (fine, pods.len()) == (count, count) {
                return Ok(pods);
            }
            let names: Vec<_> = pods.iter().map(|pod| (pod.name_any(), is_ready(pod))).collect();
            Err(format!("{names:?}"))
        })
        .await
    }

    /// All that a pod's only container has written.
    pub async fn log(&self, pod: &str) -> String {
        let log = self.api::<Pod>().logs(pod, &LogParams::default()).await;
        log.unwrap_or_else(|error| panic!("log of {pod}: {error}"))
    }

    /// A port on loopback that leads to a Service in it.
    pub async fn forward(&self, service: &str, port_name: &str) -> Forward {
        Forward::to_service(&self.client, &self.name, service, port_name).await
    }

    /// A port on loopback that leads to a port of a pod in it.
    pub async fn forward_pod(&self, pod: &str, port: u16) -> Forward {
        Forward::to_pod(&self.client, &self.name, pod, port).await
    }

    /// `kubectl` in this namespace; gives what it prints, or what went wrong.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        super::run(self.kubectl_command().args(arguments)).map_err(|error| error.to_string())
    }

    /// `kubectl` in this namespace, to be given arguments and run.
    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", &self.kubeconfig).args(["--namespace", &self.name]);
        command
    }

    /// A plugin of `kubectl` in this namespace. kubectl wants the plugin's name before any flag.
    pub fn kubectl_plugin_command(&self, plugin: &str) -> Command {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", &self.kubeconfig).args([plugin, "--namespace", &self.name]);
        command
    }

    /// Deletes it and waits until it is gone.
    pub async fn delete(&self) {
        let namespaces = self.namespaces();
        eventually(&format!("namespace {} to be gone", self.name), GONE, async || {
            match namespaces.get_opt(&self.name).await.map_err(|error| error.to_string())? {
                None => Ok(()),
                Some(found) => {
                    if found.metadata.deletion_timestamp.is_none() {
                        let deleted = namespaces.delete(&self.name, &DeleteParams::default()).await;
                        deleted.map_err(|error| error.to_string())?;
                    }
                    // What holds it up, in the API's own words.
                    Err(json!(found.status).to_string())
                }
            }
        })
        .await;
    }

    fn namespaces(&self) -> Api<NamespaceObject> {
        Api::all(self.client.clone())
    }

    fn print(&self) {
        eprintln!("---- namespace {}", self.name);
        for arguments in [
            vec!["get", "all,configmaps", "--output=wide"],
            vec!["get", "disaggdeployments", "--output=yaml"],
            vec!["get", "events", "--sort-by=.lastTimestamp"],
            vec!["logs", "--selector=disagg.dev/deployment", "--all-containers", "--prefix", "--tail=60"],
        ] {
            eprintln!("---- kubectl {}", arguments.join(" "));
            match self.kubectl(&arguments) {
                Ok(text) => eprintln!("{text}"),
                Err(error) => eprintln!("{error}"),
            }
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        eprintln!("{}: {:.1} s", self.name, self.created.elapsed().as_secs_f64());
        if std::thread::panicking() {
            self.print();
            if std::env::var_os("DISAGG_E2E_KEEP").is_some() {
                return;
            }
        }
        // Not waited for: the next run does, if it has to.
        let _ = self.kubectl(&["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"]);
    }
}

/// The condition `Ready` of a pod.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}
