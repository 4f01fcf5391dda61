//! The fields of a JSON object, taken out one by one, so that whatever is left over can be refused by name.

use std::fmt;

use indexmap::IndexMap;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::ApiError;

/// Fields not taken yet. Values stay as raw JSON until then: a prompt of a million token ids is parsed once, into
/// numbers, and never into a tree of values.
pub(crate) struct Fields<'a> {
    prefix: String,
    /// In the order of the request until the first is taken.
    raw: IndexMap<String, &'a RawValue>,
}

impl<'a> Fields<'a> {
    /// The fields of a request body.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, ApiError> {
        let Ordered(raw) = serde_json::from_slice(body).map_err(|error| ApiError::bad_json(&error))?;
        Ok(Self { prefix: String::new(), raw })
    }

    /// The fields of the object `value`, which is the field `name`.
    pub(crate) fn nested(name: &str, value: &'a RawValue) -> Result<Self, ApiError> {
        let bad = |_| ApiError::bad_value(name, value.get(), "an object");
        let Ordered(raw) = serde_json::from_str(value.get()).map_err(bad)?;
        Ok(Self { prefix: format!("{name}."), raw })
    }

    /// Full name of a field, for errors.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The names of the fields: in the order of the request, as long as none has been taken.
    pub(crate) fn names(&self) -> Vec<String> {
        self.raw.keys().cloned().collect()
    }

    /// Takes a field as raw JSON. `null` is as absent.
    pub(crate) fn raw(&mut self, name: &str) -> Option<&'a RawValue> {
        self.raw.swap_remove(name).filter(|value| value.get() != "null")
    }

    /// Takes a field that must parse as `T`. `rule` says what is allowed, to follow "It must be".
    pub(crate) fn take<T: Deserialize<'a>>(&mut self, name: &str, rule: &str) -> Result<Option<T>, ApiError> {
        self.take_if(name, rule, |_| true)
    }

    /// Takes a field that must parse as `T` and be `allowed`.
    pub(crate) fn take_if<T: Deserialize<'a>>(
        &mut self,
        name: &str,
        rule: &str,
        allowed: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        match serde_json::from_str(raw.get()) {
            Ok(value) if allowed(&value) => Ok(Some(value)),
            _ => Err(ApiError::bad_value(self.name(name), raw.get(), rule)),
        }
    }

    /// Takes a number of the given range.
    pub(crate) fn number(&mut self, name: &str, min: f64, max: f64) -> Result<Option<f32>, ApiError> {
        let rule = format!("a number from {min} to {max}");
        let value = self.take_if::<f64>(name, &rule, |value| (min..=max).contains(value))?;
        Ok(value.map(|value| value as f32))
    }

    /// Takes a whole number of the given range.
    pub(crate) fn integer(&mut self, name: &str, min: i64, max: i64) -> Result<Option<i64>, ApiError> {
        let rule = if max == i64::from(u32::MAX) {
            format!("a whole number, at least {min}")
        } else {
            format!("a whole number from {min} to {max}")
        };
        self.take_if(name, &rule, |value| (min..=max).contains(value))
    }

    /// Takes a whole number from `min` up that fits 32 bits.
    pub(crate) fn count(&mut self, name: &str, min: u32) -> Result<Option<u32>, ApiError> {
        let value = self.integer(name, min.into(), u32::MAX.into())?;
        Ok(value.and_then(|value| value.try_into().ok()))
    }

    /// Takes a boolean that is `false` when absent.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        Ok(self.take(name, "true or false")?.unwrap_or(false))
    }

    /// Refuses a field of OpenAI's that is not implemented, unless it asks for what is done anyway: one of the JSON
    /// texts `harmless`.
    pub(crate) fn unsupported(&mut self, name: &str, harmless: &[&str]) -> Result<(), ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(()) };
        let plain: String = raw.get().chars().filter(|char| !char.is_whitespace()).collect();
        if harmless.contains(&plain.as_str()) {
            return Ok(());
        }
        let allowed = match harmless {
            [] => String::new(),
            values => format!(", except as {}", values.join(" or ")),
        };
        Err(ApiError::unsupported_parameter(self.name(name), &allowed))
    }

    /// Refuses what was not taken.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.raw.keys().next() {
            Some(name) => Err(ApiError::unknown_parameter(self.name(name))),
            None => Ok(()),
        }
    }
}

/// The fields of an object, in their order. Of a name that comes twice, the last value counts.
struct Ordered<'a>(IndexMap<String, &'a RawValue>);

impl<'de> Deserialize<'de> for Ordered<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Ordered<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = IndexMap::new();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    fields.insert(name, value);
                }
                Ok(Ordered(fields))
            }
        }

        deserializer.deserialize_map(Fields)
    }
}
