//! The fields of a JSON object, taken out one by one, so that whatever is left over can be refused by name.

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::ApiError;
use super::bounded::Object;

/// Fields of one object. No object of the interface has that many.
const FIELDS_MAX: usize = 256;
/// Characters, white space aside, that a value of a field that is not implemented is looked at for.
const HARMLESS_CHARS_MAX: usize = 64;

/// Fields not taken yet. Values stay as raw JSON until then: a prompt of a million token ids is parsed once, into
/// numbers, and never into a tree of values.
pub(crate) struct Fields<'a> {
    prefix: String,
    /// In the order of the request.
    raw: IndexMap<String, &'a RawValue>,
}

impl<'a> Fields<'a> {
    /// The fields of a request body.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, ApiError> {
        let Object::<_, FIELDS_MAX>(raw) =
            serde_json::from_slice(body).map_err(|error| ApiError::bad_json(&error))?;
        Ok(Self { prefix: String::new(), raw })
    }

    /// The fields of the object `value`, which is the field `name`.
    pub(crate) fn nested(name: &str, value: &'a RawValue) -> Result<Self, ApiError> {
        let bad = |_| bad(name.to_owned(), value, "an object");
        let Object::<_, FIELDS_MAX>(raw) = serde_json::from_str(value.get()).map_err(bad)?;
        Ok(Self { prefix: format!("{name}."), raw })
    }

    /// Full name of a field, for errors.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The names of the fields that have not been taken, in the order of the request.
    pub(crate) fn names(&self) -> Vec<String> {
        self.raw.keys().cloned().collect()
    }

    /// Takes a field as raw JSON. `null` is as absent.
    pub(crate) fn raw(&mut self, name: &str) -> Option<&'a RawValue> {
        self.raw.shift_remove(name).filter(|value| value.get() != "null")
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
            _ => Err(bad(self.name(name), raw, rule)),
        }
    }

    /// Refuses a field whose JSON text is longer than this.
    pub(crate) fn at_most(&self, name: &str, bytes_max: usize, rule: &str) -> Result<(), ApiError> {
        match self.raw.get(name) {
            Some(raw) if raw.get().len() > bytes_max => {
                Err(ApiError::bad_value(self.name(name), raw.get(), rule))
            }
            _ => Ok(()),
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
        let plain: String =
            raw.get().chars().filter(|char| !char.is_whitespace()).take(HARMLESS_CHARS_MAX).collect();
        if harmless.contains(&plain.as_str()) {
            return Ok(());
        }
        let allowed = match harmless {
            [] => String::new(),
            values => format!(", except as {}", values.join(" or ")),
        };
        Err(ApiError::unsupported_parameter(self.name(name), &allowed))
    }

    /// Refuses what was not taken. `null` is as absent, whatever the field: clients that write every field of their
    /// types send it for all that they do not use.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.raw.iter().find(|(_, value)| value.get() != "null") {
            Some((name, _)) => Err(ApiError::unknown_parameter(self.name(name))),
            None => Ok(()),
        }
    }
}

/// Parses the value of the field `name`.
pub(crate) fn parse<'a, T: Deserialize<'a>>(
    name: String,
    raw: &'a RawValue,
    rule: &str,
) -> Result<T, ApiError> {
    serde_json::from_str(raw.get()).map_err(|_| bad(name, raw, rule))
}

/// What is wrong with a value that is not allowed: the rule that it breaks, unless it is no JSON to begin with. Values
/// are taken over unread, which tells whether brackets and quotes match and little more.
fn bad(name: String, raw: &RawValue, rule: &str) -> ApiError {
    match serde_json::from_str::<serde_json::Value>(raw.get()) {
        Ok(_) => ApiError::bad_value(name, raw.get(), rule),
        Err(problem) => ApiError::bad_json_value(name, &problem),
    }
}
