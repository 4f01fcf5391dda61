//! The committed definition is the generated one.

#[test]
fn committed_crd_is_current() {
    let generated = disagg_operator::crd_yaml().unwrap();
    let committed = include_str!("../../crds/disaggdeployments.disagg.dev.yaml");
    assert!(
        generated == committed,
        "the committed CRD is out of date; run\n  cargo run -p disagg-operator --bin crdgen > \
         crds/disaggdeployments.disagg.dev.yaml"
    );
}

/// What is written must read back as the same definition: a string that looks like a number or a boolean is quoted.
#[test]
fn the_yaml_reads_back_as_the_definition() {
    let yaml = disagg_operator::crd_yaml().unwrap();
    let read: serde_json::Value = serde_yaml::from_str(&yaml).unwrap();
    let definition = serde_json::to_value(disagg_api::DisaggDeployment::definition()).unwrap();
    assert_eq!(read, definition);
}
