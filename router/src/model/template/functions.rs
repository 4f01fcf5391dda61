//! The functions that templates can call: Jinja's globals, and what transformers adds.

use std::sync::Arc;

use minijinja::value::{Kwargs, Object, ObjectRepr, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use parking_lot::Mutex;

use super::arguments::{Args, required};
use super::environment::native;
use super::filters::{Native, dict_of};
use super::limits::Rendering;
use super::strftime::strftime;
use super::text::{str, text};
use super::values::{self, Py, View, ViewKind, check_nesting, fault};

/// Longest `range`, which is the bound of Jinja2's sandbox.
const RANGE_MAX: u64 = 100_000;

/// Names that a request cannot give to its own variables.
pub(crate) const FUNCTIONS: &[&str] =
    &["cycler", "dict", "joiner", "lipsum", "namespace", "raise_exception", "range", "strftime_now"];

/// Puts them all into an environment.
pub(super) fn add(environment: &mut Environment<'static>) {
    let functions: [(&str, Native); 7] = [
        ("cycler", cycler),
        ("dict", dict),
        ("joiner", joiner),
        ("namespace", namespace),
        ("raise_exception", raise_exception),
        ("range", range),
        ("strftime_now", strftime_now),
    ];
    for (name, function) in functions {
        environment.add_function(name, native(function));
    }
}

/// `raise_exception(message)`: the template refuses the conversation.
fn raise_exception(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [message] = args.bind(["message"])?;
    let message = required(message, "message")?;
    let message = str(&rendering, &message)?.into_owned();
    Err(rendering.raised(message))
}

/// `strftime_now(format)`.
fn strftime_now(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [format] = args.bind(["format"])?;
    let format = required(format, "format")?;
    strftime(&rendering, text(&format, "strftime() argument 1")?).map(Value::from)
}

fn range(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [first, second, step] = args.bind(["start", "stop", "step"])?;
    let whole = |value: Value| match Py::of(&value) {
        Py::Int(number) => i64::try_from(number).map_err(|_| fault("Range too big.")),
        Py::Bool(value) => Ok(value.into()),
        other => Err(fault(format!("'{}' object cannot be interpreted as an integer", other.type_name()))),
    };
    let first = whole(required(first, "stop")?)?;
    let (start, stop) = match second {
        Some(stop) => (first, whole(stop)?),
        None => (0, first),
    };
    let step = step.map_or(Ok(1), whole)?;
    if step == 0 {
        return Err(fault("range() arg 3 must not be zero"));
    }
    let distance =
        if step > 0 { i128::from(stop) - i128::from(start) } else { i128::from(start) - i128::from(stop) };
    let length = u128::try_from(distance).unwrap_or(0).div_ceil(step.unsigned_abs().into());
    if length > RANGE_MAX.into() {
        return Err(fault(format!(
            "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({RANGE_MAX})."
        )));
    }
    rendering.work(length as usize * super::limits::ITEM)?;
    let items = (0..length as usize)
        .map(|at| values::int(i128::from(start) + at as i128 * i128::from(step)))
        .collect();
    Ok(Value::from_object(View { kind: ViewKind::Range(start, stop, step), items }))
}

fn dict(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    dict_of(&rendering, args).map(values::dict)
}

/// The engine's own namespace, since only that can be assigned to.
fn namespace(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let mut named = Vec::new();
    for (name, value) in dict_of(&rendering, args)? {
        let name = name.as_str().unwrap_or_default().to_owned();
        if name.starts_with('_') {
            return Err(fault("chat templates cannot store names that begin with an underscore"));
        }
        named.push((name, value));
    }
    let named: Kwargs = named.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    minijinja::functions::namespace(Some(ValueOrKwargs::from(Value::from(named))))
}

/// `cycler(…)`: gives its values in turn.
#[derive(Debug)]
struct Cycler {
    values: Vec<Value>,
    at: Mutex<usize>,
}

impl Object for Cycler {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.values[*self.at.lock()].clone())
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        _: &[Value],
    ) -> Result<Value, Error> {
        let mut at = self.at.lock();
        match method {
            "next" => {
                let value = self.values[*at].clone();
                *at = (*at + 1) % self.values.len();
                Ok(value)
            }
            "reset" => {
                *at = 0;
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

fn cycler(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    if args.positional.is_empty() || !args.named.is_empty() {
        return Err(fault("cycler wants at least one value"));
    }
    let rendering = Rendering::of(state)?;
    check_nesting(&rendering, &args.positional)?;
    Ok(Value::from_object(Cycler { values: args.positional, at: Mutex::new(0) }))
}

/// `joiner(sep)`: nothing when it is called first, and the separator from then on.
#[derive(Debug)]
struct Joiner {
    separator: Value,
    used: Mutex<bool>,
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, _: &[Value]) -> Result<Value, Error> {
        let used = std::mem::replace(&mut *self.used.lock(), true);
        Ok(if used { self.separator.clone() } else { Value::from("") })
    }
}

fn joiner(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let [separator] = args.bind(["sep"])?;
    let separator = separator.unwrap_or_else(|| Value::from(", "));
    let rendering = Rendering::of(state)?;
    check_nesting(&rendering, std::slice::from_ref(&separator))?;
    Ok(Value::from_object(Joiner { separator, used: Mutex::new(false) }))
}
