//! Operators as Python has them. `rewrite.rs` puts calls of these functions in the place of the engine's own.

use std::borrow::Cow;

use minijinja::{Error, State, Value};

use super::arguments::{Args, optional_int};
use super::compare::{contains, equal, less, less_or_equal};
use super::format::printf;
use super::limits::{ITEM, Rendering};
use super::methods;
use super::text::str;
use super::values::{
    Dict, Method, Number, Py, View, ViewKind, check_nesting, dict, fault, hashable, int, is_namespace, items,
    list, tuple, undefined,
};

/// `__py_op(a, "+", b, "-", c)`: arithmetic from left to right.
pub(super) fn arithmetic(state: &mut State<'_, '_>, mut args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let mut left = args.first()?;
    for pair in args.positional.chunks_exact(2) {
        left = binary(&rendering, &left, pair[0].as_str().unwrap_or_default(), &pair[1])?;
    }
    Ok(left)
}

fn binary(rendering: &Rendering, left: &Value, operator: &str, right: &Value) -> Result<Value, Error> {
    let (a, b) = (Py::of(left), Py::of(right));
    if let (Py::Undefined, _) | (_, Py::Undefined) = (a, b) {
        // `'%s' % undefined` alone has a meaning.
        if !(operator == "%" && matches!(a, Py::Str(_))) {
            return Err(undefined());
        }
    }
    if let (Some(a), Some(b)) = (a.number(), b.number()) {
        return numbers(a, operator, b);
    }
    match (operator, a, b) {
        ("+", Py::Str(a), Py::Str(b)) => {
            rendering.work(a.len() + b.len())?;
            Ok(Value::from([a, b].concat()))
        }
        ("+", Py::List(a), Py::List(b)) => {
            rendering.work(a.len() + b.len())?;
            Ok(list([a, b].concat()))
        }
        ("+", Py::Tuple(a), Py::Tuple(b)) => {
            rendering.work(a.len() + b.len())?;
            Ok(tuple([a, b].concat()))
        }
        ("%", Py::Str(format), _) => printf(rendering, format, right),
        ("*", Py::Str(_) | Py::List(_) | Py::Tuple(_), Py::Int(_) | Py::Bool(_)) => {
            repeat(rendering, left, right)
        }
        ("*", Py::Int(_) | Py::Bool(_), Py::Str(_) | Py::List(_) | Py::Tuple(_)) => {
            repeat(rendering, right, left)
        }
        _ => Err(fault(format!(
            "unsupported operand type(s) for {operator}: '{}' and '{}'",
            a.type_name(),
            b.type_name()
        ))),
    }
}

fn repeat(rendering: &Rendering, value: &Value, times: &Value) -> Result<Value, Error> {
    let times = optional_int(Some(times))?.and_then(|times| usize::try_from(times).ok()).unwrap_or(0);
    match Py::of(value) {
        Py::Str(text) => {
            rendering.work(text.len().saturating_mul(times))?;
            Ok(Value::from(text.repeat(times)))
        }
        Py::Tuple(items) => {
            rendering.work(items.len().saturating_mul(times).saturating_mul(ITEM))?;
            Ok(tuple(repeated(items, times)))
        }
        Py::List(items) => {
            rendering.work(items.len().saturating_mul(times).saturating_mul(ITEM))?;
            Ok(list(repeated(items, times)))
        }
        other => Err(fault(format!("'{}' object cannot be repeated", other.type_name()))),
    }
}

fn repeated(items: &[Value], times: usize) -> Vec<Value> {
    std::iter::repeat_n(items, times).flatten().cloned().collect()
}

fn numbers(a: Number, operator: &str, b: Number) -> Result<Value, Error> {
    let too_large = || fault(format!("a result of {operator} has more than 128 bits"));
    let by_zero = || fault("division by zero");
    if let (Number::Int(a), Number::Int(b)) = (a, b) {
        let result = match operator {
            "+" => a.checked_add(b),
            "-" => a.checked_sub(b),
            "*" => a.checked_mul(b),
            "//" | "%" if b == 0 => return Err(by_zero()),
            "//" => a
                .checked_div(b)
                .map(|quotient| if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient }),
            "%" => {
                a.checked_rem(b).map(|rest| if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
            }
            "**" if b >= 0 => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
            _ => return floats(a as f64, operator, b as f64).map(Value::from),
        };
        return result.map(int).ok_or_else(too_large);
    }
    floats(a.as_f64(), operator, b.as_f64()).map(Value::from)
}

fn floats(a: f64, operator: &str, b: f64) -> Result<f64, Error> {
    if b == 0.0 && matches!(operator, "/" | "//" | "%") || a == 0.0 && b < 0.0 && operator == "**" {
        return Err(fault("division by zero"));
    }
    // The sign of a remainder is the divisor's, and the quotient goes with it.
    let floored = || {
        let rest = a % b;
        let (rest, quotient) = if rest != 0.0 && (rest < 0.0) != (b < 0.0) {
            (rest + b, (a - rest) / b - 1.0)
        } else {
            (if rest == 0.0 { 0.0_f64.copysign(b) } else { rest }, (a - rest) / b)
        };
        (quotient.round(), rest)
    };
    Ok(match operator {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b,
        "/" => a / b,
        "//" => floored().0,
        "%" => floored().1,
        _ => {
            let power = a.powf(b);
            if power.is_nan() && !a.is_nan() && !b.is_nan() {
                return Err(fault("a power is a complex number"));
            }
            if power.is_infinite() && a.is_finite() && b.is_finite() {
                return Err(fault("a power is too large"));
            }
            power
        }
    })
}

/// `__py_neg(a)`.
pub(super) fn negative(_: &mut State<'_, '_>, mut args: Args) -> Result<Value, Error> {
    let value = args.first()?;
    match (Py::of(&value), Py::of(&value).number()) {
        (Py::Undefined, _) => Err(undefined()),
        (_, Some(Number::Int(value))) => {
            value.checked_neg().map(int).ok_or_else(|| fault("a number has more than 128 bits"))
        }
        (_, Some(Number::Float(value))) => Ok(Value::from(-value)),
        (other, None) => Err(fault(format!("bad operand type for unary -: '{}'", other.type_name()))),
    }
}

/// `__py_cat(a, b, c)`: what `~` does.
#[expect(clippy::needless_pass_by_value, reason = "what a function of a template is")]
pub(super) fn concatenate(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let parts =
        args.positional.iter().map(|part| str(&rendering, part)).collect::<Result<Vec<Cow<'_, str>>, _>>()?;
    rendering.work(parts.iter().map(|part| part.len()).sum())?;
    Ok(Value::from(parts.concat()))
}

/// `__py_cmp(a, "<", b, "<", c)`: each with the next, as long as it is true.
pub(super) fn compare(state: &mut State<'_, '_>, mut args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let mut left = args.first()?;
    for pair in args.positional.chunks_exact(2) {
        let right = &pair[1];
        let holds = match pair[0].as_str().unwrap_or_default() {
            "==" => equal(&rendering, &left, right)?,
            "!=" => !equal(&rendering, &left, right)?,
            "<" => less(&rendering, &left, right)?,
            "<=" => less_or_equal(&rendering, &left, right)?,
            ">" => less(&rendering, right, &left)?,
            ">=" => less_or_equal(&rendering, right, &left)?,
            "in" => contains(&rendering, right, &left)?,
            _ => !contains(&rendering, right, &left)?,
        };
        if !holds {
            return Ok(Value::from(false));
        }
        left = right.clone();
    }
    Ok(Value::from(true))
}

/// `__py_iter(value)`: what `for` goes over. Everything but lists and tuples becomes a list, so that `loop` knows its length.
/// With `true` behind it, texts in it become lists too, to be unpacked.
pub(super) fn iterate(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value, unpack] = args.bind(["value", "unpack"])?;
    let value = value.unwrap_or_default();
    let is_text = |value: &Value| matches!(Py::of(value), Py::Str(_) | Py::Dict(_) | Py::Iterator(_));
    if let Py::List(all) | Py::Tuple(all) = Py::of(&value)
        && !(unpack.is_some() && all.iter().any(is_text))
    {
        return Ok(value);
    }
    let mut all = items(&rendering, &value)?;
    if unpack.is_some() {
        for item in all.iter_mut().filter(|item| is_text(item)) {
            *item = list(items(&rendering, item)?);
        }
    }
    Ok(list(all))
}

/// `__py_list(a, b)`.
pub(super) fn build_list(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    check_nesting(&rendering, &args.positional)?;
    Ok(list(args.positional))
}

/// `__py_tuple(a, b)`.
pub(super) fn build_tuple(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    check_nesting(&rendering, &args.positional)?;
    Ok(tuple(args.positional))
}

/// `__py_dict(key, value, key, value)`.
#[expect(clippy::needless_pass_by_value, reason = "what a function of a template is")]
pub(super) fn build_dict(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    check_nesting(&rendering, &args.positional)?;
    let mut built = Dict::with_capacity(args.positional.len() / 2);
    for pair in args.positional.chunks_exact(2) {
        hashable(&pair[0])?;
        built.insert(pair[0].clone(), pair[1].clone());
    }
    Ok(dict(built))
}

/// `__py_keep(value)`: what a namespace may hold.
pub(super) fn keep(_: &mut State<'_, '_>, mut args: Args) -> Result<Value, Error> {
    let value = args.first()?;
    if is_namespace(&value) {
        return Err(fault("a namespace cannot hold a namespace"));
    }
    Ok(value)
}

/// `__py_attr(value, "name")`: methods come before the keys of a dict, and those that change a value are not there.
pub(super) fn attribute(_: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let [value, name] = args.bind(["value", "name"])?;
    let (value, name) = (value.unwrap_or_default(), name.unwrap_or_default());
    let name = name.as_str().unwrap_or_default();
    match methods::find(&value, name) {
        methods::Found::Method => Ok(Value::from_object(Method { of: value, name: name.to_owned() })),
        methods::Found::None if !name.starts_with("__") || value.is_undefined() => value.get_attr(name),
        // What is Python's own, the sandbox does not give out.
        methods::Found::Unsafe | methods::Found::None => Ok(Value::UNDEFINED),
    }
}

/// `__py_item(value, key)`: `value[key]`, or the attribute of that name.
pub(super) fn item(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value, key] = args.bind(["value", "key"])?;
    get_item(&rendering, &value.unwrap_or_default(), &key.unwrap_or_default())
}

/// `value[key]`, or the attribute of that name, or undefined.
pub(super) fn get_item(rendering: &Rendering, value: &Value, key: &Value) -> Result<Value, Error> {
    let index = |len: usize| {
        let at = match Py::of(key) {
            Py::Int(at) => at,
            Py::Bool(at) => at.into(),
            _ => return None,
        };
        let at = if at < 0 { at + len as i128 } else { at };
        usize::try_from(at).ok().filter(|at| *at < len)
    };
    let found = match Py::of(value) {
        Py::Undefined => return Err(undefined()),
        Py::Dict(dict) => match hashable(key) {
            Ok(()) => dict.get(key).cloned(),
            Err(_) => None,
        },
        Py::List(items) | Py::Tuple(items) => index(items.len()).map(|at| items[at].clone()),
        Py::View(view) if matches!(view.kind, ViewKind::Range(..)) => {
            index(view.items.len()).map(|at| view.items[at].clone())
        }
        Py::Str(text) => {
            // Reading a text character by character takes its length squared.
            rendering.work(text.len() / 16)?;
            let len = if text.is_ascii() { text.len() } else { text.chars().count() };
            index(len).and_then(|at| text.chars().nth(at)).map(Value::from)
        }
        _ => None,
    };
    match (found, key.as_str()) {
        (Some(found), _) => Ok(found),
        (None, Some(name)) if methods::find(value, name) == methods::Found::Method => {
            Ok(Value::from_object(Method { of: value.clone(), name: name.to_owned() }))
        }
        (None, Some(name)) => value.get_attr(name),
        (None, None) => Ok(Value::UNDEFINED),
    }
}

/// `__py_slice(value, start, stop, step)`.
pub(super) fn slice(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value, start, stop, step] = args.bind(["value", "start", "stop", "step"])?;
    let value = value.unwrap_or_default();
    let bounds = [optional_int(start.as_ref())?, optional_int(stop.as_ref())?];
    let step = optional_int(step.as_ref())?.unwrap_or(1);
    if step == 0 {
        return Err(fault("slice step cannot be zero"));
    }
    match Py::of(&value) {
        Py::Undefined => Err(undefined()),
        Py::Str(text) => {
            rendering.work(text.len())?;
            let chars: Vec<char> = text.chars().collect();
            let picked: String = picked(chars.len(), bounds, step).map(|at| chars[at]).collect();
            Ok(Value::from(picked))
        }
        Py::List(items) => sliced(&rendering, items, bounds, step).map(list),
        Py::Tuple(items) => sliced(&rendering, items, bounds, step).map(tuple),
        Py::View(View { kind: ViewKind::Range(..), items }) => {
            sliced(&rendering, items, bounds, step).map(list)
        }
        Py::Dict(_) => Err(fault("unhashable type: 'slice'")),
        // As Jinja does when a value cannot be subscripted.
        _ => Ok(Value::UNDEFINED),
    }
}

fn sliced(
    rendering: &Rendering,
    items: &[Value],
    bounds: [Option<i64>; 2],
    step: i64,
) -> Result<Vec<Value>, Error> {
    let picked = picked(items.len(), bounds, step);
    rendering.work(items.len().saturating_mul(ITEM))?;
    Ok(picked.map(|at| items[at].clone()).collect())
}

/// The places that a slice picks of `len`, in its order.
fn picked(len: usize, [start, stop]: [Option<i64>; 2], step: i64) -> impl Iterator<Item = usize> {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    // Where counting backwards ends is one before the first.
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let place = |bound: Option<i64>, default: i64| match bound {
        None => default,
        Some(at) if at < 0 => at.saturating_add(len).max(low),
        Some(at) => at.min(high),
    };
    let (first, end) = if step > 0 {
        (place(start, low), place(stop, high))
    } else {
        (place(start, high), place(stop, low))
    };
    let mut at = first;
    std::iter::from_fn(move || {
        let here = at;
        if (step > 0 && here >= end) || (step < 0 && here <= end) {
            return None;
        }
        at = at.saturating_add(step);
        usize::try_from(here).ok()
    })
}

/// `{% call __py_generation() %}…{% endcall %}`: what is inside, as transformers renders the tag.
pub(super) fn generation(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let [caller] = args.bind(["caller"])?;
    caller.unwrap_or_default().call(state, &[])
}
