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
//! Operator and router both read a ConfigMap with [`RouterSettings::from_config_map`], so they can not disagree on what
//! is valid and in force.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use disagg_core::{FallbackPolicy, PlacementSettings};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

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

/// When a prompt is worth a remote prefill, and how workers are chosen. Every value is in its range: there is no way to make others from text.
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

/// One problem of the settings.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SettingsError {
    /// No such key.
    #[error("{key}: unknown key; known are {}", KEYS.join(", "))]
    UnknownKey {
        /// The key as it was written, cut to a printable length.
        key: String,
    },
    /// The value breaks the key's rule.
    #[error("{key}: {value:?} is not allowed; it must be {rule}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// The value as it was written, cut to a printable length.
        value: String,
        /// What is allowed, to follow "must be".
        rule: String,
    },
    /// A ConfigMap has it where no text is looked for.
    #[error("{key}: is in binaryData; settings are text, in data")]
    Binary {
        /// The key as it was written, cut to a printable length.
        key: String,
    },
    /// The text is no flat YAML mapping.
    #[error("the settings are not a YAML mapping of keys to plain values: {0}")]
    Syntax(String),
}

/// Every problem of the settings, in the order of the keys given. Never empty.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}", display_all(.0))]
pub struct SettingsErrors(pub Vec<SettingsError>);

fn display_all(errors: &[SettingsError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
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
        settings.unless(errors)
    }

    /// The settings, unless there are errors.
    fn unless(self, errors: Vec<SettingsError>) -> Result<Self, SettingsErrors> {
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
        settings.unless(errors)
    }

    /// Most bytes of a settings file. It is a few lines; a larger one is a mistake.
    pub const FILE_BYTES_MAX: u64 = 64 * 1024;

    /// Reads a settings file: the ConfigMap's keys as one flat YAML mapping, values quoted or not. An empty file
    /// means all defaults; a key written twice is an error.
    pub fn from_yaml(text: &str) -> Result<Self, SettingsErrors> {
        if is_blank_yaml(text) {
            return Ok(Self::default());
        }
        let pairs: BTreeMap<String, PlainValue> = serde_yaml::from_str(text).map_err(|error| {
            // The snippet would take several lines.
            SettingsErrors(vec![SettingsError::Syntax(printable(&error.without_snippet().to_string(), 400))])
        })?;
        Self::from_pairs(pairs.iter().map(|(key, value)| (key.as_str(), value.0.as_str())))
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

/// At most `limit` characters on one line, for texts that go into Events, conditions and logs.
fn printable(text: &str, limit: usize) -> String {
    let mut chars = text.chars().map(|char| if char.is_control() { ' ' } else { char });
    let mut cut: String = chars.by_ref().take(limit).collect();
    if chars.next().is_some() {
        cut.push('…');
    }
    cut
}

/// Only comments, blank lines and document markers. The YAML parser would call that a null, not a mapping.
fn is_blank_yaml(text: &str) -> bool {
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---")
}

/// A scalar, kept as text: `512` and `"512"` mean the same.
struct PlainValue(String);

impl<'de> Deserialize<'de> for PlainValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl Visitor<'_> for Scalar {
            type Value = PlainValue;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a plain value")
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<PlainValue, E> {
                Ok(PlainValue(value.to_string()))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<PlainValue, E> {
                Ok(PlainValue(value.to_string()))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<PlainValue, E> {
                Ok(PlainValue(value.to_string()))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<PlainValue, E> {
                Ok(PlainValue(value.to_string()))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<PlainValue, E> {
                Ok(PlainValue(value.to_owned()))
            }
            fn visit_unit<E: de::Error>(self) -> Result<PlainValue, E> {
                Ok(PlainValue(String::new()))
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error_of(text: &str) -> String {
        RouterSettings::from_yaml(text).unwrap_err().to_string()
    }

    #[test]
    fn absent_keys_have_the_documented_defaults() {
        let defaults = RouterSettings::default();
        assert_eq!(defaults.max_local_prefill_length, 512);
        assert_eq!(defaults.max_prefill_queue_depth, 2);
        assert_eq!(defaults.fallback_policy, FallbackPolicy::Local);
        assert_eq!(defaults.overlap_weight_percent, 100);
        for text in ["", "\n# nothing set\n", "---\n", "{}"] {
            assert_eq!(RouterSettings::from_yaml(text).unwrap(), defaults, "{text:?}");
        }
    }

    #[test]
    fn a_key_that_a_config_map_lacks_is_last_good_then_the_resources_and_no_default() {
        let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let data = pairs(&[(FALLBACK_POLICY, "Fail")]);
        let last_good = pairs(&[(MAX_LOCAL_PREFILL_LENGTH, "64"), (MAX_PREFILL_QUEUE_DEPTH, "bad")]);
        let asked = pairs(&[(MAX_LOCAL_PREFILL_LENGTH, "128"), (MAX_PREFILL_QUEUE_DEPTH, "7")]);
        let read = RouterSettings::from_config_map(&data, [], &[&last_good, &asked]).unwrap();
        let expected = RouterSettings {
            max_local_prefill_length: 64,
            max_prefill_queue_depth: 7,
            fallback_policy: FallbackPolicy::Fail,
            ..RouterSettings::default()
        };
        assert_eq!(read, expected);
        let hidden = RouterSettings::from_config_map(&data, [MAX_LOCAL_PREFILL_LENGTH], &[&last_good]);
        assert_eq!(
            hidden.unwrap_err().to_string(),
            "maxLocalPrefillLength: is in binaryData; settings are text, in data"
        );
    }

    #[test]
    fn values_may_be_quoted_or_not() {
        let expected = RouterSettings { max_local_prefill_length: 128, ..RouterSettings::default() };
        for text in [
            "maxLocalPrefillLength: 128",
            "maxLocalPrefillLength: \"128\"",
            "maxLocalPrefillLength: |\n  128\n",
            "maxLocalPrefillLength: 0128",
        ] {
            assert_eq!(RouterSettings::from_yaml(text).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn the_ends_of_the_ranges_are_allowed_and_nothing_beyond() {
        let with = |key: &'static str, value: &'static str| RouterSettings::from_pairs([(key, value)]);
        for good in ["0", "16777216"] {
            assert!(with(MAX_LOCAL_PREFILL_LENGTH, good).is_ok(), "{good}");
        }
        for bad in ["-1", "16777217", "99999999999999999999", "", "+5", "1e3", "0x10", "5.0", "many"] {
            assert!(with(MAX_LOCAL_PREFILL_LENGTH, bad).is_err(), "{bad}");
        }
        for good in ["1", "1024"] {
            assert!(with(MAX_PREFILL_QUEUE_DEPTH, good).is_ok(), "{good}");
        }
        for bad in ["0", "1025"] {
            assert!(with(MAX_PREFILL_QUEUE_DEPTH, bad).is_err(), "{bad}");
        }
        for good in ["0", "10000"] {
            assert!(with(OVERLAP_WEIGHT_PERCENT, good).is_ok(), "{good}");
        }
        for bad in ["10001", "50%", "0.5"] {
            assert!(with(OVERLAP_WEIGHT_PERCENT, bad).is_err(), "{bad}");
        }
        assert!(with(FALLBACK_POLICY, "Fail").is_ok());
        assert!(with(FALLBACK_POLICY, "fail").is_err());
    }

    #[test]
    fn an_error_names_key_value_and_rule() {
        assert_eq!(
            error_of("maxLocalPrefillLength: lots"),
            "maxLocalPrefillLength: \"lots\" is not allowed; it must be a whole number of tokens from 0 to 16777216"
        );
        assert_eq!(
            error_of("fallbackPolicy: Never"),
            "fallbackPolicy: \"Never\" is not allowed; it must be Local or Fail"
        );
        assert_eq!(
            error_of("maxLocalPrefilLength: 5"),
            "maxLocalPrefilLength: unknown key; known are maxLocalPrefillLength, maxPrefillQueueDepth, fallbackPolicy, overlapWeightPercent"
        );
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let errors = RouterSettings::from_pairs([
            ("speed", "fast"),
            (MAX_PREFILL_QUEUE_DEPTH, "0"),
            (MAX_LOCAL_PREFILL_LENGTH, "512"),
            (FALLBACK_POLICY, "x"),
        ])
        .unwrap_err();
        assert_eq!(errors.0.len(), 3, "{errors}");
    }

    #[test]
    fn what_is_no_flat_mapping_is_refused() {
        for text in [
            "- 1\n- 2\n",
            "512",
            "maxLocalPrefillLength: {a: 1}",
            "a: [1]",
            "maxLocalPrefillLength: 1\nmaxLocalPrefillLength: 2\n",
            "{",
        ] {
            assert!(
                matches!(RouterSettings::from_yaml(text).unwrap_err().0[..], [SettingsError::Syntax(_)]),
                "{text:?}"
            );
        }
        assert!(error_of("maxLocalPrefillLength:").contains("\"\" is not allowed"));
    }

    /// A log, an Event and a column of kubectl have one line for it.
    #[test]
    fn a_problem_takes_one_line() {
        for text in [
            "a: 1\n{\n",
            "maxLocalPrefillLength: 1\nmaxLocalPrefillLength: 2\n",
            "maxLocalPrefillLength:\n  a: 1\n",
            "- 1\n- 2\n",
            "\"a\\nb\\u001b[31m\": 1\nspeed: 1",
            "maxLocalPrefillLength: \"1\\n2\"",
        ] {
            let error = error_of(text);
            assert!(!error.contains(char::is_control), "{error:?}");
        }
        // It still says where.
        assert!(error_of("fallbackPolicy: Local\nmaxLocalPrefillLength: [1]\n").contains("line 2"));
    }

    #[test]
    fn long_values_are_cut_in_errors() {
        let value = "9".repeat(100_000);
        let error = RouterSettings::from_pairs([(MAX_LOCAL_PREFILL_LENGTH, value.as_str())]).unwrap_err();
        assert!(error.to_string().len() < 300);
        let error = RouterSettings::from_pairs([(value.as_str(), "1")]).unwrap_err();
        assert!(error.to_string().len() < 300);
    }

    #[test]
    fn a_bad_value_changes_nothing() {
        let mut settings = RouterSettings::default();
        settings.set(MAX_LOCAL_PREFILL_LENGTH, "7").unwrap();
        let before = settings.clone();
        settings.set(MAX_LOCAL_PREFILL_LENGTH, "x").unwrap_err();
        settings.set(FALLBACK_POLICY, "x").unwrap_err();
        settings.set("x", "x").unwrap_err();
        assert_eq!(settings, before);
    }

    proptest! {
        #[test]
        fn pairs_and_yaml_round_trip(
            length in MAX_LOCAL_PREFILL_LENGTH_RANGE,
            depth in MAX_PREFILL_QUEUE_DEPTH_RANGE,
            fail: bool,
            weight in OVERLAP_WEIGHT_PERCENT_RANGE,
        ) {
            let settings = RouterSettings {
                max_local_prefill_length: length,
                max_prefill_queue_depth: depth,
                fallback_policy: if fail { FallbackPolicy::Fail } else { FallbackPolicy::Local },
                overlap_weight_percent: weight,
            };
            let pairs = settings.to_pairs();
            let read = RouterSettings::from_pairs(pairs.iter().map(|(key, value)| (*key, value.as_str())));
            prop_assert_eq!(read.unwrap(), settings.clone());
            prop_assert_eq!(RouterSettings::from_yaml(&settings.to_yaml()).unwrap(), settings);
        }

        #[test]
        fn no_text_panics(text in "(?s).{0,200}") {
            let _ = RouterSettings::from_yaml(&text);
        }
    }
}
