//! Who owns a key of the settings ConfigMap: the resource seeds it, a later change of the resource is written through,
//! and a direct edit stands until the resource's own value changes again. Pure.
//!
//! Two annotations make that possible. `seeded` has, for each key, the value of the resource that was last written;
//! `last-good` has the last data that was valid as a whole. Data and annotations change in one patch, so an operator
//! that is killed in between leaves nothing half done.

use std::collections::{BTreeMap, BTreeSet};

use disagg_api::kubernetes::{ANNOTATION_LAST_GOOD, ANNOTATION_SEEDED};
use disagg_api::settings::KEYS;
use disagg_api::{RouterSettings, SettingsErrors};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

/// Keys to values.
pub(crate) type Pairs = BTreeMap<String, String>;

/// What the ConfigMap holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Held {
    pub data: Pairs,
    /// Keys of `binaryData`. The API server lets no key be in both.
    pub binary: BTreeSet<String>,
    /// Absent or unreadable: nothing was ever written.
    pub seeded: Pairs,
    pub last_good: Option<Pairs>,
}

/// What is to become of the ConfigMap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Decision {
    /// What it is to hold.
    pub next: Held,
    /// Whether that is valid, and why not.
    pub verdict: Result<RouterSettings, SettingsErrors>,
}

impl Held {
    /// What a ConfigMap holds.
    pub(crate) fn of(config_map: &ConfigMap) -> Self {
        let annotation = |name: &str| {
            let text = config_map.metadata.annotations.as_ref()?.get(name)?;
            serde_json::from_str::<Pairs>(text).ok()
        };
        Self {
            data: config_map.data.clone().unwrap_or_default(),
            binary: config_map.binary_data.iter().flat_map(BTreeMap::keys).cloned().collect(),
            seeded: annotation(ANNOTATION_SEEDED).unwrap_or_default(),
            last_good: annotation(ANNOTATION_LAST_GOOD),
        }
    }

    /// What is left of it when the ConfigMap itself is gone: it comes back with its last good values.
    pub(crate) fn restored(self) -> Self {
        Self { data: Pairs::new(), binary: BTreeSet::new(), ..self }
    }

    /// Whether it is valid, and what it says. An absent key is as it was last good, or as the resource has it.
    pub(crate) fn verdict(&self) -> Result<RouterSettings, SettingsErrors> {
        let fallbacks: Vec<&Pairs> = self.last_good.iter().chain([&self.seeded]).collect();
        RouterSettings::from_config_map(&self.data, self.binary.iter().map(String::as_str), &fallbacks)
    }
}

/// Applies the rules. `wanted` has every key with the value of the resource.
pub(crate) fn decide(held: &Held, wanted: &Pairs) -> Decision {
    let mut next = held.clone();
    for key in KEYS {
        let Some(asked) = wanted.get(key) else { continue };
        // It is its author's to put right, and could not be written.
        if held.binary.contains(key) {
            continue;
        }
        if held.seeded.get(key) != Some(asked) {
            next.data.insert(key.to_owned(), asked.clone());
            next.seeded.insert(key.to_owned(), asked.clone());
        } else if !held.data.contains_key(key) {
            let good = held.last_good.as_ref().and_then(|good| good.get(key)).unwrap_or(asked);
            next.data.insert(key.to_owned(), good.clone());
        }
    }
    // A setting that this version does not know any more is nobody's.
    next.seeded.retain(|key, _| KEYS.contains(&key.as_str()));
    let verdict = next.verdict();
    match &verdict {
        Ok(settings) => {
            next.last_good = Some(settings.to_pairs().map(|(key, value)| (key.to_owned(), value)).into());
        }
        // A ConfigMap that has never been valid begins with what the resource asks for.
        Err(_) if next.last_good.is_none() => next.last_good = Some(wanted.clone()),
        Err(_) => {}
    }
    Decision { next, verdict }
}

/// The merge patch from `held` to `next`, bound to `resource_version`; nothing if they are equal.
pub(crate) fn patch(held: &Held, next: &Held, resource_version: &str) -> Option<Value> {
    if held == next {
        return None;
    }
    let changed: Pairs = next
        .data
        .iter()
        .filter(|(key, value)| held.data.get(*key) != Some(*value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    // Maps of texts always become JSON.
    let text = |pairs: &Pairs| serde_json::to_string(pairs).unwrap_or_default();
    let mut annotations = BTreeMap::from([(ANNOTATION_SEEDED, text(&next.seeded))]);
    if let Some(good) = &next.last_good {
        annotations.insert(ANNOTATION_LAST_GOOD, text(good));
    }
    Some(json!({
        "metadata": { "resourceVersion": resource_version, "annotations": annotations },
        "data": changed,
    }))
}

#[cfg(test)]
mod tests;
