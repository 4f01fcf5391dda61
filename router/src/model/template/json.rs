//! The filter `tojson`, which transformers replaces by Python's `json.dumps`.

use std::fmt::Write;

use minijinja::{Error, State, Value};

use super::arguments::Args;
use super::compare::sorted;
use super::limits::{Limit, Rendering, WIDTH_MAX};
use super::text::{float, text};
use super::values::{Dict, Py, fault, items};

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn to_json(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let rendering = Rendering::of(state)?;
    let [value, ensure_ascii, indent, separators, sort_keys] =
        args.bind(["value", "ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match indent.as_ref().map(Py::of) {
        None | Some(Py::None) => None,
        Some(Py::Str(text)) => Some(text.to_owned()),
        Some(Py::Int(width)) => Some(spaces(&rendering, width)?),
        Some(Py::Bool(width)) => Some(spaces(&rendering, width.into())?),
        Some(other) => return Err(fault(format!("indent must be int or str, not {}", other.type_name()))),
    };
    let separators = match &separators {
        None => None,
        Some(value) if value.is_none() => None,
        Some(value) => {
            let pair = items(&rendering, value)?;
            let [item, key] = pair.as_slice() else { return Err(fault("separators must be a pair")) };
            Some((text(item, "a separator")?.to_owned(), text(key, "a separator")?.to_owned()))
        }
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let defaults = || (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    let (between, after_key) = separators.unwrap_or_else(defaults);
    let mut json = Json {
        rendering: &rendering,
        out: String::new(),
        ensure_ascii: is_true(ensure_ascii),
        sort_keys: is_true(sort_keys),
        indent,
        between,
        after_key,
    };
    json.value(&value.unwrap_or_default(), 0)?;
    Ok(Value::from(json.out))
}

fn spaces(rendering: &Rendering, width: i128) -> Result<String, Error> {
    let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
    if width > WIDTH_MAX {
        return Err(rendering.reached(Limit::Width));
    }
    Ok(" ".repeat(width))
}

struct Json<'a> {
    rendering: &'a Rendering,
    out: String,
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    between: String,
    after_key: String,
}

impl Json<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.rendering.work(4)?;
        match Py::of(value) {
            Py::None => self.out.push_str("null"),
            Py::Bool(value) => self.out.push_str(if value { "true" } else { "false" }),
            Py::Int(value) => {
                let _ = write!(self.out, "{value}");
            }
            Py::Float(value) => self.out.push_str(&number(value)),
            Py::Str(text) => self.text(text)?,
            Py::List(items) | Py::Tuple(items) => {
                self.container('[', items.len(), ']', depth, |json, at| json.value(&items[at], depth + 1))?;
            }
            Py::Dict(dict) => self.dict(dict, depth)?,
            other => {
                return Err(fault(format!("Object of type {} is not JSON serializable", other.type_name())));
            }
        }
        Ok(())
    }

    fn dict(&mut self, dict: &Dict, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = dict.keys().cloned().collect();
        if self.sort_keys {
            keys = sorted(self.rendering, keys, false)?;
        }
        self.container('{', dict.len(), '}', depth, |json, at| {
            let key = &keys[at];
            match Py::of(key) {
                Py::Str(text) => json.text(text)?,
                Py::None => json.out.push_str("\"null\""),
                Py::Bool(value) => json.out.push_str(if value { "\"true\"" } else { "\"false\"" }),
                Py::Int(value) => {
                    let _ = write!(json.out, "\"{value}\"");
                }
                Py::Float(value) => {
                    let _ = write!(json.out, "\"{}\"", number(value));
                }
                other => {
                    let kind = other.type_name();
                    return Err(fault(format!("keys must be str, int, float, bool or None, not {kind}")));
                }
            }
            let after_key = json.after_key.clone();
            json.out.push_str(&after_key);
            json.value(dict.get(key).unwrap_or(&Value::UNDEFINED), depth + 1)
        })
    }

    /// Writes `len` things between brackets.
    fn container(
        &mut self,
        open: char,
        len: usize,
        close: char,
        depth: usize,
        mut thing: impl FnMut(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for at in 0..len {
            if at > 0 {
                self.rendering.work(self.between.len())?;
                self.out.push_str(&self.between);
            }
            self.new_line(depth + 1)?;
            thing(self, at)?;
        }
        if len > 0 {
            self.new_line(depth)?;
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            self.rendering.work(1 + indent.len() * depth)?;
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Error> {
        self.rendering.work(text.len())?;
        self.out.push('"');
        for char in text.chars() {
            match char {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\x08' => self.out.push_str("\\b"),
                '\x0c' => self.out.push_str("\\f"),
                char if char < ' ' || (self.ensure_ascii && !matches!(char, ' '..='~')) => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                char => self.out.push(char),
            }
        }
        self.out.push('"');
        Ok(())
    }
}

/// A float as Python's json writes it: also what JSON does not have.
fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else {
        float(value)
    }
}
