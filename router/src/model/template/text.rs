//! Values as text: Python's `str` and `repr`.

use std::borrow::Cow;
use std::fmt::Write;

use minijinja::{Error, Value};

use super::limits::Rendering;
use super::values::{Method, Py, View, ViewKind, fault, is_namespace};

/// `str(value)`. An undefined value is the empty text.
pub(super) fn str<'a>(rendering: &Rendering, value: &'a Value) -> Result<Cow<'a, str>, Error> {
    match Py::of(value) {
        Py::Undefined => Ok(Cow::Borrowed("")),
        Py::Str(text) => Ok(Cow::Borrowed(text)),
        _ => {
            let mut out = String::new();
            write_repr(rendering, value, &mut out)?;
            Ok(Cow::Owned(out))
        }
    }
}

/// `repr(value)`.
pub(super) fn repr(rendering: &Rendering, value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write_repr(rendering, value, &mut out)?;
    Ok(out)
}

fn write_repr(rendering: &Rendering, value: &Value, out: &mut String) -> Result<(), Error> {
    // What is written is at least as long as this.
    rendering.work(4)?;
    match Py::of(value) {
        Py::Undefined => out.push_str("Undefined"),
        Py::None => out.push_str("None"),
        Py::Bool(value) => out.push_str(if value { "True" } else { "False" }),
        Py::Int(value) => {
            let _ = write!(out, "{value}");
        }
        Py::Float(value) => out.push_str(&float(value)),
        Py::Str(text) => {
            rendering.work(text.len())?;
            quote(text, out);
        }
        Py::List(items) => write_items(rendering, "[", items, "]", out)?,
        Py::Tuple(items) => {
            write_items(rendering, "(", items, if items.len() == 1 { ",)" } else { ")" }, out)?;
        }
        Py::Dict(dict) => {
            out.push('{');
            for (at, (key, value)) in dict.iter().enumerate() {
                if at > 0 {
                    out.push_str(", ");
                }
                write_repr(rendering, key, out)?;
                out.push_str(": ");
                write_repr(rendering, value, out)?;
            }
            out.push('}');
        }
        Py::View(View { kind: ViewKind::Range(start, stop, step), .. }) => match step {
            1 => {
                let _ = write!(out, "range({start}, {stop})");
            }
            _ => {
                let _ = write!(out, "range({start}, {stop}, {step})");
            }
        },
        Py::View(view) => {
            out.push_str(view.kind.type_name());
            write_items(rendering, "([", &view.items, "])", out)?;
        }
        // Python prints where these are in memory, which no two runs have in common.
        Py::Iterator(_) => out.push_str("<generator object>"),
        Py::Object if value.downcast_object_ref::<Method>().is_some() => out.push_str("<built-in method>"),
        Py::Object if is_namespace(value) => out.push_str("<Namespace>"),
        Py::Object => {
            let kind = value.as_object().map_or("", |object| object.type_name());
            if kind.ends_with("::Macro") {
                let name = value.get_attr("name").unwrap_or_default();
                let _ = write!(out, "<Macro '{name}'>");
            } else if kind.contains("Function") {
                out.push_str("<function>");
            } else {
                let _ = write!(out, "{value}");
            }
        }
    }
    Ok(())
}

fn write_items(
    rendering: &Rendering,
    open: &str,
    items: &[Value],
    close: &str,
    out: &mut String,
) -> Result<(), Error> {
    out.push_str(open);
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        write_repr(rendering, item, out)?;
    }
    out.push_str(close);
    Ok(())
}

/// A text in Python's quotes.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for char in text.chars() {
        match char {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            char if char == quote => out.extend(['\\', char]),
            char if is_printable(char) => out.push(char),
            char => {
                let code = u32::from(char);
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// Python's `str.isprintable` for a character. Rust's debug escapes follow the same Unicode categories; behind another
/// character they leave marks that combine with it alone.
pub(super) fn is_printable(char: char) -> bool {
    if char.is_ascii() {
        return matches!(char, ' '..='~');
    }
    let mut buffer = [b'a'; 5];
    let length = char.encode_utf8(&mut buffer[1..]).len();
    std::str::from_utf8(&buffer[..=length]).is_ok_and(|text| text.escape_debug().count() == 2)
}

/// Python's `repr` of a float: the shortest digits that give it back, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if value == 0.0 || (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// `int(text, base)`.
pub(super) fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = strip(text);
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    let has_prefix =
        !prefix.is_empty() && text.get(..2).is_some_and(|head| head.eq_ignore_ascii_case(prefix));
    let text = if has_prefix { text[2..].strip_prefix('_').unwrap_or(&text[2..]) } else { text };
    let digits = without_underscores(text)?;
    if digits.is_empty() || digits.starts_with(['+', '-']) {
        return None;
    }
    let value = i128::from_str_radix(&digits, base).ok()?;
    Some(if negative { -value } else { value })
}

/// `float(text)`.
pub(super) fn parse_float(text: &str) -> Option<f64> {
    let digits = without_underscores(strip(text))?;
    let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(&digits);
    let named = ["inf", "infinity", "nan"].iter().any(|name| unsigned.eq_ignore_ascii_case(name));
    if !named && !unsigned.starts_with(|char: char| char.is_ascii_digit() || char == '.') {
        return None;
    }
    digits.parse().ok()
}

/// The digits of a number in ASCII, without underscores between digits. None where an underscore is elsewhere.
fn without_underscores(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut before = '_';
    for char in text.chars() {
        if char == '_' {
            if !before.is_alphanumeric() {
                return None;
            }
        } else {
            if before == '_' && !out.is_empty() && !char.is_alphanumeric() {
                return None;
            }
            out.push(decimal(char).map_or(char, |digit| char::from(b'0' + digit)));
        }
        before = char;
    }
    if before == '_' && !out.is_empty() { None } else { Some(out) }
}

/// The first of ten decimal digits in a row, for every script that Unicode 15 has.
const DECIMALS: [u32; 66] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50,
    0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40,
    0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x11066,
    0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950,
    0x11c50, 0x11d50, 0x11da0, 0x11f50, 0x16a60, 0x16ac0, 0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec,
    0x1d7f6, 0x1e140, 0x1e2f0, 0x1e4f0,
];

/// The value of a decimal digit in any script.
pub(super) fn decimal(char: char) -> Option<u8> {
    if char.is_ascii() {
        return char.to_digit(10).and_then(|digit| u8::try_from(digit).ok());
    }
    let code = u32::from(char);
    let start = DECIMALS[DECIMALS.partition_point(|start| *start <= code).checked_sub(1)?];
    u8::try_from(code - start).ok().filter(|digit| *digit < 10)
}

/// Python's `str.isspace` for a character.
pub(super) fn is_space(char: char) -> bool {
    char.is_whitespace() || ('\x1c'..='\x1f').contains(&char)
}

pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// The text of a value that must be one.
pub(super) fn text<'a>(value: &'a Value, what: &str) -> Result<&'a str, Error> {
    match Py::of(value) {
        Py::Str(text) => Ok(text),
        other => Err(fault(format!("{what} must be str, not {}", other.type_name()))),
    }
}
