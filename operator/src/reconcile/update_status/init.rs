//! Init containers, most often injected by an admission webhook (a service mesh, a secrets agent): a pod whose init
//! container fails or does not end never starts its own container. Pure.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use kube::ResourceExt as _;

use super::trouble::Trouble;
use crate::text::short;

/// The first init container of `pod` that fails, and why.
pub(super) fn trouble(pod: &Pod, namespace: &str) -> Option<Trouble> {
    let name = pod.name_any();
    statuses(pod).find_map(|container| {
        let what = failure(container, serves(pod, container))?;
        let of = &container.name;
        Some(Trouble {
            reason: "InitContainerFailed",
            message: format!(
                "init container {of} of pod {name} {what}. Whoever added it to the pod, most often an admission webhook, \
                 can tell why; more with kubectl -n {namespace} logs {name} -c {of}."
            ),
        })
    })
}

/// What a pod that has not started its own container waits for.
pub(super) fn waiting_for(pod: &Pod) -> Option<String> {
    let running = statuses(pod).find(|container| {
        let runs = container.state.as_ref().is_some_and(|state| state.running.is_some());
        runs && !serves(pod, container)
    })?;
    Some(format!("pod {} waits for its init container {} to end", pod.name_any(), running.name))
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.iter().flat_map(|status| status.init_container_statuses.iter().flatten())
}

/// A sidecar runs for as long as its pod, and holds nothing up once it has started.
fn serves(pod: &Pod, container: &ContainerStatus) -> bool {
    let mut containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let this = containers.find(|found| found.name == container.name);
    let is_sidecar = this.is_some_and(|this| this.restart_policy.as_deref() == Some("Always"));
    is_sidecar && container.started == Some(true)
}

/// What is wrong with an init container, to follow its name.
fn failure(container: &ContainerStatus, serves: bool) -> Option<String> {
    let ContainerStatus { state, last_state, restart_count, .. } = container;
    let state = state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        // It waits for its turn, or between two runs.
        if !["PodInitializing", "ContainerCreating", "CrashLoopBackOff", ""].contains(&reason) {
            let why = short(waiting.message.as_deref().unwrap_or_default());
            return Some(format!("does not start: {reason}: {why} (image {})", container.image));
        }
    }
    // Tried again right now, it is as it was the last time.
    let again = *restart_count > 0 && !serves && !container.ready;
    let ended = ended(state).or(last_state.as_ref().filter(|_| again).and_then(ended))?;
    Some(format!("ends with code {} (restarts: {restart_count}){}", ended.0, ended.1))
}

/// Exit code and last words of a run that has failed.
fn ended(state: &ContainerState) -> Option<(i32, String)> {
    let ended = state.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
    let said = ended.message.as_deref().map(short).filter(|said| !said.is_empty());
    Some((ended.exit_code, said.map(|said| format!(": {said}")).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(init: &Value) -> Pod {
        sidecar_or_not(init, None)
    }

    fn sidecar_or_not(init: &Value, restart_policy: Option<&str>) -> Pod {
        let mut container = json!({
            "name": "istio-init", "image": "example.com/init:1", "imageID": "", "ready": false, "restartCount": 0,
        });
        for (field, value) in init.as_object().unwrap() {
            container[field] = value.clone();
        }
        serde_json::from_value(json!({
            "metadata": { "name": "demo-decode-0" },
            "spec": {
                "containers": [], "initContainers": [{ "name": "istio-init", "restartPolicy": restart_policy }],
            },
            "status": {
                "initContainerStatuses": [container],
                "containerStatuses": [{
                    "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": { "waiting": { "reason": "PodInitializing" } },
                }],
            },
        }))
        .unwrap()
    }

    #[test]
    fn an_init_container_that_fails_is_named_with_its_last_words() {
        let failed = json!({ "terminated": { "exitCode": 2, "message": "no route to istiod\n" } });
        let cases = [
            (
                json!({ "state": failed, "restartCount": 1 }),
                "ends with code 2 (restarts: 1): no route to istiod.",
            ),
            (
                json!({
                    "state": { "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 10s" } },
                    "lastState": failed, "restartCount": 4,
                }),
                "ends with code 2 (restarts: 4): no route",
            ),
            (
                json!({ "state": { "running": {} }, "lastState": failed, "restartCount": 4 }),
                "ends with code 2",
            ),
            (
                json!({ "state": { "waiting": { "reason": "ErrImagePull", "message": "not found" } } }),
                "does not start: ErrImagePull: not found (image example.com/init:1)",
            ),
            (
                json!({ "state": { "waiting": { "reason": "CreateContainerConfigError", "message": "secret x" } } }),
                "does not start: CreateContainerConfigError: secret x",
            ),
        ];
        for (init, says) in cases {
            let found = trouble(&pod(&init), "ns").unwrap_or_else(|| panic!("{init}"));
            assert_eq!(found.reason, "InitContainerFailed");
            assert!(
                found.message.starts_with("init container istio-init of pod demo-decode-0"),
                "{}",
                found.message
            );
            assert!(found.message.contains(says), "{}", found.message);
            assert!(
                found.message.ends_with("kubectl -n ns logs demo-decode-0 -c istio-init."),
                "{}",
                found.message
            );
        }
    }

    #[test]
    fn one_that_runs_or_has_done_its_work_is_no_trouble() {
        for init in [
            json!({}),
            json!({ "state": { "waiting": { "reason": "PodInitializing" } } }),
            json!({ "state": { "running": {} } }),
            json!({ "state": { "terminated": { "exitCode": 0 } }, "ready": true }),
            // It has failed once and then ended well.
            json!({
                "state": { "terminated": { "exitCode": 0 } }, "ready": true, "restartCount": 1,
                "lastState": { "terminated": { "exitCode": 1 } },
            }),
        ] {
            assert_eq!(trouble(&pod(&init), "ns"), None, "{init}");
        }
        let again = json!({
            "state": { "running": {} }, "started": true, "restartCount": 1,
            "lastState": { "terminated": { "exitCode": 1 } },
        });
        assert_eq!(
            trouble(&sidecar_or_not(&again, Some("Always")), "ns"),
            None,
            "a sidecar that serves again"
        );
    }

    #[test]
    fn a_pod_says_which_init_container_it_waits_for() {
        let waits = |init: Value| waiting_for(&pod(&init));
        let told = "pod demo-decode-0 waits for its init container istio-init to end";
        assert_eq!(waits(json!({ "state": { "running": {} } })).as_deref(), Some(told));
        let runs = json!({ "state": { "running": {} }, "started": true });
        assert_eq!(waits(runs.clone()).as_deref(), Some(told), "Kubernetes calls it started, too");
        assert_eq!(waiting_for(&sidecar_or_not(&runs, Some("Always"))), None, "a sidecar");
        assert_eq!(waits(json!({ "state": { "terminated": { "exitCode": 0 } } })), None);
    }
}
