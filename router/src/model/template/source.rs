//! A template's source, before it is parsed: what the engine's lexer reads otherwise than Jinja2's is put so that both
//! mean the same. Line ends become `\n`; texts in quotes get Python's meaning of `\`; the tag `generation`, which is
//! transformers' own, becomes a call.

use std::fmt::Write;

use minijinja::{Error, ErrorKind};

/// The function that renders what the tag `generation` encloses.
pub(super) const GENERATION: &str = "__py_generation";

/// `template`, in what the engine reads as Jinja2 reads `template`.
pub(super) fn normalize(template: &str) -> Result<String, Error> {
    let template = template.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(template.len());
    let mut rest = template.as_str();
    while let Some(at) = next_tag(rest) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match rest.as_bytes()[1] {
            b'#' => rest[2..].find("#}").map_or(rest.len(), |end| end + 4),
            b'%' if bare_name(rest).is_some_and(|(_, name, _)| name == "raw") => {
                let length = raw(rest);
                // Jinja2 keeps a line end behind this tag, and behind no other.
                let end = rest.find("%}").unwrap_or_default();
                if rest[..end].ends_with(['-', '+']) {
                    length
                } else {
                    out.push_str(&rest[..end]);
                    out.push('+');
                    rest = &rest[end..];
                    length - end
                }
            }
            b'%' => {
                if let Some((open, name @ ("generation" | "endgeneration"), length)) = bare_name(rest) {
                    let tag = if name == "generation" {
                        format!("call {GENERATION}()")
                    } else {
                        "endcall".to_owned()
                    };
                    let close = rest[..length].trim_end_matches("%}").ends_with(['-', '+']);
                    let close = if close { &rest[length - 3..length] } else { "%}" };
                    let _ = write!(out, "{open} {tag} {close}");
                    rest = &rest[length..];
                } else {
                    rest = code(rest, "%}", &mut out)?;
                }
                continue;
            }
            _ => {
                rest = code(rest, "}}", &mut out)?;
                continue;
            }
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Where the next `{{`, `{%` or `{#` is.
fn next_tag(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    (0..bytes.len().saturating_sub(1))
        .find(|at| bytes[*at] == b'{' && matches!(bytes[at + 1], b'{' | b'%' | b'#'))
}

/// A tag that is one name: how it opens, the name, and its length.
fn bare_name(text: &str) -> Option<(&str, &str, usize)> {
    let open = if text[2..].starts_with(['-', '+']) { 3 } else { 2 };
    let inner = &text[open..];
    let length = inner.find("%}")?;
    let name = inner[..length].trim_end_matches(['-', '+']).trim();
    name.chars().all(|char| char.is_ascii_lowercase()).then(|| (&text[..open], name, open + length + 2))
}

/// The length of a raw block. Without an end, what the lexer says of it is right.
fn raw(text: &str) -> usize {
    let mut at = 2;
    while let Some(next) = text[at..].find("{%") {
        at += next;
        if let Some((_, "endraw", length)) = bare_name(&text[at..]) {
            return at + length;
        }
        at += 2;
    }
    text.len()
}

/// Copies a tag up to its `end`, with its texts in quotes put anew, and gives what follows.
fn code<'a>(text: &'a str, end: &str, out: &mut String) -> Result<&'a str, Error> {
    out.push_str(&text[..2]);
    let mut rest = &text[2..];
    // Brackets that are open: an end inside of them is none.
    let mut open = 0_usize;
    while let Some(char) = rest.chars().next() {
        if open == 0 && rest.starts_with(end) {
            out.push_str(end);
            return Ok(&rest[end.len()..]);
        }
        match char {
            '\'' | '"' => {
                let Some(length) = quoted(rest, char) else { break };
                write_quoted(&python_text(&rest[1..length - 1])?, out);
                rest = &rest[length..];
                continue;
            }
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' => open = open.saturating_sub(1),
            _ => {}
        }
        out.push(char);
        rest = &rest[char.len_utf8()..];
    }
    // No end: the parser says where.
    out.push_str(rest);
    Ok("")
}

/// The length of the text in quotes that `text` begins with.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, char) in text.char_indices().skip(1) {
        match char {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            char if char == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Writes a text in quotes as the engine reads it back. Unlike Python's, its escapes are JSON's.
pub(super) fn write_quoted(text: &str, out: &mut String) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            char => out.push(char),
        }
    }
    out.push('"');
}

/// What Python makes of a text between quotes. Jinja2 has it decoded by the codec `unicode-escape`, after everything
/// beyond ASCII has been escaped.
fn python_text(text: &str) -> Result<String, Error> {
    if !text.contains('\\') {
        return Ok(text.to_owned());
    }
    let bad = |what: String| Error::new(ErrorKind::BadEscape, what);
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match u32::from(char) {
            0..=0x7f => escaped.push(char),
            code @ 0x80..=0xff => {
                let _ = write!(escaped, "\\x{code:02x}");
            }
            code @ 0x100..=0xffff => {
                let _ = write!(escaped, "\\u{code:04x}");
            }
            code => {
                let _ = write!(escaped, "\\U{code:08x}");
            }
        }
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = escaped.as_str();
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(kind) = rest.chars().next() else { break };
        rest = &rest[1..];
        let digits = match kind {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        match kind {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(kind),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0b'),
            '0'..='7' => {
                let more = rest.bytes().take(2).take_while(|byte| matches!(byte, b'0'..=b'7')).count();
                let octal = format!("{kind}{}", &rest[..more]);
                rest = &rest[more..];
                out.extend(u32::from_str_radix(&octal, 8).ok().and_then(char::from_u32));
            }
            'x' | 'u' | 'U' => {
                let hex = rest.get(..digits).filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
                let hex = hex.ok_or_else(|| bad(format!("truncated \\{kind} escape")))?;
                let code = u32::from_str_radix(hex, 16).ok();
                // Half a surrogate pair is a Python string, but not one that can be tokenized.
                let char = code.and_then(char::from_u32);
                out.push(char.ok_or_else(|| bad(format!("\\{kind}{hex} is no character")))?);
                rest = &rest[digits..];
            }
            'N' => return Err(bad("characters by name (\\N{…}) are not supported".to_owned())),
            other => out.extend(['\\', other]),
        }
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_code_is_changed() {
        let same = [
            "{# '\\x41 #}a'\\x41",
            "{% raw -%}{{ '\\x41' }}{% endraw %}",
            "{ '\\x41' }",
            "{#} '\\x41' #}",
            "{{ a",
            "{{ 'a",
            "{",
        ];
        for text in same {
            assert_eq!(normalize(text).unwrap(), text);
        }
        assert_eq!(normalize("{% raw %}{{ '{% endraw %}").unwrap(), "{% raw +%}{{ '{% endraw %}");
        assert_eq!(normalize("{{ '\\x41}}' }}'\\x41'").unwrap(), "{{ \"A}}\" }}'\\x41'");
        assert_eq!(normalize("{{ {'a': {'b': 1}} }}'").unwrap(), "{{ {\"a\": {\"b\": 1}} }}'");
        assert_eq!(
            normalize("{%- generation +%}x{%endgeneration-%}").unwrap(),
            "{%- call __py_generation() +%}x{% endcall -%}"
        );
        assert_eq!(normalize("{%-generation-%}").unwrap(), "{%- call __py_generation() -%}");
        assert_eq!(normalize("{%}%}{% generation %}").unwrap(), "{%}%}{% call __py_generation() %}");
    }

    #[test]
    fn escapes_are_pythons() {
        for (text, meant) in [
            (r"\n\t\\\'\/\d", "\n\t\\'\\/\\d"),
            (r"\x41\u00e9\U0001F600\101\08", "Aé😀A\08"),
            ("a\\\nb", "ab"),
            ("é\\n", "é\n"),
        ] {
            assert_eq!(python_text(text).unwrap(), meant);
        }
        for text in [r"\x4", r"\u12", r"\U00110000", r"\ud83d", r"\N{BULLET}"] {
            assert!(python_text(text).is_err(), "{text}");
        }
    }
}
