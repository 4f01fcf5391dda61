//! Jinja's filters as Jinja2 has them. What no chat template could want is left out: `filesizeformat`, `pprint`, `random`,
//! `striptags`, `urlize`, `wordwrap`, `xmlattr`.

mod numbers;
mod sequences;
mod strings;

use minijinja::{Environment, Error, State, Value};

use super::arguments::{Args, flag};
use super::json::to_json;
use super::limits::Rendering;
use super::values::{Dict, Py, check_nesting};

/// How filters, tests and functions are written here.
pub(super) type Native = fn(&mut State<'_, '_>, Args) -> Result<Value, Error>;

const FILTERS: &[(&str, Native)] = &[
    ("abs", numbers::abs),
    ("attr", sequences::attr),
    ("batch", sequences::batch),
    ("capitalize", strings::capitalize),
    ("center", strings::center),
    ("count", sequences::length),
    ("d", default),
    ("default", default),
    ("dictsort", sequences::dictsort),
    ("e", strings::escape),
    ("escape", strings::escape),
    ("first", sequences::first),
    ("float", numbers::float),
    ("forceescape", strings::escape),
    ("format", strings::format),
    ("groupby", sequences::groupby),
    ("indent", strings::indent),
    ("int", numbers::int),
    ("items", sequences::items),
    ("join", sequences::join),
    ("last", sequences::last),
    ("length", sequences::length),
    ("list", sequences::list),
    ("lower", strings::lower),
    ("map", sequences::map),
    ("max", sequences::max),
    ("min", sequences::min),
    ("reject", sequences::reject),
    ("rejectattr", sequences::rejectattr),
    ("replace", strings::replace),
    ("reverse", sequences::reverse),
    ("round", numbers::round),
    ("safe", strings::safe),
    ("select", sequences::select),
    ("selectattr", sequences::selectattr),
    ("slice", sequences::slice),
    ("sort", sequences::sort),
    ("string", strings::string),
    ("sum", sequences::sum),
    ("title", strings::title),
    ("tojson", to_json),
    ("trim", strings::trim),
    ("truncate", strings::truncate),
    ("unique", sequences::unique),
    ("upper", strings::upper),
    ("urlencode", strings::urlencode),
    ("wordcount", strings::wordcount),
];

/// Puts them all into an environment.
pub(super) fn add(environment: &mut Environment<'static>) {
    for (name, filter) in FILTERS {
        environment.add_filter(*name, super::environment::native(*filter));
    }
}

/// Whether there is a filter `name`.
pub(super) fn exists(name: &str) -> bool {
    FILTERS.iter().any(|(known, _)| *known == name)
}

/// `default(value, default_value='', boolean=False)`.
fn default(_: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let [value, default, boolean] = args.bind(["value", "default_value", "boolean"])?;
    let value = value.unwrap_or_default();
    let missing = value.is_undefined() || flag(boolean.as_ref()) && !value.is_true();
    Ok(if missing { default.unwrap_or_else(|| Value::from("")) } else { value })
}

/// A dict of pairs, for functions `dict` and `namespace`.
pub(super) fn dict_of(rendering: &Rendering, args: Args) -> Result<Dict, Error> {
    use super::values::{fault, hashable, items};
    let named = args.named;
    let [from] = Args { positional: args.positional, named: Vec::new() }.bind(["mapping"])?;
    let mut dict = match from.as_ref().map(Py::of) {
        None => Dict::new(),
        Some(Py::Dict(dict)) => {
            rendering.work(dict.len())?;
            dict.clone()
        }
        Some(_) => {
            let mut dict = Dict::new();
            for pair in items(rendering, &from.unwrap_or_default())? {
                let pair = items(rendering, &pair)?;
                let [key, value] = pair.as_slice() else {
                    return Err(fault("a dict is made of pairs"));
                };
                hashable(key)?;
                dict.insert(key.clone(), value.clone());
            }
            dict
        }
    };
    dict.extend(named.into_iter().map(|(name, value)| (Value::from(name), value)));
    check_nesting(rendering, &dict.values().cloned().collect::<Vec<_>>())?;
    Ok(dict)
}
