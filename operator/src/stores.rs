//! What the operator knows of the cluster without asking: one watch for each kind that it reconciles or creates.
//!
//! Watches of children are held to our label, so they cost what our own objects cost. Of kinds whose content nobody
//! reads back only the metadata is watched. Of the others each object is decoded on its own ([`DeserializeGuard`]): one
//! that cannot be hides no other.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use disagg_api::DisaggDeployment;
use disagg_api::kubernetes::LABEL_DEPLOYMENT;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, ObjectMeta};
use kube::core::{DeserializeGuard, NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::controller::ReconcileRequest;
use kube::runtime::reflector::{self, Lookup, ObjectRef, Store};
use kube::runtime::{Predicate as _, WatchStreamExt as _, predicates, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use crate::args::OperatorArgs;
use crate::prometheus::PodMonitor;

/// How long reconciles wait after the start for the first list of every watch.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// A resource, or what could not be decoded of it.
pub(crate) type Guarded = DeserializeGuard<DisaggDeployment>;

/// Requests to reconcile, from all watches.
pub(crate) type Triggers = BoxStream<'static, Result<ReconcileRequest<Guarded>, watcher::Error>>;

/// Copies of what is in the cluster; they lag behind it by the time that a watch event takes.
#[derive(Clone)]
pub(crate) struct Stores {
    pub resources: Store<Guarded>,
    pub config_maps: Store<DeserializeGuard<ConfigMap>>,
    pub stateful_sets: Store<DeserializeGuard<StatefulSet>>,
    pub deployments: Store<DeserializeGuard<Deployment>>,
    pub pods: Store<DeserializeGuard<Pod>>,
    pub services: Store<PartialObjectMeta<Service>>,
    pub service_accounts: Store<PartialObjectMeta<ServiceAccount>>,
    pub roles: Store<PartialObjectMeta<Role>>,
    pub role_bindings: Store<PartialObjectMeta<RoleBinding>>,
    pub disruption_budgets: Store<PartialObjectMeta<PodDisruptionBudget>>,
    pub network_policies: Store<PartialObjectMeta<NetworkPolicy>>,
    /// Empty until a resource asks for PodMonitors in a cluster that serves them.
    pub pod_monitors: Store<PartialObjectMeta<PodMonitor>>,
    /// Leases of operators of one namespace. Nothing for such an operator itself, which asks nobody.
    pub leases: Option<Store<DeserializeGuard<Lease>>>,
    /// Until when reconciles wait for a watch.
    ready_until: Instant,
}

/// A child as it is known.
#[derive(Clone, Debug)]
pub(crate) struct Found<K> {
    pub meta: ObjectMeta,
    /// Of kinds that are watched whole, and of those that were asked for.
    pub whole: Option<K>,
}

impl<K: Resource> Found<K> {
    pub(crate) fn whole(object: K) -> Self {
        Self { meta: object.meta().clone(), whole: Some(object) }
    }
}

/// A kind of child, and where its copies are.
pub(crate) trait Child:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + serde::Serialize
    + DeserializeOwned
{
    /// A child as the watch last showed it.
    fn known(stores: &Stores, namespace: &str, name: &str) -> Option<Found<Self>>;
}

/// The kind of a child, as manifests have it.
pub(crate) fn kind<K: Child>() -> &'static str {
    // The kinds of `k8s-openapi` are constants.
    match K::kind(&()) {
        std::borrow::Cow::Borrowed(kind) => kind,
        std::borrow::Cow::Owned(_) => "object",
    }
}

macro_rules! whole {
    ($($kind:ty: $field:ident),* $(,)?) => {$(
        impl Child for $kind {
            fn known(stores: &Stores, namespace: &str, name: &str) -> Option<Found<Self>> {
                let found = stores.$field.get(&ObjectRef::new(name).within(namespace))?;
                Some(Found { meta: found.meta().clone(), whole: found.0.as_ref().ok().cloned() })
            }
        }
    )*};
}

macro_rules! metadata {
    ($($kind:ty: $field:ident),* $(,)?) => {$(
        impl Child for $kind {
            fn known(stores: &Stores, namespace: &str, name: &str) -> Option<Found<Self>> {
                let found = stores.$field.get(&ObjectRef::new(name).within(namespace))?;
                Some(Found { meta: found.meta().clone(), whole: None })
            }
        }
    )*};
}

whole! {
    ConfigMap: config_maps,
    StatefulSet: stateful_sets,
    Deployment: deployments,
}

metadata! {
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
        args: &OperatorArgs,
        pod_monitors_served: &CancellationToken,
    ) -> (Self, Triggers) {
        let namespace = args.namespace.as_deref();
        let (mut triggers, mut later) = (Vec::new(), Vec::new());
        let resources = resources(scoped(client, namespace), &mut triggers);
        let stores = Self {
            leases: namespace
                .is_none()
                .then(|| leases(Api::all(client.clone()), &args.lease_name, &resources, &mut triggers)),
            resources,
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
            ready_until: Instant::now() + READY_WITHIN,
        };
        triggers.extend(later.into_iter().map(|changes| from_then_on(pod_monitors_served.clone(), changes)));
        (stores, stream::select_all(triggers).boxed())
    }

    /// Waits for the first list of every watch, for [`READY_WITHIN`] after the start and no longer, and names the kinds
    /// that are not watched then: most often a right is missing. Of those what is needed is asked for, one by one. That
    /// of PodMonitors may never begin and is not waited for.
    pub(crate) async fn unwatched(&self) -> Vec<String> {
        // Destructured without `..`, so that a new watch has to be thought of here.
        let Self {
            resources: _, // What is reconciled came from it.
            config_maps,
            stateful_sets,
            deployments,
            pods,
            services,
            service_accounts,
            roles,
            role_bindings,
            disruption_budgets,
            network_policies,
            pod_monitors: _,
            leases,
            ready_until,
        } = self;
        let missing_leases = match leases {
            Some(leases) => missing(leases, *ready_until).await,
            None => None,
        };
        let missing = [
            missing_leases,
            missing(config_maps, *ready_until).await,
            missing(stateful_sets, *ready_until).await,
            missing(deployments, *ready_until).await,
            missing(pods, *ready_until).await,
            missing(services, *ready_until).await,
            missing(service_accounts, *ready_until).await,
            missing(roles, *ready_until).await,
            missing(role_bindings, *ready_until).await,
            missing(disruption_budgets, *ready_until).await,
            missing(network_policies, *ready_until).await,
        ];
        missing.into_iter().flatten().collect()
    }

    /// The Lease of a namespace's own operator, if there is one and it is watched. Waits as long as [`Self::unwatched`].
    pub(crate) async fn lease(&self, namespace: &str) -> Option<Lease> {
        let leases = self.leases.as_ref()?;
        let _ = missing(leases, self.ready_until).await;
        let found = leases.find(|lease| lease.meta().namespace.as_deref() == Some(namespace))?;
        found.0.as_ref().ok().cloned()
    }

    /// Pods of a namespace that `chosen` keeps.
    pub(crate) fn pods_where(&self, namespace: &str, chosen: impl Fn(&Pod) -> bool) -> Vec<Arc<Pod>> {
        let here = self.pods.state_filter(|pod| pod.meta().namespace.as_deref() == Some(namespace));
        let pods = here.iter().filter_map(|pod| pod.0.as_ref().ok()).filter(|pod| chosen(pod));
        pods.map(|pod| Arc::new(pod.clone())).collect()
    }
}

/// The name of a kind whose watch has not begun by `until`.
async fn missing<K>(store: &Store<K>, until: Instant) -> Option<String>
where
    K: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone + 'static,
{
    match tokio::time::timeout_at(until, store.wait_until_ready()).await {
        Ok(Ok(())) => None,
        Ok(Err(_)) | Err(_) => Some(<K as Resource>::plural(&()).into_owned()),
    }
}

fn scoped<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
    client: &Client,
    namespace: Option<&str>,
) -> Api<K> {
    namespace.map_or_else(|| Api::all(client.clone()), |namespace| Api::namespaced(client.clone(), namespace))
}

/// The resources themselves. A change of the status alone, which is the operator's own, triggers nothing.
fn resources(api: Api<Guarded>, triggers: &mut Vec<Triggers>) -> Store<Guarded> {
    let (store, writer) = reflector::store();
    let changes = watcher(api, watcher::Config::default())
        .default_backoff()
        .modify(|resource| resource.meta_mut().managed_fields = None)
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

/// The Leases called `name` of all namespaces. One that changes hands triggers every resource of its namespace; one that
/// is only renewed, as happens every few seconds, triggers none.
fn leases(
    api: Api<DeserializeGuard<Lease>>,
    name: &str,
    resources: &Store<Guarded>,
    triggers: &mut Vec<Triggers>,
) -> Store<DeserializeGuard<Lease>> {
    let (store, writer) = reflector::store();
    let resources = resources.clone();
    let in_namespace_of = move |lease: DeserializeGuard<Lease>| {
        let namespace = lease.meta().namespace.clone();
        let all = resources.state().into_iter().filter(move |found| found.meta().namespace == namespace);
        stream::iter(all.map(|resource| Ok(ReconcileRequest::from(ObjectRef::from_obj(&*resource)))))
    };
    let changes = watcher(api, watcher::Config::default().fields(&format!("metadata.name={name}")))
        .default_backoff()
        .modify(|lease| lease.meta_mut().managed_fields = None)
        .reflect(writer)
        .touched_objects()
        .predicate_filter(tenure, kube::runtime::PredicateConfig::default())
        .map_ok(in_namespace_of)
        .try_flatten();
    triggers.push(changes.boxed());
    store
}

/// Tells apart who holds a Lease, and since when.
fn tenure(lease: &DeserializeGuard<Lease>) -> Option<u64> {
    let spec = lease.0.as_ref().ok()?.spec.as_ref()?;
    let since = spec.acquire_time.as_ref().map(|time| time.0.to_string());
    Some(xxh3_64(format!("{:?} {since:?}", spec.holder_identity).as_bytes()))
}

/// Whatever belongs to some resource. Not by `app.kubernetes.io/managed-by`, which policies of a cluster like to write;
/// this label is ours alone, and of pods the selectors of their controllers hold on to it.
fn ours() -> watcher::Config {
    watcher::Config::default().labels(LABEL_DEPLOYMENT)
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
fn owner_of(meta: &ObjectMeta) -> Option<ObjectRef<Guarded>> {
    let owned = meta.owner_references.iter().flatten().find(|owner| {
        owner.controller == Some(true) && owner.kind == <DisaggDeployment as Resource>::kind(&())
    });
    let labelled = || meta.labels.as_ref()?.get(LABEL_DEPLOYMENT).cloned();
    let name = owned.map(|owner| owner.name.clone()).or_else(labelled)?;
    Some(ObjectRef::new(&name).within(meta.namespace.as_ref()?))
}
