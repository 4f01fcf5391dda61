//! Fields of a resource that mean nothing without a cluster. They are refused by name, not passed over.

use disagg_api::crd::{DisaggDeploymentSpec, ModelSource, ModelSpec, RoleSpec, RouterSpec};

/// The first field of `spec` that only a cluster gives a meaning, and why.
pub(super) fn field(spec: &DisaggDeploymentSpec) -> Option<(String, &'static str)> {
    // Destructured without `..`, so that a new field has to be thought of here.
    let DisaggDeploymentSpec {
        model,
        kv_cache: _,
        prefill,
        decode,
        router,
        disaggregation: _,
        monitoring,
        images,
        drain_seconds: _,
        progress_deadline_seconds,
    } = spec;
    let ModelSpec { source, served_name: _, max_length: _, dtype: _, load_format: _, hub_token_secret } =
        model;
    let ModelSource { path: _, hub_id: _, revision: _, pvc, image, bundled: _, random: _ } = source;
    let RouterSpec {
        replicas: _,
        port: _,
        service,
        max_in_flight: _,
        request_timeout_seconds: _,
        max_wait_for_worker_seconds: _,
        routing: _,
        min_workers: _,
        resources,
        pod_template,
    } = router;
    let no_pods = "`disagg up` starts processes, not pods; leave it out, or apply the resource to a cluster";
    let of_role = |name: &'static str, role: &RoleSpec| {
        let RoleSpec { replicas: _, tensor_parallel_size: _, engine: _, resources, pod_template } = role;
        [
            (format!("spec.{name}.resources"), !resources.is_unset(), no_pods),
            (format!("spec.{name}.podTemplate"), !pod_template.is_unset(), no_pods),
        ]
    };
    let no_volumes =
        "`disagg up` has no volumes; name the model's folder with spec.model.source.path or --model";
    let no_secrets = "`disagg up` reads no Secrets; put the token into the environment variable HF_TOKEN";
    let no_objects = "`disagg up` makes no objects of a cluster; the workers' and the router's /metrics are there without it";
    let no_changes = "`disagg up` has no status; leave it out, or apply the resource to a cluster";
    let own = [
        ("spec.model.source.pvc".to_owned(), pvc.is_some(), no_volumes),
        ("spec.model.source.image".to_owned(), image.is_some(), no_volumes),
        ("spec.model.hubTokenSecret".to_owned(), hub_token_secret.is_some(), no_secrets),
        ("spec.router.service".to_owned(), !service.is_unset(), no_pods),
        ("spec.router.resources".to_owned(), !resources.is_unset(), no_pods),
        ("spec.router.podTemplate".to_owned(), !pod_template.is_unset(), no_pods),
        ("spec.monitoring".to_owned(), !monitoring.is_unset(), no_objects),
        ("spec.images".to_owned(), !images.is_unset(), no_pods),
        ("spec.progressDeadlineSeconds".to_owned(), progress_deadline_seconds.is_some(), no_changes),
    ];
    own.into_iter()
        .chain(of_role("prefill", prefill))
        .chain(of_role("decode", decode))
        .find_map(|(field, is_set, why)| is_set.then_some((field, why)))
}
