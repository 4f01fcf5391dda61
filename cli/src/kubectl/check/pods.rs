//! Judges one pod: the one thing that is in its way, with what to do.

use disagg_api::kubernetes::{Component, LABEL_ROLE, is_own_container};
use disagg_api::last_words::{is_usage_error, last_words};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Event, Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

use super::Finding;
use super::findings::{seconds_since, time};
use super::fold::{About, Sign};
use super::gather::Seen;

/// A pod that starts is left alone for this long.
const START_SECONDS: i64 = 60;
/// Beyond its grace period.
const TERMINATION_SECONDS: i64 = 60;
/// A restart that long ago is forgiven.
const RESTART_SECONDS: i64 = 60 * 60;

/// How a finding begins of a pod whose containers run.
pub(super) const NOT_READY: &str = "it runs and is not ready";

/// The first thing that is wrong with this pod. One that is ready keeps nothing else from working.
pub(super) fn pod(pod: &Pod, events: &Seen<Vec<Event>>, now: Timestamp) -> Option<Sign> {
    let finding = finding(pod, events, now)?;
    let about = match part(pod) {
        Some(part) if !is_ready(pod) => About::Pod(part, pod.name_any()),
        _ => About::Aside,
    };
    Some(Sign::cause(finding, about))
}

/// The part of its deployment that a pod belongs to.
pub(super) fn part(pod: &Pod) -> Option<Component> {
    let role = pod.labels().get(LABEL_ROLE)?;
    Component::ALL.into_iter().find(|part| part.as_str() == role)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True")
}

fn finding(pod: &Pod, events: &Seen<Vec<Event>>, now: Timestamp) -> Option<Finding> {
    let name = pod.name_any();
    let subject = format!("pod/{name}");
    if let Some(deleted) = &pod.metadata.deletion_timestamp {
        // The time set is that at which its grace period ends.
        return (seconds_since(deleted.0, now) > TERMINATION_SECONDS).then(|| {
            let what = "it is being deleted, and its grace period is long over";
            let advice = "its node may be gone: kubectl get nodes; kubectl delete pod --force if it is";
            Finding::error(subject, what, advice)
        });
    }
    let status = pod.status.as_ref()?;
    let condition = |kind: &str| status.conditions.iter().flatten().find(|it| it.type_ == kind);
    if let Some(scheduled) = condition("PodScheduled").filter(|it| it.status == "False") {
        let message = scheduled.message.as_deref().unwrap_or_default();
        return Some(Finding::error(subject, format!("no node takes it: {message}"), scheduling(message)));
    }
    let statuses = || {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
    };
    if let Some(found) = statuses().find_map(|status| waiting(pod, &subject, status)) {
        return Some(found);
    }
    if let Some(found) = statuses().find_map(|status| restarted(&name, &subject, status, now)) {
        return Some(found);
    }
    if status.phase.as_deref() == Some("Failed") {
        let what = format!(
            "it has failed: {} {}",
            status.reason.as_deref().unwrap_or_default(),
            status.message.as_deref().unwrap_or_default()
        );
        return Some(Finding::warning(
            subject,
            what,
            "another takes its place; kubectl delete pod removes it",
        ));
    }
    let created = pod.metadata.creation_timestamp.as_ref()?.0;
    if is_ready(pod)
        || status.phase.as_deref() == Some("Succeeded")
        || seconds_since(created, now) <= START_SECONDS
    {
        return None;
    }
    if let Some(sidecar) = unready_sidecar(status) {
        let what = format!("{NOT_READY}: container {sidecar} is not");
        return Some(Finding::error(subject, what, added_by_others(&name, sidecar, "logs")));
    }
    let creating = statuses().any(|status| {
        waiting_reason(status)
            .is_some_and(|reason| reason == "ContainerCreating" || reason == "PodInitializing")
    });
    let (what, advice) = match last_event(&name, events) {
        Some(event) if creating => (
            format!("its container is not made: {event}"),
            "make what it names (volume, Secret, ConfigMap) or correct the name".to_owned(),
        ),
        Some(event) => (
            format!("{NOT_READY}: {event}"),
            format!("kubectl logs {name}: a worker says what it loads or why it cannot"),
        ),
        None if creating => {
            ("its container is not made yet".to_owned(), format!("kubectl describe pod {name} tells why"))
        }
        None => (
            NOT_READY.to_owned(),
            format!("kubectl logs {name}: a worker says what it loads or why it cannot"),
        ),
    };
    Some(Finding::error(subject, what, advice))
}

/// A container that somebody has added to a pod and that alone keeps it from being ready.
fn unready_sidecar(status: &PodStatus) -> Option<&str> {
    let mut unready = status.container_statuses.iter().flatten().filter(|container| !container.ready);
    let first = unready.next()?;
    let all_added = !is_own_container(&first.name) && unready.all(|other| !is_own_container(&other.name));
    (all_added && first.state.as_ref()?.running.is_some()).then_some(first.name.as_str())
}

/// What to do about a message of the scheduler.
fn scheduling(message: &str) -> &'static str {
    // The scheduler writes kinds now as users do, now as resources are named.
    let message = message.to_lowercase();
    let has = |part: &str| message.contains(part);
    if has("persistentvolumeclaim") && has("\" not found") {
        "create the PersistentVolumeClaim that spec.model names, in this namespace, or correct the name"
    } else if has("persistentvolumeclaim") || has("persistent volume") {
        "see why the claim is not bound: kubectl get pvc,storageclass; it needs a PersistentVolume that fits, or a \
         StorageClass that makes one"
    } else if has("insufficient nvidia.com/gpu") || has("insufficient amd.com/gpu") {
        "no node has that many free GPUs: ask for fewer replicas or GPUs, add GPU nodes, or install the vendor's \
         device plugin (kubectl describe nodes shows nvidia.com/gpu under Allocatable if it runs)"
    } else if has("insufficient ") {
        "no node has the memory or CPU free: lower the resources of the role, or add nodes"
    } else if has("untolerated taint") {
        "add a toleration of that taint to the role's pod template, or remove the taint"
    } else if has("affinity") || has("selector") {
        "no node has the labels asked for: correct nodeSelector or affinity of the role, or label nodes"
    } else {
        "kubectl describe pod shows what the scheduler wants; kubectl get nodes, whether nodes are Ready"
    }
}

fn waiting_reason(status: &ContainerStatus) -> Option<&str> {
    status.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

/// A container that cannot start.
fn waiting(pod: &Pod, subject: &str, status: &ContainerStatus) -> Option<Finding> {
    let reason = waiting_reason(status)?;
    let message = status.state.as_ref()?.waiting.as_ref()?.message.as_deref().unwrap_or_default();
    let container = &status.name;
    let advice = match reason {
        "ContainerCreating" | "PodInitializing" => return None,
        "CrashLoopBackOff" => {
            let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
            let what = last.map_or_else(|| "it ends as soon as it starts".to_owned(), ended);
            let advice = after_end(&pod.name_any(), status, last);
            return Some(Finding::error(subject, format!("container {container} crashes: {what}"), advice));
        }
        _ if !is_own_container(container) => added_by_others(&pod.name_any(), container, "describe pod"),
        "ImagePullBackOff" | "ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName"
        | "ImageInspectError" => {
            let (image, field) = image_of(pod, status, message);
            format!(
                "see that the image {image} ({field}) exists and that its pull secret (spec.images.pullSecrets) is \
                 right; on kind, load it first"
            )
        }
        "CreateContainerConfigError" => {
            "make the Secret or ConfigMap (and the key in it) that is named, in this namespace".to_owned()
        }
        "CreateContainerError" | "RunContainerError" => {
            "the container runtime refuses it: check command, volume mounts and security of the pod template"
                .to_owned()
        }
        _ => return None,
    };
    Some(Finding::error(subject, format!("container {container} cannot start: {reason}: {message}"), advice))
}

const OUT_OF_MEMORY: &str = "raise the memory limit of the role, or make the KV pool smaller (engine.kvCacheBytes or \
                             numBlocks)";

/// A container that runs now, and has not long ago ended.
fn restarted(pod: &str, subject: &str, status: &ContainerStatus, now: Timestamp) -> Option<Finding> {
    if status.restart_count == 0 {
        return None;
    }
    let last = status.last_state.as_ref()?.terminated.as_ref()?;
    let at = last.finished_at.as_ref()?.0;
    if seconds_since(at, now) > RESTART_SECONDS {
        return None;
    }
    let (container, count) = (&status.name, status.restart_count);
    let why = ended(last);
    let times = if count == 1 { "once".to_owned() } else { format!("{count} times") };
    let what = format!("container {container} has restarted {times}, last since it {why}");
    Some(Finding::warning(subject, what, after_end(pod, status, Some(last))))
}

/// The image that a message of the kubelet is about, and the field that names it: a volume's, or the container's.
fn image_of<'a>(pod: &'a Pod, status: &'a ContainerStatus, message: &str) -> (&'a str, &'static str) {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut references = volumes.filter_map(|volume| volume.image.as_ref()?.reference.as_deref());
    // Quoted whole, for one may be the beginning of the other.
    let named = |image: &&str| message.contains(&format!("\"{image}\""));
    match references.find(named) {
        Some(image) if image != status.image => (image, "spec.model.source.image.reference"),
        _ => (&status.image, "spec.images, or the operator's default"),
    }
}

/// What to do about a container that has ended.
fn after_end(pod: &str, status: &ContainerStatus, end: Option<&ContainerStateTerminated>) -> String {
    let ContainerStatus { name: container, image, .. } = status;
    let message = end.and_then(|end| end.message.as_deref()).unwrap_or_default();
    if !is_own_container(container) {
        return added_by_others(pod, container, "logs --previous");
    }
    if end.is_some_and(|end| end.reason.as_deref() == Some("OOMKilled")) {
        return OUT_OF_MEMORY.to_owned();
    }
    if is_usage_error(message) {
        return format!(
            "the image {image} does not know the operator's arguments: use images and operator of one version (spec.images)"
        );
    }
    format!("kubectl logs {pod} -c {container} --previous: the last lines say why")
}

/// What to do about a container that the operator did not put there, which no field of the resource can repair. What it
/// does is seen with `kubectl` and `verb`.
fn added_by_others(pod: &str, container: &str, verb: &str) -> String {
    let look = match verb {
        "describe pod" => format!("kubectl describe pod {pod}"),
        _ => format!("kubectl {verb} {pod} -c {container}"),
    };
    format!(
        "{container} is not one of the operator's containers: repair or remove what adds it to the pod, most often the \
         admission webhook of a service mesh or a secrets agent; {look} tells more"
    )
}

/// How a container ended.
fn ended(end: &ContainerStateTerminated) -> String {
    let reason = end.reason.as_deref().unwrap_or("ended");
    let said = last_words(end.message.as_deref().unwrap_or_default());
    let colon = if said.is_empty() { "" } else { ": " };
    format!("ended with {reason}, exit code {}{colon}{said}", end.exit_code)
}

/// The last warning about a pod.
fn last_event(pod: &str, events: &Seen<Vec<Event>>) -> Option<String> {
    let Seen::It(events) = events else { return None };
    let of_pod = events.iter().filter(|event| {
        event.involved_object.kind.as_deref() == Some("Pod")
            && event.involved_object.name.as_deref() == Some(pod)
    });
    let last = of_pod.max_by_key(|event| time(event))?;
    Some(format!("{}: {}", last.reason.as_deref()?, last.message.as_deref()?))
}
