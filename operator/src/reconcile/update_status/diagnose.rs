//! Why pods are missing or not ready, in words that tell a person what to do. Pure.

use disagg_api::kubernetes::{Component, is_own_container};
use disagg_api::last_words::{is_usage_error, last_words};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt as _;

use super::init;
use super::trouble::Trouble;
use crate::reconcile::dereference::Warning;
use crate::text::short as quote;

/// From this many restarts on, a container counts as crashing again and again. One restart may be a kill from outside.
const CRASH_LOOP_RESTARTS: i32 = 2;

/// The first trouble of a component, the gravest first.
pub(super) fn diagnose<'a>(
    component: Component,
    pods: impl Iterator<Item = &'a Pod>,
    warnings: &[Warning],
    namespace: &str,
) -> Option<Trouble> {
    let field = format!("spec.{}", component.as_str());
    let mut names = Vec::new();
    let mut troubles: Vec<Trouble> = Vec::new();
    for pod in pods {
        names.push(pod.name_any());
        if pod.metadata.deletion_timestamp.is_none() {
            troubles.extend(of_pod(pod, &field, namespace));
        }
    }
    // A container that says nothing itself: a volume that cannot be mounted, most often.
    for warning in warnings.iter().filter(|warning| names.contains(&warning.object)) {
        troubles.push(silent_pod(warning, &field));
    }
    let set = component.child_suffix();
    let of_set = |warning: &&Warning| warning.object.ends_with(&set) && !names.contains(&warning.object);
    if let Some(warning) = warnings.iter().find(of_set) {
        troubles.push(missing_pods(warning, &field));
    }
    troubles.into_iter().next()
}

/// How the names of a component's own objects end.
trait Suffix {
    fn child_suffix(self) -> String;
}

impl Suffix for Component {
    fn child_suffix(self) -> String {
        self.child("")
    }
}

/// Pods that the API server does not let a controller make.
pub(super) fn missing_pods(warning: &Warning, field: &str) -> Trouble {
    let why = quote(&warning.message);
    let (reason, advice) = if why.contains("exceeded quota") {
        (
            "QuotaExceeded",
            format!("Raise the namespace's ResourceQuota, or lower {field}.replicas or {field}.resources"),
        )
    } else if why.contains("violates PodSecurity") {
        (
            "PodsForbidden",
            format!("Change what {field}.podTemplate adds, or the namespace's pod security level"),
        )
    } else {
        ("PodsRefused", format!("Change {field} so that the API server accepts its pods"))
    };
    Trouble { reason, message: format!("pods of {} cannot be made: {why}. {advice}.", warning.object) }
}

fn silent_pod(warning: &Warning, field: &str) -> Trouble {
    let (name, why) = (&warning.object, quote(&warning.message));
    Trouble {
        reason: if warning.reason == "FailedMount" || warning.reason == "FailedAttachVolume" {
            "VolumeNotMounted"
        } else {
            "PodNotStarting"
        },
        message: format!(
            "pod {name} does not start: {}: {why}. Check spec.model.source and {field}.podTemplate.volumes.",
            warning.reason
        ),
    }
}

fn of_pod(pod: &Pod, field: &str, namespace: &str) -> Option<Trouble> {
    let name = pod.name_any();
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.iter().flatten();
    let unscheduled = conditions
        .into_iter()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        return Some(unschedulable(&name, &quote(condition.message.as_deref().unwrap_or_default()), field));
    }
    if let Some(trouble) = init::trouble(pod, namespace) {
        return Some(trouble);
    }
    let mut containers = status.container_statuses.iter().flatten();
    containers.find_map(|container| of_container(pod, container, field, namespace)).or_else(|| {
        let evicted = status.phase.as_deref() == Some("Failed");
        evicted.then(|| Trouble {
            reason: "PodFailed",
            message: format!(
                "pod {name} failed: {}: {}",
                status.reason.as_deref().unwrap_or("no reason given"),
                quote(status.message.as_deref().unwrap_or_default())
            ),
        })
    })
}

fn unschedulable(name: &str, why: &str, field: &str) -> Trouble {
    // The scheduler writes kinds now as users do, now as resources are named.
    let lower = why.to_lowercase();
    let claim = lower.contains("persistentvolumeclaim") || lower.contains("persistent volume");
    let unbound = claim && !lower.contains("\" not found");
    let gpu = lower.contains("insufficient nvidia.com/");
    let advice = if unbound {
        "See with kubectl get pvc,storageclass why the claim is not bound: it needs a PersistentVolume that fits, or a \
         StorageClass that makes one"
            .to_owned()
    } else if claim {
        "Create the PersistentVolumeClaim in this namespace, or correct spec.model.source.pvc.claimName and \
         podTemplate.volumes"
            .to_owned()
    } else if gpu {
        format!(
            "Add a node with a free GPU, check that the NVIDIA device plugin runs, or take {field}.resources.limits down"
        )
    } else if lower.contains("insufficient") {
        format!("Add a node with room, or ask for less in {field}.resources")
    } else {
        format!("Check nodeSelector, tolerations and affinity of {field}.podTemplate against the nodes")
    };
    Trouble {
        reason: match (claim, unbound) {
            (true, true) => "VolumeClaimNotBound",
            (true, false) => "VolumeClaimNotFound",
            (false, _) => "Unschedulable",
        },
        message: format!("pod {name} cannot be scheduled: {why}. {advice}."),
    }
}

/// The image that a message of the kubelet is about: that of a volume, if it is named, or the container's.
fn image_of<'a>(pod: &'a Pod, container: &'a ContainerStatus, why: &str) -> (&'a str, bool) {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut references = volumes.filter_map(|volume| volume.image.as_ref()?.reference.as_deref());
    // Quoted whole, for one may be the beginning of the other.
    let named = |image: &&str| why.contains(&format!("\"{image}\""));
    match references.find(named) {
        Some(image) if image != container.image => (image, true),
        _ => (&container.image, false),
    }
}

/// A container that somebody has added to the pod, most often an admission webhook: no field of ours repairs it.
fn of_added_container(pod: &str, container: &ContainerStatus, namespace: &str) -> Option<Trouble> {
    let ContainerStatus { name, state, last_state, restart_count, ready, .. } = container;
    let waiting = state.as_ref()?.waiting.as_ref();
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
    let last = last_state.as_ref().and_then(|last| last.terminated.as_ref());
    let ended = state.as_ref()?.terminated.as_ref().or(last.filter(|_| *restart_count > 0 && !ready));
    let (reason, what) = match ended {
        _ if !["ContainerCreating", "PodInitializing", "CrashLoopBackOff", ""].contains(&reason) => {
            let why = quote(waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or_default());
            ("ContainerNotStarted", format!("does not start: {reason}: {why}"))
        }
        Some(ended) if ended.exit_code != 0 || waiting.is_some() => {
            let said = quote(&last_words(ended.message.as_deref().unwrap_or_default()));
            let said = if said.is_empty() { "it left no message".to_owned() } else { said };
            let code = ended.exit_code;
            ("CrashLoop", format!("ended with code {code} (restarts: {restart_count}): {said}"))
        }
        _ => return None,
    };
    Some(Trouble {
        reason,
        message: format!(
            "the container {name} of pod {pod} {what}. It is not one of the operator's: repair or remove what adds it to \
             the pod, most often an admission webhook; more with kubectl -n {namespace} logs {pod} -c {name} --previous."
        ),
    })
}

fn of_container(pod: &Pod, container: &ContainerStatus, field: &str, namespace: &str) -> Option<Trouble> {
    let name = &pod.name_any();
    if !is_own_container(&container.name) {
        return of_added_container(name, container, namespace);
    }
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let why = quote(waiting.message.as_deref().unwrap_or_default());
        match reason {
            "ErrImagePull"
            | "ImagePullBackOff"
            | "ErrImageNeverPull"
            | "InvalidImageName"
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "SignatureValidationFailed" => {
                let (image, of_a_volume) = image_of(pod, container, &why);
                let fields = if of_a_volume { "spec.model.source.image.reference" } else { "spec.images" };
                return Some(Trouble {
                    reason: "ImageNotPulled",
                    message: format!(
                        "pod {name} cannot get the image {image}: {reason}: {why}. Correct {fields}, or set \
                         spec.images.pullSecrets for a private registry."
                    ),
                });
            }
            "CreateContainerConfigError" => {
                return Some(Trouble {
                    reason: "ReferenceNotFound",
                    message: format!(
                        "pod {name} refers to something that is not there: {why}. Create it in namespace {namespace}, \
                         or correct spec.model.hubTokenSecret or {field}.podTemplate.env."
                    ),
                });
            }
            "CreateContainerError" | "RunContainerError" => {
                return Some(Trouble {
                    reason: "ContainerNotStarted",
                    message: format!(
                        "the container of pod {name} does not start: {reason}: {why}. Check {field}."
                    ),
                });
            }
            // Waits between restarts; what the last run said tells more.
            "CrashLoopBackOff" => {}
            _ => return None,
        }
    }
    let restarted = container.restart_count > 0 && !container.ready;
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let ended = state.terminated.as_ref().or(last.filter(|_| restarted))?;
    if ended.exit_code == 0 && state.waiting.is_none() {
        return None;
    }
    if ended.reason.as_deref() == Some("OOMKilled") {
        return Some(Trouble {
            reason: "OutOfMemory",
            message: format!(
                "the container of pod {name} was killed for its memory (restarts: {}). Raise \
                 {field}.resources.limits.memory, or lower {field}.engine.kvCacheBytes.",
                container.restart_count
            ),
        });
    }
    let log = ended.message.as_deref().unwrap_or_default();
    let said = quote(&last_words(log));
    let said = if said.is_empty() { "it left no message".to_owned() } else { said };
    let (code, restarts) = (ended.exit_code, container.restart_count);
    let (reason, advice) = if is_usage_error(log) {
        let image = &container.image;
        let advice = format!(
            "The image {image} does not know the operator's arguments: use images and operator of one version \
             (spec.images)"
        );
        ("ArgumentsRefused", advice)
    } else if state.waiting.is_none() && restarts < CRASH_LOOP_RESTARTS {
        ("Restarted", "It is being started again".to_owned())
    } else {
        ("CrashLoop", format!("Check spec.model and {field}"))
    };
    let container = &container.name;
    Some(Trouble {
        reason,
        message: format!(
            "the container {container} of pod {name} ended with code {code} (restarts: {restarts}): {said}. {advice}; more \
             with kubectl -n {namespace} logs {name} -c {container} --previous."
        ),
    })
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value)] // values made on the spot
mod tests;
