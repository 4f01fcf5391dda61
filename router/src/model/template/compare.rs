//! Comparing values: `==`, `<`, `in`, and sorting.

use minijinja::{Error, Value};

use super::limits::{ITEM, Rendering};
use super::values::{Number, Py, fault, hashable, items, undefined};

/// `a == b`.
pub(super) fn equal(rendering: &Rendering, a: &Value, b: &Value) -> Result<bool, Error> {
    rendering.work(1)?;
    Ok(match (Py::of(a), Py::of(b)) {
        (Py::Undefined, Py::Undefined) | (Py::None, Py::None) => true,
        (Py::Str(a), Py::Str(b)) => {
            if a.len() == b.len() {
                rendering.work(a.len() / 16)?;
            }
            a == b
        }
        (Py::List(a), Py::List(b)) | (Py::Tuple(a), Py::Tuple(b)) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            for (a, b) in a.iter().zip(b) {
                if !equal(rendering, a, b)? {
                    return Ok(false);
                }
            }
            true
        }
        (Py::Dict(a), Py::Dict(b)) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            for (key, value) in a {
                match b.get(key) {
                    Some(other) if equal(rendering, value, other)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Py::Object, Py::Object) => same(a, b),
        (a, b) => match (a.number(), b.number()) {
            (Some(Number::Int(a)), Some(Number::Int(b))) => a == b,
            #[allow(clippy::float_cmp)] // it is what the template asks
            (Some(a), Some(b)) => a.as_f64() == b.as_f64(),
            _ => false,
        },
    })
}

/// `a is b`, as far as it shows: the same object, or equal constants.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a.as_object(), b.as_object()) {
        (Some(a), Some(b)) => std::ptr::eq(address(a), address(b)),
        (None, None) => a.kind() == b.kind() && a.is_integer() == b.is_integer() && a == b,
        _ => false,
    }
}

/// Where an object is. Two values of one object share it.
fn address(object: &minijinja::value::DynObject) -> *const () {
    object.downcast_ref::<Vec<Value>>().map_or_else(
        || {
            let dict = object.downcast_ref::<super::values::Dict>();
            dict.map_or(std::ptr::from_ref(object).cast(), |dict| std::ptr::from_ref(dict).cast())
        },
        |list| std::ptr::from_ref(list).cast(),
    )
}

/// `a < b`.
pub(super) fn less(rendering: &Rendering, a: &Value, b: &Value) -> Result<bool, Error> {
    rendering.work(1)?;
    match (Py::of(a), Py::of(b)) {
        (Py::Undefined, _) | (_, Py::Undefined) => Err(undefined()),
        (Py::Str(a), Py::Str(b)) => {
            rendering.work(a.len().min(b.len()) / 16)?;
            Ok(a < b)
        }
        (Py::List(a), Py::List(b)) | (Py::Tuple(a), Py::Tuple(b)) => {
            for (a, b) in a.iter().zip(b) {
                if !equal(rendering, a, b)? {
                    return less(rendering, a, b);
                }
            }
            Ok(a.len() < b.len())
        }
        (a, b) => match (a.number(), b.number()) {
            (Some(Number::Int(a)), Some(Number::Int(b))) => Ok(a < b),
            (Some(a), Some(b)) => Ok(a.as_f64() < b.as_f64()),
            _ => Err(fault(format!(
                "'<' not supported between instances of '{}' and '{}'",
                a.type_name(),
                b.type_name()
            ))),
        },
    }
}

/// `a <= b`.
pub(super) fn less_or_equal(rendering: &Rendering, a: &Value, b: &Value) -> Result<bool, Error> {
    // Not the negation of `b < a`: with NaN both are false.
    Ok(less(rendering, a, b)? || equal(rendering, a, b)?)
}

/// `item in container`.
pub(super) fn contains(rendering: &Rendering, container: &Value, item: &Value) -> Result<bool, Error> {
    match (Py::of(container), Py::of(item)) {
        (Py::Str(text), Py::Str(part)) => {
            rendering.work(text.len() / 4)?;
            Ok(text.contains(part))
        }
        (Py::Str(_), other) => {
            let kind = other.type_name();
            Err(fault(format!("'in <string>' requires string as left operand, not {kind}")))
        }
        (Py::Dict(dict), _) => {
            hashable(item)?;
            rendering.work(1)?;
            Ok(dict.contains_key(item))
        }
        (Py::Undefined, _) => Ok(false),
        (Py::List(list) | Py::Tuple(list), _) => any_equal(rendering, list, item),
        (Py::View(view), _) => any_equal(rendering, &view.items, item),
        (Py::Iterator(_), _) => any_equal(rendering, &items(rendering, container)?, item),
        (other, _) => Err(fault(format!("argument of type '{}' is not iterable", other.type_name()))),
    }
}

fn any_equal(rendering: &Rendering, items: &[Value], item: &Value) -> Result<bool, Error> {
    for other in items {
        if equal(rendering, other, item)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Sorts by `<`, stable; `reverse` keeps equal ones in their order too, as Python does.
pub(super) fn sorted(rendering: &Rendering, values: Vec<Value>, reverse: bool) -> Result<Vec<Value>, Error> {
    let keyed = values.into_iter().map(|value| (value.clone(), value)).collect();
    sorted_by_key(rendering, keyed, reverse)
}

/// Sorts values by keys. The standard library's sort panics where `<` is no order, as with NaN.
pub(super) fn sorted_by_key(
    rendering: &Rendering,
    mut keyed: Vec<(Value, Value)>,
    reverse: bool,
) -> Result<Vec<Value>, Error> {
    let mut merged = Vec::with_capacity(keyed.len());
    let mut width = 1;
    while width < keyed.len() {
        rendering.work(keyed.len() * ITEM)?;
        for pair in keyed.chunks(2 * width) {
            let (mut left, mut right) = pair.split_at(width.min(pair.len()));
            while let (Some((a, rest_left)), Some((b, rest_right))) =
                (left.split_first(), right.split_first())
            {
                let right_first =
                    if reverse { less(rendering, &a.0, &b.0)? } else { less(rendering, &b.0, &a.0)? };
                if right_first {
                    merged.push(b.clone());
                    right = rest_right;
                } else {
                    merged.push(a.clone());
                    left = rest_left;
                }
            }
            merged.extend_from_slice(left);
            merged.extend_from_slice(right);
        }
        std::mem::swap(&mut keyed, &mut merged);
        merged.clear();
        width *= 2;
    }
    Ok(keyed.into_iter().map(|(_, value)| value).collect())
}
