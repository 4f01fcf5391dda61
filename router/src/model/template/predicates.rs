//! Jinja's tests, which follow `is`.

use minijinja::{Environment, Error, State, Value};

use super::arguments::{Args, required};
use super::compare::{contains, equal, less, less_or_equal, same};
use super::environment::native;
use super::filters::{self, Native};
use super::limits::Rendering;
use super::methods::{is_lower, is_upper};
use super::operators::arithmetic;
use super::text::str;
use super::values::{Method, Py, View, ViewKind};

const TESTS: &[(&str, Native)] = &[
    ("boolean", |_, args| kind(args, |value| matches!(value, Py::Bool(_)))),
    ("callable", callable),
    ("defined", |_, args| kind(args, |value| !matches!(value, Py::Undefined))),
    ("divisibleby", |state, args| remainder(state, args, 0)),
    ("escaped", |_, args| one(args).map(|value| Value::from(value.is_safe()))),
    ("even", |state, args| remainder(state, with_two(args), 0)),
    ("false", |_, args| kind(args, |value| matches!(value, Py::Bool(false)))),
    ("filter", |_, args| named(args, filters::exists)),
    ("float", |_, args| kind(args, |value| matches!(value, Py::Float(_)))),
    ("integer", |_, args| kind(args, |value| matches!(value, Py::Int(_)))),
    ("iterable", |_, args| kind(args, is_iterable)),
    ("lower", |state, args| case(state, args, is_lower)),
    ("mapping", |_, args| kind(args, |value| matches!(value, Py::Dict(_)))),
    ("none", |_, args| kind(args, |value| matches!(value, Py::None))),
    ("number", |_, args| kind(args, |value| value.number().is_some())),
    ("odd", |state, args| remainder(state, with_two(args), 1)),
    ("sameas", |_, args| two(args).map(|[a, b]| Value::from(same(&a, &b)))),
    ("sequence", |_, args| kind(args, is_sequence)),
    ("string", |_, args| kind(args, |value| matches!(value, Py::Str(_)))),
    ("test", |_, args| named(args, exists)),
    ("true", |_, args| kind(args, |value| matches!(value, Py::Bool(true)))),
    ("undefined", |_, args| kind(args, |value| matches!(value, Py::Undefined))),
    ("upper", |state, args| case(state, args, is_upper)),
    ("in", |state, args| compared(state, args, |rendering, a, b| contains(rendering, b, a))),
    ("==", |state, args| compared(state, args, equal)),
    ("eq", |state, args| compared(state, args, equal)),
    ("equalto", |state, args| compared(state, args, equal)),
    ("!=", |state, args| compared(state, args, |rendering, a, b| Ok(!equal(rendering, a, b)?))),
    ("ne", |state, args| compared(state, args, |rendering, a, b| Ok(!equal(rendering, a, b)?))),
    ("<", |state, args| compared(state, args, less)),
    ("lt", |state, args| compared(state, args, less)),
    ("lessthan", |state, args| compared(state, args, less)),
    ("<=", |state, args| compared(state, args, less_or_equal)),
    ("le", |state, args| compared(state, args, less_or_equal)),
    (">", |state, args| compared(state, args, |rendering, a, b| less(rendering, b, a))),
    ("gt", |state, args| compared(state, args, |rendering, a, b| less(rendering, b, a))),
    ("greaterthan", |state, args| compared(state, args, |rendering, a, b| less(rendering, b, a))),
    (">=", |state, args| compared(state, args, |rendering, a, b| less_or_equal(rendering, b, a))),
    ("ge", |state, args| compared(state, args, |rendering, a, b| less_or_equal(rendering, b, a))),
];

/// Puts them all into an environment.
pub(super) fn add(environment: &mut Environment<'static>) {
    for (name, test) in TESTS {
        environment.add_test(*name, native(*test));
    }
}

fn exists(name: &str) -> bool {
    TESTS.iter().any(|(known, _)| *known == name)
}

fn one(args: Args) -> Result<Value, Error> {
    let [value] = args.bind(["value"])?;
    Ok(value.unwrap_or_default())
}

fn two(args: Args) -> Result<[Value; 2], Error> {
    let [a, b] = args.bind(["value", "other"])?;
    Ok([a.unwrap_or_default(), required(b, "other")?])
}

fn kind(args: Args, is: fn(Py<'_>) -> bool) -> Result<Value, Error> {
    one(args).map(|value| Value::from(is(Py::of(&value))))
}

/// `iter(value)` succeeds. None is no list that happens to be empty.
fn is_iterable(value: Py<'_>) -> bool {
    matches!(
        value,
        Py::Undefined | Py::Str(_) | Py::List(_) | Py::Tuple(_) | Py::Dict(_) | Py::View(_) | Py::Iterator(_)
    )
}

/// The value has a length and items, as texts and dicts do.
fn is_sequence(value: Py<'_>) -> bool {
    match value {
        Py::Undefined | Py::Str(_) | Py::List(_) | Py::Tuple(_) | Py::Dict(_) => true,
        Py::View(View { kind, .. }) => matches!(kind, ViewKind::Range(..)),
        _ => false,
    }
}

fn callable(_: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let value = one(args)?;
    let object = value.as_object().is_some_and(|object| {
        let kind = object.type_name();
        object.downcast_ref::<Method>().is_some() || kind.contains("Function") || kind.contains("Macro")
    });
    Ok(Value::from(value.is_undefined() || object))
}

fn named(args: Args, exists: fn(&str) -> bool) -> Result<Value, Error> {
    one(args).map(|value| Value::from(value.as_str().is_some_and(exists)))
}

fn case(state: &mut State<'_, '_>, args: Args, is: fn(&str) -> bool) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let value = one(args)?;
    let text = str(&rendering, &value)?;
    rendering.work(text.len())?;
    Ok(Value::from(is(&text)))
}

fn with_two(mut args: Args) -> Args {
    args.positional.push(Value::from(2));
    args
}

/// `value % divisor == rest`. With a text it would be a format, which no test means.
fn remainder(state: &mut State<'_, '_>, args: Args, rest: i64) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value, divisor] = two(args)?;
    let parts = Args { positional: vec![value, Value::from("%"), divisor], named: Vec::new() };
    let remainder = arithmetic(state, parts)?;
    equal(&rendering, &remainder, &Value::from(rest)).map(Value::from)
}

fn compared(
    state: &mut State<'_, '_>,
    args: Args,
    holds: fn(&Rendering, &Value, &Value) -> Result<bool, Error>,
) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [a, b] = two(args)?;
    holds(&rendering, &a, &b).map(Value::from)
}
