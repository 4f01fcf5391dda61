//! The values of templates as Python has them. Lists, tuples and dicts are the engine's own plain containers; what
//! Python has beside them (views of dicts, ranges, iterators, methods of a value) are objects of this module.
//!
//! The engine has lazy sequences too. Nothing here makes one, so that every length is known and no work hides.

use std::collections::VecDeque;
use std::sync::Arc;

use indexmap::IndexMap;
use minijinja::value::{Enumerator, Object, ObjectRepr, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use parking_lot::Mutex;

use super::limits::{ITEM, Limit, NESTING_MAX, Rendering};

/// A Python dict: keys in the order in which they came.
pub(super) type Dict = IndexMap<Value, Value>;

/// A value by its Python type.
#[derive(Clone, Copy)]
pub(super) enum Py<'a> {
    Undefined,
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(&'a str),
    List(&'a [Value]),
    Tuple(&'a [Value]),
    Dict(&'a Dict),
    View(&'a View),
    Iterator(&'a Iterated),
    /// Functions, macros, namespaces, the loop.
    Object,
}

impl<'a> Py<'a> {
    pub(super) fn of(value: &'a Value) -> Self {
        match value.kind() {
            ValueKind::Undefined => Self::Undefined,
            ValueKind::None => Self::None,
            ValueKind::Bool => Self::Bool(value.is_true()),
            ValueKind::Number if value.is_integer() => {
                // Only integers from 2^127 on do not fit; nothing makes these.
                i128::try_from(value.clone()).map_or(Self::Object, Self::Int)
            }
            ValueKind::Number => f64::try_from(value.clone()).map_or(Self::Object, Self::Float),
            ValueKind::String => value.as_str().map_or(Self::Object, Self::Str),
            _ => Self::of_object(value),
        }
    }

    fn of_object(value: &'a Value) -> Self {
        if let Some(items) = value.downcast_object_ref::<Vec<Value>>() {
            Self::List(items)
        } else if let Some(dict) = value.downcast_object_ref::<Dict>() {
            Self::Dict(dict)
        } else if let Some(items) = value.downcast_object_ref::<Tuple>() {
            Self::Tuple(items)
        } else if let Some(group) = value.downcast_object_ref::<Group>() {
            Self::Tuple(&group.0)
        } else if let Some(view) = value.downcast_object_ref::<View>() {
            Self::View(view)
        } else if let Some(iterated) = value.downcast_object_ref::<Iterated>() {
            Self::Iterator(iterated)
        } else {
            Self::Object
        }
    }

    /// As a number, where booleans are numbers.
    pub(super) fn number(self) -> Option<Number> {
        match self {
            Self::Bool(value) => Some(Number::Int(value.into())),
            Self::Int(value) => Some(Number::Int(value)),
            Self::Float(value) => Some(Number::Float(value)),
            _ => None,
        }
    }

    /// Python's name of the type, for errors.
    pub(super) fn type_name(self) -> &'static str {
        match self {
            Self::Undefined => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(view) => view.kind.type_name(),
            Self::Iterator(_) => "generator",
            Self::Object => "object",
        }
    }
}

/// A Python number.
#[derive(Clone, Copy)]
pub(super) enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    pub(super) fn as_f64(self) -> f64 {
        match self {
            Self::Int(value) => value as f64,
            Self::Float(value) => value,
        }
    }
}

/// What a [`View`] shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ViewKind {
    Keys,
    Values,
    Items,
    /// With start, stop and step.
    Range(i64, i64, i64),
}

impl ViewKind {
    pub(super) fn type_name(self) -> &'static str {
        match self {
            Self::Keys => "dict_keys",
            Self::Values => "dict_values",
            Self::Items => "dict_items",
            Self::Range(..) => "range",
        }
    }
}

/// `dict.keys()`, `range(…)` and the like: has a length and can be read many times.
#[derive(Debug)]
pub(super) struct View {
    pub kind: ViewKind,
    pub items: Vec<Value>,
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.items.len())
    }
}

/// An iterator of Python's, such as filters `map` and `select` give: it has no length, is true even if it is empty, and
/// can be read once.
#[derive(Debug)]
pub(super) struct Iterated(Mutex<VecDeque<Value>>);

impl Iterated {
    /// Everything that is left.
    pub(super) fn take(&self) -> Vec<Value> {
        std::mem::take(&mut *self.0.lock()).into()
    }

    /// The next item.
    pub(super) fn next(&self) -> Option<Value> {
        self.0.lock().pop_front()
    }
}

impl Object for Iterated {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.take())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

/// A method of a value that is not called yet.
#[derive(Debug)]
pub(super) struct Method {
    pub of: Value,
    pub name: String,
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        self.of.call_method(state, &self.name, args)
    }
}

/// A group of the filter `groupby`: a pair with names.
#[derive(Debug)]
pub(super) struct Group(pub [Value; 2]);

impl Object for Group {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str() {
            Some("grouper") => Some(self.0[0].clone()),
            Some("list") => Some(self.0[1].clone()),
            Some(_) => None,
            None => self.0.get(key.as_usize()?).cloned(),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(2)
    }
}

pub(super) fn list(items: Vec<Value>) -> Value {
    Value::from_object(items)
}

pub(super) fn tuple(items: Vec<Value>) -> Value {
    Value::from(Tuple::new(items))
}

pub(super) fn dict(dict: Dict) -> Value {
    Value::from_object(dict)
}

pub(super) fn iterator(items: Vec<Value>) -> Value {
    Value::from_object(Iterated(Mutex::new(items.into())))
}

pub(super) fn int(value: i128) -> Value {
    // The engine tells 64-bit integers and larger ones apart when it hashes them.
    i64::try_from(value).map_or_else(|_| Value::from(value), Value::from)
}

/// A mistake of the template's.
pub(super) fn fault(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// What an operation says of a value that is not there.
pub(super) fn undefined() -> Error {
    Error::new(ErrorKind::UndefinedError, "a value that is undefined cannot be used like this")
}

/// The items of something that can be iterated, as `for` and filters see them.
pub(super) fn items(rendering: &Rendering, value: &Value) -> Result<Vec<Value>, Error> {
    let items = match Py::of(value) {
        Py::Undefined => Vec::new(),
        Py::Str(text) => {
            rendering.work(text.len().saturating_mul(ITEM))?;
            return Ok(text.chars().map(Value::from).collect());
        }
        Py::List(items) | Py::Tuple(items) => {
            rendering.work(items.len().saturating_mul(ITEM))?;
            items.to_vec()
        }
        Py::Dict(dict) => {
            rendering.work(dict.len().saturating_mul(ITEM))?;
            dict.keys().cloned().collect()
        }
        Py::View(view) => {
            rendering.work(view.items.len().saturating_mul(ITEM))?;
            view.items.clone()
        }
        Py::Iterator(iterated) => iterated.take(),
        other => return Err(fault(format!("'{}' object is not iterable", other.type_name()))),
    };
    Ok(items)
}

/// The length, as `len` gives it.
pub(super) fn len(rendering: &Rendering, value: &Value) -> Result<usize, Error> {
    match Py::of(value) {
        Py::Undefined => Ok(0),
        Py::Str(text) => {
            rendering.work(text.len() / 16)?;
            Ok(text.chars().count())
        }
        Py::List(items) | Py::Tuple(items) => Ok(items.len()),
        Py::Dict(dict) => Ok(dict.len()),
        Py::View(view) => Ok(view.items.len()),
        other => Err(fault(format!("object of type '{}' has no len()", other.type_name()))),
    }
}

/// Refuses values that a dict cannot have as keys.
pub(super) fn hashable(value: &Value) -> Result<(), Error> {
    match Py::of(value) {
        list @ (Py::List(_) | Py::Dict(_)) => Err(fault(format!("unhashable type: '{}'", list.type_name()))),
        Py::Tuple(items) => items.iter().try_for_each(hashable),
        _ => Ok(()),
    }
}

/// Whether a value is a namespace. Its type is private to the engine.
pub(super) fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

/// Refuses values that cannot become part of another one: namespaces, by way of which something could hold itself and
/// never be freed, and what is nested too deep to be printed and dropped.
pub(super) fn check_nesting(rendering: &Rendering, values: &[Value]) -> Result<(), Error> {
    if values.iter().any(is_namespace) {
        return Err(fault("a namespace cannot be put into another value"));
    }
    if rendering.must_check_nesting() {
        values.iter().try_for_each(|value| check_depth(rendering, value, 1))?;
    }
    Ok(())
}

fn check_depth(rendering: &Rendering, value: &Value, depth: usize) -> Result<(), Error> {
    if depth >= NESTING_MAX {
        return Err(rendering.reached(Limit::Nesting));
    }
    let all = |items: &[Value]| {
        rendering.work(items.len())?;
        items.iter().try_for_each(|item| check_depth(rendering, item, depth + 1))
    };
    match Py::of(value) {
        Py::List(items) | Py::Tuple(items) => all(items),
        Py::Dict(dict) => {
            rendering.work(dict.len())?;
            dict.values().try_for_each(|item| check_depth(rendering, item, depth + 1))
        }
        Py::View(view) if !matches!(view.kind, ViewKind::Range(..)) => all(&view.items),
        Py::Iterator(iterated) => {
            let items = iterated.0.lock();
            rendering.work(items.len())?;
            items.iter().try_for_each(|item| check_depth(rendering, item, depth + 1))
        }
        Py::Object => match value.downcast_object_ref::<Method>() {
            Some(method) => check_depth(rendering, &method.of, depth + 1),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}
