//! What all pods have in common: the restricted security profile, the user's overrides, and the hash of what a process
//! reads only at its start.

use std::collections::BTreeMap;

use disagg_api::crd::{EnvVar as UserEnvVar, PodOverrides, Resources, VolumeMount as UserVolumeMount};
use disagg_api::kubernetes::{ANNOTATION_CONFIG_HASH, Component};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction,
    LocalObjectReference, ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ResourceRequirements, SeccompProfile, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use xxhash_rust::xxh3::Xxh3;

use super::labels::{labels, selector};
use super::order;
use crate::reconcile::validate::Wanted;

/// The user that all containers run as: nobody in particular, and not root.
const USER: i64 = 65_532;

/// What differs between the pods of components.
pub(super) struct Parts<'a> {
    pub component: Component,
    pub account: String,
    /// The pod speaks to the API server.
    pub needs_token: bool,
    pub container: Container,
    pub volumes: Vec<Volume>,
    pub resources: &'a Resources,
    pub overrides: &'a PodOverrides,
    /// From the request to end until the kill.
    pub grace_seconds: i32,
}

/// The template of a component's pods.
pub(super) fn template(wanted: &Wanted, parts: Parts<'_>) -> PodTemplateSpec {
    let Parts {
        component,
        account,
        needs_token,
        mut container,
        mut volumes,
        resources,
        overrides,
        grace_seconds,
    } = parts;
    // Destructured without `..`, so that a new field has to be thought of here.
    let PodOverrides {
        labels: more_labels,
        annotations,
        node_selector,
        tolerations,
        affinity,
        topology_spread_constraints,
        priority_class_name,
        runtime_class_name,
        env,
        volumes: more_volumes,
        volume_mounts,
    } = overrides;

    let mut all_labels = more_labels.clone();
    all_labels.extend(labels(wanted, Some(component)));
    volumes.extend(order::by_content(more_volumes.clone()));
    container.env.get_or_insert_default().extend(order::environment(env).into_iter().map(env_var));
    let mounts = container.volume_mounts.get_or_insert_default();
    mounts.push(mount("tmp", "/tmp"));
    // The container runtime mounts a folder before what is below it, whatever their order here.
    mounts.extend(order::by_content(volume_mounts.clone()).into_iter().map(volume_mount));
    volumes.push(empty_dir("tmp"));
    container.resources = resource_requirements(resources);
    container.image_pull_policy = wanted.pull_policy.map(str::to_owned);
    container.security_context = Some(SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    });
    // The last lines of the log are then in the pod's status, from where they get into our conditions.
    container.termination_message_policy = Some("FallbackToLogsOnError".to_owned());

    let mut annotations = annotations.clone();
    annotations.insert(ANNOTATION_CONFIG_HASH.to_owned(), config_hash(&container));
    // Copies of a component that share a node share its fate.
    let mut spread = order::by_content(topology_spread_constraints.clone());
    if spread.is_empty() && component == Component::Router {
        spread.push(k8s_openapi::api::core::v1::TopologySpreadConstraint {
            label_selector: Some(selector(wanted, component)),
            max_skew: 1,
            topology_key: "kubernetes.io/hostname".to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            ..Default::default()
        });
    }
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(all_labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            service_account_name: Some(account),
            automount_service_account_token: Some(needs_token),
            // Variables of other Services would only slow the start down.
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(grace_seconds.into()),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            image_pull_secrets: some(order::by_content(
                wanted.pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect(),
            )),
            node_selector: Some(node_selector.clone()).filter(|labels| !labels.is_empty()),
            tolerations: some(order::by_content(tolerations.clone())),
            affinity: affinity.clone(),
            topology_spread_constraints: some(spread),
            priority_class_name: priority_class_name.clone(),
            runtime_class_name: runtime_class_name.clone(),
            volumes: some(volumes),
            containers: vec![container],
            ..PodSpec::default()
        }),
    }
}

/// Hash of arguments and environment, which a process reads at its start alone. The settings ConfigMap is followed
/// while the process runs and is no part of it.
fn config_hash(container: &Container) -> String {
    let mut hash = Xxh3::new();
    let mut add = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    container.args.iter().flatten().for_each(|argument| add(argument));
    for variable in container.env.iter().flatten() {
        // It is made of plain fields, which always become JSON.
        add(&serde_json::to_string(variable).unwrap_or_default());
    }
    format!("{:016x}", hash.digest())
}

pub(super) fn http_probe(path: &str, port: &str, period_seconds: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(port.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(3),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

pub(super) fn container_port(name: &str, port: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: port.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

/// `text` as an argument or variable that reaches the process as it is: the kubelet reads `$(NAME)` as a variable, and
/// `$$` as a dollar. Users mean such references where they write them as in a pod, in `podTemplate.env`, and nowhere else.
pub(super) fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

pub(super) fn plain_env(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(literal(value)), value_from: None }
}

pub(super) fn field_env(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
    }
}

pub(super) fn empty_dir(name: &str) -> Volume {
    Volume { name: name.to_owned(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() }
}

pub(super) fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

fn env_var(variable: UserEnvVar) -> EnvVar {
    let UserEnvVar { name, value, value_from } = variable;
    EnvVar { name, value, value_from }
}

fn volume_mount(mount: UserVolumeMount) -> VolumeMount {
    let UserVolumeMount { name, mount_path, sub_path, read_only } = mount;
    VolumeMount { name, mount_path, sub_path, read_only, ..VolumeMount::default() }
}

fn resource_requirements(resources: &Resources) -> Option<ResourceRequirements> {
    let Resources { requests, limits } = resources;
    let quantities = |amounts: &BTreeMap<String, disagg_api::crd::Amount>| {
        let quantities: BTreeMap<String, Quantity> =
            amounts.iter().map(|(name, amount)| (name.clone(), Quantity(amount.to_string()))).collect();
        Some(quantities).filter(|quantities| !quantities.is_empty())
    };
    (!resources.is_unset()).then(|| ResourceRequirements {
        requests: quantities(requests),
        limits: quantities(limits),
        ..ResourceRequirements::default()
    })
}

/// An empty list is left out: some lists may be absent but not empty.
fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}
