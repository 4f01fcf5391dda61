//! Prefill and decode workers: a StatefulSet and its headless Service for each role.

use disagg_api::crd::{Flag, WorkerFlags};
use disagg_api::kubernetes::{
    WORKER_GRPC_PORT, WORKER_GRPC_PORT_NAME, WORKER_METRICS_PORT, WORKER_METRICS_PORT_NAME,
};
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy};
use k8s_openapi::api::core::v1::{
    Container, EnvVar, EnvVarSource, ImageVolumeSource, PersistentVolumeClaimVolumeSource, SecretKeySelector,
    Service, ServicePort, ServiceSpec, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::access::worker_account;
use super::labels::{metadata, selector};
use super::pod::{
    Parts, container_port, empty_dir, field_env, http_probe, literal, mount, plain_env, template,
};
use crate::reconcile::validate::{Model, Replicas, Wanted, Workers};

/// Where a volume with the model is mounted.
const MODEL_FOLDER: &str = "/model";
/// Where downloads and compiled kernels go.
const CACHE_FOLDER: &str = "/cache";
/// What a worker takes beyond its drain to end its process.
const GRACE_MARGIN_SECONDS: i32 = 10;

pub(super) fn service(wanted: &Wanted, workers: &Workers) -> Service {
    let component = workers.component;
    let port = |name: &str, port: u16| ServicePort {
        name: Some(name.to_owned()),
        port: port.into(),
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::String(name.to_owned())),
        ..ServicePort::default()
    };
    Service {
        metadata: metadata(wanted, component.child(&wanted.name), Some(component)),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some("None".to_owned()),
            selector: Some(component.selector(&wanted.name)),
            ports: Some(vec![
                port(WORKER_GRPC_PORT_NAME, WORKER_GRPC_PORT),
                port(WORKER_METRICS_PORT_NAME, WORKER_METRICS_PORT),
            ]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

pub(super) fn stateful_set(wanted: &Wanted, workers: &Workers) -> StatefulSet {
    let component = workers.component;
    let name = component.child(&wanted.name);
    let (mut volumes, mut mounts) = model_volume(&wanted.model);
    volumes.push(empty_dir("cache"));
    mounts.push(mount("cache", CACHE_FOLDER));
    let container = Container {
        name: workers.component.container().to_owned(),
        image: Some(workers.image.clone()),
        args: Some(arguments(wanted, workers)),
        env: Some(environment(&wanted.model)),
        ports: Some(vec![
            container_port(WORKER_GRPC_PORT_NAME, WORKER_GRPC_PORT),
            container_port(WORKER_METRICS_PORT_NAME, WORKER_METRICS_PORT),
        ]),
        volume_mounts: Some(mounts),
        // A worker answers both from its first moment: it is alive while it loads its model, and ready afterwards.
        startup_probe: Some(http_probe("/health", WORKER_METRICS_PORT_NAME, 1, 30)),
        liveness_probe: Some(http_probe("/health", WORKER_METRICS_PORT_NAME, 10, 3)),
        readiness_probe: Some(http_probe("/ready", WORKER_METRICS_PORT_NAME, 1, 3)),
        ..Container::default()
    };
    let parts = Parts {
        component,
        account: worker_account(wanted),
        needs_token: false,
        container,
        volumes,
        resources: &workers.resources,
        overrides: &workers.pod,
        grace_seconds: wanted.drain_seconds + GRACE_MARGIN_SECONDS,
    };
    StatefulSet {
        metadata: metadata(wanted, name.clone(), Some(component)),
        spec: Some(StatefulSetSpec {
            replicas: match workers.replicas {
                Replicas::Fixed(replicas) => Some(replicas),
                Replicas::Free { .. } => None,
            },
            selector: selector(wanted, component),
            service_name: Some(name),
            // No worker waits for another one.
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                ..StatefulSetUpdateStrategy::default()
            }),
            template: template(wanted, parts),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn arguments(wanted: &Wanted, workers: &Workers) -> Vec<String> {
    // With a GPU asked for, none is an error and not a slow start on the CPU.
    let default_device = if workers.on_gpu { "cuda:0" } else { "cpu" };
    let flags = WorkerFlags {
        name: "$(POD_NAME)",
        role: workers.component.as_str(),
        // Every address, since the cluster's may be of either family; kubectl port-forward comes by the loopback.
        listen: &format!("[::]:{WORKER_GRPC_PORT}"),
        advertise: Some(&format!("$(POD_IP):{WORKER_GRPC_PORT}")),
        metrics_listen: &format!("[::]:{WORKER_METRICS_PORT}"),
        model: &model_argument(&wanted.model),
        served_name: &wanted.served_name,
        load_format: wanted.load_format,
        dtype: wanted.dtype,
        kv_cache_dtype: wanted.kv_cache_dtype,
        max_length: wanted.max_length,
        block_size: wanted.block_size,
        device: Some(workers.engine.device.as_deref().unwrap_or(default_device)),
        engine: &workers.engine,
        drain_seconds: wanted.drain_seconds.unsigned_abs(),
        // A container's standard input is closed from the start.
        exit_with_stdin: false,
    };
    // The kubelet fills in these two. In all others nothing is for it to expand.
    let expanded = ["name", "advertise"];
    let word = |flag: Flag| {
        if expanded.contains(&flag.name) { flag.word() } else { literal(&flag.word()) }
    };
    flags.flags().into_iter().map(word).collect()
}

fn model_argument(model: &Model) -> String {
    let below = |path: &Option<String>| match path {
        Some(path) => format!("{MODEL_FOLDER}/{path}"),
        None => MODEL_FOLDER.to_owned(),
    };
    match model {
        Model::Folder(path) => path.clone(),
        Model::Hub { id, revision: Some(revision), .. } => format!("{id}@{revision}"),
        Model::Hub { id, revision: None, .. } => id.clone(),
        Model::Claim { path, .. } | Model::Image { path, .. } => below(path),
        Model::Bundled => "bundled".to_owned(),
        Model::Random { seed } => format!("random:{seed}"),
    }
}

fn environment(model: &Model) -> Vec<EnvVar> {
    let mut env = vec![
        field_env("POD_NAME", "metadata.name"),
        field_env("POD_IP", "status.podIP"),
        plain_env("HF_HOME", CACHE_FOLDER),
        plain_env("XDG_CACHE_HOME", CACHE_FOLDER),
    ];
    if let Model::Hub { token: Some(secret), .. } = model {
        env.push(EnvVar {
            name: "HF_TOKEN".to_owned(),
            value: None,
            value_from: Some(EnvVarSource {
                secret_key_ref: Some(SecretKeySelector {
                    name: secret.name.clone(),
                    key: secret.key().to_owned(),
                    optional: None,
                }),
                ..EnvVarSource::default()
            }),
        });
    }
    env
}

fn model_volume(model: &Model) -> (Vec<Volume>, Vec<VolumeMount>) {
    let volume = match model {
        Model::Claim { name, .. } => Volume {
            name: "model".to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: name.clone(),
                read_only: Some(true),
            }),
            ..Volume::default()
        },
        Model::Image { reference, .. } => Volume {
            name: "model".to_owned(),
            image: Some(ImageVolumeSource { reference: Some(reference.clone()), pull_policy: None }),
            ..Volume::default()
        },
        Model::Folder(_) | Model::Hub { .. } | Model::Bundled | Model::Random { .. } => {
            return Default::default();
        }
    };
    let mount = VolumeMount { read_only: Some(true), ..mount("model", MODEL_FOLDER) };
    (vec![volume], vec![mount])
}
