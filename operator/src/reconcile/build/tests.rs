//! Fixtures in YAML through validate and build, as snapshots.

use disagg_api::DisaggDeployment;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Serialize;

use super::*;
use crate::args::DefaultImages;
use crate::reconcile::subject::Subject;
use crate::reconcile::validate::validate;

fn images() -> DefaultImages {
    DefaultImages {
        router: "example.com/disagg-router:1".to_owned(),
        worker: "example.com/disagg-worker:1".to_owned(),
        worker_gpu: "example.com/disagg-worker-cuda:1".to_owned(),
    }
}

fn children(yaml: &str) -> Children {
    let mut resource = DisaggDeployment::from_yaml(yaml).unwrap();
    resource.metadata.namespace = Some("ns".to_owned());
    resource.metadata.uid = Some("00000000-0000-0000-0000-000000000001".to_owned());
    let subject = Subject::of(&resource).unwrap();
    build(&validate(&resource, &subject, &images()).unwrap()).unwrap()
}

fn with_spec(spec: &str) -> Children {
    let head = "apiVersion: disagg.dev/v1alpha1\nkind: DisaggDeployment\nmetadata: {name: demo}\nspec:\n";
    children(&format!("{head}{spec}"))
}

fn yaml(object: &impl Serialize) -> String {
    serde_yaml::to_string(object).unwrap()
}

const DEMO: &str = include_str!("../../../../deploy/samples/demo.yaml");

/// As GPU users write it: every override, limits and the hub.
const FULL: &str = include_str!("../../../tests/fixtures/full.yaml");

#[test]
fn the_demo() {
    let Children {
        service_accounts,
        role,
        role_binding,
        settings,
        services,
        network_policy,
        disruption_budgets,
        prefill,
        decode,
        router,
        pod_monitors,
    } = children(DEMO);
    insta::assert_snapshot!("demo_accounts", yaml(&service_accounts));
    insta::assert_snapshot!("demo_role", yaml(&(role, role_binding)));
    insta::assert_snapshot!("demo_settings", yaml(&settings));
    insta::assert_snapshot!("demo_services", yaml(&services));
    insta::assert_snapshot!("demo_network_policy", yaml(&network_policy));
    insta::assert_snapshot!("demo_disruption_budgets", yaml(&disruption_budgets));
    insta::assert_snapshot!("demo_prefill", yaml(&prefill));
    insta::assert_snapshot!("demo_decode", yaml(&decode));
    insta::assert_snapshot!("demo_router", yaml(&router));
    assert_eq!(pod_monitors, [], "nobody asked for them");
}

#[test]
fn a_deployment_with_every_field() {
    let children = children(FULL);
    insta::assert_snapshot!("full_prefill", yaml(&children.prefill));
    insta::assert_snapshot!("full_decode", yaml(&children.decode));
    insta::assert_snapshot!("full_router", yaml(&children.router));
    insta::assert_snapshot!("full_pod_monitors", yaml(&children.pod_monitors));
    insta::assert_snapshot!("full_router_service", yaml(&children.services[2]));
}

#[test]
fn models_reach_the_workers() {
    let model = |source: &str| {
        let children = with_spec(&format!("  model: {{source: {{{source}}}}}\n"));
        let pod = children.decode.spec.unwrap().template.spec.unwrap();
        let container = &pod.containers[0];
        let argument =
            container.args.as_ref().unwrap().iter().find(|arg| arg.starts_with("--model=")).cloned();
        let volume = pod.volumes.unwrap().into_iter().find(|volume| volume.name == "model");
        let mount =
            container.volume_mounts.as_ref().unwrap().iter().find(|mount| mount.name == "model").cloned();
        yaml(&(argument, volume, mount))
    };
    insta::assert_snapshot!("model_claim", model("pvc: {claimName: models, path: llama/8b}"));
    insta::assert_snapshot!("model_image", model("image: {reference: 'example.com/models:1'}"));
    insta::assert_snapshot!("model_hub", model("hubId: a/b, revision: v2"));
    insta::assert_snapshot!("model_folder", model("path: /models/a"));
    insta::assert_snapshot!("model_bundled", model("bundled: {}"));
    insta::assert_snapshot!("model_random", model("random: {seed: 7}"));
}

#[test]
fn the_settings_are_no_part_of_a_pod_template() {
    let before = children(DEMO);
    let after = children(&DEMO.replace("maxLocalPrefillLength: 128", "maxLocalPrefillLength: 4"));
    assert_eq!(before, after);
}

#[test]
fn what_a_process_reads_at_its_start_changes_the_hash() {
    let hash = |children: &Children| {
        let template = &children.decode.spec.as_ref().unwrap().template;
        let annotations = template.metadata.as_ref().unwrap().annotations.clone().unwrap();
        annotations[disagg_api::kubernetes::ANNOTATION_CONFIG_HASH].clone()
    };
    let source = "  model: {source: {random: {}}}\n";
    let plain = hash(&with_spec(source));
    assert_ne!(plain, hash(&with_spec(&format!("{source}  decode: {{engine: {{maxNumSeqs: 3}}}}\n"))));
    assert_ne!(
        plain,
        hash(&with_spec(&format!("{source}  decode: {{podTemplate: {{env: [{{name: A}}]}}}}\n")))
    );
    assert_eq!(plain, hash(&with_spec(&format!("{source}  decode: {{replicas: 3}}\n"))));
}

#[test]
fn users_texts_reach_the_process_as_they_are_written() {
    let source = "  model:\n    source: {path: '/m/$(HOME)/$$'}\n    servedName: '$(POD_NAME)'\n";
    let env = "  decode: {podTemplate: {env: [{name: A, value: '$(POD_NAME)-a'}]}}\n";
    let pod = with_spec(&format!("{source}{env}")).decode.spec.unwrap().template.spec.unwrap();
    let container = &pod.containers[0];
    let has = |argument: &str| container.args.as_ref().unwrap().iter().any(|found| found == argument);
    assert!(has("--served-model-name=$$(POD_NAME)") && has("--model=/m/$$(HOME)/$$$$"), "{container:?}");
    assert!(has("--name=$(POD_NAME)"), "our own references stay: {container:?}");
    // In a pod's own field they have a pod's meaning.
    let value = |name: &str| {
        let found = container.env.as_ref().unwrap().iter().find(|variable| variable.name == name);
        found.and_then(|variable| variable.value.clone())
    };
    assert_eq!(value("A").as_deref(), Some("$(POD_NAME)-a"));
}

#[test]
fn a_list_in_another_order_rolls_no_pods() {
    let template = |reversed: bool| {
        let list = |mut entries: Vec<&str>| {
            if reversed {
                entries.reverse();
            }
            entries.join(", ")
        };
        let env = list(vec!["{name: B, value: '1'}", "{name: A, value: '2'}", "{name: C}"]);
        let volumes = list(vec!["{name: b, emptyDir: {}}", "{name: a, emptyDir: {}}"]);
        let mounts = list(vec!["{name: b, mountPath: /x}", "{name: a, mountPath: /x/y}"]);
        let tolerations = list(vec!["{key: b, operator: Exists}", "{key: a, operator: Exists}"]);
        let spread = list(vec![
            "{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway}",
            "{maxSkew: 2, topologyKey: host, whenUnsatisfiable: DoNotSchedule}",
        ]);
        let secrets = list(vec!["{name: q}", "{name: p}"]);
        let pod = format!(
            "{{podTemplate: {{env: [{env}], volumes: [{volumes}], volumeMounts: [{mounts}], tolerations: \
             [{tolerations}], topologySpreadConstraints: [{spread}]}}}}"
        );
        with_spec(&format!(
            "  model: {{source: {{random: {{}}}}}}\n  images: {{pullSecrets: [{secrets}]}}\n  decode: {pod}\n  router: \
             {pod}\n"
        ))
    };
    assert_eq!(template(false), template(true));
    // Where one variable refers to another, the order has a meaning.
    let env = |list: &str| {
        let source = "  model: {source: {random: {}}}\n";
        with_spec(&format!("{source}  decode: {{podTemplate: {{env: [{list}]}}}}\n")).decode
    };
    let (one, other) = ("{name: A, value: 'x'}", "{name: B, value: '$(A)'}");
    assert_ne!(env(&format!("{one}, {other}")), env(&format!("{other}, {one}")));
}

#[test]
fn a_number_that_is_left_out_is_not_applied() {
    let replicas = |spec: &str| {
        let children = with_spec(&format!("  model: {{source: {{random: {{}}}}}}\n{spec}"));
        (children.decode.spec.unwrap().replicas, children.router.spec.unwrap().replicas)
    };
    assert_eq!(replicas(""), (None, None));
    assert_eq!(replicas("  decode: {replicas: 0}\n  router: {replicas: 3}\n"), (Some(0), Some(3)));
}

#[test]
fn a_routers_memory_is_limited_by_its_own_bounds() {
    let memory = |router: &str| {
        let children = with_spec(&format!("  model: {{source: {{random: {{}}}}}}\n  router: {router}\n"));
        let pod = children.router.spec.unwrap().template.spec.unwrap();
        let resources = pod.containers[0].resources.clone().unwrap();
        let of = |amounts: Option<std::collections::BTreeMap<_, Quantity>>| {
            Some(amounts?.get("memory")?.0.clone())
        };
        (of(resources.requests), of(resources.limits))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(memory("{}"), (some("256Mi"), some("1536Mi")));
    assert_eq!(memory("{resources: {limits: {cpu: 1}}}"), (some("256Mi"), some("1536Mi")));
    // Who says something of memory has said all of it.
    assert_eq!(memory("{resources: {requests: {memory: 2Gi}}}"), (some("2Gi"), None));
    assert_eq!(memory("{resources: {limits: {memory: 3Gi}}}"), (None, some("3Gi")));
}

#[test]
fn the_longest_name_still_gives_good_names() {
    let name = "n".repeat(40);
    let text = DEMO.replace("name: demo", &format!("name: {name}"));
    let children = children(&text);
    assert_eq!(children.decode.metadata.name, Some(format!("{name}-decode")));
    // A StatefulSet's pods carry its name and a hash as a label.
    assert!(format!("{name}-prefill-0123456789").len() <= 63);
}
