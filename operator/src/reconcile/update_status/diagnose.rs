//! Why pods are missing or not ready, in words that tell a person what to do. Pure.

use disagg_api::kubernetes::Component;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt as _;

use super::init;
use crate::reconcile::dereference::Warning;
use crate::text::short as quote;

/// One thing that keeps a component from its pods.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Trouble {
    /// One word, for a condition's reason.
    pub reason: &'static str,
    /// What is so, and what to do.
    pub message: String,
}

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
    containers.find_map(|container| of_container(&name, container, field, namespace)).or_else(|| {
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
    let claim = why.contains("persistentvolumeclaim");
    let gpu = why.contains("Insufficient nvidia.com/");
    let advice = if claim {
        "Create the PersistentVolumeClaim in this namespace, or correct spec.model.source.pvc.claimName and \
         podTemplate.volumes"
            .to_owned()
    } else if gpu {
        format!(
            "Add a node with a free GPU, check that the NVIDIA device plugin runs, or take {field}.resources.limits down"
        )
    } else if why.contains("Insufficient") {
        format!("Add a node with room, or ask for less in {field}.resources")
    } else {
        format!("Check nodeSelector, tolerations and affinity of {field}.podTemplate against the nodes")
    };
    Trouble {
        reason: if claim { "VolumeClaimNotFound" } else { "Unschedulable" },
        message: format!("pod {name} cannot be scheduled: {why}. {advice}."),
    }
}

fn of_container(name: &str, container: &ContainerStatus, field: &str, namespace: &str) -> Option<Trouble> {
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
                let image = &container.image;
                return Some(Trouble {
                    reason: "ImageNotPulled",
                    message: format!(
                        "pod {name} cannot get the image {image}: {reason}: {why}. Correct spec.images, or set \
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
    let said = quote(last_words(ended.message.as_deref().unwrap_or_default()));
    let said = if said.is_empty() { "it left no message".to_owned() } else { said };
    Some(Trouble {
        reason: "CrashLoop",
        message: format!(
            "the container of pod {name} ended with code {} (restarts: {}): {said}. Check spec.model and {field}; more \
             with kubectl -n {namespace} logs {name} --previous.",
            ended.exit_code, container.restart_count
        ),
    })
}

/// What a program said last: its error with all causes, if it names one, or the last line that says something.
fn last_words(text: &str) -> &str {
    let error = text.rfind("\nError: ").map(|at| at + 1).or_else(|| text.starts_with("Error: ").then_some(0));
    let last_line = || text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    error.map_or_else(last_line, |at| &text[at..])
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value)] // values made on the spot
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "demo-decode-0" }, "status": status })).unwrap()
    }

    fn trouble(status: Value) -> Trouble {
        diagnose(Component::Decode, [&pod(status)].into_iter(), &[], "ns").expect("there is trouble")
    }

    fn waiting(reason: &str, message: &str) -> Value {
        json!({ "containerStatuses": [{
            "name": "worker", "image": "example.com/worker:1", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": reason, "message": message } },
        }]})
    }

    fn ended(state: Value, last: Value) -> Value {
        json!({ "containerStatuses": [{
            "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 3,
            "state": state, "lastState": last,
        }]})
    }

    fn unscheduled(message: &str) -> Value {
        json!({ "conditions": [
            { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message }
        ]})
    }

    #[test]
    fn every_trouble_has_a_reason_and_an_advice() {
        let crash = json!({ "terminated": { "exitCode": 1, "message": "INFO loading\nError: cannot load /model\n\nCaused by:\n    no config.json\n" } });
        let oom = json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } });
        let back_off = json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 10s" } });
        let cases = [
            (
                unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
                "Unschedulable",
                "3 Insufficient nvidia.com/gpu. Add a node with a free GPU",
            ),
            (
                unscheduled("0/1 nodes are available: 1 Insufficient cpu."),
                "Unschedulable",
                "ask for less in spec.decode.resources",
            ),
            (
                unscheduled("persistentvolumeclaim \"models\" not found."),
                "VolumeClaimNotFound",
                "\"models\" not found. Create the PersistentVolumeClaim in this namespace",
            ),
            (
                waiting("ImagePullBackOff", "Back-off pulling image"),
                "ImageNotPulled",
                "the image example.com/worker:1: ImagePullBackOff: Back-off pulling image. Correct spec.images",
            ),
            (
                waiting("CreateContainerConfigError", "secret \"hub\" not found"),
                "ReferenceNotFound",
                "secret \"hub\" not found. Create it in namespace ns",
            ),
            (
                ended(back_off.clone(), crash),
                "CrashLoop",
                "code 1 (restarts: 3): Error: cannot load /model Caused by: no config.json. Check spec.model and spec.decode",
            ),
            (ended(back_off, oom), "OutOfMemory", "Raise spec.decode.resources.limits.memory"),
        ];
        for (status, reason, part) in cases {
            let found = trouble(status);
            assert_eq!(found.reason, reason);
            assert!(found.message.contains(part), "{}", found.message);
            assert!(found.message.contains("demo-decode-0"), "{}", found.message);
        }
    }

    #[test]
    fn pods_that_are_not_made_are_told_by_their_controller() {
        let quota = Warning {
            object: "demo-decode".to_owned(),
            reason: "FailedCreate".to_owned(),
            message: "pods \"demo-decode-0\" is forbidden: exceeded quota: small".to_owned(),
        };
        let found = diagnose(Component::Decode, [].into_iter(), std::slice::from_ref(&quota), "ns").unwrap();
        assert_eq!(found.reason, "QuotaExceeded");
        assert!(found.message.contains("lower spec.decode.replicas"), "{}", found.message);
        assert_eq!(diagnose(Component::Prefill, [].into_iter(), &[quota], "ns"), None, "not its own");
    }

    #[test]
    fn a_pod_that_starts_or_serves_is_no_trouble() {
        for status in [
            json!({}),
            waiting("ContainerCreating", ""),
            ended(json!({ "running": {} }), json!({})),
            json!({ "containerStatuses": [{
                "name": "worker", "image": "", "imageID": "", "ready": true, "restartCount": 3,
                "state": { "running": {} }, "lastState": { "terminated": { "exitCode": 1 } },
            }]}),
        ] {
            assert_eq!(diagnose(Component::Decode, [&pod(status)].into_iter(), &[], "ns"), None);
        }
    }

    #[test]
    fn messages_from_elsewhere_are_cut() {
        let found = trouble(waiting("ErrImagePull", &"long ".repeat(1000)));
        assert!(found.message.len() < 800);
    }
}
