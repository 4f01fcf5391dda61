//! The forms of `prompt`, read in one pass: what is kept is the text or the numbers, and nothing else is made on the way.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use super::Input;

/// Prompts of one request.
pub(super) const PROMPTS_MAX: usize = 256;

/// One prompt or several, all of one form.
pub(super) struct Prompts(pub Vec<Input>);

/// An entry of a list: a prompt, or a token of the only one.
enum Entry {
    Token(u32),
    Prompt(Input),
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = Prompts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a prompt or a list of them")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Prompts(vec![Input::Text(text.to_owned())]))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Self::Value, E> {
                Ok(Prompts(vec![Input::Text(text)]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mixed = || A::Error::custom("prompts of different forms");
                match entries.next_element()? {
                    // A prompt without tokens, which is refused where prompts are named.
                    None => Ok(Prompts(vec![Input::Tokens(Vec::new())])),
                    Some(Entry::Token(first)) => {
                        let mut tokens = vec![first];
                        while let Some(token) = entries.next_element()? {
                            tokens.push(token);
                        }
                        tokens.shrink_to_fit();
                        Ok(Prompts(vec![Input::Tokens(tokens)]))
                    }
                    Some(Entry::Prompt(first)) => {
                        let form = std::mem::discriminant(&first);
                        let mut prompts = vec![first];
                        while let Some(next) = entries.next_element()? {
                            match next {
                                Entry::Prompt(next) if std::mem::discriminant(&next) == form => {
                                    prompts.push(next);
                                }
                                _ => return Err(mixed()),
                            }
                            if prompts.len() > PROMPTS_MAX {
                                return Err(A::Error::custom("too many prompts"));
                            }
                        }
                        Ok(Prompts(prompts))
                    }
                }
            }
        }
        deserializer.deserialize_any(Forms)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id or a list of token ids")
            }

            fn visit_u64<E: Error>(self, token: u64) -> Result<Self::Value, E> {
                u32::try_from(token).map(Entry::Token).map_err(E::custom)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Entry::Prompt(Input::Text(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut tokens: Vec<u32> = Vec::new();
                while let Some(token) = entries.next_element()? {
                    tokens.push(token);
                }
                tokens.shrink_to_fit();
                Ok(Entry::Prompt(Input::Tokens(tokens)))
            }
        }
        deserializer.deserialize_any(Forms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Option<Vec<Input>> {
        serde_json::from_str::<Prompts>(json).ok().map(|prompts| prompts.0)
    }

    #[test]
    fn every_form_is_read() {
        let text = |text: &str| Input::Text(text.to_owned());
        assert_eq!(read(r#""a\n""#), Some(vec![text("a\n")]));
        assert_eq!(read("[1, 2]"), Some(vec![Input::Tokens(vec![1, 2])]));
        assert_eq!(read(r#"["a", ""]"#), Some(vec![text("a"), text("")]));
        assert_eq!(read("[[1], []]"), Some(vec![Input::Tokens(vec![1]), Input::Tokens(vec![])]));
        assert_eq!(read("[]"), Some(vec![Input::Tokens(vec![])]));
    }

    #[test]
    fn nothing_else_is() {
        for json in [
            "1",
            "{}",
            "[-1]",
            "[4294967296]",
            "[1.5]",
            "[null]",
            "[[\"a\"]]",
            "[[[1]]]",
            "[1, \"a\"]",
            "[\"a\", 1]",
            "[[1], \"a\"]",
            "[[1], 1]",
            "[1, [1]]",
            "[true]",
        ] {
            assert_eq!(read(json), None, "{json}");
        }
    }

    #[test]
    fn reading_stops_at_the_first_prompt_too_many() {
        for entry in ["\"\"", "[1]"] {
            let of = |count: usize| format!("[{}]", vec![entry; count].join(","));
            assert_eq!(read(&of(PROMPTS_MAX)).unwrap().len(), PROMPTS_MAX);
            // What follows is not even JSON, and never looked at.
            let broken = of(PROMPTS_MAX + 1).replace("]]", "], !").replace("\"]", "\", !");
            let error = serde_json::from_str::<Prompts>(&broken).err().unwrap();
            assert!(error.to_string().starts_with("too many prompts"), "{error}");
            assert_eq!(read(&of(PROMPTS_MAX + 1)), None);
        }
    }
}
