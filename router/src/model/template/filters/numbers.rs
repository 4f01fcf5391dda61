//! Filters that make numbers.

use minijinja::{Error, State, Value};

use super::super::arguments::{Args, optional_int, optional_text};
use super::super::limits::{Rendering, WIDTH_MAX};
use super::super::text::{parse_float, parse_int};
use super::super::values::{self, Number, Py, fault, undefined};

/// `abs(value)`.
pub(super) fn abs(_: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let [value] = args.bind(["value"])?;
    let value = value.unwrap_or_default();
    match Py::of(&value).number() {
        Some(Number::Int(number)) => {
            number.checked_abs().map(values::int).ok_or_else(|| fault("a number has more than 128 bits"))
        }
        Some(Number::Float(number)) => Ok(Value::from(number.abs())),
        None => Err(fault(format!("bad operand type for abs(): '{}'", Py::of(&value).type_name()))),
    }
}

/// `int(value, default=0, base=10)`: what is no number is the default.
pub(super) fn int(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value, default, base] = args.bind(["value", "default", "base"])?;
    let value = value.unwrap_or_default();
    let base = optional_int(base.as_ref())?.unwrap_or(10);
    let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base));
    let truncated = |number: f64| {
        let whole = number.trunc();
        // Beyond it, a conversion would not say that the number does not fit.
        (whole.abs() < 1.7e38).then(|| values::int(whole as i128))
    };
    let parsed = match Py::of(&value) {
        Py::Undefined => return Err(undefined()),
        Py::Str(text) => {
            rendering.work(text.len())?;
            let int = base.and_then(|base| parse_int(text, base)).map(values::int);
            int.or_else(|| parse_float(text).and_then(truncated))
        }
        other => match other.number() {
            Some(Number::Int(number)) => Some(values::int(number)),
            Some(Number::Float(number)) if number.is_infinite() => {
                return Err(fault("cannot convert float infinity to integer"));
            }
            Some(Number::Float(number)) => truncated(number),
            None => None,
        },
    };
    Ok(parsed.or(default).unwrap_or_else(|| Value::from(0)))
}

/// `float(value, default=0.0)`.
pub(super) fn float(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value, default] = args.bind(["value", "default"])?;
    let value = value.unwrap_or_default();
    let parsed = match Py::of(&value) {
        Py::Undefined => return Err(undefined()),
        Py::Str(text) => {
            rendering.work(text.len())?;
            parse_float(text)
        }
        other => other.number().map(Number::as_f64),
    };
    Ok(parsed.map(Value::from).or(default).unwrap_or_else(|| Value::from(0.0)))
}

/// `round(value, precision=0, method='common')`.
pub(super) fn round(_: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let [value, precision, method] = args.bind(["value", "precision", "method"])?;
    let value = value.unwrap_or_default();
    let precision = optional_int(precision.as_ref())?.unwrap_or(0);
    if precision.unsigned_abs() > WIDTH_MAX as u64 {
        return Err(fault("a precision is too large"));
    }
    let method = optional_text(method.as_ref(), "method")?;
    let Some(number) = Py::of(&value).number() else {
        return Err(match Py::of(&value) {
            Py::Undefined => undefined(),
            other => fault(format!("type {} doesn't define __round__ method", other.type_name())),
        });
    };
    let scale = 10_f64.powi(i32::try_from(precision).unwrap_or_default());
    match (method.as_deref().unwrap_or("common"), number) {
        ("common", Number::Int(number)) if precision >= 0 => Ok(values::int(number)),
        ("common", Number::Int(number)) => {
            let unit = u32::try_from(-precision).ok().and_then(|digits| 10_i128.checked_pow(digits));
            // A unit larger than every number rounds all of them to nothing.
            unit.map_or(Some(0), |unit| round_to(number, unit))
                .map(values::int)
                .ok_or_else(|| fault("a number has more than 128 bits"))
        }
        ("common", Number::Float(number)) => Ok(Value::from(round_float(number, precision))),
        ("ceil", number) => Ok(Value::from((number.as_f64() * scale).ceil() / scale)),
        ("floor", number) => Ok(Value::from((number.as_f64() * scale).floor() / scale)),
        _ => Err(fault("method must be common, ceil or floor")),
    }
}

/// The nearest multiple of `unit`, of two the even one. None if it does not fit.
fn round_to(number: i128, unit: i128) -> Option<i128> {
    let (quotient, rest) = (number.div_euclid(unit), number.rem_euclid(unit));
    let up = match rest.cmp(&(unit - rest)) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => quotient % 2 != 0,
        std::cmp::Ordering::Greater => true,
    };
    (quotient + i128::from(up)).checked_mul(unit)
}

/// Python rounds the number that the float is, not the one it is written as: 2.675 to 2.67.
fn round_float(number: f64, precision: i64) -> f64 {
    if let Ok(digits) = usize::try_from(precision) {
        return format!("{number:.digits$}").parse().unwrap_or(number);
    }
    let unit = 10_f64.powi(i32::try_from(-precision).unwrap_or_default());
    (number / unit).round_ties_even() * unit
}
