//! Every rule of the schema with one value that it refuses and the nearest one that is valid.
//!
//! The tests of this crate hold the table against our own validation and against an emulated API server; the
//! end-to-end tests hold it against a real one. It depends on `serde_json` alone, so that both can include it.

use serde_json::{Map, Value, json};

/// One rule, a value that it refuses, and the nearest valid one.
pub struct Row {
    /// Where the rule stands: `a.b`, `a[].b` of a list's entries, `a{}` of a map's values.
    pub path: String,
    /// Name of the rule, or the message of a CEL rule.
    pub rule: &'static str,
    /// Where both values go. The rest is [`base`].
    pub at: String,
    pub refused: Value,
    pub valid: Value,
}

/// A valid resource.
pub fn base() -> Value {
    json!({
        "apiVersion": "disagg.dev/v1alpha1",
        "kind": "DisaggDeployment",
        "metadata": { "name": "rules" },
        "spec": {
            "model": { "source": { "random": {} } },
            // No pods are needed to look at rules.
            "prefill": { "replicas": 0 },
            "decode": { "replicas": 0 },
        },
    })
}

/// [`base`] with `value` at `at`, or without anything there if it is null.
pub fn with(at: &str, value: &Value) -> Value {
    let mut resource = base();
    let (parents, field) = at.rsplit_once('.').unwrap_or(("", at));
    let mut place = &mut resource;
    for key in parents.split('.').filter(|key| !key.is_empty()) {
        place =
            place.as_object_mut().expect("no row goes below a plain value").entry(key).or_insert(json!({}));
    }
    let fields = place.as_object_mut().expect("no row goes below a plain value");
    if value.is_null() {
        fields.remove(field);
    } else {
        fields.insert(field.to_owned(), value.clone());
    }
    resource
}

/// The table.
pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |path: &str, rule: &'static str, at: Option<&str>, refused: Value, valid: Value| {
        for path in expand(path) {
            let own = path.split(['[', '{']).next().expect("split gives one").to_owned();
            let at = at.map_or(own, |at| expand_like(at, &path));
            rows.push(Row { path, rule, at, refused: refused.clone(), valid: valid.clone() });
        }
    };
    resource(&mut add);
    model(&mut add);
    workers(&mut add);
    router(&mut add);
    monitoring(&mut add);
    containers(&mut add);
    pods(&mut add);
    rows
}

type Add<'a> = &'a mut dyn FnMut(&str, &'static str, Option<&str>, Value, Value);

fn resource(add: Add<'_>) {
    let name = Some("metadata.name");
    add(
        "",
        "metadata.name must be at most 40 characters long: the names of its children add to it",
        name,
        json!("n".repeat(41)),
        json!("n".repeat(40)),
    );
    add(
        "",
        "metadata.name must start with a letter, hold only a-z, 0-9 and '-', and end in a letter or digit",
        name,
        json!("1model"),
        json!("model1"),
    );
    let spec = base()["spec"].clone();
    add("", "required spec", Some("spec"), json!(null), spec.clone());
    add("spec", "required model", Some("spec.model"), json!(null), spec["model"].clone());
    let waiting_for = |min_workers: i64| {
        json!({
            "model": { "source": { "random": {} } }, "prefill": { "replicas": 1 }, "decode": { "replicas": 2 },
            "router": { "minWorkers": min_workers, "replicas": 1 },
        })
    };
    add(
        "",
        "router.minWorkers must be at most prefill.replicas + decode.replicas: a router waits until so many are ready",
        Some("spec"),
        waiting_for(4),
        waiting_for(3),
    );
    add("spec.kvCache.blockSize", "minimum", None, json!(0), json!(1));
    add("spec.kvCache.blockSize", "maximum", None, json!(1025), json!(1024));
    add("spec.kvCache.dtype", "enum", None, json!("fp8"), json!("bfloat16"));
    add("spec.drainSeconds", "minimum", None, json!(-1), json!(0));
    add("spec.drainSeconds", "maximum", None, json!(3601), json!(3600));
    add("spec.progressDeadlineSeconds", "minimum", None, json!(0), json!(1));
    add("spec.progressDeadlineSeconds", "maximum", None, json!(86_401), json!(86_400));
    let path = "spec.disaggregation.maxLocalPrefillLength";
    add(path, "minimum", None, json!(-1), json!(0));
    add(path, "maximum", None, json!(16_777_217), json!(16_777_216));
    let path = "spec.disaggregation.maxPrefillQueueDepth";
    add(path, "minimum", None, json!(0), json!(1));
    add(path, "maximum", None, json!(1025), json!(1024));
    let path = "spec.disaggregation.overlapWeightPercent";
    add(path, "minimum", None, json!(-1), json!(0));
    add(path, "maximum", None, json!(10_001), json!(10_000));
    add("spec.disaggregation.fallbackPolicy", "enum", None, json!("local"), json!("Local"));
}

fn model(add: Add<'_>) {
    let source = "spec.model.source";
    let at = Some(source);
    add("spec.model", "required source", at, json!(null), json!({ "random": {} }));
    let one = "exactly one of path, hubId, pvc, image, bundled and random must be set";
    add(source, one, at, json!({}), json!({ "random": {} }));
    add(source, one, at, json!({ "bundled": {}, "random": {} }), json!({ "bundled": {} }));
    let revision = "revision is that of a model on the hub: it needs hubId";
    add(
        source,
        revision,
        at,
        json!({ "random": {}, "revision": "main" }),
        json!({ "hubId": "a/b", "revision": "main" }),
    );
    let absolute = "path must be absolute in a cluster: it is a folder inside the workers' containers";
    add(source, absolute, at, json!({ "path": "models/a" }), json!({ "path": "/models/a" }));

    let path = |value: String| json!({ "path": value });
    add("spec.model.source.path", "minLength", at, path(String::new()), path("/".to_owned()));
    add("spec.model.source.path", "maxLength", at, path(long("/", 4097)), path(long("/", 4096)));

    let hub = |id: String| json!({ "hubId": id });
    add("spec.model.source.hubId", "pattern", at, hub("llama".to_owned()), hub("meta/llama".to_owned()));
    add("spec.model.source.hubId", "minLength", at, hub("a/".to_owned()), hub("a/b".to_owned()));
    add("spec.model.source.hubId", "maxLength", at, hub(long("a/", 201)), hub(long("a/", 200)));
    let revision = |revision: String| json!({ "hubId": "a/b", "revision": revision });
    add(
        "spec.model.source.revision",
        "pattern",
        at,
        revision("../main".to_owned()),
        revision("main".to_owned()),
    );
    add("spec.model.source.revision", "minLength", at, revision(String::new()), revision("v".to_owned()));
    add("spec.model.source.revision", "maxLength", at, revision(long("v", 201)), revision(long("v", 200)));

    let claim = |name: String| json!({ "pvc": { "claimName": name } });
    add("spec.model.source.pvc", "required claimName", at, json!({ "pvc": {} }), claim("models".to_owned()));
    name_rules(add, "spec.model.source.pvc.claimName", at, &claim);
    let path = |path: String| json!({ "pvc": { "claimName": "models", "path": path } });
    relative_path_rules(add, "spec.model.source.pvc.path", at, &path);

    let image = |image: String| json!({ "image": { "reference": image } });
    add(
        "spec.model.source.image",
        "required reference",
        at,
        json!({ "image": {} }),
        image("models:1".to_owned()),
    );
    image_rules(add, "spec.model.source.image.reference", at, &image);
    let path = |path: String| json!({ "image": { "reference": "models:1", "path": path } });
    relative_path_rules(add, "spec.model.source.image.path", at, &path);

    add("spec.model.source.random.seed", "minimum", None, json!(-1), json!(0));
    add("spec.model.servedName", "minLength", None, json!(""), json!("m"));
    add("spec.model.servedName", "maxLength", None, json!(long("m", 201)), json!(long("m", 200)));
    add("spec.model.maxLength", "minimum", None, json!(1), json!(2));
    add("spec.model.maxLength", "maximum", None, json!(16_777_217), json!(16_777_216));
    add("spec.model.dtype", "enum", None, json!("int8"), json!("float16"));
    add("spec.model.loadFormat", "enum", None, json!("safetensors"), json!("dummy"));

    let at = Some("spec.model");
    let secret = json!({ "name": "hub" });
    add(
        "spec.model",
        "hubTokenSecret is for models of the hub: it needs source.hubId",
        at,
        json!({ "source": { "random": {} }, "hubTokenSecret": secret }),
        json!({ "source": { "hubId": "a/b" }, "hubTokenSecret": secret }),
    );
    let with_secret = |secret: Value| json!({ "source": { "hubId": "a/b" }, "hubTokenSecret": secret });
    add("spec.model.hubTokenSecret", "required name", at, with_secret(json!({})), with_secret(secret));
    name_rules(add, "spec.model.hubTokenSecret.name", at, &|name| with_secret(json!({ "name": name })));
    let key = |key: String| with_secret(json!({ "name": "hub", "key": key }));
    let path = "spec.model.hubTokenSecret.key";
    add(path, "pattern", at, key("to ken".to_owned()), key("to-ken".to_owned()));
    add(path, "minLength", at, key(String::new()), key("t".to_owned()));
    add(path, "maxLength", at, key(long("t", 254)), key(long("t", 253)));
}

fn workers(add: Add<'_>) {
    let mut range = |field: &str, min: i64, max: i64| {
        let path = format!("ROLE.{field}");
        add(&path, "minimum", None, json!(min - 1), json!(min));
        add(&path, "maximum", None, json!(max + 1), json!(max));
    };
    range("replicas", 0, 1024);
    range("tensorParallelSize", 1, 1);
    range("engine.maxNumBatchedTokens", 1, 1_048_576);
    range("engine.maxNumSeqs", 1, 4096);
    range("engine.kvCacheBytes", 1_048_576, 1_125_899_906_842_624);
    range("engine.numBlocks", 1, 16_777_216);
    let device = "ROLE.engine.device";
    add(device, "minLength", None, json!(""), json!("cpu"));
    add(device, "maxLength", None, json!(long("sim:", 201)), json!(long("sim:", 200)));
    add(device, "pattern", None, json!("gpu"), json!("sim:decode-step-ms=2.5"));
    let share = "ROLE.engine.gpuMemoryUtilizationPercent";
    let with_gpu = |percent: i64| {
        json!({
            "replicas": 0,
            "engine": { "gpuMemoryUtilizationPercent": percent },
            "resources": { "limits": { "nvidia.com/gpu": 1 } },
        })
    };
    add(share, "minimum", Some("ROLE"), with_gpu(0), with_gpu(1));
    add(share, "maximum", Some("ROLE"), with_gpu(101), with_gpu(100));
    add(
        "ROLE",
        "engine.gpuMemoryUtilizationPercent needs a GPU: set resources.limits['nvidia.com/gpu']",
        Some("ROLE"),
        json!({ "replicas": 0, "engine": { "gpuMemoryUtilizationPercent": 90 } }),
        with_gpu(90),
    );
    add(
        "ROLE",
        "resources.limits['nvidia.com/gpu'] must be 0 or 1: a worker uses tensorParallelSize GPUs",
        Some("ROLE.resources"),
        json!({ "limits": { "nvidia.com/gpu": 2 } }),
        json!({ "limits": { "nvidia.com/gpu": "1" } }),
    );
    add(
        "ROLE.engine",
        "kvCacheBytes and numBlocks both size the KV pool; set one of them",
        None,
        json!({ "kvCacheBytes": 1_048_576, "numBlocks": 1 }),
        json!({ "numBlocks": 1 }),
    );
}

fn router(add: Add<'_>) {
    let mut range = |field: &str, min: i64, max: i64| {
        let path = format!("spec.router.{field}");
        add(&path, "minimum", None, json!(min - 1), json!(min));
        add(&path, "maximum", None, json!(max + 1), json!(max));
    };
    range("replicas", 1, 64);
    range("port", 1, 65_535);
    range("maxInFlight", 1, 1_000_000);
    range("requestTimeoutSeconds", 1, 86_400);
    range("maxWaitForWorkerSeconds", 0, 3600);
    range("minWorkers", 1, 2048);
    add("spec.router.routing", "enum", None, json!("prefix"), json!("least-loaded"));
    add("spec.router.service.type", "enum", None, json!("ExternalName"), json!("ClusterIP"));
    text_map_rules(add, "spec.router.service.annotations", 4096);
}

fn monitoring(add: Add<'_>) {
    let monitor = "spec.monitoring.podMonitor";
    let interval = "spec.monitoring.podMonitor.interval";
    add(interval, "pattern", None, json!("30"), json!("30s"));
    add(interval, "maxLength", None, json!("1000000ms"), json!("100000ms"));
    text_map_rules(add, "spec.monitoring.podMonitor.labels", 63);
    add(
        monitor,
        "labels below disagg.dev/ and app.kubernetes.io/ are set by the operator",
        None,
        json!({ "labels": { "disagg.dev/role": "mine" } }),
        json!({ "labels": { "release": "prometheus" } }),
    );
}

fn containers(add: Add<'_>) {
    for path in ["COMPONENT.resources.requests", "COMPONENT.resources.limits"] {
        let named = |names: usize| {
            (0..names).map(|name| (format!("example.com/r{name}"), json!(1))).collect::<Map<String, Value>>()
        };
        add(path, "maxProperties", None, json!(named(17)), json!(named(16)));
        let cpu = |amount: Value| json!({ "cpu": amount });
        let values = format!("{path}{{}}");
        add(&values, "pattern", None, cpu(json!("2 cores")), cpu(json!("2")));
        add(&values, "maxLength", None, cpu(json!(long("1", 33))), cpu(json!("1")));
        add(&values, "minimum", None, cpu(json!(-1)), cpu(json!(0)));
    }
    for image in ["spec.images.worker", "spec.images.router"] {
        image_rules(add, image, None, &|image| json!(image));
    }
    add("spec.images.pullPolicy", "enum", None, json!("Sometimes"), json!("Never"));
    let secrets = "spec.images.pullSecrets";
    list_rules(add, secrets, 16, &|name| json!({ "name": name }));
    add(&format!("{secrets}[]"), "required name", None, json!([{}]), json!([{ "name": "a" }]));
    name_rules(add, &format!("{secrets}[].name"), None, &|name| json!([{ "name": name }]));
}

fn pods(add: Add<'_>) {
    let pod = "COMPONENT.podTemplate";
    let mut rule = |rule: &'static str, refused: Value, valid: Value| add(pod, rule, None, refused, valid);
    rule(
        "labels below disagg.dev/ and app.kubernetes.io/ are set by the operator",
        json!({ "labels": { "app.kubernetes.io/name": "mine" } }),
        json!({ "labels": { "example.com/name": "mine" } }),
    );
    rule(
        "annotations below disagg.dev/ are set by the operator",
        json!({ "annotations": { "disagg.dev/config-hash": "1" } }),
        json!({ "annotations": { "example.com/config-hash": "1" } }),
    );
    rule(
        "env must not hold DISAGG_*, HF_HOME, HF_TOKEN, XDG_CACHE_HOME, POD_NAME or POD_IP: the operator sets those",
        json!({ "env": [{ "name": "DISAGG_ROLE", "value": "both" }] }),
        json!({ "env": [{ "name": "RUST_LOG", "value": "debug" }] }),
    );
    let mount = |name: &str, path: &str| json!({ "volumes": [{ "name": "a", "emptyDir": {} }], "volumeMounts": [{ "name": name, "mountPath": path }] });
    rule(
        "volumes must not be named model, cache or tmp: the operator has those",
        json!({ "volumes": [{ "name": "cache", "emptyDir": {} }] }),
        json!({ "volumes": [{ "name": "caches", "emptyDir": {} }] }),
    );
    rule("volumeMounts must name volumes of this podTemplate", mount("b", "/a"), mount("a", "/a"));
    rule(
        "volumeMounts must not be at /, /tmp, /cache or /model: the operator mounts those",
        mount("a", "/tmp"),
        mount("a", "/tmp/a"),
    );

    text_map_rules(add, &format!("{pod}.labels"), 63);
    text_map_rules(add, &format!("{pod}.annotations"), 4096);
    text_map_rules(add, &format!("{pod}.nodeSelector"), 63);
    add(&format!("{pod}.tolerations"), "maxItems", None, many(33, |_| json!({})), many(32, |_| json!({})));
    let spread = |at: usize| json!({ "maxSkew": 1, "topologyKey": format!("zone{at}"), "whenUnsatisfiable": "ScheduleAnyway" });
    add(&format!("{pod}.topologySpreadConstraints"), "maxItems", None, many(33, spread), many(32, spread));
    for class in ["priorityClassName", "runtimeClassName"] {
        name_rules(add, &format!("{pod}.{class}"), None, &|name| json!(name));
    }

    let env = format!("{pod}.env");
    list_rules(add, &env, 32, &|name| json!({ "name": name }));
    add(
        &format!("{env}[]"),
        "required name",
        None,
        json!([{ "value": "1" }]),
        json!([{ "name": "A", "value": "1" }]),
    );
    let from = json!({ "fieldRef": { "fieldPath": "spec.nodeName" } });
    add(
        &format!("{env}[]"),
        "value and valueFrom both give the value; set one of them",
        None,
        json!([{ "name": "A", "value": "1", "valueFrom": from }]),
        json!([{ "name": "A", "valueFrom": from }]),
    );
    let name = |name: String| json!([{ "name": name }]);
    add(&format!("{env}[].name"), "pattern", None, name("1A".to_owned()), name("A1".to_owned()));
    add(&format!("{env}[].name"), "minLength", None, name(String::new()), name("A".to_owned()));
    add(&format!("{env}[].name"), "maxLength", None, name(long("A", 129)), name(long("A", 128)));
    let value = |length: usize| json!([{ "name": "A", "value": long("v", length) }]);
    add(&format!("{env}[].value"), "maxLength", None, value(4097), value(4096));

    let volumes = format!("{pod}.volumes");
    list_rules(add, &volumes, 32, &|name| json!({ "name": name, "emptyDir": {} }));

    let at = Some(pod);
    let mounts = format!("{pod}.volumeMounts");
    let with =
        |mounts: Value| json!({ "volumes": [{ "name": "a", "emptyDir": {} }], "volumeMounts": mounts });
    let paths = |at: usize| json!({ "name": "a", "mountPath": format!("/a/{at}") });
    add(&mounts, "maxItems", at, with(many(33, paths)), with(many(32, paths)));
    add(&mounts, "unique", at, with(json!([paths(1), paths(1)])), with(json!([paths(1), paths(2)])));
    add(
        &format!("{mounts}[]"),
        "required mountPath",
        at,
        with(json!([{ "name": "a" }])),
        with(json!([paths(1)])),
    );
    add(
        &format!("{mounts}[]"),
        "required name",
        at,
        with(json!([{ "mountPath": "/a/1" }])),
        with(json!([paths(1)])),
    );
    let named = |name: String| json!({ "volumes": [{ "name": name, "emptyDir": {} }], "volumeMounts": [{ "name": name, "mountPath": "/a" }] });
    let path = format!("{mounts}[].name");
    add(&path, "pattern", at, named("A".to_owned()), named("a".to_owned()));
    add(&path, "minLength", at, named(String::new()), named("a".to_owned()));
    add(&path, "maxLength", at, named(long("a", 64)), named(long("a", 63)));
    let mounted = |path: String| with(json!([{ "name": "a", "mountPath": path }]));
    let path = format!("{mounts}[].mountPath");
    // Each a way around the rule on the operator's folders, or a path that no runtime takes; beside it one that is fine.
    for (refused, valid) in [
        ("a", "/a"),
        ("/model/", "/models"),
        ("/cache/../tmp", "/cache/..tmp"),
        ("/.", "/.a"),
        ("/..", "/a.."),
        ("//tmp", "/tmp.d"),
        ("/a/./b", "/a/.b"),
        ("/a:b", "/a b"),
        ("/a\nb", "/a-b"),
    ] {
        add(&path, "pattern", at, mounted(refused.to_owned()), mounted(valid.to_owned()));
    }
    add(&path, "minLength", at, mounted(String::new()), mounted("/a".to_owned()));
    add(&path, "maxLength", at, mounted(long("/", 4097)), mounted(long("/", 4096)));
    let below = |path: String| with(json!([{ "name": "a", "mountPath": "/a", "subPath": path }]));
    let path = format!("{mounts}[].subPath");
    for (refused, valid) in [("/b", "b"), ("b/../..", "b/..c"), ("../b", "..b"), ("b/", "b/c"), (".", ".b")] {
        add(&path, "pattern", at, below(refused.to_owned()), below(valid.to_owned()));
    }
    add(&path, "minLength", at, below(String::new()), below("b".to_owned()));
    add(&path, "maxLength", at, below(long("b", 4097)), below(long("b", 4096)));
}

fn text_map_rules(add: Add<'_>, path: &str, limit: usize) {
    let named = |names: usize| {
        (0..names).map(|name| (format!("example.com/{name}"), json!("v"))).collect::<Map<String, Value>>()
    };
    add(path, "maxProperties", None, json!(named(65)), json!(named(64)));
    let value = |length: usize| json!({ "example.com/a": long("v", length) });
    add(&format!("{path}{{}}"), "maxLength", None, value(limit + 1), value(limit));
}

fn list_rules(add: Add<'_>, path: &str, limit: usize, entry: &dyn Fn(&str) -> Value) {
    let numbered = |at: usize| entry(&format!("n{at}"));
    add(path, "maxItems", None, many(limit + 1, numbered), many(limit, numbered));
    add(path, "unique", None, json!([entry("a"), entry("a")]), json!([entry("a"), entry("b")]));
}

fn name_rules(add: Add<'_>, path: &str, at: Option<&str>, value: &dyn Fn(String) -> Value) {
    add(path, "pattern", at, value("Name".to_owned()), value("name".to_owned()));
    add(path, "minLength", at, value(String::new()), value("n".to_owned()));
    add(path, "maxLength", at, value(long("n", 254)), value(long("n", 253)));
}

fn image_rules(add: Add<'_>, path: &str, at: Option<&str>, value: &dyn Fn(String) -> Value) {
    add(path, "pattern", at, value("image latest".to_owned()), value("image:latest".to_owned()));
    add(path, "minLength", at, value(String::new()), value("i".to_owned()));
    add(path, "maxLength", at, value(long("i", 513)), value(long("i", 512)));
}

fn relative_path_rules(add: Add<'_>, path: &str, at: Option<&str>, value: &dyn Fn(String) -> Value) {
    add(path, "pattern", at, value("/llama".to_owned()), value("llama".to_owned()));
    add(path, "minLength", at, value(String::new()), value("l".to_owned()));
    add(path, "maxLength", at, value(long("l", 4097)), value(long("l", 4096)));
}

/// `start` and as many `a` as give `length` characters.
fn long(start: &str, length: usize) -> String {
    format!("{start}{}", "a".repeat(length - start.len()))
}

fn many(length: usize, entry: impl Fn(usize) -> Value) -> Value {
    (0..length).map(entry).collect()
}

/// The paths that `path` stands for: `ROLE` is either role, `COMPONENT` a role or the router.
fn expand(path: &str) -> Vec<String> {
    let roles = ["spec.prefill", "spec.decode"];
    let components = ["spec.prefill", "spec.decode", "spec.router"];
    match path.split_once('.').map_or(path, |(first, _)| first) {
        "ROLE" => roles.iter().map(|role| path.replacen("ROLE", role, 1)).collect(),
        "COMPONENT" => components.iter().map(|name| path.replacen("COMPONENT", name, 1)).collect(),
        _ => vec![path.to_owned()],
    }
}

/// `at` below the same role or component as `path`.
fn expand_like(at: &str, path: &str) -> String {
    let own = path.split('.').take(2).collect::<Vec<_>>().join(".");
    at.replacen("ROLE", &own, 1).replacen("COMPONENT", &own, 1)
}
