//! Judges a snapshot: the cluster, the operator, and each deployment as a whole. Pods and routers have files of their
//! own.

use disagg_api::kubernetes::settings_config_map;
use disagg_api::{DisaggDeployment, RouterSettings};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Event};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

use super::gather::{DeploymentSnapshot, Seen, Snapshot};
use super::{Finding, Severity, pods, routers};

/// The definition's name, as kubectl takes it.
const DEFINITION: &str = "crd/disaggdeployments.disagg.dev";
const INSTALL: &str =
    "install it: helm install disagg charts/disagg, or kubectl apply --server-side -f crds/";
/// The operator answers a change within seconds.
const OPERATOR_SECONDS: i64 = 60;
/// Warnings of the past say little.
const EVENT_SECONDS: i64 = 15 * 60;
/// Of one deployment, beside what its pods say themselves.
const EVENTS_MAX: usize = 5;

/// Everything that is wrong.
pub(super) fn findings(snapshot: &Snapshot) -> Vec<Finding> {
    let mut all = definition(&snapshot.definition);
    all.extend(operator(&snapshot.operators));
    match &snapshot.deployments {
        Seen::It(deployments) => {
            all.extend(deployments.iter().flat_map(|it| deployment(it, snapshot.now)));
        }
        // Told by the definition.
        Seen::Nothing => {}
        Seen::Unreadable(why) => all.push(Finding::error(
            format!("namespace/{}", snapshot.namespace),
            format!("DisaggDeployments cannot be read: {why}"),
            "ask for the right to get and list disaggdeployments.disagg.dev there",
        )),
    }
    all
}

fn definition(definition: &Seen<CustomResourceDefinition>) -> Vec<Finding> {
    match definition {
        Seen::Nothing => {
            vec![Finding::error(DEFINITION, "the resource definition is not installed", INSTALL)]
        }
        // Users of one namespace often may not read it, and need not.
        Seen::Unreadable(_) => Vec::new(),
        Seen::It(it) => {
            let conditions = it.status.as_ref().and_then(|status| status.conditions.as_ref());
            let established =
                conditions.into_iter().flatten().any(|it| it.type_ == "Established" && it.status == "True");
            let served = it.spec.versions.iter().any(|version| version.name == "v1alpha1" && version.served);
            let mut found = Vec::new();
            if !established {
                let advice = format!("kubectl describe {DEFINITION} tells why");
                found.push(Finding::error(DEFINITION, "the API server does not serve it yet", advice));
            }
            if !served {
                found.push(Finding::error(DEFINITION, "it has no version v1alpha1", INSTALL));
            }
            found
        }
    }
}

fn operator(operators: &Seen<Vec<Deployment>>) -> Vec<Finding> {
    let operators = match operators {
        Seen::It(operators) => operators.as_slice(),
        Seen::Nothing => &[],
        // Whoever may not look into other namespaces sees by the conditions whether there is one.
        Seen::Unreadable(_) => return Vec::new(),
    };
    if operators.is_empty() {
        return vec![Finding::warning(
            "deployment/disagg",
            "no operator is found by the labels of the chart, in any namespace",
            "install the chart (helm install disagg charts/disagg), unless the operator runs in some other way",
        )];
    }
    let down = |it: &&Deployment| {
        let available = it.status.as_ref().and_then(|status| status.available_replicas);
        available.unwrap_or(0) == 0
    };
    let found = operators.iter().filter(down).map(|it| {
        let (name, namespace) = (it.name_any(), it.namespace().unwrap_or_default());
        Finding::error(
            format!("deployment/{name}"),
            format!(
                "the operator in the namespace {namespace} is not running: none of its pods is available"
            ),
            format!("kubectl -n {namespace} describe deployment {name}, and logs of its pods"),
        )
    });
    found.collect()
}

fn deployment(it: &DeploymentSnapshot, now: Timestamp) -> Vec<Finding> {
    let subject = format!("dd/{}", it.name);
    let mut all = Vec::new();
    match &it.resource {
        Ok(resource) => all.extend(conditions(&subject, resource, now)),
        Err(why) => all.push(Finding::error(
            &subject,
            format!("its fields cannot be read: {why}"),
            "use a kubectl-disagg of the version of the installed resource definition",
        )),
    }
    all.extend(settings(&it.name, &it.settings));
    match &it.pods {
        Seen::It(pods) => all.extend(pods.iter().filter_map(|pod| pods::pod(pod, &it.events, now))),
        Seen::Nothing => {}
        Seen::Unreadable(why) => all.push(unreadable(&subject, "its pods", "pods", why)),
    }
    match &it.events {
        Seen::It(events) => all.extend(recent(events, now)),
        Seen::Nothing => {}
        Seen::Unreadable(why) => all.push(unreadable(&subject, "events", "events", why)),
    }
    // Bad data is told once, and not by every router again.
    let told = all.iter().any(|it| it.severity == Severity::Error && it.subject.starts_with("configmap/"));
    let of_routers = routers::routers(&subject, &it.routers, told);
    // A router that is not ready tells why; that it is not need not be told as well.
    let tells = |subject: &str| {
        let router = subject.strip_prefix("pod/").and_then(|pod| it.routers.get(pod));
        router.is_some_and(|router| matches!(router.not_ready_because, Ok(Some(_))))
    };
    all.retain(|finding| !(finding.what.starts_with(pods::NOT_READY) && tells(&finding.subject)));
    all.extend(of_routers);
    all
}

fn unreadable(subject: &str, what: &str, resource: &str, why: &str) -> Finding {
    let advice = format!("ask for the right to list {resource}; the check is incomplete without");
    Finding::warning(subject, format!("{what} cannot be read: {why}"), advice)
}

fn conditions(subject: &str, resource: &DisaggDeployment, now: Timestamp) -> Vec<Finding> {
    let created = resource.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let old = created.is_some_and(|created| seconds_since(created, now) > OPERATOR_SECONDS);
    let watching =
        "see that the operator runs and watches this namespace (chart value watchNamespaces or scope)";
    let Some(status) = &resource.status else {
        let what = "the operator has not said anything of it";
        return if old { vec![Finding::error(subject, what, watching)] } else { Vec::new() };
    };
    let mut found = Vec::new();
    if status.observed_generation < resource.metadata.generation && old {
        found.push(Finding::error(subject, "the operator has not taken its last change over", watching));
    }
    let is =
        |kind: &str, value: &str| status.conditions.iter().any(|it| it.type_ == kind && it.status == value);
    let told = |condition: &Condition| {
        let (kind, reason) = (&condition.type_, &condition.reason);
        format!("{kind} is {}, {reason}: {}", condition.status, condition.message)
    };
    let progressing = is("Progressing", "True");
    for condition in status.conditions.iter().filter(|it| it.type_ != "Progressing" && it.status != "True") {
        let advice = match condition.type_.as_str() {
            "SettingsValid" => "repair the settings ConfigMap; the last good values are in force meanwhile",
            _ if progressing => "wait: a change is under way; what keeps it is told here, if anything does",
            _ => "what is told of its pods here is the cause; else kubectl describe tells more",
        };
        let is_error = condition.status == "False" && !progressing;
        found.push(if is_error {
            Finding::error(subject, told(condition), advice)
        } else {
            Finding::warning(subject, told(condition), advice)
        });
    }
    found
}

fn settings(deployment: &str, settings: &Seen<ConfigMap>) -> Vec<Finding> {
    let name = settings_config_map(deployment);
    let subject = format!("configmap/{name}");
    match settings {
        Seen::Nothing => vec![Finding::error(
            subject,
            "the settings ConfigMap is not there",
            "the operator makes it again within seconds; if it does not, see that the operator runs",
        )],
        Seen::Unreadable(why) => vec![unreadable(&subject, "it", "configmaps", why)],
        Seen::It(map) => {
            let data = map.data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
            let advice =
                format!("kubectl edit configmap {name}; the last good values are in force meanwhile");
            match RouterSettings::from_pairs(data) {
                Ok(_) => Vec::new(),
                Err(errors) => {
                    errors.0.iter().map(|it| Finding::error(&subject, it.to_string(), &advice)).collect()
                }
            }
        }
    }
}

/// Recent warnings, the last of each object and reason. Those about pods are left out: of a pod that is in trouble they
/// are told with it, and of one that is well they are over.
fn recent(events: &[Event], now: Timestamp) -> Vec<Finding> {
    let mut recent: Vec<(i64, &Event)> = events
        .iter()
        .filter_map(|event| {
            let age = seconds_since(time(event)?, now);
            (age <= EVENT_SECONDS).then_some((age, event))
        })
        .collect();
    recent.sort_by_key(|(age, _)| *age);
    let mut found: Vec<Finding> = Vec::new();
    let mut seen = Vec::new();
    for (age, event) in recent {
        let object = &event.involved_object;
        let kind = object.kind.as_deref().unwrap_or("object").to_lowercase();
        let subject = format!("{kind}/{}", object.name.as_deref().unwrap_or_default());
        let key = (subject.clone(), event.reason.clone());
        if kind == "pod" || seen.contains(&key) {
            continue;
        }
        let (reason, message) = (event.reason.as_deref(), event.message.as_deref());
        let what = format!("{} ({age} s ago): {}", reason.unwrap_or("Event"), message.unwrap_or_default());
        let name = object.name.as_deref().unwrap_or_default();
        found.push(Finding::warning(subject, what, format!("kubectl describe {kind} {name}, if it goes on")));
        seen.push(key);
        if found.len() == EVENTS_MAX {
            break;
        }
    }
    found
}

/// When it happened last.
pub(super) fn time(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    series.map(|time| time.0).or(last).or_else(|| event.event_time.as_ref().map(|time| time.0))
}

pub(super) fn seconds_since(then: Timestamp, now: Timestamp) -> i64 {
    now.as_second() - then.as_second()
}
