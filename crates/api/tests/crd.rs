//! The resource, its schema and its validation must tell one story: what the API server refuses, `validate` refuses,
//! and the other way round.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod rules;
mod schema;

use std::collections::BTreeSet;
use std::sync::LazyLock;

use disagg_api::DisaggDeployment;
use disagg_api::crd::ReadError;
use proptest::prelude::*;
use schema::{Rule, Schema};
use serde_json::{Value, json};

const SAMPLES: [(&str, &str); 2] = [
    ("demo.yaml", include_str!("../../../deploy/samples/demo.yaml")),
    ("model-folder.yaml", include_str!("../../../deploy/samples/model-folder.yaml")),
];

static INDEX: LazyLock<regex::Regex> = LazyLock::new(|| regex::Regex::new(r"\[[0-9]+\]").unwrap());
static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::of_the_crd);

fn demo() -> Value {
    serde_yaml::from_str(SAMPLES[0].1).unwrap()
}

/// The demo with the value at `pointer` replaced; parents are made.
fn demo_with(pointer: &str, value: Value) -> Value {
    let mut resource = demo();
    set(&mut resource, pointer, value);
    resource
}

fn set(resource: &mut Value, pointer: &str, value: Value) {
    let mut at = resource;
    for key in pointer.split('/').skip(1) {
        if !at.is_object() {
            *at = json!({});
        }
        at = at.as_object_mut().unwrap().entry(key).or_insert(Value::Null);
    }
    *at = value;
}

fn read(resource: &Value) -> Result<DisaggDeployment, ReadError> {
    DisaggDeployment::from_yaml(&resource.to_string())
}

/// Problems that `validate_in_cluster` finds, as `path: message` lines.
fn problems(resource: &Value) -> String {
    read(resource)
        .unwrap()
        .validate_in_cluster()
        .map_or_else(|invalid| invalid.to_string(), |_| String::new())
}

#[test]
fn samples_are_valid_and_round_trip() {
    let schema = &*SCHEMA;
    for (name, text) in SAMPLES {
        let sample = DisaggDeployment::from_yaml(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        sample.validate().unwrap_or_else(|invalid| panic!("{name}: {invalid}"));
        assert_eq!(schema.problems(&serde_yaml::from_str(text).unwrap()), BTreeSet::new(), "{name}");

        let again = DisaggDeployment::from_yaml(&serde_yaml::to_string(&sample).unwrap()).unwrap();
        assert_eq!(again, sample, "{name}");
        // Nothing that the user wrote is lost on the way through our types.
        let (written, mut kept): (Value, _) =
            (serde_yaml::from_str(text).unwrap(), serde_json::to_value(&sample).unwrap());
        for section in ["router", "disaggregation", "prefill", "decode"] {
            let spec = kept["spec"].as_object_mut().unwrap();
            if spec[section] == json!({}) && written["spec"].get(section).is_none() {
                spec.remove(section);
            }
        }
        assert_eq!(kept, written, "{name}");
    }
}

#[test]
fn a_model_on_the_hub_is_named_with_its_revision() {
    let reference = |source: Value| {
        let resource = read(&demo_with("/spec/model/source", source)).unwrap();
        resource.validate().unwrap();
        resource.spec.model.source.hub_reference()
    };
    assert_eq!(reference(json!({"hubId": "a/b"})).unwrap(), "a/b");
    assert_eq!(reference(json!({"hubId": "a/b", "revision": "refs/pr/1"})).unwrap(), "a/b@refs/pr/1");
    assert_eq!(reference(json!({"path": "/m"})), None);
}

#[test]
fn settings_of_a_resource_fill_in_the_defaults() {
    let settings = read(&demo()).unwrap().validate().unwrap();
    assert_eq!((settings.max_local_prefill_length, settings.max_prefill_queue_depth), (128, 2));
}

#[test]
fn every_field_explains_itself() {
    let mut silent = Vec::new();
    SCHEMA.walk(&mut |path, schema| {
        let described = schema["description"].as_str().is_some_and(|text| text.len() > 10);
        // Entries have no text of their own, and those of `core/v1` are left out for their size.
        let counts = path.starts_with("spec") && !path.ends_with([']', '}']) && !schema::is_core_v1(path);
        if counts && !described {
            silent.push(path.to_owned());
        }
    });
    assert!(silent.is_empty(), "no description for kubectl explain: {silent:?}");
}

#[test]
fn every_number_string_and_list_of_the_spec_is_bounded() {
    let mut unbounded = Vec::new();
    SCHEMA.walk(&mut |path, schema| {
        let bounds: &[&str] = match schema["type"].as_str() {
            Some("integer") if path.rsplit('.').next() == Some("seed") => &["minimum"],
            Some("integer") => &["minimum", "maximum"],
            Some("string") if schema.get("enum").is_none() => &["maxLength"],
            Some("array") => &["maxItems"],
            Some("object") if schema.get("additionalProperties").is_some() => &["maxProperties"],
            _ => &[],
        };
        let ours = path.starts_with("spec") && !schema::is_core_v1(path);
        if ours && bounds.iter().any(|bound| schema.get(*bound).is_none()) {
            unbounded.push(path.to_owned());
        }
    });
    assert!(unbounded.is_empty(), "{unbounded:?}");
}

/// Each rule of the schema is in the table, and the table has no others.
#[test]
fn every_rule_has_a_refused_and_a_valid_case() {
    let stated = SCHEMA.rules();
    let tabled: BTreeSet<Rule> =
        rules::rows().into_iter().map(|row| Rule { path: row.path, rule: row.rule.to_owned() }).collect();
    let untested: Vec<String> = stated.difference(&tabled).map(ToString::to_string).collect();
    assert!(untested.is_empty(), "rules without a row in tests/rules: {untested:#?}");
    let gone: Vec<String> = tabled.difference(&stated).map(ToString::to_string).collect();
    assert!(gone.is_empty(), "rows without a rule in the schema: {gone:#?}");
}

#[test]
fn every_rule_refuses_its_case_and_no_more() {
    let schema = &*SCHEMA;
    for row in rules::rows() {
        let shown = format!("{}: {}", row.path, row.rule);
        let refused = rules::with(&row.at, &row.refused);
        let found = schema.problems(&refused);
        let rule = Rule { path: row.path.clone(), rule: row.rule.to_owned() };
        assert!(found.contains(&rule), "{shown}: not refused by it but by {found:?}");
        let valid = rules::with(&row.at, &row.valid);
        assert_eq!(schema.problems(&valid), BTreeSet::new(), "{shown}: {}", row.valid);

        // Our own validation agrees, and names the field.
        match read(&refused).map(|resource| resource.validate_in_cluster()) {
            // A missing field or a word that is none of the allowed ones is noticed while reading.
            Err(error) => assert!(row.rule.starts_with("required") || row.rule == "enum", "{shown}: {error}"),
            Ok(Ok(_)) => panic!("{shown}: validate allows {}", row.refused),
            Ok(Err(invalid)) => {
                let expected = |problem: &disagg_api::crd::Problem| {
                    let path = INDEX.replace_all(&problem.path, "[]");
                    let field = row.path.trim_end_matches("{}");
                    path == row.path
                        || (row.path.ends_with("{}") && path.starts_with(field))
                        || row.path.is_empty()
                };
                assert!(invalid.0.iter().any(expected), "{shown}: {invalid}");
            }
        }
        read(&valid)
            .unwrap_or_else(|error| panic!("{shown}: {error}"))
            .validate_in_cluster()
            .unwrap_or_else(|invalid| panic!("{shown}: {invalid}"));
    }
}

/// The API server takes whole numbers and texts alone, and so do we; ours says what to write instead.
#[test]
fn a_fraction_without_quotes_is_refused_in_words() {
    let amount = |amount: Value| demo_with("/spec/decode/resources/requests/cpu", amount);
    for fine in [json!("0.5"), json!("500m"), json!(1)] {
        let resource = amount(fine);
        assert_eq!((problems(&resource), SCHEMA.problems(&resource)), (String::new(), BTreeSet::new()));
    }
    for refused in [json!(0.5), json!(true), json!({})] {
        let resource = amount(refused);
        let rule = Rule { path: "spec.decode.resources.requests{}".to_owned(), rule: "type".to_owned() };
        assert!(SCHEMA.problems(&resource).contains(&rule));
        let error = read(&resource).unwrap_err().to_string();
        assert!(
            error.starts_with("spec.decode.resources.requests.cpu: ")
                && error.contains("a fraction as text: \"0.5\""),
            "{error}"
        );
    }
}

#[test]
fn a_relative_path_is_for_one_machine_alone() {
    let resource = read(&demo_with("/spec/model/source", json!({ "path": "models/a" }))).unwrap();
    resource.validate().unwrap();
    resource.validate_in_cluster().unwrap_err();
}

/// `kubectl apply` keeps what it last applied in an annotation, which may have 256 KiB with all others.
#[test]
fn the_definition_can_be_applied_from_the_clients_side() {
    let length = serde_json::to_string(&DisaggDeployment::definition()).unwrap().len();
    assert!(length < 200_000, "{length} bytes");
}

#[test]
fn replicas_have_no_default_and_scale_points_at_them() {
    let crd = serde_json::to_value(DisaggDeployment::definition()).unwrap();
    let version = &crd["spec"]["versions"][0];
    let scale = &version["subresources"]["scale"];
    let properties = |path: &str| {
        let pointer = path.replace('.', "/properties/");
        version
            .pointer(&format!("/schema/openAPIV3Schema{pointer}"))
            .cloned()
            .unwrap_or_else(|| panic!("{path}"))
    };
    assert_eq!(scale["specReplicasPath"], ".spec.decode.replicas");
    for path in ["specReplicasPath", "statusReplicasPath"] {
        assert_eq!(properties(scale[path].as_str().unwrap())["type"], "integer");
    }
    assert_eq!(properties(scale["labelSelectorPath"].as_str().unwrap())["type"], "string");
    for path in [".spec.prefill.replicas", ".spec.decode.replicas"] {
        assert!(properties(path).get("default").is_none(), "{path}");
    }
}

#[test]
fn validate_names_every_bad_field() {
    let cases: &[(&str, Value, &str)] = &[
        ("/metadata/name", json!("Demo"), "metadata.name: must start with a letter"),
        ("/metadata/name", json!("a".repeat(41)), "metadata.name: must"),
        ("/metadata/name", json!("a-"), "metadata.name: must"),
        ("/spec/model/source", json!({}), "spec.model.source: exactly one of"),
        ("/spec/model/source/path", json!("/m"), "spec.model.source: exactly one of"),
        (
            "/spec/model/source",
            json!({"hubId": "a/b", "revision": ""}),
            "spec.model.source.revision: must have from 1 to 200",
        ),
        (
            "/spec/model/source",
            json!({"hubId": "llama"}),
            "spec.model.source.hubId: must be organization/name",
        ),
        (
            "/spec/model/source",
            json!({"random": {"seed": -1}}),
            "spec.model.source.random.seed: must be from 0",
        ),
        ("/spec/model/servedName", json!(""), "spec.model.servedName: must have from 1 to 200"),
        ("/spec/model/maxLength", json!(0), "spec.model.maxLength: must be from 2 to 16777216, not 0"),
        ("/spec/kvCache/blockSize", json!(1025), "spec.kvCache.blockSize: must be from 1 to 1024"),
        ("/spec/prefill/replicas", json!(-1), "spec.prefill.replicas: must be from 0 to 1024"),
        ("/spec/decode/replicas", json!(1025), "spec.decode.replicas: must be from 0 to 1024"),
        ("/spec/decode/engine/device", json!("gpu"), "spec.decode.engine.device: must be auto, cpu, cuda"),
        ("/spec/decode/engine/device", json!(""), "spec.decode.engine.device: must have from 1"),
        ("/spec/decode/engine/maxNumSeqs", json!(0), "spec.decode.engine.maxNumSeqs: must be"),
        ("/spec/decode/engine/kvCacheBytes", json!(1), "spec.decode.engine.kvCacheBytes: must be"),
        (
            "/spec/prefill/engine",
            json!({"kvCacheBytes": 2_097_152, "numBlocks": 4}),
            "spec.prefill.engine: kvCacheBytes and numBlocks",
        ),
        ("/spec/router/port", json!(65_536), "spec.router.port: must be from 1 to 65535"),
        ("/spec/router/replicas", json!(0), "spec.router.replicas: must be from 1"),
        (
            "/spec/disaggregation/maxLocalPrefillLength",
            json!(-5),
            "spec.disaggregation.maxLocalPrefillLength: must be a whole number of tokens from 0 to 16777216, not -5",
        ),
        (
            "/spec/disaggregation/maxPrefillQueueDepth",
            json!(0),
            "spec.disaggregation.maxPrefillQueueDepth: must be",
        ),
        (
            "/spec/disaggregation/overlapWeightPercent",
            json!(10_001),
            "spec.disaggregation.overlapWeightPercent: must be a whole number of percent from 0 to 10000, not 10001",
        ),
    ];
    for (pointer, value, expected) in cases {
        let found = problems(&demo_with(pointer, value.clone()));
        assert!(found.contains(expected), "{pointer} = {value}: {found:?}");
        assert_eq!(found.lines().count(), 1, "{found}");
    }
}

#[test]
fn validate_reports_all_problems_together() {
    let mut resource = demo_with("/spec/router/port", json!(0));
    set(&mut resource, "/spec/decode/replicas", json!(-1));
    set(&mut resource, "/metadata/name", json!("9"));
    assert_eq!(problems(&resource).lines().count(), 3);
}

#[test]
fn reading_is_strict() {
    let error = |resource: &Value| read(resource).unwrap_err().to_string();
    assert_eq!(error(&demo_with("/spec/prefil/replicas", json!(2))), "spec.prefil: no such field");
    assert_eq!(
        error(&demo_with("/spec/decode/engine/speed", json!(2))),
        "spec.decode.engine.speed: no such field"
    );
    assert_eq!(
        error(&demo_with("/spec/model/source/random/x", json!(2))),
        "spec.model.source.random.x: no such field"
    );
    assert_eq!(
        error(&demo_with("/kind", json!("Deployment"))),
        "kind must be DisaggDeployment, not Deployment"
    );
    assert!(
        error(&demo_with("/apiVersion", json!("v1"))).starts_with("apiVersion must be disagg.dev/v1alpha1")
    );
    let bad_type = error(&demo_with("/spec/decode/replicas", json!("two")));
    assert!(bad_type.starts_with("spec.decode.replicas: invalid type"), "{bad_type}");
    let missing = error(&demo_with("/spec/model", json!({})));
    assert!(missing.contains("missing field `source`"), "{missing}");
    for text in ["", "a: [", "- 1", "12"] {
        DisaggDeployment::from_yaml(text).unwrap_err();
    }
    let two = format!("{}---\n{}", SAMPLES[0].1, SAMPLES[1].1);
    assert!(matches!(DisaggDeployment::from_yaml(&two), Err(ReadError::Syntax(_))));
}

/// Values at, inside and outside of every bound, absent ones included. Boxed: a tuple of many plain ones is more than the
/// stack of a test holds where the compiler does not optimise.
fn near(min: i64, max: i64) -> BoxedStrategy<Option<i64>> {
    prop_oneof![
        3 => Just(None),
        3 => Just(Some(min)),
        3 => Just(Some(max)),
        1 => Just(Some(min - 1)),
        1 => Just(Some(max + 1)),
    ]
    .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn schema_and_validate_agree(
        name in prop_oneof![4 => "[a-z][-a-z0-9]{0,5}[a-z0-9]", 1 => "[-a-z0-9A-Z.]{1,6}", 1 => "[a-z]{38,42}"],
        path in proptest::option::weighted(0.3, "/?[a-z]{0,2}"),
        hub_id in proptest::option::weighted(0.3, "[a-z.-]{0,2}/?[a-z_]{0,2}"),
        random: bool,
        bundled in proptest::bool::weighted(0.2),
        both_sizes: bool,
        length in near(2, 16_777_216),
        block_size in near(1, 1024),
        replicas in near(0, 1024),
        tokens in near(1, 1_048_576),
        seqs in near(1, 4096),
        bytes in near(1_048_576, 1_125_899_906_842_624),
        blocks in near(1, 16_777_216),
        amount in proptest::option::weighted(0.5, "[0-9.]{0,3}(|[KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]{0,2}|[a-z])"),
        claim_path in proptest::option::weighted(0.3, "[-_./a-z]{0,5}"),
        port in near(1, 65_535),
        threshold in near(0, 16_777_216),
        depth in near(1, 1024),
        decode in proptest::option::weighted(0.7, 0..3_i64),
        min_workers in proptest::option::weighted(0.7, 1..5_i64),
    ) {
        let mut resource = demo();
        set(&mut resource, "/metadata/name", json!(name));
        let mut source = serde_json::Map::new();
        if let Some(path) = path { source.insert("path".to_owned(), json!(path)); }
        if let Some(hub_id) = hub_id { source.insert("hubId".to_owned(), json!(hub_id)); }
        if bundled { source.insert("bundled".to_owned(), json!({})); }
        if random { source.insert("random".to_owned(), json!({})); }
        if let Some(path) = claim_path {
            source.insert("pvc".to_owned(), json!({ "claimName": "a", "path": path }));
        }
        set(&mut resource, "/spec/model/source", Value::Object(source));
        let numbers = [
            ("/spec/model/maxLength", length),
            ("/spec/kvCache/blockSize", block_size),
            ("/spec/prefill/replicas", replicas),
            ("/spec/decode/replicas", decode),
            ("/spec/router/minWorkers", min_workers),
            ("/spec/prefill/engine/maxNumBatchedTokens", tokens),
            ("/spec/decode/engine/maxNumSeqs", seqs),
            ("/spec/decode/engine/kvCacheBytes", bytes),
            ("/spec/decode/engine/numBlocks", blocks.filter(|_| both_sizes)),
            ("/spec/router/port", port),
            ("/spec/disaggregation/maxLocalPrefillLength", threshold),
            ("/spec/disaggregation/maxPrefillQueueDepth", depth),
        ];
        for (pointer, number) in numbers {
            if let Some(number) = number { set(&mut resource, pointer, json!(number)); }
        }
        if let Some(amount) = amount {
            set(&mut resource, "/spec/decode/resources/requests/cpu", json!(amount));
        }
        let ours = problems(&resource);
        let theirs = SCHEMA.problems(&resource);
        prop_assert_eq!(ours.is_empty(), theirs.is_empty(), "{}\nvalidate: {}\nschema: {:?}", resource, ours, theirs);
    }

    #[test]
    fn schema_and_validate_agree_on_paths(mount in "/?[./:a]{0,8}", below in "[./a]{0,6}") {
        let mut resource = demo();
        set(&mut resource, "/spec/decode/podTemplate", json!({
            "volumes": [{ "name": "a", "emptyDir": {} }],
            "volumeMounts": [{ "name": "a", "mountPath": mount, "subPath": below }],
        }));
        let ours = problems(&resource);
        let theirs = SCHEMA.problems(&resource);
        for (field, text) in [("mountPath", mount), ("subPath", below)] {
            let schema = theirs.iter().any(|rule| rule.path.ends_with(field));
            prop_assert_eq!(ours.contains(field), schema, "{:?}\nvalidate: {}\nschema: {:?}", text, ours, theirs);
        }
    }

    #[test]
    fn no_text_panics(text in "(?s).{0,300}") {
        let _ = DisaggDeployment::from_yaml(&text);
    }
}
