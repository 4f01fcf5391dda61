//! Every `DisaggDeployment` below `deploy/samples` can be applied as it stands.

use std::collections::BTreeMap;
use std::path::Path;

use disagg_api::DisaggDeployment;

/// Name of the file and text of each resource in it, by kind.
fn resources() -> BTreeMap<String, Vec<(String, String)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/samples");
    let mut found: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("the samples") {
        let path = entry.expect("a sample").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        for document in std::fs::read_to_string(&path).expect("UTF-8").split("\n---\n") {
            let kind = document.lines().find_map(|line| line.strip_prefix("kind: "));
            let kind = kind.unwrap_or_else(|| panic!("{name}: a document without a kind")).to_owned();
            found.entry(kind).or_default().push((name.clone(), document.to_owned()));
        }
    }
    found
}

#[test]
fn every_sample_is_valid() {
    let found = resources();
    let ours = &found["DisaggDeployment"];
    for (file, text) in ours {
        let resource = DisaggDeployment::from_yaml(text).unwrap_or_else(|error| panic!("{file}: {error}"));
        resource.validate().unwrap_or_else(|invalid| panic!("{file}: {invalid}"));
    }
    let files: std::collections::BTreeSet<_> = ours.iter().map(|(file, _)| file.as_str()).collect();
    assert_eq!(
        Vec::from_iter(files),
        [
            "demo.yaml",
            "gateway.yaml",
            "gpu-xpyd.yaml",
            "hpa-decode.yaml",
            "model-folder.yaml",
            "pod-monitor.yaml"
        ]
    );
}

/// Other kinds name our resources and their children; the names must be right.
#[test]
fn what_stands_beside_them_points_at_them() {
    let found = resources();
    let names = |file: &str| -> Vec<String> {
        let of_file = found["DisaggDeployment"].iter().filter(|(other, _)| other == file);
        of_file.map(|(_, text)| DisaggDeployment::from_yaml(text).unwrap().metadata.name.unwrap()).collect()
    };
    let value = |text: &str| -> serde_json::Value { serde_yaml::from_str(text).unwrap() };

    let [(file, text)] = found["HorizontalPodAutoscaler"].as_slice() else { panic!("one autoscaler") };
    let target = &value(text)["spec"]["scaleTargetRef"];
    assert_eq!(
        (&target["kind"], &target["apiVersion"]),
        (&"DisaggDeployment".into(), &"disagg.dev/v1alpha1".into())
    );
    assert_eq!(names(file), [target["name"].as_str().unwrap()]);

    let [(file, text)] = found["HTTPRoute"].as_slice() else { panic!("one route") };
    let route = value(text);
    let rules = route["spec"]["rules"].as_array().unwrap();
    let backends: Vec<_> = rules.iter().map(|rule| &rule["backendRefs"][0]).collect();
    let wanted: Vec<_> = names(file)
        .iter()
        .map(|name| serde_json::json!({"name": format!("{name}-router"), "port": 8181}))
        .collect();
    assert_eq!(backends, wanted.iter().collect::<Vec<_>>());
}
