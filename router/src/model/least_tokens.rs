//! The least number of tokens that a text can be, proven from the tokenizer's own tables and found without tokenizing:
//! a prompt that cannot fit is refused before the work, which takes seconds and gigabytes for some.
//!
//! # Why it is a bound
//! Each byte has a weight, `1 / l`, where `l` is the length of the longest token that has this byte in it. Let a token
//! cover some bytes of the text. It is no longer than `l` for any of them, so each weighs at most one by the token's own
//! length, and all of them together at most 1. So the tokens of a text are at least as many as its bytes weigh, as far
//! as these are covered by tokens at all. (A single longest token would do for the same proof; but the longest tokens
//! are runs of spaces and dashes, and letters weigh several times as much.)
//!
//! What is needed for that, and checked here:
//! - No byte gets lost. Only models with a token for each byte of UTF-8 are taken (byte-level, or with byte fallback), and
//!   only pre-tokenizers that drop nothing. Where an added token takes the white space around it along, white space
//!   weighs nothing.
//! - The tokenizer sees the bytes that are weighed. Of normalizers, those that write `▁` for a space or before a text are
//!   taken, and the four Unicode forms. Under these a character stays what it is if it is normalized by itself, and it
//!   and its successor begin something new (combining class 0, and never the second part of a composition); only
//!   such characters are weighed. They stay so wherever an added token cuts the text in two.
//!
//! For other tokenizers nothing is claimed.

use std::collections::BTreeSet;

use serde_json::Value;
use tokenizers::{ModelWrapper, NormalizedString, Normalizer, Tokenizer};
use unicode_normalization_alignments::char::canonical_combining_class;
use unicode_normalization_alignments::{
    IsNormalized, is_nfc_quick, is_nfd_quick, is_nfkc_quick, is_nfkd_quick,
};

use super::tokenizer::byte_of;

/// SentencePiece's stand-in for a space.
const SPACE: &str = "\u{2581}";
/// What one token weighs.
const TOKEN: u64 = 1 << 32;

/// Weights of bytes. See above.
#[derive(Clone, Debug)]
pub(super) struct LeastTokens {
    weights: [u64; 256],
    /// Tells whether a character is as the normalizer would have it.
    forms: Vec<fn(char) -> bool>,
}

impl LeastTokens {
    /// Of a tokenizer for which it can be proven.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let mut forms = Vec::new();
        let mut spaces = false;
        let normalizer = serde_json::to_value(tokenizer.get_normalizer()).ok()?;
        for one in sequence(&normalizer, "normalizers") {
            match one["type"].as_str() {
                None if one.is_null() => {}
                Some("NFC") => forms.push(is_nfc as fn(char) -> bool),
                Some("NFKC") => forms.push(is_nfkc),
                Some("NFD") => forms.push(is_nfd),
                Some("NFKD") => forms.push(is_nfkd),
                Some("Prepend") if one["prepend"] == SPACE => spaces = true,
                Some("Replace") if one["pattern"]["String"] == " " && one["content"] == SPACE => {
                    spaces = true;
                }
                _ => return None,
            }
        }
        let mut byte_level = false;
        let pre_tokenizer = serde_json::to_value(tokenizer.get_pre_tokenizer()).ok()?;
        for one in sequence(&pre_tokenizer, "pretokenizers") {
            match one["type"].as_str() {
                None if one.is_null() => {}
                Some("ByteLevel") => byte_level = true,
                Some("Metaspace") if one["replacement"] == SPACE => spaces = true,
                Some("Digits") => {}
                Some("Split" | "Punctuation") if one["behavior"] != "Removed" => {}
                _ => return None,
            }
        }
        let fallback = match tokenizer.get_model() {
            ModelWrapper::BPE(bpe)
                if bpe.continuing_subword_prefix.is_none() && bpe.end_of_word_suffix.is_none() =>
            {
                bpe.byte_fallback
            }
            ModelWrapper::Unigram(unigram) => unigram.byte_fallback(),
            _ => return None,
        };
        let mut longest = Longest([0; 256]);
        let mut bytes = BTreeSet::new();
        for token in tokenizer.get_vocab(false).into_keys() {
            if byte_level {
                // Anything else in the vocabulary can never be met.
                if let Some(spelled) = token.chars().map(byte_of).collect::<Option<Vec<u8>>>() {
                    longest.see(&[&spelled]);
                    bytes.extend((spelled.len() == 1).then(|| spelled[0]));
                }
                continue;
            }
            match byte_spelled(&token) {
                Some(byte) => {
                    bytes.extend(fallback.then_some(byte));
                    longest.see(&[&[byte], token.as_bytes()]);
                }
                // A token that was merged of such bytes would cover more of them than its name tells.
                None if token.contains("<0x") => return None,
                None => longest.see(&[token.as_bytes(), token.replace(SPACE, " ").as_bytes()]),
            }
        }
        // Of 256 bytes, 13 are in no UTF-8.
        let utf8 = |byte: u8| !matches!(byte, 0xc0 | 0xc1 | 0xf5..=0xff);
        if !(0..=255).filter(|byte| utf8(*byte)).all(|byte| bytes.contains(&byte)) || (byte_level && spaces) {
            return None;
        }
        let mut takes_spaces = false;
        for added in tokenizer.get_added_tokens_decoder().values() {
            takes_spaces |= added.lstrip || added.rstrip;
            let mut normalized = NormalizedString::from(added.content.as_str());
            if let Some(normalizer) = tokenizer.get_normalizer() {
                normalizer.normalize(&mut normalized).ok()?;
            }
            let plain = normalized.get().replace(SPACE, " ");
            longest.see(&[added.content.as_bytes(), normalized.get().as_bytes(), plain.as_bytes()]);
        }
        let mut weights = longest.0.map(|length| if length == 0 { 0 } else { TOKEN / length as u64 });
        if takes_spaces {
            for space in ('\0'..=char::MAX).filter(|char| char.is_whitespace()) {
                for byte in space.encode_utf8(&mut [0; 4]).bytes() {
                    weights[usize::from(byte)] = 0;
                }
            }
        }
        Some(Self { weights, forms })
    }

    /// The least number of tokens that `text` can be. Takes a nanosecond a byte, and some ten a character that is not
    /// ASCII if the tokenizer normalizes.
    pub(super) fn count(&self, text: &str) -> usize {
        let sum = if self.forms.is_empty() || text.is_ascii() {
            self.weigh(text)
        } else {
            let mut sum = 0;
            let mut stable = None;
            for (at, char) in text.char_indices() {
                let begins = char.is_ascii() || self.is_stable(char);
                let weight = std::mem::replace(
                    &mut stable,
                    begins.then(|| self.weigh(&text[at..at + char.len_utf8()])),
                );
                sum += if begins { weight.unwrap_or(0) } else { 0 };
            }
            sum + stable.unwrap_or(0)
        };
        sum.div_ceil(TOKEN) as usize
    }

    fn weigh(&self, text: &str) -> u64 {
        text.bytes().map(|byte| self.weights[usize::from(byte)]).sum()
    }

    fn is_stable(&self, char: char) -> bool {
        canonical_combining_class(char) == 0 && self.forms.iter().all(|is_form| is_form(char))
    }
}

/// Length of the longest token that has each byte.
struct Longest([usize; 256]);

impl Longest {
    /// Takes in a token that is met as any of these, with the longest of them for all.
    fn see(&mut self, spellings: &[&[u8]]) {
        let length = spellings.iter().map(|spelling| spelling.len()).max().unwrap_or(0);
        for byte in spellings.iter().copied().flatten() {
            let longest = &mut self.0[usize::from(*byte)];
            *longest = length.max(*longest);
        }
    }
}

/// The parts of a sequence, or the one thing that it is.
fn sequence<'a>(value: &'a Value, parts: &str) -> Vec<&'a Value> {
    match value[parts].as_array() {
        Some(list) if value["type"] == "Sequence" => {
            list.iter().flat_map(|one| sequence(one, parts)).collect()
        }
        _ => vec![value],
    }
}

/// The byte that SentencePiece spells as `<0x0A>`.
fn byte_spelled(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>').filter(|hex| hex.len() == 2)?;
    u8::from_str_radix(hex, 16).ok()
}

fn is_nfc(char: char) -> bool {
    is_nfc_quick(std::iter::once(char)) == IsNormalized::Yes
}

fn is_nfkc(char: char) -> bool {
    is_nfkc_quick(std::iter::once(char)) == IsNormalized::Yes
}

fn is_nfd(char: char) -> bool {
    is_nfd_quick(std::iter::once(char)) == IsNormalized::Yes
}

fn is_nfkd(char: char) -> bool {
    is_nfkd_quick(std::iter::once(char)) == IsNormalized::Yes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::test_tokenizer::tokenizer_json;
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::LazyLock;

    fn byte_level() -> Value {
        serde_json::from_str(&tokenizer_json(false)).unwrap()
    }

    /// As Llama 2's: spaces are written as `▁`, bytes without a token as `<0x0A>`.
    fn sentencepiece() -> Value {
        let mut vocab = serde_json::Map::new();
        for byte in 0..=255_u8 {
            vocab.insert(format!("<0x{byte:02X}>"), json!(byte));
        }
        let tokens = ["▁", "t", "h", "e", "th", "the", "▁the", "▁▁", "é", "中"];
        for (number, token) in tokens.into_iter().enumerate() {
            vocab.insert(token.to_owned(), json!(256 + number));
        }
        let mut json = byte_level();
        json["model"]["vocab"] = vocab.into();
        json["model"]["merges"] = json!(["t h", "th e", "▁ the", "▁ ▁"]);
        json["model"]["byte_fallback"] = true.into();
        json["model"]["fuse_unk"] = true.into();
        json["pre_tokenizer"] = Value::Null;
        json["normalizer"] = json!({ "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": SPACE },
            { "type": "Replace", "pattern": { "String": " " }, "content": SPACE },
        ]});
        for (number, added) in json["added_tokens"].as_array_mut().unwrap().iter_mut().enumerate() {
            added["id"] = json!(300 + number);
            added["normalized"] = true.into();
        }
        json
    }

    fn changed(mut json: Value, change: impl FnOnce(&mut Value)) -> Value {
        change(&mut json);
        json
    }

    fn with_form(form: &str) -> Value {
        changed(byte_level(), |json| json["normalizer"] = json!({ "type": form }))
    }

    fn stripping() -> Value {
        changed(with_form("NFC"), |json| {
            json["added_tokens"][1]["rstrip"] = true.into();
            json["added_tokens"][2]["lstrip"] = true.into();
        })
    }

    fn load(json: &Value) -> Tokenizer {
        Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
    }

    /// Pieces that compose with each other, that change under some form, that are many bytes for few tokens, or that
    /// added tokens take along.
    const PIECES: &[&str] = &[
        "e",
        "\u{301}",
        "\u{338}",
        ">",
        "<|end|>",
        "<|turn|>",
        "\u{e9}",
        "\u{212a}",
        "\u{1fef}",
        "\u{fb01}",
        "\u{1100}",
        "\u{1161}",
        "\u{11a8}",
        "\u{ac00}",
        "中",
        "\u{f900}",
        "\u{1f600}",
        "\u{3000}",
        "\u{a0}",
        " ",
        "  ",
        "\n",
        "\t",
        "the",
        "in",
        " a",
        "<0x0A>",
        "▁",
        "▁the",
        "\u{345}",
        "\u{3b1}",
        "\u{313}",
        "\u{300}",
        "\u{1d160}",
        "\u{9cb}",
        "\u{9c7}",
        "\u{9be}",
        "q",
        "\u{323}",
        "\u{307}",
    ];

    /// One of each kind that there is a proof for.
    static KINDS: LazyLock<Vec<(Tokenizer, LeastTokens)>> = LazyLock::new(|| {
        let forms = ["NFC", "NFD", "NFKC", "NFKD"].map(with_form);
        let kinds = [byte_level(), stripping(), sentencepiece()].into_iter().chain(forms);
        let loaded = kinds.map(|json| load(&json));
        loaded.map(|tokenizer| (tokenizer.clone(), LeastTokens::of(&tokenizer).unwrap())).collect()
    });

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn no_text_is_fewer_tokens(pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..40)) {
            let text = pieces.concat();
            for (tokenizer, least) in KINDS.iter() {
                let tokens = tokenizer.encode_fast(text.as_str(), false).unwrap().len();
                prop_assert!(least.count(&text) <= tokens, "{} > {tokens}: {text:?}", least.count(&text));
            }
        }
    }

    #[test]
    fn the_bound_is_worth_something() {
        let least = |json: &Value, text: &str| LeastTokens::of(&load(json)).unwrap().count(text);
        for form in ["NFC", "NFD", "NFKC", "NFKD"] {
            let json = with_form(form);
            assert_eq!(least(&json, &"x".repeat(1000)), 1000, "no token has an x and something else");
            assert_eq!(least(&json, &"中".repeat(1000)), 3000, "nor one of these bytes");
        }
        // What composes is not weighed, nor what it composes with.
        assert_eq!(least(&with_form("NFC"), &"x\u{301}".repeat(1000)), 0);
        assert_eq!(least(&stripping(), &" ".repeat(1000)), 0);
        assert_eq!(least(&byte_level(), &" ".repeat(1000)), 500);
        // By the name of the byte's token.
        assert_eq!(least(&sentencepiece(), &"y".repeat(900)), 150);
    }

    #[test]
    fn where_nothing_is_proven_nothing_is_claimed() {
        let claims = |json: &Value| LeastTokens::of(&load(json)).is_some();
        assert!(claims(&byte_level()) && claims(&sentencepiece()));
        let replace = json!({ "type": "Replace", "pattern": { "String": "e" }, "content": "" });
        for normalizer in [json!({ "type": "Lowercase" }), json!({ "type": "StripAccents" }), replace] {
            let one = changed(byte_level(), |json| json["normalizer"] = normalizer.clone());
            assert!(!claims(&one), "{normalizer}");
            let many = json!({ "type": "Sequence", "normalizers": [{ "type": "NFC" }, normalizer] });
            assert!(!claims(&changed(byte_level(), |json| json["normalizer"] = many)));
        }
        let split = |behavior: &str| {
            let split = json!({ "type": "Split", "pattern": { "Regex": " +" }, "behavior": behavior, "invert": false });
            changed(byte_level(), |json| {
                let pre_tokenizers = json!([split, json["pre_tokenizer"]]);
                json["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": pre_tokenizers });
            })
        };
        assert!(claims(&split("Isolated")) && !claims(&split("Removed")));
        assert!(!claims(
            &changed(byte_level(), |json| json["pre_tokenizer"] = json!({ "type": "Whitespace" }))
        ));
        // Bytes without a token get lost, or many of them become one.
        assert!(!claims(&changed(byte_level(), |json| {
            json["model"]["vocab"].as_object_mut().unwrap().remove("x").unwrap();
        })));
        assert!(!claims(&changed(sentencepiece(), |json| json["model"]["byte_fallback"] = false.into())));
    }
}
