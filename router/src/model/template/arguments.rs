//! Arguments of functions, filters, tests and methods, bound to names as Python does.

use minijinja::{Error, Value};

use super::text::text;
use super::values::{Py, fault};

/// What a call passes. For filters and tests the value itself comes first.
pub(super) struct Args {
    pub positional: Vec<Value>,
    pub named: Vec<(String, Value)>,
}

impl Args {
    /// From the engine's form, where named arguments are one more value behind the others.
    pub(super) fn new(mut values: Vec<Value>) -> Self {
        let mut named = Vec::new();
        if values.last().is_some_and(Value::is_kwargs) {
            let last = values.pop();
            let pairs = last
                .as_ref()
                .and_then(Value::as_object)
                .and_then(minijinja::value::DynObject::try_iter_pairs);
            for (name, value) in pairs.into_iter().flatten() {
                named.push((name.as_str().unwrap_or_default().to_owned(), value));
            }
        }
        Self { positional: values, named }
    }

    /// The arguments by name; absent ones are none. Too many, an unknown or a doubled name are errors.
    pub(super) fn bind<const N: usize>(self, names: [&str; N]) -> Result<[Option<Value>; N], Error> {
        if self.positional.len() > N {
            return Err(fault(format!(
                "takes at most {N} arguments, but {} were given",
                self.positional.len()
            )));
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let at = names.iter().position(|known| *known == name);
            let slot = at.and_then(|at| bound.get_mut(at));
            let slot = slot.ok_or_else(|| fault(format!("got an unexpected keyword argument '{name}'")))?;
            if slot.replace(value).is_some() {
                return Err(fault(format!("got multiple values for argument '{name}'")));
            }
        }
        Ok(bound)
    }

    /// Takes the first argument.
    pub(super) fn first(&mut self) -> Result<Value, Error> {
        if self.positional.is_empty() { Err(missing("value")) } else { Ok(self.positional.remove(0)) }
    }
}

fn missing(name: &str) -> Error {
    fault(format!("missing required argument: '{name}'"))
}

/// An argument that must be there.
pub(super) fn required(value: Option<Value>, name: &str) -> Result<Value, Error> {
    value.ok_or_else(|| missing(name))
}

/// An argument that is a text, if it is there and not none.
pub(super) fn optional_text(value: Option<&Value>, name: &str) -> Result<Option<String>, Error> {
    match value {
        None => Ok(None),
        Some(value) if value.is_none() => Ok(None),
        Some(value) => text(value, name).map(|text| Some(text.to_owned())),
    }
}

/// An argument that is a whole number, if it is there and not none.
pub(super) fn optional_int(value: Option<&Value>) -> Result<Option<i64>, Error> {
    match value.map(Py::of) {
        None | Some(Py::None) => Ok(None),
        Some(Py::Bool(value)) => Ok(Some(value.into())),
        // What is beyond 64 bits is beyond every length.
        Some(Py::Int(value)) => {
            Ok(Some(i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })))
        }
        Some(other) => {
            Err(fault(format!("'{}' object cannot be interpreted as an integer", other.type_name())))
        }
    }
}

/// An argument that is true or false.
pub(super) fn flag(value: Option<&Value>) -> bool {
    value.is_some_and(Value::is_true)
}
