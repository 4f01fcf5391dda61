//! The content of a message, read in one pass.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// A text, or a list of text parts, which are joined by line ends as vLLM does.
pub(super) struct Content(pub String);

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Part<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    text: Cow<'a, str>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of text parts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Content(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
                let mut text: Option<String> = None;
                while let Some(part) = parts.next_element::<Part<'de>>()? {
                    if part.r#type != "text" {
                        return Err(A::Error::custom("a part that is no text"));
                    }
                    match &mut text {
                        None => text = Some(part.text.into_owned()),
                        Some(text) => {
                            text.push('\n');
                            text.push_str(&part.text);
                        }
                    }
                }
                text.map(Content).ok_or_else(|| A::Error::custom("no parts"))
            }
        }
        deserializer.deserialize_any(Forms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_by_line_ends() {
        let read = |json: &str| serde_json::from_str::<Content>(json).ok().map(|content| content.0);
        let part = |text: &str| format!(r#"{{"type": "text", "text": "{text}"}}"#);
        assert_eq!(read(r#""a\u0062""#).as_deref(), Some("ab"));
        assert_eq!(read(&format!("[{}]", part("a\\u0062"))).as_deref(), Some("ab"));
        assert_eq!(read(&format!("[{}, {}, {}]", part("a"), part(""), part("b"))).as_deref(), Some("a\n\nb"));
        for refused in
            ["[]", "1", "{}", r#"[{"type": "image_url", "text": ""}]"#, r#"[{"type": "text"}]"#, r#"["a"]"#]
        {
            assert_eq!(read(refused), None, "{refused}");
        }
    }
}
