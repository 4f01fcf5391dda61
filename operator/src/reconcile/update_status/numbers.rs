//! The pods of a component by number, as the API server had them when the component was applied. Pure.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Pod;

/// The pods of a component, by number.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Numbers {
    /// The StatefulSet or Deployment is there.
    pub created: bool,
    pub wanted: i32,
    pub exist: i32,
    /// They take requests, and are not about to end.
    pub ready: i32,
    /// They are of the newest template.
    pub updated: i32,
    /// Its controller has seen what was applied, and has nothing left to do for it.
    pub settled: bool,
}

/// The pods that are ready and not about to end, which no status tells: a StatefulSet counts those that are.
pub(super) fn serving<'a>(pods: impl Iterator<Item = &'a Pod>) -> i32 {
    i32::try_from(pods.filter(|pod| is_serving(pod)).count()).unwrap_or(i32::MAX)
}

/// Ready, and not about to end.
pub(super) fn is_serving(pod: &Pod) -> bool {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Of a StatefulSet. `serving` is nothing if pods cannot be watched.
pub(super) fn of_set(set: &StatefulSet, serving: Option<i32>) -> Numbers {
    let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let created = Numbers { created: true, wanted, ..Numbers::default() };
    let Some(status) = &set.status else { return created };
    let counted = status.ready_replicas.unwrap_or(0);
    let ready = serving.unwrap_or(counted);
    let seen = status.observed_generation >= set.metadata.generation;
    // Its two revisions become one when the last pod of the older one has been replaced and is ready.
    let one_revision = status.current_revision == status.update_revision || wanted == 0;
    Numbers {
        exist: status.replicas,
        ready,
        updated: if seen { status.updated_replicas.unwrap_or(0) } else { 0 },
        settled: seen && one_revision && [status.replicas, counted, ready] == [wanted; 3],
        ..created
    }
}

/// Of a Deployment. `serving` is nothing if pods cannot be watched.
pub(super) fn of_deployment(deployment: &Deployment, serving: Option<i32>) -> Numbers {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let created = Numbers { created: true, wanted, ..Numbers::default() };
    let Some(status) = &deployment.status else { return created };
    let counted = status.ready_replicas.unwrap_or(0);
    let ready = serving.unwrap_or(counted);
    let seen = status.observed_generation >= deployment.metadata.generation;
    let (exist, updated) = (status.replicas.unwrap_or(0), status.updated_replicas.unwrap_or(0));
    Numbers {
        exist,
        ready,
        updated: if seen { updated } else { 0 },
        settled: seen && [exist, updated, counted, ready] == [wanted; 4],
        ..created
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(status: &Value) -> StatefulSet {
        let set = json!({
            "metadata": { "generation": 2 },
            "spec": { "replicas": 2, "selector": {}, "template": {}, "serviceName": "x" },
            "status": status,
        });
        serde_json::from_value(set).unwrap()
    }

    #[test]
    fn a_controller_that_has_not_seen_the_change_has_not_done_it() {
        let status = |seen: u32, current: &str, ready: u32| {
            json!({
                "observedGeneration": seen, "replicas": 2, "readyReplicas": ready, "updatedReplicas": 2,
                "currentRevision": current, "updateRevision": "b",
            })
        };
        let settled = |status: &Value, serving| of_set(&set(status), serving).settled;
        assert!(settled(&status(2, "b", 2), Some(2)));
        assert!(settled(&status(2, "b", 2), None), "without a watch of pods");
        assert!(!settled(&status(1, "b", 2), Some(2)), "not seen");
        assert_eq!(
            of_set(&set(&status(1, "b", 2)), Some(2)).updated,
            0,
            "nor is any pod of the new template"
        );
        assert!(!settled(&status(2, "a", 2), Some(2)), "a pod of the older revision is left");
        assert!(!settled(&status(2, "b", 1), Some(2)) && !settled(&status(2, "b", 2), Some(1)));
        let none = StatefulSet { status: None, ..set(&json!({ "replicas": 0 })) };
        assert_eq!(of_set(&none, Some(0)), Numbers { created: true, wanted: 2, ..Numbers::default() });
    }

    #[test]
    fn of_a_deployment_every_number_has_to_be_the_wanted_one() {
        let settled = |seen: u32, updated: u32, exist: u32, serving: i32| {
            let deployment = json!({
                "metadata": { "generation": 2 },
                "spec": { "replicas": 2, "selector": {}, "template": {} },
                "status": {
                    "observedGeneration": seen, "replicas": exist, "readyReplicas": 2, "updatedReplicas": updated,
                },
            });
            of_deployment(&serde_json::from_value(deployment).unwrap(), Some(serving)).settled
        };
        assert!(settled(2, 2, 2, 2));
        assert!(!settled(1, 2, 2, 2) && !settled(2, 1, 2, 2) && !settled(2, 2, 3, 2) && !settled(2, 2, 2, 1));
    }

    #[test]
    fn a_pod_that_is_about_to_end_serves_no_more() {
        let pod = |ready: &str, ending: Option<&str>| -> Pod {
            serde_json::from_value(json!({
                "metadata": { "deletionTimestamp": ending },
                "status": { "conditions": [{ "type": "Ready", "status": ready }] },
            }))
            .unwrap()
        };
        let pods = [pod("True", None), pod("False", None), pod("True", Some("2026-01-01T00:00:00Z"))];
        assert_eq!(serving(pods.iter()), 1);
    }
}
