//! What the operator knows of the cluster without asking: one watch for each kind that it reconciles or creates.
//!
//! Watches of children are held to our label, so they cost what our own objects cost. Of kinds whose content nobody
//! reads back only the metadata is watched.

use std::fmt::Debug;
use std::time::Duration;

use disagg_api::DisaggDeployment;
use disagg_api::kubernetes::LABEL_DEPLOYMENT;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, ObjectMeta};
use kube::core::{NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::controller::ReconcileRequest;
use kube::runtime::reflector::{self, Lookup, ObjectRef, Store};
use kube::runtime::{Predicate as _, WatchStreamExt as _, predicates, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::prometheus::PodMonitor;
use crate::reconcile::MANAGED_BY;

/// How long a watch may take until its first list is there.
const READY_WITHIN: Duration = Duration::from_mins(1);

/// Requests to reconcile, from all watches.
pub(crate) type Triggers = BoxStream<'static, Result<ReconcileRequest<DisaggDeployment>, watcher::Error>>;

/// A watch that does not come up: most often a right is missing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the watch of {kind} has not come up within {} s; may the operator list and watch them?", READY_WITHIN.as_secs())]
pub(crate) struct NotReady {
    kind: String,
}

/// Copies of what is in the cluster; they lag behind it by the time that a watch event takes.
#[derive(Clone)]
pub(crate) struct Stores {
    pub resources: Store<DisaggDeployment>,
    pub config_maps: Store<ConfigMap>,
    pub stateful_sets: Store<StatefulSet>,
    pub deployments: Store<Deployment>,
    pub pods: Store<Pod>,
    pub services: Store<PartialObjectMeta<Service>>,
    pub service_accounts: Store<PartialObjectMeta<ServiceAccount>>,
    pub roles: Store<PartialObjectMeta<Role>>,
    pub role_bindings: Store<PartialObjectMeta<RoleBinding>>,
    pub disruption_budgets: Store<PartialObjectMeta<PodDisruptionBudget>>,
    pub network_policies: Store<PartialObjectMeta<NetworkPolicy>>,
    /// Empty until a resource asks for PodMonitors in a cluster that serves them.
    pub pod_monitors: Store<PartialObjectMeta<PodMonitor>>,
}

/// A kind of child, and where its copies are.
pub(crate) trait Child:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + serde::Serialize
    + DeserializeOwned
{
    /// Metadata of a child as the watch last showed it.
    fn known(stores: &Stores, namespace: &str, name: &str) -> Option<ObjectMeta>;
}

macro_rules! children {
    ($($kind:ty: $field:ident),* $(,)?) => {$(
        impl Child for $kind {
            fn known(stores: &Stores, namespace: &str, name: &str) -> Option<ObjectMeta> {
                let found = stores.$field.get(&ObjectRef::new(name).within(namespace))?;
                Some(found.meta().clone())
            }
        }
    )*};
}

children! {
    ConfigMap: config_maps,
    StatefulSet: stateful_sets,
    Deployment: deployments,
    Service: services,
    ServiceAccount: service_accounts,
    Role: roles,
    RoleBinding: role_bindings,
    PodDisruptionBudget: disruption_budgets,
    NetworkPolicy: network_policies,
    PodMonitor: pod_monitors,
}

impl Stores {
    /// Sets the watches up; they run while the triggers are polled. That of PodMonitors begins when `pod_monitors_served`
    /// is cancelled.
    pub(crate) fn new(
        client: &Client,
        namespace: Option<&str>,
        pod_monitors_served: &CancellationToken,
    ) -> (Self, Triggers) {
        let (mut triggers, mut later) = (Vec::new(), Vec::new());
        let stores = Self {
            resources: resources(scoped(client, namespace), &mut triggers),
            config_maps: watched(scoped(client, namespace), &mut triggers),
            stateful_sets: watched(scoped(client, namespace), &mut triggers),
            deployments: watched(scoped(client, namespace), &mut triggers),
            pods: watched(scoped(client, namespace), &mut triggers),
            services: watched(scoped(client, namespace), &mut triggers),
            service_accounts: watched(scoped(client, namespace), &mut triggers),
            roles: watched(scoped(client, namespace), &mut triggers),
            role_bindings: watched(scoped(client, namespace), &mut triggers),
            disruption_budgets: watched(scoped(client, namespace), &mut triggers),
            network_policies: watched(scoped(client, namespace), &mut triggers),
            pod_monitors: watched(scoped(client, namespace), &mut later),
        };
        triggers.extend(later.into_iter().map(|changes| from_then_on(pod_monitors_served.clone(), changes)));
        (stores, stream::select_all(triggers).boxed())
    }

    /// Resolves when every watch has its first list. That of PodMonitors may never begin and is not waited for.
    pub(crate) async fn ready(&self) -> Result<(), NotReady> {
        ready(&self.resources).await?;
        ready(&self.config_maps).await?;
        ready(&self.stateful_sets).await?;
        ready(&self.deployments).await?;
        ready(&self.pods).await?;
        ready(&self.services).await?;
        ready(&self.service_accounts).await?;
        ready(&self.roles).await?;
        ready(&self.role_bindings).await?;
        ready(&self.disruption_budgets).await?;
        ready(&self.network_policies).await
    }
}

async fn ready<K>(store: &Store<K>) -> Result<(), NotReady>
where
    K: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone + 'static,
{
    match tokio::time::timeout(READY_WITHIN, store.wait_until_ready()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(NotReady { kind: <K as Resource>::plural(&()).into_owned() }),
    }
}

fn scoped<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
    client: &Client,
    namespace: Option<&str>,
) -> Api<K> {
    namespace.map_or_else(|| Api::all(client.clone()), |namespace| Api::namespaced(client.clone(), namespace))
}

/// The resources themselves. A change of the status alone, which is the operator's own, triggers nothing.
fn resources(api: Api<DisaggDeployment>, triggers: &mut Vec<Triggers>) -> Store<DisaggDeployment> {
    let (store, writer) = reflector::store();
    let changes = watcher(api, watcher::Config::default())
        .default_backoff()
        .modify(|resource| resource.metadata.managed_fields = None)
        .reflect(writer)
        .applied_objects()
        .predicate_filter(
            predicates::generation.combine(predicates::annotations).combine(predicates::labels),
            kube::runtime::PredicateConfig::default(),
        )
        .map_ok(|resource| ReconcileRequest::from(ObjectRef::from_obj(&resource)));
    triggers.push(changes.boxed());
    store
}

fn ours() -> watcher::Config {
    watcher::Config::default().labels(&format!("app.kubernetes.io/managed-by={MANAGED_BY}"))
}

/// Watches our objects of a kind, copies them, and requests to reconcile those that they belong to.
fn watched<K>(api: Api<K>, triggers: &mut Vec<Triggers>) -> Store<K>
where
    K: Resource<DynamicType = ()>
        + Lookup<DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store();
    // Who owns which field is only asked of what has a number of pods; elsewhere it is most of an object.
    let plural = <K as Resource>::plural(&());
    let keep = ["statefulsets", "deployments"].contains(&plural.as_ref());
    let slim = move |object: &mut K| {
        if !keep {
            object.meta_mut().managed_fields = None;
        }
    };
    let changes = watcher(api, ours()).default_backoff().modify(slim).reflect(writer).touched_objects();
    triggers.push(owners(changes));
    store
}

/// `changes`, of a watch that begins when `begin` is cancelled.
fn from_then_on(begin: CancellationToken, changes: Triggers) -> Triggers {
    let wait = stream::once(begin.cancelled_owned()).filter_map(|()| std::future::ready(None));
    wait.chain(changes).boxed()
}

fn owners<K: Resource<DynamicType = ()> + Send + 'static>(
    changes: impl futures::Stream<Item = Result<K, watcher::Error>> + Send + 'static,
) -> Triggers {
    changes
        .try_filter_map(|child| async move { Ok(owner_of(child.meta()).map(ReconcileRequest::from)) })
        .boxed()
}

/// The resource that an object belongs to: by the owner reference of children, by the label of pods.
fn owner_of(meta: &ObjectMeta) -> Option<ObjectRef<DisaggDeployment>> {
    let owned = meta.owner_references.iter().flatten().find(|owner| {
        owner.controller == Some(true) && owner.kind == <DisaggDeployment as Resource>::kind(&())
    });
    let labelled = || meta.labels.as_ref()?.get(LABEL_DEPLOYMENT).cloned();
    let name = owned.map(|owner| owner.name.clone()).or_else(labelled)?;
    Some(ObjectRef::new(&name).within(meta.namespace.as_ref()?))
}
