//! Who owns a key of the settings ConfigMap, as users meet it: `kubectl patch` and `kubectl apply` against an operator
//! that may be killed at any time.

use std::time::Duration;

use disagg_e2e::cluster::{Namespace, Operator};
use disagg_e2e::eventually;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use super::{SOON, cluster, no_workers, no_workers_with};

const NAME: &str = "tuned";
const THRESHOLD: &str = "/disaggregation/maxLocalPrefillLength";

struct Tuned {
    namespace: Namespace,
    operator: Operator,
}

impl Tuned {
    async fn new(name: &str) -> Self {
        let namespace = Namespace::create(cluster(), name).await;
        let operator = Operator::start(cluster(), &namespace);
        namespace.apply(NAME, &no_workers()).await;
        let this = Self { namespace, operator };
        this.holds("maxLocalPrefillLength", "128").await;
        this
    }

    /// `kubectl patch configmap`.
    fn patch(&self, data: &Value) {
        let patch = json!({ "data": data }).to_string();
        let arguments = ["patch", "configmap", "tuned-router", "--type=merge", "--patch", &patch];
        self.namespace.kubectl(&arguments).expect("a patch of the ConfigMap");
    }

    /// Waits until the key has the value.
    async fn holds(&self, key: &str, value: &str) {
        eventually(&format!("{key} to be {value}"), SOON, async || {
            let found = self.namespace.api::<ConfigMap>().get_opt("tuned-router").await;
            let found = found.map_err(|error| error.to_string())?.ok_or("no ConfigMap")?;
            let data = found.data.unwrap_or_default();
            if data.get(key).is_some_and(|found| found == value) { Ok(()) } else { Err(format!("{data:?}")) }
        })
        .await;
    }

    /// Waits for the condition, and gives its message.
    async fn settings_valid(&self, status: &str) -> String {
        let object = self.namespace.condition(NAME, "SettingsValid", status, SOON).await;
        let conditions = object.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|condition| condition["type"] == "SettingsValid");
        found.and_then(|condition| condition["message"].as_str()).unwrap_or_default().to_owned()
    }

    /// Waits until the operator has dealt with everything so far: it writes the generation into the status.
    async fn settled(&self) {
        self.namespace.condition(NAME, "Ready", "False", SOON).await;
    }
}

#[tokio::test]
async fn a_direct_edit_stands_until_the_resource_changes_that_key() {
    let tuned = Tuned::new("operator-edit").await;
    tuned.patch(&json!({ "maxLocalPrefillLength": "64" }));
    // The resource once more, as it was; then another key of it.
    tuned.namespace.apply(NAME, &no_workers()).await;
    tuned.namespace.apply(NAME, &no_workers_with("/disaggregation/maxPrefillQueueDepth", json!(5))).await;
    tuned.holds("maxPrefillQueueDepth", "5").await;
    tuned.holds("maxLocalPrefillLength", "64").await;
    tuned.namespace.apply(NAME, &no_workers_with(THRESHOLD, json!(256))).await;
    tuned.holds("maxLocalPrefillLength", "256").await;
}

#[tokio::test]
async fn bad_settings_are_named_and_left_to_their_author() {
    let tuned = Tuned::new("operator-bad").await;
    tuned.patch(&json!({ "maxLocalPrefillLength": "lots" }));
    let message = tuned.settings_valid("False").await;
    assert!(message.contains("maxLocalPrefillLength: \"lots\" is not allowed"), "{message}");
    assert!(message.contains("from 0 to 16777216"), "{message}");
    tuned.holds("maxLocalPrefillLength", "lots").await;
    let config_map = tuned.namespace.api::<ConfigMap>().get("tuned-router").await.expect("the ConfigMap");
    let annotations = config_map.metadata.annotations.unwrap_or_default();
    assert!(
        annotations["disagg.dev/last-good"].contains("\"maxLocalPrefillLength\":\"128\""),
        "{annotations:?}"
    );

    tuned.patch(&json!({ "maxLocalPrefillLength": "32", "speed": "1" }));
    let message = eventually("the unknown key to be named", SOON, async || {
        let message = tuned.settings_valid("False").await;
        if message.contains("speed") { Ok(message) } else { Err(message) }
    })
    .await;
    assert!(message.contains("speed: unknown key; known are maxLocalPrefillLength"), "{message}");
    tuned.patch(&json!({ "speed": null }));
    tuned.settings_valid("True").await;
    tuned.holds("maxLocalPrefillLength", "32").await;

    // A change of the resource puts a bad value right, too.
    tuned.patch(&json!({ "maxLocalPrefillLength": "-1" }));
    tuned.settings_valid("False").await;
    tuned.namespace.apply(NAME, &no_workers_with(THRESHOLD, json!(77))).await;
    tuned.settings_valid("True").await;
    tuned.holds("maxLocalPrefillLength", "77").await;
}

#[tokio::test]
async fn what_is_deleted_comes_back_as_it_was() {
    let tuned = Tuned::new("operator-deleted").await;
    tuned.patch(&json!({ "maxLocalPrefillLength": "64", "fallbackPolicy": "Fail" }));
    tuned.patch(&json!({ "maxPrefillQueueDepth": null }));
    tuned.holds("maxPrefillQueueDepth", "2").await;
    let config_maps = tuned.namespace.api::<ConfigMap>();
    config_maps.delete("tuned-router", &DeleteParams::default()).await.expect("a deletion");
    tuned.holds("maxLocalPrefillLength", "64").await;
    tuned.holds("fallbackPolicy", "Fail").await;
}

#[tokio::test]
async fn an_operator_that_is_killed_loses_no_edit_and_no_change() {
    let mut tuned = Tuned::new("operator-killed").await;
    for round in 0..6 {
        let (edit, change) = ((100 + round).to_string(), 20 + round);
        tuned.patch(&json!({ "maxLocalPrefillLength": edit }));
        tuned
            .namespace
            .apply(NAME, &no_workers_with("/disaggregation/maxPrefillQueueDepth", json!(change)))
            .await;
        // Earlier and later from round to round: before the ConfigMap, between it and the status, after both.
        tokio::time::sleep(Duration::from_millis(40 * round)).await;
        tuned.operator.kill();
        tuned.operator.start_again();
        tuned.holds("maxPrefillQueueDepth", &change.to_string()).await;
        tuned.holds("maxLocalPrefillLength", &edit).await;
        tuned.settled().await;
    }
}
