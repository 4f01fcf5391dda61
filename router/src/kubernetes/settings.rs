//! From the settings ConfigMap to the settings in force.

use std::collections::BTreeMap;

use disagg_api::RouterSettings;
use disagg_api::kubernetes::{ANNOTATION_LAST_GOOD, ANNOTATION_SEEDED};
use k8s_openapi::api::core::v1::ConfigMap;

use crate::settings::InForce;

/// Reads one version of the ConfigMap after the other.
pub(super) struct Reader {
    /// The ConfigMap, for messages.
    source: String,
    /// The values in force were valid data once, and not defaults or last-good values of another router.
    seen_good: bool,
}

impl Reader {
    pub(super) fn new(source: String) -> Self {
        Self { source, seen_good: false }
    }

    /// What is in force after `before`, now that the ConfigMap is `map` (`None`: there is none).
    ///
    /// Good data is in force; a key that it lacks is as it was last good, or as the resource has it. With bad data, or
    /// none, the last good values stay; a router that has not seen good data yet takes those of the annotation, or else
    /// the defaults.
    pub(super) fn read(&mut self, before: &InForce, map: Option<&ConfigMap>) -> InForce {
        let resource_version = map.and_then(|map| map.metadata.resource_version.clone());
        let problem = match self.data(before, map) {
            Ok(settings) => {
                self.seen_good = true;
                return InForce { settings, problem: None, resource_version, known: true };
            }
            Err(problem) => problem,
        };
        let (settings, which) = if self.seen_good {
            (before.settings.clone(), "the last good values stay in force")
        } else if let Some(settings) = map.and_then(last_good) {
            (settings, "the values of its annotation disagg.dev/last-good are in force")
        } else if before.known {
            (before.settings.clone(), "what was in force before stays")
        } else {
            (RouterSettings::default(), "the defaults are in force")
        };
        let problem = Some(format!("{problem}; {which}"));
        InForce { settings, problem, resource_version, known: true }
    }

    /// The values of the data, or what is wrong with it.
    fn data(&self, before: &InForce, map: Option<&ConfigMap>) -> Result<RouterSettings, String> {
        let source = &self.source;
        let Some(map) = map else { return Err(format!("there is no {source}")) };
        // The operator makes the object before it writes the values.
        let data = map.data.as_ref().filter(|data| !data.is_empty());
        let Some(data) = data else { return Err(format!("{source} has no data")) };
        let in_force = self.seen_good.then(|| pairs_of(&before.settings));
        let fallbacks = [pairs(map, ANNOTATION_LAST_GOOD), in_force, pairs(map, ANNOTATION_SEEDED)];
        let fallbacks: Vec<&BTreeMap<_, _>> = fallbacks.iter().flatten().collect();
        let binary = map.binary_data.iter().flat_map(BTreeMap::keys).map(String::as_str);
        RouterSettings::from_config_map(data, binary, &fallbacks)
            .map_err(|errors| format!("{source}: {errors}"))
    }
}

fn pairs_of(settings: &RouterSettings) -> BTreeMap<String, String> {
    settings.to_pairs().map(|(key, value)| (key.to_owned(), value)).into()
}

/// The keys and values of an annotation.
fn pairs(map: &ConfigMap, annotation: &str) -> Option<BTreeMap<String, String>> {
    let text = map.metadata.annotations.as_ref()?.get(annotation)?;
    serde_json::from_str(text).ok()
}

/// The values of the annotation, if they are valid.
fn last_good(map: &ConfigMap) -> Option<RouterSettings> {
    let pairs = pairs(map, ANNOTATION_LAST_GOOD)?;
    RouterSettings::from_pairs(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const GOOD: &str = r#"{"maxLocalPrefillLength":"64"}"#;

    fn map(version: &str, data: &Value, last_good: &str) -> ConfigMap {
        let map = json!({
            "metadata": {
                "name": "demo-router", "resourceVersion": version,
                "annotations": { "disagg.dev/last-good": last_good },
            },
            "data": data,
        });
        serde_json::from_value(map).unwrap()
    }

    fn unread() -> InForce {
        InForce { known: false, ..InForce::default() }
    }

    fn reader() -> Reader {
        Reader::new("ConfigMap ns/demo-router".to_owned())
    }

    fn problem(now: &InForce) -> &str {
        now.problem.as_deref().unwrap()
    }

    #[test]
    fn good_data_is_in_force_and_bad_data_changes_nothing() {
        let mut reader = reader();
        let first = reader.read(&unread(), Some(&map("1", &json!({ "maxLocalPrefillLength": "100" }), GOOD)));
        assert_eq!((first.settings.max_local_prefill_length, &first.problem), (100, &None));
        assert_eq!(first.resource_version.as_deref(), Some("1"));

        let bad = map("2", &json!({ "maxLocalPrefillLength": "lots", "maxPrefillQueueDepth": "7" }), GOOD);
        let second = reader.read(&first, Some(&bad));
        assert_eq!(second.settings, first.settings);
        assert_eq!(second.resource_version.as_deref(), Some("2"), "what was looked at last");
        assert!(problem(&second).contains("maxLocalPrefillLength: \"lots\" is not allowed"), "{second:?}");
        assert!(problem(&second).ends_with("the last good values stay in force"));

        let third = reader.read(&second, Some(&map("3", &json!({ "fallbackPolicy": "Fail\n" }), GOOD)));
        assert_eq!(
            (third.settings.fallback_policy, &third.problem),
            (disagg_api::FallbackPolicy::Fail, &None)
        );
    }

    #[test]
    fn a_key_that_is_taken_away_is_as_it_was_and_never_a_default() {
        let length = |now: &InForce| now.settings.max_local_prefill_length;
        let without = json!({ "maxPrefillQueueDepth": "7" });
        let started = reader().read(&unread(), Some(&map("1", &without, GOOD)));
        assert_eq!((length(&started), &started.problem), (64, &None), "as it was last good");
        let mut reader = reader();
        let first = reader.read(&unread(), Some(&map("1", &json!({ "maxLocalPrefillLength": "100" }), "")));
        let second = reader.read(&first, Some(&map("2", &without, "")));
        assert_eq!(
            (length(&second), second.settings.max_prefill_queue_depth),
            (100, 7),
            "as it was in force"
        );
        let mut seeded = map("1", &without, "");
        let asked = r#"{"maxLocalPrefillLength":"128"}"#.to_owned();
        seeded.metadata.annotations = Some([(ANNOTATION_SEEDED.to_owned(), asked)].into());
        assert_eq!(length(&self::reader().read(&unread(), Some(&seeded))), 128, "as the resource has it");
    }

    #[test]
    fn a_key_in_binary_data_is_a_problem_and_the_last_good_values_stay() {
        let mut hidden = map("1", &json!({ "maxPrefillQueueDepth": "7" }), GOOD);
        let bytes = k8s_openapi::ByteString(b"64".to_vec());
        hidden.binary_data = Some([("maxLocalPrefillLength".to_owned(), bytes)].into());
        let now = reader().read(&unread(), Some(&hidden));
        assert_eq!(now.settings.max_local_prefill_length, 64);
        assert!(problem(&now).contains("maxLocalPrefillLength: is in binaryData"), "{now:?}");
    }

    #[test]
    fn deleted_or_emptied_the_last_good_values_stay() {
        let mut reader = reader();
        let good = reader.read(&unread(), Some(&map("1", &json!({ "maxLocalPrefillLength": "100" }), GOOD)));
        let gone = reader.read(&good, None);
        assert_eq!((gone.settings.max_local_prefill_length, &gone.resource_version), (100, &None));
        assert!(problem(&gone).starts_with("there is no ConfigMap ns/demo-router"));
        // As it comes back: first the object, then its data.
        let empty = reader.read(&gone, Some(&map("5", &json!({}), "")));
        assert_eq!(empty.settings.max_local_prefill_length, 100);
        assert!(problem(&empty).contains("has no data"));
    }

    #[test]
    fn a_router_that_starts_while_the_data_is_bad_takes_the_last_good() {
        let bad = json!({ "maxLocalPrefillLength": "lots" });
        let mut reader = self::reader();
        let now = reader.read(&unread(), Some(&map("1", &bad, GOOD)));
        assert_eq!(now.settings.max_local_prefill_length, 64);
        assert!(problem(&now).ends_with("disagg.dev/last-good are in force"), "{now:?}");
        for last_good in ["", "{", r#"{"maxLocalPrefillLength":"x"}"#, r#"{"maxLocalPrefillLength":5}"#] {
            let now = self::reader().read(&unread(), Some(&map("1", &bad, last_good)));
            assert_eq!(now.settings, RouterSettings::default());
            assert!(problem(&now).ends_with("the defaults are in force"), "{now:?}");
        }
        // Deleted while it is bad: nothing better is known than what is in force.
        let gone = reader.read(&now, None);
        assert_eq!(gone.settings.max_local_prefill_length, 64);
    }

    #[test]
    fn without_a_config_map_the_defaults_are_in_force() {
        let now = reader().read(&unread(), None);
        assert_eq!((now.settings.clone(), now.known), (RouterSettings::default(), true));
        assert!(problem(&now).ends_with("the defaults are in force"));
    }
}
