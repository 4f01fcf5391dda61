//! First call: what the cluster holds of a resource's children. The only I/O is for Warnings about pods that are
//! missing, which no status of a StatefulSet tells.

use std::sync::Arc;

use disagg_api::DisaggDeployment;
use disagg_api::kubernetes::{Component, LABEL_ROLE};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, ListParams};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource as _, ResourceExt as _};

use crate::context::Context;

/// The newest Warnings of one object that are looked at.
const WARNINGS: u32 = 50;

/// The cluster cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DereferenceError {
    #[error("the resource has no namespace")]
    NoNamespace,
    #[error("cannot list the Events of {object}: {source}")]
    Events { object: String, source: kube::Error },
}

/// The children as the watches show them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    pub prefill: Option<Arc<StatefulSet>>,
    pub decode: Option<Arc<StatefulSet>>,
    pub router: Option<Arc<Deployment>>,
    /// Of all components, in the order of their names.
    pub pods: Vec<Arc<Pod>>,
    /// Messages of Warnings about StatefulSets that lack pods, and about pods that do not start.
    pub warnings: Vec<Warning>,
}

/// A Warning about a StatefulSet or a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Warning {
    pub object: String,
    pub reason: String,
    pub message: String,
}

/// Looks at the children of `resource`.
pub(crate) async fn dereference(
    resource: &DisaggDeployment,
    context: &Context,
) -> Result<Observed, DereferenceError> {
    let namespace = resource.namespace().ok_or(DereferenceError::NoNamespace)?;
    let name = resource.name_any();
    let stores = &context.stores;
    let set = |component: Component| {
        let found = stores.stateful_sets.get(&ObjectRef::new(&component.child(&name)).within(&namespace));
        found.filter(|set| is_owned(&set.metadata, resource))
    };
    let router = stores.deployments.get(&ObjectRef::new(&Component::Router.child(&name)).within(&namespace));
    let mut pods = stores.pods.state_filter(|pod| {
        pod.metadata.namespace.as_ref() == Some(&namespace)
            && pod.labels().get(disagg_api::kubernetes::LABEL_DEPLOYMENT) == Some(&name)
    });
    pods.sort_by_key(|pod| pod.name_any());
    let mut observed = Observed {
        prefill: set(Component::Prefill),
        decode: set(Component::Decode),
        router: router.filter(|router| is_owned(&router.metadata, resource)),
        pods,
        warnings: Vec::new(),
    };
    observed.warnings = warnings(&observed, &namespace, context).await?;
    Ok(observed)
}

/// `meta` is that of a child of `resource`.
pub(crate) fn is_owned(meta: &kube::api::ObjectMeta, resource: &DisaggDeployment) -> bool {
    let owners = meta.owner_references.iter().flatten();
    let mut controllers = owners.filter(|owner| owner.controller == Some(true));
    controllers.any(|owner| Some(&owner.uid) == resource.meta().uid.as_ref())
}

impl Observed {
    /// The pods of one component.
    pub(crate) fn pods_of(&self, component: Component) -> impl Iterator<Item = &Pod> {
        let of = move |pod: &&Arc<Pod>| {
            pod.labels().get(LABEL_ROLE).is_some_and(|role| role == component.as_str())
        };
        self.pods.iter().filter(of).map(AsRef::as_ref)
    }
}

/// Warnings are only asked for where something is amiss that nothing else explains.
async fn warnings(
    observed: &Observed,
    namespace: &str,
    context: &Context,
) -> Result<Vec<Warning>, DereferenceError> {
    let lacks_pods = [&observed.prefill, &observed.decode].into_iter().flatten().filter(|set| {
        let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        set.status.as_ref().is_none_or(|status| status.replicas < wanted)
    });
    let objects = lacks_pods.filter_map(|set| Some((set.name_any(), set.uid()?)));
    let silent = observed.pods.iter().filter(|pod| is_silent(pod));
    let objects: Vec<_> =
        objects.chain(silent.filter_map(|pod| Some((pod.name_any(), pod.uid()?)))).collect();
    let events: Api<Event> = Api::namespaced(context.client.clone(), namespace);
    let mut warnings = Vec::new();
    // One of each kind is enough to say what is wrong.
    for (object, uid) in objects.into_iter().take(3) {
        let fields = format!("involvedObject.uid={uid},type=Warning");
        let list = ListParams::default().fields(&fields).limit(WARNINGS);
        let found = events
            .list(&list)
            .await
            .map_err(|source| DereferenceError::Events { object: object.clone(), source })?;
        let newest = found.items.into_iter().max_by_key(|event| {
            let seen = event.last_timestamp.as_ref().map(|time| time.0);
            seen.or_else(|| event.event_time.as_ref().map(|time| time.0))
        });
        if let Some(event) = newest {
            warnings.push(Warning {
                object,
                reason: event.reason.unwrap_or_default(),
                message: event.message.unwrap_or_default(),
            });
        }
    }
    Ok(warnings)
}

/// A pod that is on a node, whose container is being created and says nothing of why it is not there yet.
fn is_silent(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let waiting = status
        .container_statuses
        .iter()
        .flatten()
        .filter_map(|container| container.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())
        && waiting.into_iter().any(|reason| reason == "ContainerCreating")
}
