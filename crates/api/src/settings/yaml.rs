//! A settings file as flat YAML: keys to plain values, quoted or not.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::error::{SettingsError, SettingsErrors, printable};

/// The keys and values of a file. An empty file has none; a key written twice is an error.
pub(super) fn pairs(text: &str) -> Result<BTreeMap<String, String>, SettingsErrors> {
    if is_blank(text) {
        return Ok(BTreeMap::new());
    }
    let pairs: BTreeMap<String, PlainValue> = serde_yaml::from_str(text).map_err(|error| {
        // The snippet would take several lines.
        SettingsErrors(vec![SettingsError::Syntax(printable(&error.without_snippet().to_string(), 400))])
    })?;
    Ok(pairs.into_iter().map(|(key, value)| (key, value.0)).collect())
}

/// Only comments, blank lines and document markers. The YAML parser would call that a null, not a mapping.
fn is_blank(text: &str) -> bool {
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
