//! Formatting: `'…' % values` and `'…'.format(…)`.

use minijinja::formatting::{FormatStyle, format};
use minijinja::{Error, Value};

use super::arguments::Args;
use super::limits::{Limit, Rendering, WIDTH_MAX};
use super::operators::get_item;
use super::text::{repr, str};
use super::values::{Number, Py, fault};

/// `format % values`. A tuple gives one value for each place, a dict gives them by name.
pub(super) fn printf(rendering: &Rendering, format: &str, values: &Value) -> Result<Value, Error> {
    let positional = match Py::of(values) {
        Py::Tuple(values) => values,
        _ => std::slice::from_ref(values),
    };
    let mut given = positional.iter();
    let mut named = false;
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        rendering.work(at + 1)?;
        out.push_str(&rest[..at]);
        let mut place = Place::parse(rendering, &rest[at + 1..], &mut given)?;
        rest = place.rest;
        if place.conversion == '%' {
            out.push('%');
            continue;
        }
        let value = match (place.name, Py::of(values)) {
            (Some(name), Py::Dict(dict)) => {
                named = true;
                dict.get(&Value::from(name)).ok_or_else(|| fault(format!("no value for '{name}'")))?
            }
            (Some(_), _) => return Err(fault("format requires a mapping")),
            (None, _) => given.next().ok_or_else(|| fault("not enough arguments for format string"))?,
        };
        let text = place.format(rendering, value)?;
        rendering.work(text.len())?;
        out.push_str(&text);
    }
    out.push_str(rest);
    // A dict may have what the format does not name.
    if given.next().is_some() && !named && !matches!(Py::of(values), Py::Dict(_)) {
        return Err(fault("not all arguments converted during string formatting"));
    }
    Ok(Value::from(out))
}

/// One place of a format: `%-08.3f`.
#[allow(clippy::struct_excessive_bools)] // they are C's flags
struct Place<'a> {
    name: Option<&'a str>,
    left: bool,
    plus: bool,
    space: bool,
    zero: bool,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
    conversion: char,
    rest: &'a str,
}

impl<'a> Place<'a> {
    /// Parses what follows a `%`. A `*` takes its number from `given`.
    fn parse<'v>(
        rendering: &Rendering,
        text: &'a str,
        given: &mut impl Iterator<Item = &'v Value>,
    ) -> Result<Self, Error> {
        let incomplete = || fault("incomplete format");
        let (name, mut rest) = match text.strip_prefix('(') {
            Some(inner) => {
                let (name, rest) = inner.split_once(')').ok_or_else(incomplete)?;
                (Some(name), rest)
            }
            None => (None, text),
        };
        let flags = rest.len() - rest.trim_start_matches(['#', '0', '-', ' ', '+']).len();
        let (flags, behind) = rest.split_at(flags);
        rest = behind;
        let mut number = |rest: &mut &'a str| -> Result<usize, Error> {
            if let Some(behind) = rest.strip_prefix('*') {
                *rest = behind;
                return match given.next().map(Py::of) {
                    Some(Py::Int(number)) => Ok(usize::try_from(number).unwrap_or(0)),
                    _ => Err(fault("* wants int")),
                };
            }
            let (digits, behind) =
                rest.split_at(rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len());
            *rest = behind;
            Ok(if digits.is_empty() { 0 } else { digits.parse().unwrap_or(usize::MAX) })
        };
        let width = number(&mut rest)?;
        let precision = match rest.strip_prefix('.') {
            Some(behind) => {
                rest = behind;
                Some(number(&mut rest)?)
            }
            None => None,
        };
        if width > WIDTH_MAX || precision.is_some_and(|precision| precision > WIDTH_MAX) {
            return Err(rendering.reached(Limit::Width));
        }
        rest = rest.trim_start_matches(['h', 'l', 'L']);
        let conversion = rest.chars().next().ok_or_else(incomplete)?;
        Ok(Self {
            name,
            left: flags.contains('-'),
            plus: flags.contains('+'),
            space: flags.contains(' '),
            zero: flags.contains('0'),
            alternate: flags.contains('#'),
            width,
            precision,
            conversion,
            rest: &rest[conversion.len_utf8()..],
        })
    }

    fn format(&mut self, rendering: &Rendering, value: &Value) -> Result<String, Error> {
        match self.conversion {
            's' => Ok(self.text(&str(rendering, value)?)),
            'r' | 'a' => Ok(self.text(&repr(rendering, value)?)),
            'c' => match Py::of(value) {
                Py::Str(text) if text.chars().count() == 1 => Ok(self.text(text)),
                Py::Int(code) => {
                    let char = u32::try_from(code).ok().and_then(char::from_u32);
                    let char = char.ok_or_else(|| fault("%c arg not in range(0x110000)"))?;
                    Ok(self.text(&char.to_string()))
                }
                _ => Err(fault("%c requires int or char")),
            },
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' => self.integer(value),
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => self.float(value),
            other => Err(fault(format!("unsupported format character '{other}'"))),
        }
    }

    fn text(&self, text: &str) -> String {
        let cut = self.precision.map(|precision| text.chars().take(precision).collect::<String>());
        self.padded("", cut.as_deref().unwrap_or(text), false)
    }

    fn integer(&self, value: &Value) -> Result<String, Error> {
        let conversion = self.conversion;
        let number = match Py::of(value).number() {
            Some(Number::Int(number)) => number,
            Some(Number::Float(number)) if !matches!(conversion, 'x' | 'X' | 'o') && number.is_finite() => {
                number.trunc() as i128
            }
            _ => {
                let kind = Py::of(value).type_name();
                return Err(fault(format!("%{conversion} format: a number is required, not {kind}")));
            }
        };
        let magnitude = number.unsigned_abs();
        let (prefix, digits) = match conversion {
            'x' => ("0x", format!("{magnitude:x}")),
            'X' => ("0X", format!("{magnitude:X}")),
            'o' => ("0o", format!("{magnitude:o}")),
            _ => ("", magnitude.to_string()),
        };
        let digits = format!("{digits:0>width$}", width = self.precision.unwrap_or(0));
        let prefix = if self.alternate { prefix } else { "" };
        Ok(self.padded(&format!("{}{prefix}", self.sign(number < 0)), &digits, true))
    }

    fn float(&self, value: &Value) -> Result<String, Error> {
        let Some(number) = Py::of(value).number().map(Number::as_f64) else {
            return Err(fault(format!("must be real number, not {}", Py::of(value).type_name())));
        };
        let precision = self.precision.unwrap_or(6);
        let magnitude = number.abs();
        let digits = if number.is_nan() {
            "nan".to_owned()
        } else if number.is_infinite() {
            "inf".to_owned()
        } else {
            match self.conversion.to_ascii_lowercase() {
                'f' => format!("{magnitude:.precision$}"),
                'e' => exponential(magnitude, precision),
                _ => general(magnitude, precision.max(1)),
            }
        };
        let digits = if self.conversion.is_ascii_uppercase() { digits.to_uppercase() } else { digits };
        let negative = number.is_sign_negative() && !number.is_nan();
        Ok(self.padded(self.sign(negative), &digits, number.is_finite()))
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (false, true, _) => "+",
            (false, false, true) => " ",
            _ => "",
        }
    }

    fn padded(&self, sign: &str, body: &str, number: bool) -> String {
        let missing = self.width.saturating_sub(sign.chars().count() + body.chars().count());
        let fill = |char: &str| char.repeat(missing);
        if self.left {
            format!("{sign}{body}{}", fill(" "))
        } else if self.zero && number {
            format!("{sign}{}{body}", fill("0"))
        } else {
            format!("{}{sign}{body}", fill(" "))
        }
    }
}

/// `%e`: an exponent of at least two digits.
fn exponential(number: f64, precision: usize) -> String {
    let text = format!("{number:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `%g`: as short as `precision` digits allow.
fn general(number: f64, precision: usize) -> String {
    let scientific = exponential(number, precision - 1);
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i32 = exponent.parse().unwrap_or_default();
    let trim = |text: &str| {
        let trimmed =
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text };
        trimmed.to_owned()
    };
    let precision = i32::try_from(precision).unwrap_or(i32::MAX);
    if power < -4 || power >= precision {
        format!("{}e{exponent}", trim(digits))
    } else {
        let decimals = usize::try_from(precision - 1 - power).unwrap_or_default();
        trim(&format!("{number:.decimals$}"))
    }
}

/// `'…'.format(…)`. What follows a colon is left to the engine, which follows Python.
pub(super) fn str_format(rendering: &Rendering, text: &str, args: &Args) -> Result<Value, Error> {
    let mut fields = Fields { rendering, args, next: 0 };
    fields.expand(text, true).map(Value::from)
}

struct Fields<'a> {
    rendering: &'a Rendering,
    args: &'a Args,
    /// The number of the next field without one.
    next: usize,
}

impl Fields<'_> {
    /// Puts values into the fields of `text`, which can have fields in their formats once.
    fn expand(&mut self, text: &str, nested: bool) -> Result<String, Error> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            self.rendering.work(at + 1)?;
            out.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(behind) = rest.strip_prefix(brace) {
                out.push_str(brace);
                rest = behind;
                continue;
            }
            if brace == "}" {
                return Err(fault("Single '}' encountered in format string"));
            }
            let length = field_length(rest).ok_or_else(|| fault("expected '}' before end of string"))?;
            let shown = self.field(&rest[..length], nested)?;
            self.rendering.work(shown.len())?;
            out.push_str(&shown);
            rest = &rest[length + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }

    /// `name!conversion:format`.
    fn field(&mut self, field: &str, nested: bool) -> Result<String, Error> {
        let end = field.find(['!', ':']).unwrap_or(field.len());
        let (name, mut rest) = field.split_at(end);
        let mut value = self.value(name)?;
        if let Some(conversion) = rest.strip_prefix('!') {
            let (conversion, behind) = conversion.split_at(conversion.find(':').unwrap_or(conversion.len()));
            value = match conversion {
                "r" | "a" => Value::from(repr(self.rendering, &value)?),
                "s" => Value::from(str(self.rendering, &value)?.into_owned()),
                other => return Err(fault(format!("Unknown conversion specifier '{other}'"))),
            };
            rest = behind;
        }
        let format_of = match rest.strip_prefix(':') {
            Some(spec) if nested => self.expand(spec, false)?,
            Some(_) => return Err(fault("Max string recursion exceeded")),
            None => String::new(),
        };
        if format_of.is_empty() {
            return Ok(str(self.rendering, &value)?.into_owned());
        }
        // Widths and precisions are the only numbers that make it longer.
        let mut numbers =
            format_of.split(|char: char| !char.is_ascii_digit()).filter(|digits| !digits.is_empty());
        if numbers.any(|digits| digits.parse::<usize>().map_or(true, |number| number > WIDTH_MAX)) {
            return Err(self.rendering.reached(Limit::Width));
        }
        match Py::of(&value) {
            Py::Int(_) | Py::Float(_) | Py::Bool(_) | Py::Str(_) => {}
            other => return Err(fault(format!("unsupported format string passed to {}", other.type_name()))),
        }
        self.rendering.work(value.as_str().map_or(16, str::len))?;
        format(FormatStyle::StrFormat, &format!("{{0:{format_of}}}"), &[value])
    }

    /// The value that `0`, `name`, `name.attribute` or `name[key]` names.
    fn value(&mut self, name: &str) -> Result<Value, Error> {
        let (first, mut path) = name.split_at(name.find(['.', '[']).unwrap_or(name.len()));
        let number = if first.is_empty() {
            self.next += 1;
            Some(self.next - 1)
        } else {
            first.parse::<usize>().ok()
        };
        let value = match number {
            Some(number) => self.args.positional.get(number),
            None => self.args.named.iter().find(|(name, _)| name == first).map(|(_, value)| value),
        };
        let mut value =
            value.cloned().ok_or_else(|| fault(format!("no argument for the field '{first}'")))?;
        while !path.is_empty() {
            let bad = || fault(format!("'{name}' names no value"));
            // Attributes of plain values are methods and the like, which nobody prints.
            let (key, rest) = path.strip_prefix('[').and_then(|key| key.split_once(']')).ok_or_else(bad)?;
            path = rest;
            let key = key.parse::<i64>().map_or_else(|_| Value::from(key), Value::from);
            value = get_item(self.rendering, &value, &key)?;
            if value.is_undefined() {
                return Err(bad());
            }
        }
        Ok(value)
    }
}

/// The length of a field, whose format may have fields.
fn field_length(text: &str) -> Option<usize> {
    let mut open = 0;
    for (at, char) in text.char_indices() {
        match char {
            '{' => open += 1,
            '}' if open == 0 => return Some(at),
            '}' => open -= 1,
            _ => {}
        }
    }
    None
}
