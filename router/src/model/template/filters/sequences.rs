//! Filters over lists, dicts and whatever else can be iterated.

use minijinja::value::Kwargs;
use minijinja::{Error, State, Value};

use super::super::arguments::{Args, flag, optional_int, optional_text, required};
use super::super::compare::{equal, less, sorted_by_key};
use super::super::limits::{ITEM, Limit, Rendering, WIDTH_MAX};
use super::super::methods::{self, Found};
use super::super::operators::{arithmetic, get_item};
use super::super::text::str;
use super::super::values::{self, Group, Method, Py, check_nesting, fault, iterator, tuple, undefined};

/// The items of the value that a filter is applied to.
fn all(rendering: &Rendering, value: Option<Value>) -> Result<Vec<Value>, Error> {
    values::items(rendering, &value.unwrap_or_default())
}

pub(super) fn length(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value] = args.bind(["value"])?;
    values::len(&rendering, &value.unwrap_or_default()).map(Value::from)
}

pub(super) fn first(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value] = args.bind(["value"])?;
    let value = value.unwrap_or_default();
    let first = match Py::of(&value) {
        Py::Str(text) => text.chars().next().map(Value::from),
        Py::List(items) | Py::Tuple(items) => items.first().cloned(),
        Py::Iterator(iterated) => iterated.next(),
        _ => values::items(&rendering, &value)?.into_iter().next(),
    };
    Ok(first.unwrap_or_default())
}

pub(super) fn last(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value] = args.bind(["value"])?;
    let value = value.unwrap_or_default();
    let last = match Py::of(&value) {
        Py::Str(text) => text.chars().next_back().map(Value::from),
        Py::List(items) | Py::Tuple(items) => items.last().cloned(),
        Py::Iterator(_) => return Err(fault("'generator' object is not reversible")),
        _ => values::items(&rendering, &value)?.pop(),
    };
    Ok(last.unwrap_or_default())
}

pub(super) fn list(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value] = args.bind(["value"])?;
    all(&rendering, value).map(values::list)
}

pub(super) fn reverse(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value] = args.bind(["value"])?;
    let value = value.unwrap_or_default();
    if let Py::Str(text) = Py::of(&value) {
        rendering.work(text.len())?;
        return Ok(Value::from(text.chars().rev().collect::<String>()));
    }
    let is_iterator = matches!(Py::of(&value), Py::Iterator(_));
    let mut items = values::items(&rendering, &value)?;
    items.reverse();
    // Python cannot reverse an iterator, so that Jinja makes a list of it first.
    Ok(if is_iterator { values::list(items) } else { iterator(items) })
}

/// `items(value)`: the pairs of a dict.
pub(super) fn items(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value] = args.bind(["value"])?;
    let value = value.unwrap_or_default();
    match Py::of(&value) {
        Py::Undefined => Ok(iterator(Vec::new())),
        Py::Dict(dict) => {
            rendering.work(dict.len().saturating_mul(ITEM))?;
            let pair = |(key, value): (&Value, &Value)| tuple(vec![key.clone(), value.clone()]);
            let pairs: Vec<Value> = dict.iter().map(pair).collect();
            check_nesting(&rendering, &pairs)?;
            Ok(iterator(pairs))
        }
        _ => Err(fault("Can only get item pairs from a mapping.")),
    }
}

/// `dictsort(value, case_sensitive=False, by='key', reverse=False)`.
pub(super) fn dictsort(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value, case_sensitive, by, reverse] = args.bind(["value", "case_sensitive", "by", "reverse"])?;
    let value = value.unwrap_or_default();
    let by_value = match optional_text(by.as_ref(), "by")?.as_deref() {
        None | Some("key") => false,
        Some("value") => true,
        Some(_) => return Err(fault("You can only sort by either \"key\" or \"value\"")),
    };
    let dict = match Py::of(&value) {
        Py::Dict(dict) => dict,
        Py::Undefined => return Err(undefined()),
        other => return Err(fault(format!("'{}' object has no attribute 'items'", other.type_name()))),
    };
    let mut keyed = Vec::with_capacity(dict.len());
    for (key, value) in dict {
        let by = if by_value { value } else { key };
        keyed.push((
            folded(&rendering, by.clone(), flag(case_sensitive.as_ref()))?,
            tuple(vec![key.clone(), value.clone()]),
        ));
    }
    let pairs = sorted_by_key(&rendering, keyed, flag(reverse.as_ref()))?;
    check_nesting(&rendering, &pairs)?;
    Ok(values::list(pairs))
}

/// Texts compare without case unless asked otherwise.
fn folded(rendering: &Rendering, key: Value, case_sensitive: bool) -> Result<Value, Error> {
    match Py::of(&key) {
        Py::Str(text) if !case_sensitive => {
            rendering.work(text.len())?;
            Ok(Value::from(text.to_lowercase()))
        }
        _ => Ok(key),
    }
}

/// Reads `a.b.0` of a value, with a default for what is undefined.
fn read(rendering: &Rendering, value: &Value, path: &Value, default: Option<&Value>) -> Result<Value, Error> {
    let part = |value: &Value, key: &Value| -> Result<Value, Error> {
        let found = get_item(rendering, value, key)?;
        Ok(if found.is_undefined() { default.cloned().unwrap_or_default() } else { found })
    };
    let Some(path) = path.as_str() else { return part(value, path) };
    rendering.work(path.len())?;
    let mut value = value.clone();
    for name in path.split('.') {
        let index =
            name.bytes().all(|byte| byte.is_ascii_digit()).then(|| name.parse::<i64>().ok()).flatten();
        value = part(&value, &index.map_or_else(|| Value::from(name), Value::from))?;
    }
    Ok(value)
}

/// `attr(obj, name)`: an attribute, never a key.
pub(super) fn attr(_: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let [value, name] = args.bind(["obj", "name"])?;
    let (value, name) = (value.unwrap_or_default(), required(name, "name")?);
    let name = name.as_str().unwrap_or_default();
    match Py::of(&value) {
        Py::Undefined => Err(undefined()),
        Py::Object => value.get_attr(name),
        _ if methods::find(&value, name) == Found::Method => {
            Ok(Value::from_object(Method { of: value, name: name.to_owned() }))
        }
        _ => Ok(Value::UNDEFINED),
    }
}

/// `join(value, d='', attribute=None)`.
pub(super) fn join(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value, separator, attribute] = args.bind(["value", "d", "attribute"])?;
    let items = all(&rendering, value)?;
    let separator = separator.unwrap_or_else(|| Value::from(""));
    let separator = str(&rendering, &separator)?;
    let mut out = String::new();
    for (at, item) in items.into_iter().enumerate() {
        let item = match &attribute {
            Some(path) if !path.is_none() => read(&rendering, &item, path, None)?,
            _ => item,
        };
        let item = str(&rendering, &item)?;
        rendering.work(separator.len() + item.len() + 1)?;
        if at > 0 {
            out.push_str(&separator);
        }
        out.push_str(&item);
    }
    Ok(Value::from(out))
}

/// `sort(value, reverse=False, case_sensitive=False, attribute=None)`; several attributes with commas between.
pub(super) fn sort(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value, reverse, case_sensitive, attribute] =
        args.bind(["value", "reverse", "case_sensitive", "attribute"])?;
    let case_sensitive = flag(case_sensitive.as_ref());
    let mut keyed = Vec::new();
    for item in all(&rendering, value)? {
        let key = match attribute.as_ref().map(Py::of) {
            None | Some(Py::None) => values::list(vec![folded(&rendering, item.clone(), case_sensitive)?]),
            Some(Py::Str(paths)) => {
                let mut key = Vec::new();
                for path in paths.split(',') {
                    let part = read(&rendering, &item, &Value::from(path), None)?;
                    key.push(folded(&rendering, part, case_sensitive)?);
                }
                values::list(key)
            }
            Some(_) => {
                let part = read(&rendering, &item, attribute.as_ref().unwrap_or(&Value::UNDEFINED), None)?;
                values::list(vec![folded(&rendering, part, case_sensitive)?])
            }
        };
        keyed.push((key, item));
    }
    sorted_by_key(&rendering, keyed, flag(reverse.as_ref())).map(values::list)
}

pub(super) fn min(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    extreme(state, args, less)
}

pub(super) fn max(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    extreme(state, args, |rendering, candidate, best| less(rendering, best, candidate))
}

/// `min` and `max`: `(value, case_sensitive=False, attribute=None)`.
fn extreme(
    state: &mut State<'_, '_>,
    args: Args,
    better: fn(&Rendering, &Value, &Value) -> Result<bool, Error>,
) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value, case_sensitive, attribute] = args.bind(["value", "case_sensitive", "attribute"])?;
    let mut best: Option<(Value, Value)> = None;
    for item in all(&rendering, value)? {
        let key = key_of(&rendering, &item, attribute.as_ref(), flag(case_sensitive.as_ref()))?;
        if match &best {
            Some((best, _)) => better(&rendering, &key, best)?,
            None => true,
        } {
            best = Some((key, item));
        }
    }
    Ok(best.map(|(_, item)| item).unwrap_or_default())
}

fn key_of(
    rendering: &Rendering,
    item: &Value,
    attribute: Option<&Value>,
    case_sensitive: bool,
) -> Result<Value, Error> {
    let key = match attribute {
        Some(path) if !path.is_none() => read(rendering, item, path, None)?,
        _ => item.clone(),
    };
    folded(rendering, key, case_sensitive)
}

/// `sum(iterable, attribute=None, start=0)`.
pub(super) fn sum(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value, attribute, start] = args.bind(["iterable", "attribute", "start"])?;
    let mut total = start.unwrap_or_else(|| Value::from(0));
    for item in all(&rendering, value)? {
        let item = match &attribute {
            Some(path) if !path.is_none() => read(&rendering, &item, path, None)?,
            _ => item,
        };
        total =
            arithmetic(state, Args { positional: vec![total, Value::from("+"), item], named: Vec::new() })?;
    }
    Ok(total)
}

/// `unique(value, case_sensitive=False, attribute=None)`.
pub(super) fn unique(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value, case_sensitive, attribute] = args.bind(["value", "case_sensitive", "attribute"])?;
    let mut seen = values::Dict::new();
    for item in all(&rendering, value)? {
        let key = key_of(&rendering, &item, attribute.as_ref(), flag(case_sensitive.as_ref()))?;
        values::hashable(&key)?;
        rendering.work(ITEM)?;
        seen.entry(key).or_insert(item);
    }
    Ok(iterator(seen.into_values().collect()))
}

/// `groupby(value, attribute, default=None, case_sensitive=False)`.
pub(super) fn groupby(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value, attribute, default, case_sensitive] =
        args.bind(["value", "attribute", "default", "case_sensitive"])?;
    let attribute = required(attribute, "attribute")?;
    let mut keyed = Vec::new();
    for item in all(&rendering, value)? {
        let key = read(&rendering, &item, &attribute, default.as_ref())?;
        keyed.push((folded(&rendering, key, flag(case_sensitive.as_ref()))?, item));
    }
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for item in sorted_by_key(&rendering, keyed, false)? {
        let shown = read(&rendering, &item, &attribute, default.as_ref())?;
        let key = folded(&rendering, shown.clone(), flag(case_sensitive.as_ref()))?;
        match groups.last_mut() {
            Some((last, _, items)) if equal(&rendering, last, &key)? => items.push(item),
            _ => groups.push((key, shown, vec![item])),
        }
    }
    let group = |(_, key, items)| Value::from_object(Group([key, values::list(items)]));
    let groups: Vec<Value> = groups.into_iter().map(group).collect();
    check_nesting(&rendering, &groups)?;
    Ok(values::list(groups))
}

/// `batch(value, linecount, fill_with=None)`.
pub(super) fn batch(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value, size, fill] = args.bind(["value", "linecount", "fill_with"])?;
    let size = count_of(&rendering, size)?;
    let items = all(&rendering, value)?;
    let mut batches: Vec<Vec<Value>> = items.chunks(size).map(<[Value]>::to_vec).collect();
    if let (Some(fill), Some(last)) = (fill.filter(|fill| !fill.is_none()), batches.last_mut()) {
        rendering.work(size.saturating_mul(ITEM))?;
        last.resize(size, fill);
    }
    let batches: Vec<Value> = batches.into_iter().map(values::list).collect();
    check_nesting(&rendering, &batches)?;
    Ok(iterator(batches))
}

/// `slice(value, slices, fill_with=None)`: columns of nearly the same length.
pub(super) fn slice(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value, slices, fill] = args.bind(["value", "slices", "fill_with"])?;
    let slices = count_of(&rendering, slices)?;
    let items = all(&rendering, value)?;
    let (each, longer) = (items.len() / slices, items.len() % slices);
    let mut rest = items.as_slice();
    let mut columns = Vec::with_capacity(slices);
    for at in 0..slices {
        let (column, behind) = rest.split_at(each + usize::from(at < longer));
        rest = behind;
        let mut column = column.to_vec();
        if let Some(fill) = fill.as_ref().filter(|fill| !fill.is_none() && at >= longer) {
            column.push(fill.clone());
        }
        columns.push(values::list(column));
    }
    check_nesting(&rendering, &columns)?;
    Ok(iterator(columns))
}

fn count_of(rendering: &Rendering, value: Option<Value>) -> Result<usize, Error> {
    let count = optional_int(Some(&required(value, "count")?))?.unwrap_or(0);
    match usize::try_from(count) {
        Ok(0) | Err(_) => Err(fault("a count must be over 0")),
        Ok(count) if count > WIDTH_MAX => Err(rendering.reached(Limit::Width)),
        Ok(count) => Ok(count),
    }
}

/// `map(value, filter, …)` or `map(value, attribute=…, default=…)`.
pub(super) fn map(state: &mut State<'_, '_>, mut args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let items = all(&rendering, Some(args.first()?))?;
    let mut mapped = Vec::with_capacity(items.len());
    if args.positional.is_empty() {
        let [attribute, default] = args.bind(["attribute", "default"])?;
        let attribute = attribute.ok_or_else(|| fault("map requires a filter argument"))?;
        for item in items {
            mapped.push(read(&rendering, &item, &attribute, default.as_ref())?);
        }
    } else {
        let filter = args.first()?;
        let filter = filter.as_str().ok_or_else(|| fault("the name of a filter is a str"))?;
        let call = Call::new(args);
        for item in items {
            rendering.work(ITEM)?;
            mapped.push(state.apply_filter(filter, &call.with(item))?);
        }
    }
    check_nesting(&rendering, &mapped)?;
    Ok(iterator(mapped))
}

/// The further arguments of a filter or test that is applied to many values.
struct Call(Vec<Value>);

impl Call {
    fn new(args: Args) -> Self {
        let mut values = args.positional;
        if !args.named.is_empty() {
            let named = args.named.iter().map(|(name, value)| (name.as_str(), value.clone()));
            values.push(Value::from(named.collect::<Kwargs>()));
        }
        Self(values)
    }

    fn with(&self, value: Value) -> Vec<Value> {
        let mut values = Vec::with_capacity(self.0.len() + 1);
        values.push(value);
        values.extend_from_slice(&self.0);
        values
    }
}

pub(super) fn select(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    pick(state, args, false, true)
}

pub(super) fn reject(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    pick(state, args, false, false)
}

pub(super) fn selectattr(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    pick(state, args, true, true)
}

pub(super) fn rejectattr(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    pick(state, args, true, false)
}

/// Those for which a test, or being true, is `wanted`.
fn pick(state: &mut State<'_, '_>, mut args: Args, by_attribute: bool, wanted: bool) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let items = all(&rendering, Some(args.first()?))?;
    let attribute = if by_attribute {
        Some(args.first().map_err(|_| fault("Missing parameter for attribute name"))?)
    } else {
        None
    };
    let test = if args.positional.is_empty() { None } else { Some(args.first()?) };
    let call = Call::new(args);
    let mut picked = Vec::new();
    for item in items {
        rendering.work(ITEM)?;
        let judged = match &attribute {
            Some(path) => read(&rendering, &item, path, None)?,
            None => item.clone(),
        };
        let holds = match &test {
            None => judged.is_true(),
            Some(test) => {
                let test = test.as_str().ok_or_else(|| fault("the name of a test is a str"))?;
                state.perform_test(test, &call.with(judged))?
            }
        };
        if holds == wanted {
            picked.push(item);
        }
    }
    Ok(iterator(picked))
}
