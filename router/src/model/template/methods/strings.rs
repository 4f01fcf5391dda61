//! Methods of `str`.

use minijinja::{Error, Value};

use super::super::arguments::{Args, flag, optional_int, optional_text, required};
use super::super::format::str_format;
use super::super::limits::{Limit, Rendering, WIDTH_MAX};
use super::super::text::{decimal, is_printable, is_space, strip, text};
use super::super::values::{Py, fault, int, items, list, tuple};

/// Calls the method `name`, which is one of them.
pub(super) fn call(rendering: &Rendering, this: &str, name: &str, args: Args) -> Result<Value, Error> {
    rendering.work(this.len())?;
    match name {
        "count" | "find" | "index" | "rfind" | "rindex" => search(rendering, this, name, args),
        "startswith" | "endswith" => affix(rendering, this, name == "startswith", args),
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind(["chars"])?;
            let chars = optional_text(chars.as_ref(), "strip arg")?;
            if let Some(chars) = &chars {
                rendering.work(this.len().saturating_mul(chars.chars().count()))?;
            }
            let cut =
                |char: char| chars.as_ref().map_or_else(|| is_space(char), |chars| chars.contains(char));
            Ok(Value::from(match name {
                "strip" => this.trim_matches(cut),
                "lstrip" => this.trim_start_matches(cut),
                _ => this.trim_end_matches(cut),
            }))
        }
        "split" | "rsplit" => split(rendering, this, name == "rsplit", args),
        "splitlines" => {
            let [keep] = args.bind(["keepends"])?;
            let lines = split_lines(this, flag(keep.as_ref()));
            Ok(list(lines.into_iter().map(Value::from).collect()))
        }
        "partition" | "rpartition" => partition(this, name == "rpartition", args),
        "removeprefix" | "removesuffix" => {
            let [affix] = args.bind(["affix"])?;
            let affix = required(affix, "affix")?;
            let affix = text(&affix, "the argument")?;
            let rest =
                if name == "removeprefix" { this.strip_prefix(affix) } else { this.strip_suffix(affix) };
            Ok(Value::from(rest.unwrap_or(this)))
        }
        "replace" => {
            let [old, new, count] = args.bind(["old", "new", "count"])?;
            let (old, new) = (required(old, "old")?, required(new, "new")?);
            let count = optional_int(count.as_ref())?;
            let (old, new) = (text(&old, "replace() argument 1")?, text(&new, "replace() argument 2")?);
            replace(rendering, this, old, new, count).map(Value::from)
        }
        "center" | "ljust" | "rjust" | "zfill" => pad(rendering, this, name, args),
        "expandtabs" => expand_tabs(rendering, this, args),
        "format" => str_format(rendering, this, &args),
        "join" => {
            let [parts] = args.bind(["iterable"])?;
            let parts = items(rendering, &required(parts, "iterable")?)?;
            rendering.work(this.len().saturating_mul(parts.len()))?;
            let parts =
                parts.iter().map(|part| text(part, "each item of a join")).collect::<Result<Vec<_>, _>>()?;
            rendering.work(parts.iter().map(|part| part.len()).sum())?;
            Ok(Value::from(parts.join(this)))
        }
        _ => {
            let [] = args.bind([])?;
            Ok(simple(this, name))
        }
    }
}

/// Methods without arguments.
fn simple(this: &str, name: &str) -> Value {
    let all = |is: fn(char) -> bool| Value::from(!this.is_empty() && this.chars().all(is));
    match name {
        "upper" => Value::from(this.to_uppercase()),
        "lower" => Value::from(this.to_lowercase()),
        "casefold" => Value::from(this.to_lowercase().replace('ß', "ss").replace('ς', "σ")),
        "capitalize" => Value::from(capitalize(this)),
        "title" => Value::from(title(this)),
        "swapcase" => {
            let swap = |char: char| -> String {
                if char.is_uppercase() {
                    char.to_lowercase().collect()
                } else {
                    char.to_uppercase().collect()
                }
            };
            Value::from(this.chars().map(swap).collect::<String>())
        }
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => Value::from(this.is_ascii()),
        "isdecimal" => all(|char| decimal(char).is_some()),
        "isdigit" => all(|char| decimal(char).is_some() || "²³¹⁰⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉".contains(char)),
        "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "isprintable" => Value::from(this.chars().all(is_printable)),
        "isidentifier" => {
            let start = this.starts_with(|char: char| char.is_alphabetic() || char == '_');
            Value::from(start && this.chars().all(|char| char.is_alphanumeric() || char == '_'))
        }
        "islower" => Value::from(is_lower(this)),
        "isupper" => Value::from(is_upper(this)),
        // "istitle": capitals begin words, and nothing else is one.
        _ => {
            let cased = this.chars().any(|char| char.is_uppercase() || char.is_lowercase());
            Value::from(cased && title(this) == this)
        }
    }
}

/// `str.islower`.
pub(in super::super) fn is_lower(this: &str) -> bool {
    this.chars().any(char::is_lowercase) && !this.chars().any(char::is_uppercase)
}

/// `str.isupper`.
pub(in super::super) fn is_upper(this: &str) -> bool {
    this.chars().any(char::is_uppercase) && !this.chars().any(char::is_lowercase)
}

/// `str.capitalize`.
pub(in super::super) fn capitalize(this: &str) -> String {
    let mut chars = this.chars();
    chars.next().map_or_else(String::new, |first| title_case(first) + &chars.as_str().to_lowercase())
}

fn title(this: &str) -> String {
    let mut out = String::with_capacity(this.len());
    let mut in_word = false;
    for char in this.chars() {
        if in_word {
            out.extend(char.to_lowercase());
        } else {
            out.push_str(&title_case(char));
        }
        in_word = char.is_uppercase() || char.is_lowercase();
    }
    out
}

/// The form of a character that begins a word: its capital, of which only the first letter is one if there are several.
fn title_case(char: char) -> String {
    match char {
        'Ǆ' | 'ǅ' | 'ǆ' => "ǅ".to_owned(),
        'Ǉ' | 'ǈ' | 'ǉ' => "ǈ".to_owned(),
        'Ǌ' | 'ǋ' | 'ǌ' => "ǋ".to_owned(),
        'Ǳ' | 'ǲ' | 'ǳ' => "ǲ".to_owned(),
        char => {
            let mut upper = char.to_uppercase();
            let first = upper.next().into_iter();
            first.chain(upper.flat_map(char::to_lowercase)).collect()
        }
    }
}

/// The part of `this` between two character positions, as slices count them, and the place where it begins. None where
/// the start is behind the end of the text.
fn between(this: &str, start: Option<i64>, end: Option<i64>) -> Option<(usize, &str)> {
    if start.is_none() && end.is_none() {
        return Some((0, this));
    }
    let len = i64::try_from(this.chars().count()).unwrap_or(i64::MAX);
    let place = |at: i64| if at < 0 { at.saturating_add(len).max(0) } else { at };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(len)).min(len));
    if start > len {
        return None;
    }
    let byte = |at: i64| {
        let at = usize::try_from(at).unwrap_or_default();
        this.char_indices().nth(at).map_or(this.len(), |(byte, _)| byte)
    };
    let (first, last) = (byte(start), byte(end.max(start)));
    // An end before the start holds nothing, not even an empty text.
    if end < start { None } else { Some((usize::try_from(start).unwrap_or_default(), &this[first..last])) }
}

fn search(rendering: &Rendering, this: &str, name: &str, args: Args) -> Result<Value, Error> {
    let [sub, start, end] = args.bind(["sub", "start", "end"])?;
    let sub = required(sub, "sub")?;
    let sub = text(&sub, "the argument")?;
    rendering.work(sub.len())?;
    let part = between(this, optional_int(start.as_ref())?, optional_int(end.as_ref())?);
    if name == "count" {
        return Ok(int(part.map_or(0, |(_, part)| part.matches(sub).count()) as i128));
    }
    let found = part.and_then(|(first, part)| {
        let byte = if name.starts_with('r') { part.rfind(sub) } else { part.find(sub) };
        byte.map(|byte| first + part[..byte].chars().count())
    });
    match found {
        Some(at) => Ok(int(at as i128)),
        None if name.ends_with("index") => Err(fault("substring not found")),
        None => Ok(Value::from(-1)),
    }
}

fn affix(rendering: &Rendering, this: &str, starts: bool, args: Args) -> Result<Value, Error> {
    let [affix, start, end] = args.bind(["affix", "start", "end"])?;
    let affix = required(affix, "affix")?;
    let part = between(this, optional_int(start.as_ref())?, optional_int(end.as_ref())?);
    let one = |affix: &Value| -> Result<bool, Error> {
        let affix = text(affix, "the first argument")?;
        rendering.work(affix.len().min(this.len()) / 16)?;
        Ok(part.is_some_and(|(_, part)| if starts { part.starts_with(affix) } else { part.ends_with(affix) }))
    };
    if let Py::Tuple(affixes) = Py::of(&affix) {
        rendering.work(affixes.len())?;
        for affix in affixes {
            if one(affix)? {
                return Ok(Value::from(true));
            }
        }
        return Ok(Value::from(false));
    }
    one(&affix).map(Value::from)
}

fn split(rendering: &Rendering, this: &str, from_right: bool, args: Args) -> Result<Value, Error> {
    let [separator, most] = args.bind(["sep", "maxsplit"])?;
    let separator = optional_text(separator.as_ref(), "the separator")?;
    let most = optional_int(most.as_ref())?.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = Vec::new();
    match separator.as_deref() {
        Some("") => return Err(fault("empty separator")),
        Some(separator) if from_right => {
            parts.extend(this.rsplitn(most.saturating_add(1), separator));
            parts.reverse();
        }
        Some(separator) => parts.extend(this.splitn(most.saturating_add(1), separator)),
        None if from_right => {
            let mut rest = this.trim_end_matches(is_space);
            while !rest.is_empty() && parts.len() < most {
                let word = rest
                    .rfind(is_space)
                    .map_or(0, |at| at + rest[at..].chars().next().map_or(0, char::len_utf8));
                parts.push(&rest[word..]);
                rest = rest[..word].trim_end_matches(is_space);
            }
            parts.extend((!rest.is_empty()).then_some(rest));
            parts.reverse();
        }
        None => {
            let mut rest = this.trim_start_matches(is_space);
            while !rest.is_empty() && parts.len() < most {
                let word = rest.find(is_space).unwrap_or(rest.len());
                parts.push(&rest[..word]);
                rest = rest[word..].trim_start_matches(is_space);
            }
            parts.extend((!rest.is_empty()).then_some(rest));
        }
    }
    // A part costs a value, however short it is.
    rendering.work(parts.len().saturating_mul(super::ITEM))?;
    Ok(list(parts.into_iter().map(Value::from).collect()))
}

/// `str.splitlines`.
pub(in super::super) fn split_lines(this: &str, keep_ends: bool) -> Vec<&str> {
    let is_end = |char: char| {
        matches!(char, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut lines = Vec::new();
    let mut rest = this;
    while !rest.is_empty() {
        let Some(at) = rest.find(is_end) else {
            lines.push(rest);
            break;
        };
        let end = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(0, char::len_utf8)
        };
        lines.push(&rest[..if keep_ends { at + end } else { at }]);
        rest = &rest[at + end..];
    }
    lines
}

fn partition(this: &str, from_right: bool, args: Args) -> Result<Value, Error> {
    let [separator] = args.bind(["sep"])?;
    let separator = required(separator, "sep")?;
    let separator = text(&separator, "the separator")?;
    if separator.is_empty() {
        return Err(fault("empty separator"));
    }
    let parts = match if from_right { this.rsplit_once(separator) } else { this.split_once(separator) } {
        Some((head, tail)) => [head, separator, tail],
        None if from_right => ["", "", this],
        None => [this, "", ""],
    };
    Ok(tuple(parts.into_iter().map(Value::from).collect()))
}

/// `str.replace`. Python puts the new text around every character when the old one is empty.
pub(in super::super) fn replace(
    rendering: &Rendering,
    this: &str,
    old: &str,
    new: &str,
    count: Option<i64>,
) -> Result<String, Error> {
    let most = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    rendering.work(this.len())?;
    // As Rust counts the places of an empty text: before each character, and at the end.
    let places = this.matches(old).take(most).count();
    rendering.work(places.saturating_mul(new.len()))?;
    Ok(this.replacen(old, new, most))
}

fn pad(rendering: &Rendering, this: &str, name: &str, args: Args) -> Result<Value, Error> {
    let [width, fill] = args.bind(["width", "fillchar"])?;
    let width = optional_int(Some(&required(width, "width")?))?.unwrap_or(0).max(0);
    let fill = optional_text(fill.as_ref(), "the fill character")?.unwrap_or_else(|| " ".to_owned());
    let mut chars = fill.chars();
    let (Some(fill), None) = (chars.next(), chars.next()) else {
        return Err(fault("the fill character must be exactly one character long"));
    };
    let missing = usize::try_from(width).unwrap_or(usize::MAX).saturating_sub(this.chars().count());
    if missing > WIDTH_MAX {
        return Err(rendering.reached(Limit::Width));
    }
    let run = |fill: char, times: usize| fill.to_string().repeat(times);
    Ok(Value::from(match name {
        "ljust" => this.to_owned() + &run(fill, missing),
        "rjust" => run(fill, missing) + this,
        "zfill" => {
            let sign = this.len() - this.strip_prefix(['+', '-']).unwrap_or(this).len();
            format!("{}{}{}", &this[..sign], run('0', missing), &this[sign..])
        }
        _ => center(this, usize::try_from(width).unwrap_or_default(), missing, fill),
    }))
}

/// `str.center`, whose odd character goes left when the width is odd.
fn center(this: &str, width: usize, missing: usize, fill: char) -> String {
    let left = missing / 2 + (missing & width & 1);
    let run = |times: usize| fill.to_string().repeat(times);
    format!("{}{this}{}", run(left), run(missing - left))
}

fn expand_tabs(rendering: &Rendering, this: &str, args: Args) -> Result<Value, Error> {
    let [size] = args.bind(["tabsize"])?;
    let size = optional_int(size.as_ref())?.unwrap_or(8).max(0);
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if size > WIDTH_MAX {
        return Err(rendering.reached(Limit::Width));
    }
    rendering.work(this.matches('\t').count().saturating_mul(size))?;
    let mut out = String::with_capacity(this.len());
    let mut column = 0;
    for char in this.chars() {
        match char {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                out.push_str(&" ".repeat(spaces));
                column += spaces;
            }
            '\t' => {}
            '\n' | '\r' => {
                out.push(char);
                column = 0;
            }
            char => {
                out.push(char);
                column += 1;
            }
        }
    }
    Ok(Value::from(out))
}

/// The filter `trim`: `str.strip` with one argument.
pub(in super::super) fn trim<'a>(
    rendering: &Rendering,
    this: &'a str,
    chars: Option<&str>,
) -> Result<&'a str, Error> {
    rendering.work(this.len().saturating_mul(chars.map_or(1, |chars| chars.chars().count().max(1))))?;
    Ok(chars.map_or_else(|| strip(this), |chars| this.trim_matches(|char| chars.contains(char))))
}
