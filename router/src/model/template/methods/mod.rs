//! Methods of Python's types. Those that change a value are refused, as transformers' sandbox does.

mod strings;

use minijinja::{Error, ErrorKind, State, Value};

use super::arguments::{Args, required};
use super::compare::equal;
use super::limits::{ITEM, Rendering};
use super::values::{Py, View, ViewKind, check_nesting, fault, hashable, int, tuple};

pub(super) use strings::{capitalize, is_lower, is_upper, replace, split_lines, trim};

/// Methods of texts.
const TEXT: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
const DICT: &[&str] = &["copy", "get", "items", "keys", "values"];
/// Methods that change a dict.
const DICT_UNSAFE: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];
const LIST: &[&str] = &["copy", "count", "index"];
const TUPLE: &[&str] = &["count", "index"];
/// Methods that change a list.
const LIST_UNSAFE: &[&str] = &["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const FLOAT: &[&str] = &["is_integer"];

/// What a value has under the name of a method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    Method,
    /// A method that the sandbox does not give out.
    Unsafe,
    None,
}

/// Whether `value` has a method `name`.
pub(super) fn find(value: &Value, name: &str) -> Found {
    let (safe, refused): (&[&str], &[&str]) = match Py::of(value) {
        Py::Str(_) => (TEXT, &[]),
        Py::Dict(_) => (DICT, DICT_UNSAFE),
        Py::List(_) => (LIST, LIST_UNSAFE),
        Py::Tuple(_) => (TUPLE, &[]),
        Py::Float(_) => (FLOAT, &[]),
        _ => (&[], &[]),
    };
    if safe.contains(&name) {
        Found::Method
    } else if refused.contains(&name) {
        Found::Unsafe
    } else {
        Found::None
    }
}

/// Whether some type has a method `name`, so that reading an attribute of that name needs [`find`].
pub(super) fn is_known(name: &str) -> bool {
    [TEXT, DICT, DICT_UNSAFE, LIST, LIST_UNSAFE, FLOAT].iter().any(|names| names.contains(&name))
}

/// Calls a method of a value that the engine knows no methods of.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match find(value, name) {
        Found::Method => {}
        Found::Unsafe => {
            let kind = Py::of(value).type_name();
            return Err(fault(format!("access to attribute '{name}' of '{kind}' object is unsafe")));
        }
        Found::None => return Err(Error::from(ErrorKind::UnknownMethod)),
    }
    let rendering = Rendering::of(state)?;
    let args = Args::new(args.to_vec());
    match Py::of(value) {
        Py::Str(text) => strings::call(&rendering, text, name, args),
        Py::Dict(_) => of_dict(&rendering, value, name, args),
        Py::List(items) | Py::Tuple(items) => of_list(&rendering, value, items, name, args),
        Py::Float(number) => args.bind([]).map(|[]| Value::from(number.fract() == 0.0)),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn of_dict(rendering: &Rendering, value: &Value, name: &str, args: Args) -> Result<Value, Error> {
    let Py::Dict(dict) = Py::of(value) else { return Err(Error::from(ErrorKind::UnknownMethod)) };
    if name == "get" {
        let [key, default] = args.bind(["key", "default"])?;
        let key = required(key, "key")?;
        hashable(&key)?;
        let found = dict.get(&key).cloned().or(default);
        return Ok(found.unwrap_or_else(|| Value::from(())));
    }
    let [] = args.bind([])?;
    rendering.work(dict.len().saturating_mul(ITEM))?;
    let (kind, items): (ViewKind, Vec<Value>) = match name {
        // Nothing changes a value, so a copy is the same.
        "copy" => return Ok(value.clone()),
        "keys" => (ViewKind::Keys, dict.keys().cloned().collect()),
        "values" => (ViewKind::Values, dict.values().cloned().collect()),
        _ => {
            let pair = |(key, value): (&Value, &Value)| tuple(vec![key.clone(), value.clone()]);
            (ViewKind::Items, dict.iter().map(pair).collect())
        }
    };
    check_nesting(rendering, &items)?;
    Ok(Value::from_object(View { kind, items }))
}

fn of_list(
    rendering: &Rendering,
    value: &Value,
    items: &[Value],
    name: &str,
    args: Args,
) -> Result<Value, Error> {
    if name == "copy" {
        let [] = args.bind([])?;
        return Ok(value.clone());
    }
    let [searched] = args.bind(["value"])?;
    let searched = required(searched, "value")?;
    let mut count = 0;
    for (at, item) in items.iter().enumerate() {
        if equal(rendering, item, &searched)? {
            if name == "index" {
                return Ok(int(at as i128));
            }
            count += 1;
        }
    }
    if name == "index" { Err(fault("value is not in list")) } else { Ok(int(count)) }
}
