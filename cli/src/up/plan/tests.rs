use std::net::{IpAddr, Ipv4Addr};

use clap::Parser;
use disagg_api::crd::Flag;
use disagg_router::RouterArgs;
use disagg_worker::WorkerArgs;
use disagg_worker::args::{PoolSize, WorkerConfig};

use super::*;
use crate::up::engine_args::EngineArgs;

const FULL: &str = include_str!("../../../../deploy/samples/model-folder.yaml");

fn plan_of(text: &str, args: &UpArgs) -> Result<Plan, String> {
    let deployment = DisaggDeployment::from_yaml(text).unwrap();
    Plan::new(deployment, Path::new("/deployments"), args).map_err(|error| error.to_string())
}

fn demo(args: &UpArgs) -> Plan {
    plan_of(DEMO, args).unwrap()
}

/// The demo with more lines in its spec.
fn demo_and(lines: &str) -> String {
    format!("{DEMO}{lines}")
}

#[derive(Parser)]
struct AsWorker {
    #[command(flatten)]
    args: WorkerArgs,
}

#[derive(Parser)]
struct AsRouter {
    #[command(flatten)]
    args: RouterArgs,
}

/// What the worker itself makes of the arguments we give it.
fn worker_config(plan: &Plan, index: usize) -> WorkerConfig {
    let args = plan.workers()[index].args(Path::new("/m"), "127.0.0.1:20000", "127.0.0.1:20001");
    AsWorker::try_parse_from(args).unwrap().args.resolve().unwrap()
}

#[test]
fn the_demo_is_one_prefill_and_one_decode_worker() {
    let plan = demo(&UpArgs::default());
    let names: Vec<String> = plan.workers().iter().map(Worker::name).collect();
    assert_eq!(names, ["prefill-0", "decode-0"]);
    assert_eq!(plan.model, Model::BuiltIn(BuiltIn::Demo));
    assert_eq!((plan.served_name.as_str(), plan.port), ("demo", 8181));
    assert_eq!(plan.settings.max_local_prefill_length, 128);
}

#[test]
fn flags_override_the_file() {
    let flags = UpArgs {
        file: Some("x.yaml".into()),
        model: Some(ModelRef::of("./other")),
        served_model_name: Some("mine".to_owned()),
        prefill: Some(0),
        decode: Some(3),
        port: Some(9000),
        max_local_prefill_length: Some(7),
        engine: EngineArgs { max_num_batched_tokens: Some(100), ..EngineArgs::default() },
        max_model_len: Some(4096),
        device: Some(Device::Cuda(3)),
        block_size: Some(16),
        load_format: Some(LoadFormat::Dummy),
        ..UpArgs::default()
    };
    let plan = plan_of(FULL, &flags).unwrap();
    assert_eq!(plan.model, Model::Folder("./other".into()));
    assert_eq!(plan.served_name, "mine");
    assert_eq!((plan.prefill.count, plan.decode.count, plan.port), (0, 3, 9000));
    assert_eq!(plan.settings.max_local_prefill_length, 7);
    for workers in [&plan.prefill, &plan.decode] {
        assert_eq!(workers.engine.max_num_batched_tokens, Some(100));
    }
    assert_eq!((plan.block_size, plan.load_format), (Some(16), LoadFormat::Dummy));
    // What no flag names stays as the file has it.
    assert_eq!((plan.max_length, plan.decode.engine.num_blocks), (Some(4096), Some(512)));
    assert_eq!(worker_config(&plan, 0).model.device, Device::Cuda(0), "it sees no other");
}

#[test]
fn a_device_reaches_the_workers_and_a_bad_one_is_named() {
    let device = "sim:decode-step-ms=3".parse().unwrap();
    let plan = demo(&UpArgs { device: Some(device), prefill: Some(4), decode: Some(8), ..UpArgs::default() });
    assert_eq!(plan.workers().len(), 12);
    for index in 0..12 {
        assert_eq!(worker_config(&plan, index).model.device, device);
    }
    let of_the_file = |device: &str| {
        plan_of(
            &DEMO.replace("decode:", &format!("decode:\n    engine: {{device: '{device}'}}")),
            &UpArgs::default(),
        )
    };
    let plan = of_the_file("sim:prefill-tokens-per-second=7").unwrap();
    assert_eq!(worker_config(&plan, 0).model.device, Device::Auto);
    assert_eq!(worker_config(&plan, 1).model.device, "sim:prefill-tokens-per-second=7".parse().unwrap());
    let error = of_the_file("sim:speed=7").unwrap_err();
    assert!(error.starts_with("spec.decode.engine.device: ") && error.contains("decode-step-ms"), "{error}");
}

#[test]
fn a_model_of_the_flag_alone_is_served_by_its_folder_name() {
    let flags = UpArgs { model: Some(ModelRef::of("./models/llama")), ..UpArgs::default() };
    assert_eq!(demo(&flags).served_name, "llama");
    let flags = UpArgs { file: Some("x.yaml".into()), ..flags };
    assert_eq!(plan_of(FULL, &flags).unwrap().served_name, "my-model");
}

#[test]
fn paths_in_a_file_begin_at_its_folder() {
    let text = FULL.replace("/models/my-model", "models/a");
    assert_eq!(
        plan_of(&text, &UpArgs::default()).unwrap().model,
        Model::Folder("/deployments/models/a".into())
    );
    assert_eq!(plan_of(FULL, &UpArgs::default()).unwrap().model, Model::Folder("/models/my-model".into()));
}

#[test]
fn every_engine_option_reaches_its_worker() {
    let plan = plan_of(FULL, &UpArgs::default()).unwrap();
    let prefill = worker_config(&plan, 1);
    assert_eq!(prefill.serve.name.as_str(), "prefill-1");
    assert_eq!(prefill.serve.role, disagg_core::Role::Prefill);
    assert_eq!(prefill.serve.limits.max_num_batched_tokens, 4096);
    assert_eq!(prefill.model.pool, PoolSize::Bytes(536_870_912));
    let decode = worker_config(&plan, 2);
    assert_eq!(decode.serve.name.as_str(), "decode-0");
    assert_eq!(decode.serve.role, disagg_core::Role::Decode);
    assert_eq!(decode.serve.limits.max_num_batched_tokens, 512);
    assert_eq!(decode.serve.limits.max_num_seqs, 32);
    assert_eq!(decode.model.pool, PoolSize::Blocks(512));
    for config in [&prefill, &decode] {
        assert_eq!(config.model.model, ModelRef::Folder("/m".into()));
        assert_eq!(config.model.served_model_name, "my-model");
        assert_eq!(config.model.max_model_len, Some(8192));
        assert_eq!(config.model.block_size, 64);
        assert_eq!(config.model.load_format, LoadFormat::Auto);
        assert_eq!(config.serve.listen, "127.0.0.1:20000");
        assert_eq!(config.metrics_listen.as_deref(), Some("127.0.0.1:20001"));
        assert_eq!(config.serve.drain.as_secs(), 10, "what neither flag nor file names has its default");
        assert!(config.exit_with_stdin, "no worker outlives `up`");
    }
}

#[test]
fn switches_reach_the_worker_both_ways() {
    for on in [true, false] {
        let text = demo_and("  kvCache: {blockSize: 16, dtype: float16}\n").replace(
            "  decode:\n",
            &format!("  decode:\n    engine: {{enableChunkedPrefill: {on}, enablePrefixCaching: {on}}}\n"),
        );
        let args =
            UpArgs { load_format: Some(LoadFormat::Dummy), dtype: Some(Dtype::Float32), ..UpArgs::default() };
        let plan = plan_of(&text, &args).unwrap();
        let config = worker_config(&plan, 1);
        assert_eq!(config.serve.limits.enable_chunked_prefill, on);
        assert_eq!(config.serve.limits.enable_prefix_caching, on);
        assert_eq!(config.model.block_size, 16);
        assert_eq!(config.model.load_format, LoadFormat::Dummy);
        assert_eq!(config.model.dtype, Dtype::Float32);
        assert_eq!(config.model.kv_cache_dtype, Dtype::Float16);
    }
}

/// Flags of a worker that no deployment sets, each with the reason.
const NOT_OF_A_DEPLOYMENT: [(&str, &str); 8] = [
    ("seed", "of dummy weights, which all workers of a deployment have to make alike: the default does"),
    ("gpu-wait", "trades a core for microseconds; DISAGG_GPU_WAIT in podTemplate.env sets it for one role"),
    ("max-waiting", "the router's maxInFlight bounds what can wait"),
    (
        "max-prefill-queue",
        "the router's maxPrefillQueueDepth is the dial; this is the worker's own safety bound",
    ),
    ("no-enable-chunked-prefill", "enableChunkedPrefill says the same"),
    (
        "handoff-lease-ms",
        "both ends of a handoff keep to the one that the decode worker names; the default suits any network",
    ),
    ("max-step-seconds", "a step that takes longer hangs on any hardware"),
    ("threads", "one per core that the container may use"),
];

/// Everything that a deployment can say to a worker.
fn everything() -> Vec<Flag> {
    let engine = EngineSpec {
        device: Some("cpu".to_owned()),
        max_num_batched_tokens: Some(100),
        max_num_seqs: Some(5),
        kv_cache_bytes: Some(1 << 20),
        num_blocks: Some(7),
        gpu_memory_utilization_percent: Some(85),
        enable_chunked_prefill: Some(false),
        enable_prefix_caching: Some(false),
    };
    let all = WorkerFlags {
        name: "prefill-0",
        role: "prefill",
        listen: "127.0.0.1:1",
        advertise: Some("127.0.0.1:1"),
        metrics_listen: "127.0.0.1:2",
        model: "/m",
        served_name: "m",
        load_format: LoadFormat::Dummy,
        dtype: Some(Dtype::Float32),
        kv_cache_dtype: Some(Dtype::Float16),
        max_length: Some(4096),
        block_size: Some(16),
        device: Some("cpu"),
        engine: &engine,
        drain_seconds: 3,
        exit_with_stdin: true,
    };
    all.flags()
}

/// `disagg up` and the operator make a worker's command line with one function. This holds it to the worker's flags.
#[test]
fn every_flag_of_a_worker_is_of_the_deployment_or_there_is_a_reason() {
    use clap::CommandFactory as _;
    let made: Vec<&str> = everything().iter().map(|flag| flag.name).collect();
    let unset: Vec<&str> = NOT_OF_A_DEPLOYMENT.iter().map(|(flag, _)| *flag).collect();
    let command = AsWorker::command();
    let known: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
    for flag in &known {
        let (made, unset) = (made.contains(flag), unset.contains(flag));
        assert!(
            made != unset,
            "--{flag}: either made by WorkerFlags ({made}) or listed with a reason ({unset})"
        );
    }
    for flag in made.iter().chain(&unset) {
        assert!(known.contains(flag), "a worker has no --{flag}");
    }
}

#[test]
fn a_worker_reads_every_flag_that_a_deployment_can_set() {
    // Both size the pool, so no worker is given both.
    for left_out in ["num-blocks", "kv-cache-bytes"] {
        let flags = everything().into_iter().filter(|flag| flag.name != left_out);
        let words = std::iter::once("worker".to_owned()).chain(flags.map(|flag| flag.word()));
        let config = AsWorker::try_parse_from(words).unwrap().args.resolve().unwrap();
        assert_eq!((config.model.seed, config.model.load_format), (0, LoadFormat::Dummy));
        assert!((config.model.gpu_memory_utilization - 0.85).abs() < 1e-9);
        assert_eq!((config.model.block_size, config.model.max_model_len), (16, Some(4096)));
        assert_eq!((config.serve.limits.max_num_seqs, config.serve.drain.as_secs()), (5, 3));
        assert!(!config.serve.limits.enable_prefix_caching && config.exit_with_stdin);
    }
}

#[test]
fn names_that_look_like_flags_are_values() {
    let flags = UpArgs { served_model_name: Some("--help".to_owned()), ..UpArgs::default() };
    assert_eq!(worker_config(&demo(&flags), 0).model.served_model_name, "--help");
}

const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8181);
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8182);

#[test]
fn the_router_knows_its_workers_and_the_settings_file() {
    let workers = ["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()];
    let flags = UpArgs { drain_seconds: Some(4), ..UpArgs::default() };
    let args = router_args(&demo(&flags), API, ADMIN, &workers, Path::new("/s.yaml"));
    let args = AsRouter::try_parse_from(args).unwrap().args;
    assert_eq!(args.workers, workers);
    assert_eq!(
        (args.listen.as_str(), args.settings.as_deref()),
        ("127.0.0.1:8181", Some(Path::new("/s.yaml")))
    );
    assert_eq!(args.admin_listen.as_deref(), Some("127.0.0.1:8182"));
    assert_eq!(args.drain_timeout_seconds, 4);
    assert!(args.exit_with_stdin, "no router outlives `up`");
}

#[test]
fn what_up_cannot_do_is_refused_by_field() {
    let refused = |text: &str| plan_of(text, &UpArgs::default()).unwrap_err();
    let routers = demo_and("  router: {replicas: 2}\n");
    assert!(refused(&routers).starts_with("spec.router.replicas: "), "{}", refused(&routers));
    let none = DEMO.replace("  decode:\n    replicas: 1", "  decode:\n    replicas: 0");
    assert!(refused(&none).starts_with("spec.decode.replicas: "), "{}", refused(&none));
    let many = DEMO.replace("replicas: 1", "replicas: 33");
    assert!(refused(&many).contains("at most 64 workers"), "{}", refused(&many));
    let bad = demo_and("  router: {port: 70000}\n");
    assert!(refused(&bad).starts_with("spec.router.port: must be"), "{}", refused(&bad));
}

#[test]
fn what_a_cluster_alone_understands_is_refused_by_field() {
    for (lines, field) in [
        ("  images: {worker: a}\n", "spec.images"),
        ("  router: {resources: {limits: {cpu: 1}}}\n", "spec.router.resources"),
        ("  router: {service: {type: NodePort}}\n", "spec.router.service"),
        ("  router: {podTemplate: {nodeSelector: {a: b}}}\n", "spec.router.podTemplate"),
    ] {
        let error = plan_of(&demo_and(lines), &UpArgs::default()).unwrap_err();
        assert!(error.starts_with(&format!("{field}: `disagg up` starts processes")), "{error}");
    }
    for (role, inner, field) in [
        ("prefill", "resources: {requests: {memory: 1Gi}}", "spec.prefill.resources"),
        ("decode", "podTemplate: {env: [{name: A}]}", "spec.decode.podTemplate"),
    ] {
        let text = DEMO.replace(&format!("  {role}:\n"), &format!("  {role}:\n    {inner}\n"));
        let error = plan_of(&text, &UpArgs::default()).unwrap_err();
        assert!(error.starts_with(field), "{error}");
    }
    for (source, field) in [
        ("pvc: {claimName: a}", "spec.model.source.pvc: "),
        ("image: {reference: a}", "spec.model.source.image: "),
        ("hubId: a/b\n    hubTokenSecret: {name: a}", "spec.model.hubTokenSecret: "),
    ] {
        let error = plan_of(&DEMO.replace("bundled: {}", source), &UpArgs::default()).unwrap_err();
        assert!(error.starts_with(field), "{error}");
    }
}

#[test]
fn limits_of_router_and_drain_reach_the_processes() {
    let text = demo_and(
        "  router: {maxInFlight: 7, requestTimeoutSeconds: 8, maxWaitForWorkerSeconds: 0, routing: round-robin,\n    \
         minWorkers: 2}\n  drainSeconds: 3\n",
    );
    let flags = UpArgs {
        min_workers: Some(5),
        routing: Some(RoutingStrategy::Random),
        prefill: Some(4),
        ..UpArgs::default()
    };
    let overridden = plan_of(&text, &flags).unwrap().router;
    assert_eq!((overridden.routing, overridden.min_workers), (Some(RoutingStrategy::Random), Some(5)));
    let plan = plan_of(&text, &UpArgs::default()).unwrap();
    let args = router_args(&plan, API, ADMIN, &["127.0.0.1:1".to_owned()], Path::new("/s.yaml"));
    let args = AsRouter::try_parse_from(args).unwrap().args;
    assert_eq!((args.max_in_flight, args.request_timeout_seconds), (7, 8));
    assert_eq!((args.routing.as_str(), args.min_workers), ("round-robin", 2));
    assert_eq!((args.max_wait_for_worker_seconds, args.drain_timeout_seconds), (0, 3));
    assert_eq!(worker_config(&plan, 0).serve.drain.as_secs(), 3);
}

#[test]
fn a_router_never_waits_for_more_workers_than_there_are() {
    // The numbers are stated, by a flag, or by default one each.
    let text = demo_and("  router: {minWorkers: 3}\n");
    for bare in [text.clone(), text.replace("replicas: 1", "engine: {}")] {
        let error = plan_of(&bare, &UpArgs::default()).unwrap_err();
        assert!(error.starts_with("spec.router.minWorkers: "), "{error}");
        let flags = UpArgs { decode: Some(2), ..UpArgs::default() };
        assert_eq!(plan_of(&bare, &flags).unwrap().router.min_workers, Some(3));
    }
}

#[test]
fn models_on_the_hub_are_named_by_flag_or_file() {
    let hub = |revision| Model::Hub(HubModel::new("some/model", revision).unwrap());
    let flags = UpArgs { model: Some(ModelRef::of("some/model")), ..UpArgs::default() };
    let plan = demo(&flags);
    assert_eq!((plan.model, plan.served_name.as_str()), (hub(None), "some/model"));
    let text = FULL.replace("path: /models/my-model", "hubId: some/model\n      revision: v1");
    let plan = plan_of(&text, &UpArgs::default()).unwrap();
    assert_eq!((plan.model, plan.served_name.as_str()), (hub(Some("v1")), "my-model"));
}

#[test]
fn a_hub_id_gives_way_to_a_folder() {
    let hub = FULL.replace("path: /models/my-model", "hubId: some/model");
    let flags = UpArgs { model: Some(ModelRef::of("/m")), ..UpArgs::default() };
    assert_eq!(plan_of(&hub, &flags).unwrap().model, Model::Folder("/m".into()));
}

#[test]
fn replicas_left_out_are_one() {
    let text = DEMO.replace("    replicas: 1\n", "").replace("  prefill:\n", "").replace("  decode:\n", "");
    let plan = plan_of(&text, &UpArgs::default()).unwrap();
    assert_eq!((plan.prefill.count, plan.decode.count), (1, 1));
}
