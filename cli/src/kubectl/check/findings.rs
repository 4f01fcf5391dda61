//! Judges a snapshot: the cluster, and each deployment as a whole. Operators, conditions, pods, routers and the network
//! have files of their own.

use disagg_api::kubernetes::settings_config_map;
use disagg_api::{RouterSettings, SettingsError};
use k8s_openapi::api::core::v1::{ConfigMap, Event};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::Timestamp;

use super::fold::{About, Follows, Sign};
use super::gather::{DeploymentSnapshot, Seen, Snapshot};
use super::{Finding, Group, Severity, conditions, fold, gather, network, operators, pods, routers};

/// The definition's name, as kubectl takes it.
const DEFINITION: &str = "crd/disaggdeployments.disagg.dev";
const INSTALL: &str =
    "install it: helm install disagg charts/disagg, or kubectl apply --server-side -f crds/";
/// Warnings of the past say little.
const EVENT_SECONDS: i64 = 15 * 60;
/// Of one deployment, beside what its pods say themselves.
const EVENTS_MAX: usize = 5;

/// Everything that is wrong: with the cluster, then with each deployment.
pub(super) fn findings(snapshot: &Snapshot) -> Vec<Group> {
    let mut of_cluster = definition(&snapshot.definition);
    let mut operators = operators::operators(&snapshot.operators, &snapshot.namespace);
    let mut groups = Vec::new();
    match &snapshot.deployments {
        Seen::It(deployments) => {
            // Of an operator that is known not to work, no deployment need say that it is silent.
            let silent = operators.iter_mut().find(|it| it.severity == Severity::Error);
            let mut silent = silent.map(|finding| &mut finding.hence);
            groups = deployments.iter().map(|it| deployment(it, snapshot, silent.as_deref_mut())).collect();
            if !deployments.is_empty() {
                of_cluster.extend(network::enforced(&snapshot.agents, &snapshot.version));
            }
        }
        // Told by the definition.
        Seen::Nothing => {}
        Seen::Unreadable(why) => of_cluster.push(Finding::error(
            format!("namespace/{}", snapshot.namespace),
            format!("DisaggDeployments cannot be read: {why}"),
            "ask for the right to get and list disaggdeployments.disagg.dev there",
        )),
    }
    of_cluster.extend(operators);
    of_cluster.sort_by_key(|finding| finding.severity);
    groups.insert(0, Group { of: "the cluster".to_owned(), findings: of_cluster });
    groups
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

/// What is wrong with one deployment. `silent` takes what an operator that does not work leaves undone.
fn deployment(it: &DeploymentSnapshot, snapshot: &Snapshot, silent: Option<&mut Vec<String>>) -> Group {
    let (subject, now) = (format!("dd/{}", it.name), snapshot.now);
    let mut signs = Vec::new();
    let mut left_undone = Vec::new();
    match &it.resource {
        Ok(resource) => {
            left_undone.extend(conditions::silence(&subject, resource, now));
            signs.extend(conditions::conditions(&subject, resource));
        }
        Err(why) => signs.push(Sign::cause(
            Finding::error(
                &subject,
                format!("its fields cannot be read: {why}"),
                "use a kubectl-disagg of the version of the installed resource definition",
            ),
            About::Whole,
        )),
    }
    match settings(&it.name, &it.settings) {
        Settings::Fine => {}
        Settings::Missing(finding) => left_undone.push(finding),
        Settings::Wrong(found) => {
            signs.extend(found.into_iter().map(|finding| Sign::cause(finding, About::Settings)));
        }
        Settings::Unreadable(finding) => signs.push(Sign::cause(finding, About::Aside)),
    }
    match silent {
        Some(silent) => silent.extend(left_undone.iter().map(|it| format!("{}: {}", it.subject, it.what))),
        None => signs.extend(left_undone.into_iter().map(|finding| {
            let short = finding.what.clone();
            Sign::following(finding, About::Settings, Follows::Settings, short)
        })),
    }
    match &it.pods {
        Seen::It(pods) => {
            let of_pods = pods.iter().filter_map(|pod| pods::pod(pod, &it.events, now));
            // A router that is not ready tells why; that it is not need not be told as well.
            signs.extend(of_pods.filter(|sign| !tells(it, &sign.finding)));
        }
        Seen::Nothing => {}
        Seen::Unreadable(why) => {
            signs.push(Sign::cause(unreadable(&subject, "its pods", "pods", why), About::Aside));
        }
    }
    signs.extend(routers::routers(&subject, it));
    signs.extend(operators::cut_off(&subject, it, now).map(|finding| Sign::cause(finding, About::Aside)));
    match &it.events {
        Seen::It(events) => signs.extend(recent(&it.name, events, now)),
        Seen::Nothing => {}
        Seen::Unreadable(why) => {
            signs.push(Sign::cause(unreadable(&subject, "events", "events", why), About::Aside));
        }
    }
    Group { of: subject, findings: fold::fold(signs) }
}

/// The router itself says why it is not ready.
fn tells(deployment: &DeploymentSnapshot, finding: &Finding) -> bool {
    let pod = finding.subject.strip_prefix("pod/");
    let router = pod.and_then(|pod| deployment.routers.get(pod));
    finding.what.starts_with(pods::NOT_READY)
        && router.is_some_and(|router| matches!(router.not_ready_because, Ok(Some(_))))
}

fn unreadable(subject: &str, what: &str, resource: &str, why: &str) -> Finding {
    let advice = format!("ask for the right to list {resource}; the check is incomplete without");
    Finding::warning(subject, format!("{what} cannot be read: {why}"), advice)
}

/// What is to be said of the settings ConfigMap.
enum Settings {
    Fine,
    /// The operator has not made it.
    Missing(Finding),
    Wrong(Vec<Finding>),
    Unreadable(Finding),
}

fn settings(deployment: &str, settings: &Seen<ConfigMap>) -> Settings {
    let name = settings_config_map(deployment);
    let subject = format!("configmap/{name}");
    match settings {
        Seen::Nothing => Settings::Missing(Finding::error(
            subject,
            "the settings ConfigMap is not there",
            "the operator makes it again within seconds; if it does not, see that the operator runs",
        )),
        Seen::Unreadable(why) => Settings::Unreadable(unreadable(&subject, "it", "configmaps", why)),
        Seen::It(map) => {
            let data = map.data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
            let advice =
                format!("kubectl edit configmap {name}; the last good values are in force meanwhile");
            match RouterSettings::from_pairs(data) {
                Ok(_) => Settings::Fine,
                Err(errors) => {
                    let finding = |it: &SettingsError| Finding::error(&subject, it.to_string(), &advice);
                    Settings::Wrong(errors.0.iter().map(finding).collect())
                }
            }
        }
    }
}

/// Recent warnings, the last of each object and reason, as signs of the trouble that they tell of. Those about pods are
/// left out: of a pod that is in trouble they are told with it, and of one that is well they are over.
fn recent(deployment: &str, events: &[Event], now: Timestamp) -> Vec<Sign> {
    let mut recent: Vec<(i64, &Event)> = events
        .iter()
        .filter_map(|event| {
            let age = seconds_since(time(event)?, now);
            (age <= EVENT_SECONDS).then_some((age, event))
        })
        .collect();
    recent.sort_by_key(|(age, _)| *age);
    let mut found: Vec<Sign> = Vec::new();
    let mut seen = Vec::new();
    for (age, event) in recent {
        let object = &event.involved_object;
        let kind = object.kind.as_deref().unwrap_or("object").to_lowercase();
        let name = object.name.as_deref().unwrap_or_default();
        let subject = format!("{kind}/{name}");
        let reason = event.reason.as_deref().unwrap_or("Event");
        let key = (subject.clone(), reason.to_owned());
        if kind == "pod" || seen.contains(&key) {
            continue;
        }
        let short = format!("{reason} of {subject}");
        let what = format!("{reason} ({age} s ago): {}", event.message.as_deref().unwrap_or_default());
        let finding =
            Finding::warning(subject, what, format!("kubectl describe {kind} {name}, if it goes on"));
        let follows = gather::part_of(deployment, name).map_or(Follows::Any, Follows::Part);
        found.push(Sign::following(finding, About::Aside, follows, short));
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
