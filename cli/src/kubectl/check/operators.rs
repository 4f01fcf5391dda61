//! Judges the operators: that there is one for the namespace, one alone, and that it runs.

use disagg_api::kubernetes::{Component, ROUTER_ADMIN_PORT};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

use super::Finding;
use super::findings::seconds_since;
use super::gather::{DeploymentSnapshot, Seen};
use super::network::{self, Way};

/// The operator asks the routers within seconds of their being ready.
const ASKING_SECONDS: i64 = 60;

/// What is wrong with the operators of `namespace`.
pub(super) fn operators(operators: &Seen<Vec<Deployment>>, namespace: &str) -> Vec<Finding> {
    let operators = match operators {
        Seen::It(operators) => operators.as_slice(),
        Seen::Nothing => &[],
        // Whoever may not look into other namespaces sees by the conditions whether there is one.
        Seen::Unreadable(_) => return Vec::new(),
    };
    // Scaled to nothing, one is out of use on purpose.
    let used = |it: &&Deployment| it.spec.as_ref().and_then(|spec| spec.replicas) != Some(0);
    let operators: Vec<&Deployment> = operators.iter().filter(used).collect();
    if operators.is_empty() {
        return vec![Finding::warning(
            "deployment/disagg",
            "no operator is found by the labels of the chart, in any namespace",
            "install the chart (helm install disagg charts/disagg), unless the operator runs in some other way",
        )];
    }
    let ours: Vec<&Deployment> =
        operators.iter().copied().filter(|it| watched(it).is_none_or(|only| only == namespace)).collect();
    let of = |it: &Deployment| (it.name_any(), it.namespace().unwrap_or_default());
    if ours.is_empty() {
        let all: Vec<String> = operators
            .iter()
            .map(|it| {
                let (name, home) = of(it);
                format!("{name} in {home} is for {}", watched(it).unwrap_or_default())
            })
            .collect();
        return vec![Finding::error(
            format!("namespace/{namespace}"),
            format!("no operator looks after this namespace: {}", all.join(", ")),
            format!(
                "install one for it (chart values scope.namespaced=true and scope.watchNamespace={namespace}), or one for \
                 the cluster"
            ),
        )];
    }
    let works = |it: &Deployment| {
        let available = it.status.as_ref().and_then(|status| status.available_replicas);
        available.unwrap_or(0) > 0
    };
    let mut found = Vec::new();
    // One of all namespaces leaves those alone in which another one holds a Lease.
    let rivals: Vec<&Deployment> = ours
        .iter()
        .copied()
        .filter(|it| {
            watched(it).is_some() || !ours.iter().any(|other| watched(other).is_some() && elects(other))
        })
        .collect();
    if rivals.len() > 1 {
        let all: Vec<String> =
            rivals.iter().map(|it| of(it)).map(|(name, home)| format!("{name} in {home}")).collect();
        found.push(Finding::error(
            format!("namespace/{namespace}"),
            format!(
                "more than one operator is installed for this namespace, and one alone may work there: {}",
                all.join(", ")
            ),
            "uninstall all but one (helm uninstall), or give each a namespace of its own (scope.namespaced and \
             scope.watchNamespace)",
        ));
        // One that waits for another is not available, and should not be.
        if rivals.iter().any(|it| works(it)) {
            return found;
        }
    }
    found.extend(ours.iter().filter(|it| !works(it)).map(|it| {
        let (name, home) = of(it);
        Finding::error(
            format!("deployment/{name}"),
            format!("the operator in the namespace {home} is not running: none of its pods is available"),
            format!("kubectl -n {home} describe deployment {name}, and logs of its pods"),
        )
    }));
    found
}

/// The operator's container.
fn container(operator: &Deployment) -> Option<&Container> {
    operator.spec.as_ref()?.template.spec.as_ref()?.containers.first()
}

/// Whether an operator holds a Lease, by which others know of it.
fn elects(operator: &Deployment) -> bool {
    let Some(container) = container(operator) else { return false };
    let off = |argument: &String| argument == "--no-leader-election";
    !container.args.iter().flatten().any(off)
        && !container.env.iter().flatten().any(|it| it.name == "DISAGG_NO_LEADER_ELECTION")
}

/// The one namespace that an operator is for; `None`: every one.
fn watched(operator: &Deployment) -> Option<String> {
    let container = container(operator)?;
    let args: Vec<&str> = container.args.iter().flatten().map(String::as_str).collect();
    let by_flag = args.iter().enumerate().find_map(|(at, argument)| {
        let value = argument.strip_prefix("--namespace=");
        value.or_else(|| (*argument == "--namespace").then(|| args.get(at + 1).copied()).flatten())
    });
    let by_variable = || {
        let mut variables = container.env.iter().flatten();
        variables.find(|it| it.name == "DISAGG_WATCH_NAMESPACE").and_then(|it| it.value.as_deref())
    };
    by_flag.or_else(by_variable).map(str::to_owned)
}

/// The operator does not tell which settings are in force, though the routers have been ready for a while, agree, and
/// say it to us: it cannot reach them.
pub(super) fn cut_off(subject: &str, deployment: &DeploymentSnapshot, now: Timestamp) -> Option<Finding> {
    let status = deployment.resource.as_ref().ok()?.status.as_ref()?;
    let Seen::It(pods) = &deployment.pods else { return None };
    let mut routers = pods.iter().filter(|pod| super::pods::part(pod) == Some(Component::Router));
    let settled =
        |pod: &Pod| ready_since(pod).is_some_and(|since| seconds_since(since, now) > ASKING_SECONDS);
    if status.settings.is_some() || deployment.routers.is_empty() || !routers.all(settled) {
        return None;
    }
    let reports: Option<Vec<_>> =
        deployment.routers.values().map(|router| router.settings.as_ref().ok()).collect();
    let reports = reports?;
    if reports.iter().any(|report| report.settings != reports[0].settings) {
        return None;
    }
    let policies = network::binding(&deployment.policies, &deployment.name, Component::Router, Way::Ingress);
    let advice = match network::named(&policies) {
        Some(policies) => {
            format!(
                "let {policies} allow the operator's namespace to reach port {ROUTER_ADMIN_PORT} of the routers"
            )
        }
        None => format!(
            "see what is between the operator and port {ROUTER_ADMIN_PORT} of the routers: a NetworkPolicy of the operator's \
             namespace, a network plugin's own policy, or a service mesh"
        ),
    };
    Some(Finding::warning(
        subject,
        "the operator cannot ask the routers which settings are in force, so status.settings is empty; requests are served \
         all the same",
        advice,
    ))
}

/// When a pod became ready; nothing of one that is not.
fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|it| it.type_ == "Ready" && it.status == "True")?;
    Some(ready.last_transition_time.as_ref()?.0)
}
