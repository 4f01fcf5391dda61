//! The router's settings: what the ConfigMap of a deployment holds, and a settings file without a cluster.
//!
//! They are flat keys with short values, so that `kubectl edit configmap` reads well:
//!
//! ```yaml
//! maxLocalPrefillLength: "512"
//! maxPrefillQueueDepth: "2"
//! fallbackPolicy: Local
//! overlapWeightPercent: "100"
//! ```
//!
//! Operator and router both read a ConfigMap with [`RouterSettings::from_config_map`], so they cannot disagree on what
//! is valid and in force.

mod error;
mod yaml;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use disagg_core::{FallbackPolicy, PlacementSettings};

use error::printable;
pub use error::{SettingsError, SettingsErrors};

/// Key of [`RouterSettings::max_local_prefill_length`].
pub const MAX_LOCAL_PREFILL_LENGTH: &str = "maxLocalPrefillLength";
/// Key of [`RouterSettings::max_prefill_queue_depth`].
pub const MAX_PREFILL_QUEUE_DEPTH: &str = "maxPrefillQueueDepth";
/// Key of [`RouterSettings::fallback_policy`].
pub const FALLBACK_POLICY: &str = "fallbackPolicy";
/// Key of [`RouterSettings::overlap_weight_percent`].
pub const OVERLAP_WEIGHT_PERCENT: &str = "overlapWeightPercent";
/// Every key, in the order in which they are written.
pub const KEYS: [&str; 4] =
    [MAX_LOCAL_PREFILL_LENGTH, MAX_PREFILL_QUEUE_DEPTH, FALLBACK_POLICY, OVERLAP_WEIGHT_PERCENT];

/// What [`MAX_LOCAL_PREFILL_LENGTH`] may be, in tokens. The upper end is beyond any model's context, and stands for
/// "always local".
pub const MAX_LOCAL_PREFILL_LENGTH_RANGE: RangeInclusive<u32> = 0..=16_777_216;
/// What [`MAX_PREFILL_QUEUE_DEPTH`] may be, in requests.
pub const MAX_PREFILL_QUEUE_DEPTH_RANGE: RangeInclusive<u32> = 1..=1024;
/// What [`OVERLAP_WEIGHT_PERCENT`] may be.
pub const OVERLAP_WEIGHT_PERCENT_RANGE: RangeInclusive<u32> = 0..=10_000;
/// [`RouterSettings::overlap_weight_percent`] unless it is set.
pub const DEFAULT_OVERLAP_WEIGHT_PERCENT: u32 = 100;

/// When a prompt is worth a remote prefill, and how workers are chosen. Values that are read from text are always in
/// their range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouterSettings {
    /// A prompt is prefilled remotely only if its net-new tokens (prompt minus what the decode worker has cached) are
    /// **more** than this.
    pub max_local_prefill_length: u32,
    /// A prefill worker is used only while **fewer** requests than this are queued or running on it.
    pub max_prefill_queue_depth: u32,
    /// What becomes of a request that should be prefilled remotely when no prefill worker can take it.
    pub fallback_policy: FallbackPolicy,
    /// What a block of the prompt that a decode worker has cached is worth, in percent of a block of load there. 0
    /// looks at load alone, more keeps prompts with a common beginning together. Only the `kv` routing weighs.
    pub overlap_weight_percent: u32,
}

impl Default for RouterSettings {
    fn default() -> Self {
        let placement = PlacementSettings::default();
        Self {
            max_local_prefill_length: placement.max_local_prefill_length,
            max_prefill_queue_depth: placement.max_prefill_queue_depth,
            fallback_policy: placement.fallback,
            overlap_weight_percent: DEFAULT_OVERLAP_WEIGHT_PERCENT,
        }
    }
}

impl RouterSettings {
    /// Reads flat keys. A key that is absent has its default; white space around a value does not count, since a
    /// block scalar in an edited ConfigMap ends in a newline.
    ///
    /// Reports every problem, not only the first.
    pub fn from_pairs<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, SettingsErrors> {
        let mut settings = Self::default();
        let mut errors = Vec::new();
        for (key, value) in pairs {
            if let Err(error) = settings.set(key, value) {
                errors.push(error);
            }
        }
        settings.without(errors)
    }

    /// The settings, unless there are errors.
    fn without(self, errors: Vec<SettingsError>) -> Result<Self, SettingsErrors> {
        if errors.is_empty() { Ok(self) } else { Err(SettingsErrors(errors)) }
    }

    /// Reads a ConfigMap: its `data`, and the keys of its `binaryData`, none of which may be there. A key that is absent
    /// has its value of the first of `fallbacks` that has a good one (what was last good, then what the resource asks
    /// for), and its default only if none has.
    ///
    /// Reports every problem, not only the first.
    pub fn from_config_map<'a>(
        data: &BTreeMap<String, String>,
        binary_keys: impl IntoIterator<Item = &'a str>,
        fallbacks: &[&BTreeMap<String, String>],
    ) -> Result<Self, SettingsErrors> {
        let mut settings = Self::default();
        for key in KEYS {
            // Setting a bad value changes nothing.
            fallbacks
                .iter()
                .filter_map(|fallback| fallback.get(key))
                .find(|value| settings.set(key, value).is_ok());
        }
        let mut errors: Vec<_> =
            binary_keys.into_iter().map(|key| SettingsError::Binary { key: printable(key, 64) }).collect();
        errors.extend(data.iter().filter_map(|(key, value)| settings.set(key, value).err()));
        settings.without(errors)
    }

    /// Most bytes of a settings file. It is a few lines; a larger one is a mistake.
    pub const FILE_BYTES_MAX: u64 = 64 * 1024;

    /// Reads a settings file: the ConfigMap's keys as one flat YAML mapping, values quoted or not. An empty file
    /// means all defaults; a key written twice is an error.
    pub fn from_yaml(text: &str) -> Result<Self, SettingsErrors> {
        let pairs = yaml::pairs(text)?;
        Self::from_pairs(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }

    /// Sets one key. Nothing is changed when the key or the value is bad.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), SettingsError> {
        match key {
            MAX_LOCAL_PREFILL_LENGTH => {
                let range = MAX_LOCAL_PREFILL_LENGTH_RANGE;
                self.max_local_prefill_length = number(MAX_LOCAL_PREFILL_LENGTH, value, range, "tokens")?;
            }
            MAX_PREFILL_QUEUE_DEPTH => {
                let range = MAX_PREFILL_QUEUE_DEPTH_RANGE;
                self.max_prefill_queue_depth = number(MAX_PREFILL_QUEUE_DEPTH, value, range, "requests")?;
            }
            FALLBACK_POLICY => {
                self.fallback_policy = value.trim().parse().map_err(|_| SettingsError::BadValue {
                    key: FALLBACK_POLICY,
                    value: printable(value, 64),
                    rule: "Local or Fail".to_owned(),
                })?;
            }
            OVERLAP_WEIGHT_PERCENT => {
                let range = OVERLAP_WEIGHT_PERCENT_RANGE;
                self.overlap_weight_percent = number(OVERLAP_WEIGHT_PERCENT, value, range, "percent")?;
            }
            unknown => return Err(SettingsError::UnknownKey { key: printable(unknown, 64) }),
        }
        Ok(())
    }

    /// The same settings as flat keys; [`Self::from_pairs`] of them gives the settings back.
    pub fn to_pairs(&self) -> [(&'static str, String); KEYS.len()] {
        [
            (MAX_LOCAL_PREFILL_LENGTH, self.max_local_prefill_length.to_string()),
            (MAX_PREFILL_QUEUE_DEPTH, self.max_prefill_queue_depth.to_string()),
            (FALLBACK_POLICY, self.fallback_policy.to_string()),
            (OVERLAP_WEIGHT_PERCENT, self.overlap_weight_percent.to_string()),
        ]
    }

    /// The same settings as the text of a settings file.
    pub fn to_yaml(&self) -> String {
        self.to_pairs().map(|(key, value)| format!("{key}: {value}\n")).concat()
    }
}

/// Decimal digits only: no sign, no `1e3`, no `0x`.
fn number(
    key: &'static str,
    value: &str,
    range: RangeInclusive<u32>,
    unit: &str,
) -> Result<u32, SettingsError> {
    let digits = value.trim();
    let parsed = if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None };
    parsed.filter(|number| range.contains(number)).ok_or_else(|| SettingsError::BadValue {
        key,
        value: printable(value, 64),
        rule: format!("a whole number of {unit} from {} to {}", range.start(), range.end()),
    })
}

#[cfg(test)]
mod tests;
