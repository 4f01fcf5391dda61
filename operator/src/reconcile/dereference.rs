//! First call: what the cluster holds beside the children themselves, which the apply answers for: their pods. The only
//! I/O is for Warnings about pods that are missing, which no status of a StatefulSet tells.

use std::sync::Arc;
use std::time::Duration;

use disagg_api::kubernetes::Component;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use tokio::time::timeout;

use crate::context::Context;
use crate::memory::ResourceId;
use crate::reconcile::subject::Subject;
use crate::stores::Child as _;
use crate::text::short;

/// The newest Warnings of one object that are looked at.
const WARNINGS: u32 = 50;
/// How long asking for the Warnings of one object may take.
const WARNINGS_WITHIN: Duration = Duration::from_secs(5);

/// What there is beside the children.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    /// Of all components, in the order of their names; nothing if they cannot be watched.
    pub pods: Option<Vec<Arc<Pod>>>,
    /// Messages of Warnings about StatefulSets that lack pods, and about pods that do not start.
    pub warnings: Vec<Warning>,
    /// Kinds that cannot be watched.
    pub unwatched: Vec<String>,
}

/// A Warning about a StatefulSet or a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Warning {
    pub object: String,
    pub reason: String,
    pub message: String,
}

/// Looks at the pods of `subject`.
pub(crate) async fn dereference(subject: &Subject, context: &Context) -> Observed {
    let ResourceId { namespace, name } = &subject.id;
    let stores = &context.stores;
    let unwatched = stores.unwatched().await;
    let children = Component::ALL.map(|component| (component, component.child(name)));
    let ours = |pod: &Pod| children.iter().any(|(component, child)| belongs_to(pod, *component, child));
    let mut pods = stores.pods_where(namespace, ours);
    pods.sort_by_key(|pod| pod.name_any());
    let roles = Component::ALL.into_iter().filter(|component| component.is_worker());
    let sets = roles.filter_map(|role| {
        let known = StatefulSet::known(stores, namespace, &role.child(name))?;
        known.whole.filter(|set| subject.owns(&set.metadata))
    });
    let warnings = warnings(sets, &pods, namespace, context).await;
    let watched = !unwatched.iter().any(|kind| kind == "pods");
    Observed { pods: watched.then_some(pods), warnings, unwatched }
}

/// `pod` was made for `child`, the StatefulSet or Deployment of `component`. Pods of a Deployment belong to a ReplicaSet
/// that has its name and a hash.
pub(crate) fn belongs_to(pod: &Pod, component: Component, child: &str) -> bool {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    owners.any(|owner| match component {
        Component::Prefill | Component::Decode => owner.kind == "StatefulSet" && owner.name == child,
        Component::Router => {
            let hash = owner.name.strip_prefix(child).and_then(|rest| rest.strip_prefix('-'));
            owner.kind == "ReplicaSet" && hash.is_some_and(|hash| !hash.contains('-'))
        }
    })
}

/// Warnings are only asked for where something is amiss that nothing else explains. Without them a status says less, and
/// is written all the same.
async fn warnings(
    sets: impl Iterator<Item = StatefulSet>,
    pods: &[Arc<Pod>],
    namespace: &str,
    context: &Context,
) -> Vec<Warning> {
    let lacks_pods = sets.filter(|set| {
        let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        set.status.as_ref().is_none_or(|status| status.replicas < wanted)
    });
    let objects = lacks_pods.filter_map(|set| Some((set.name_any(), set.uid()?)));
    let silent = pods.iter().filter(|pod| is_silent(pod));
    let objects: Vec<_> =
        objects.chain(silent.filter_map(|pod| Some((pod.name_any(), pod.uid()?)))).collect();
    let events: Api<Event> = Api::namespaced(context.client.clone(), namespace);
    let mut warnings = Vec::new();
    // One of each kind is enough to say what is wrong.
    for (object, uid) in objects.into_iter().take(3) {
        let fields = format!("involvedObject.uid={uid},type=Warning");
        let list = ListParams::default().fields(&fields).limit(WARNINGS);
        let found = match timeout(WARNINGS_WITHIN, events.list(&list)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                let error = short(&error.to_string());
                tracing::warn!(namespace, object, error, "its Events cannot be listed");
                continue;
            }
            Err(_) => continue,
        };
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
    warnings
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
