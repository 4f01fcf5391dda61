//! Filters that make texts.

use std::fmt::Write;

use minijinja::{Error, State, Value};

use super::super::arguments::{Args, flag, optional_int, optional_text, required};
use super::super::format::printf;
use super::super::limits::{Limit, Rendering, WIDTH_MAX};
use super::super::methods;
use super::super::text::{self, str, text};
use super::super::values::{Dict, Py, dict, fault, items, tuple};

/// The value as text, its work counted.
fn whole(state: &mut State<'_, '_>, value: Option<Value>) -> Result<String, Error> {
    let rendering = Rendering::of(state)?;
    let value = value.unwrap_or_default();
    let text = str(&rendering, &value)?;
    rendering.work(text.len())?;
    Ok(text.into_owned())
}

macro_rules! plain {
    ($($name:ident: $of:expr;)*) => {$(
        pub(super) fn $name(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
            let [value] = args.bind(["value"])?;
            let of: fn(&str) -> String = $of;
            Ok(Value::from(of(&whole(state, value)?)))
        }
    )*};
}

plain! {
    upper: str::to_uppercase;
    lower: str::to_lowercase;
    capitalize: methods::capitalize;
    title: title_words;
    string: str::to_owned;
    safe: str::to_owned;
}

/// Jinja's own: a word begins behind white space, `-` and opening brackets.
fn title_words(text: &str) -> String {
    let begins = |char: char| text::is_space(char) || "-({[<".contains(char);
    let mut out = String::with_capacity(text.len());
    let mut first = true;
    for char in text.chars() {
        if begins(char) {
            out.push(char);
            first = true;
        } else if first {
            out.extend(char.to_uppercase());
            first = false;
        } else {
            out.extend(char.to_lowercase());
        }
    }
    out
}

/// `escape(value)`, for HTML.
pub(super) fn escape(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let [value] = args.bind(["value"])?;
    let text = whole(state, value)?;
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            char => out.push(char),
        }
    }
    Rendering::of(state)?.work(out.len())?;
    Ok(Value::from_safe_string(out))
}

/// `format(value, *args, **kwargs)`: as `%`.
pub(super) fn format(state: &mut State<'_, '_>, mut args: Args) -> Result<Value, Error> {
    let first = args.first()?;
    let format = whole(state, Some(first))?;
    let rendering = Rendering::of(state)?;
    let values = match (args.positional.is_empty(), args.named.is_empty()) {
        (false, false) => {
            return Err(fault("can't handle positional and keyword arguments at the same time"));
        }
        (true, false) => {
            let named = args.named.into_iter().map(|(name, value)| (Value::from(name), value));
            dict(named.collect::<Dict>())
        }
        _ => tuple(args.positional),
    };
    printf(&rendering, &format, &values)
}

/// `indent(s, width=4, first=False, blank=False)`.
pub(super) fn indent(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let [value, width, first, blank] = args.bind(["s", "width", "first", "blank"])?;
    // The line end makes the last line one, as Jinja does it.
    let text = whole(state, value)? + "\n";
    let rendering = Rendering::of(state)?;
    let indent = if let Some(Py::Str(indent)) = width.as_ref().map(Py::of) {
        indent.to_owned()
    } else {
        let width = optional_int(width.as_ref())?.unwrap_or(4).max(0);
        let width = usize::try_from(width).unwrap_or(usize::MAX);
        if width > WIDTH_MAX {
            return Err(rendering.reached(Limit::Width));
        }
        " ".repeat(width)
    };
    let lines = methods::split_lines(&text, false);
    rendering.work(lines.len().saturating_mul(indent.len() + 1))?;
    let mut out = String::with_capacity(text.len());
    for (at, line) in lines.iter().enumerate() {
        let skip = if at == 0 { !flag(first.as_ref()) } else { line.is_empty() && !flag(blank.as_ref()) };
        if at > 0 {
            out.push('\n');
        }
        if !skip {
            out.push_str(&indent);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

/// `replace(s, old, new, count=None)`.
pub(super) fn replace(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let [value, old, new, count] = args.bind(["s", "old", "new", "count"])?;
    let text = whole(state, value)?;
    let old = whole(state, Some(required(old, "old")?))?;
    let new = whole(state, Some(required(new, "new")?))?;
    let count = optional_int(count.as_ref())?;
    let rendering = Rendering::of(state)?;
    methods::replace(&rendering, &text, &old, &new, count).map(Value::from)
}

/// `trim(value, chars=None)`.
pub(super) fn trim(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let [value, chars] = args.bind(["value", "chars"])?;
    let value = value.unwrap_or_default();
    let rendering = Rendering::of(state)?;
    let chars = optional_text(chars.as_ref(), "strip arg")?;
    let text = str(&rendering, &value)?;
    methods::trim(&rendering, &text, chars.as_deref()).map(Value::from)
}

/// `center(value, width=80)`.
pub(super) fn center(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let [value, width] = args.bind(["value", "width"])?;
    let text = Value::from(whole(state, value)?);
    methods::call(state, &text, "center", &[width.unwrap_or_else(|| Value::from(80))])
}

/// `truncate(s, length=255, killwords=False, end='...', leeway=5)`.
pub(super) fn truncate(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let [value, length, kill_words, end, leeway] =
        args.bind(["s", "length", "killwords", "end", "leeway"])?;
    let value = value.unwrap_or_default();
    let value = text(&value, "truncate's value")?;
    Rendering::of(state)?.work(value.len())?;
    let end = optional_text(end.as_ref(), "end")?.unwrap_or_else(|| "...".to_owned());
    let size =
        |value: Option<i64>, default| value.map_or(default, |value| usize::try_from(value).unwrap_or(0));
    let length = size(optional_int(length.as_ref())?, 255);
    let leeway = size(optional_int(leeway.as_ref())?, 5);
    let kept = length.checked_sub(end.chars().count());
    let kept = kept.ok_or_else(|| fault("the length of truncate must be at least that of its end"))?;
    if value.chars().count() <= length.saturating_add(leeway) {
        return Ok(Value::from(value));
    }
    let head: String = value.chars().take(kept).collect();
    let head = if flag(kill_words.as_ref()) {
        &head
    } else {
        head.rsplit_once(' ').map_or(head.as_str(), |(head, _)| head)
    };
    Ok(Value::from(head.to_owned() + &end))
}

/// `wordcount(s)`.
pub(super) fn wordcount(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let [value] = args.bind(["s"])?;
    let text = whole(state, value)?;
    let words = text.split(|char: char| !(char.is_alphanumeric() || char == '_'));
    Ok(Value::from(words.filter(|word| !word.is_empty()).count()))
}

/// `urlencode(value)`: a text, a dict, or pairs.
pub(super) fn urlencode(state: &mut State<'_, '_>, args: Args) -> Result<Value, Error> {
    let [value] = args.bind(["value"])?;
    let value = value.unwrap_or_default();
    let rendering = Rendering::of(state)?;
    let quoted = |text: &str, keep: &str| -> Result<String, Error> {
        rendering.work(text.len().saturating_mul(3))?;
        let mut out = String::new();
        for byte in text.bytes() {
            match char::from(byte) {
                ' ' if keep.is_empty() => out.push('+'),
                char if char.is_ascii_alphanumeric() || "_.-~".contains(char) || keep.contains(char) => {
                    out.push(char);
                }
                _ => {
                    let _ = write!(out, "%{byte:02X}");
                }
            }
        }
        Ok(out)
    };
    let pairs = match Py::of(&value) {
        Py::Dict(dict) => dict.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        Py::List(_) | Py::Tuple(_) | Py::View(_) => {
            let mut pairs = Vec::new();
            for pair in items(&rendering, &value)? {
                let pair = items(&rendering, &pair)?;
                let [key, value] = pair.as_slice() else { return Err(fault("urlencode wants pairs")) };
                pairs.push((key.clone(), value.clone()));
            }
            pairs
        }
        _ => return quoted(&str(&rendering, &value)?, "/").map(Value::from),
    };
    let mut parts = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        let (key, value) = (str(&rendering, &key)?, str(&rendering, &value)?);
        parts.push(format!("{}={}", quoted(&key, "")?, quoted(&value, "")?));
    }
    Ok(Value::from(parts.join("&")))
}
