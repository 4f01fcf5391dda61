//! The model's tokenizer: text to token ids as transformers makes them, and back.

use std::fmt;

use tokenizers::models::ModelWrapper;
use tokenizers::{DecoderWrapper, Tokenizer};

use crate::text::Decode;

/// A tokenizer and what it takes to use it right.
pub(crate) struct TextTokenizer {
    inner: Tokenizer,
    /// Tokens are spelled in GPT-2's printable stand-ins for bytes.
    byte_level: bool,
    /// No token stands for more bytes of text than this; unknown if a token may swallow any number of them.
    token_bytes_max: Option<usize>,
}

impl TextTokenizer {
    /// Takes a tokenizer that neither cuts nor pads.
    pub(crate) fn new(inner: Tokenizer) -> Self {
        let byte_level = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let token_bytes_max = token_bytes_max(&inner, byte_level);
        Self { inner, byte_level, token_bytes_max }
    }

    /// Reads a `tokenizer.json` that has no files beside it.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, disagg_tokenizer::Error> {
        let files = disagg_tokenizer::Files {
            tokenizer: json,
            config: None,
            special_tokens_map: None,
            added_tokens: None,
        };
        Ok(Self::new(disagg_tokenizer::load(&files)?.tokenizer))
    }

    /// Token ids of a text. `special` adds what the model's own post-processor puts around a text, usually a
    /// begin-of-text token; what the text itself spells is kept, so that it may be there twice. transformers and vLLM
    /// do the same: with `special` for plain prompts, without for rendered chat templates, which write such tokens
    /// themselves.
    pub(crate) fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, tokenizers::Error> {
        Ok(self.inner.encode_fast(text, special)?.get_ids().to_vec())
    }

    /// The least number of tokens that `text` can be; costs nothing.
    pub(crate) fn tokens_min(&self, text: &str) -> usize {
        self.token_bytes_max.map_or(0, |longest| text.len().div_ceil(longest.max(1)))
    }

    /// The id of a special token, or of any token by its spelling.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The spelling of a token in the vocabulary.
    pub(crate) fn spelling(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The text that spells a special token, if `id` is one.
    pub(crate) fn special(&self, id: u32) -> Option<&str> {
        let added = self.inner.get_added_vocabulary();
        let token = added.get_added_tokens_decoder().get(&id)?;
        added.is_special_token(&token.content).then_some(token.content.as_str())
    }

    /// The bytes that one token stands for. Unknown ids stand for none.
    pub(crate) fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.inner.id_to_token(id) else { return Vec::new() };
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id);
        if !added {
            if self.byte_level
                && let Some(bytes) = token.chars().map(byte_of).collect::<Option<Vec<u8>>>()
            {
                return bytes;
            }
            // SentencePiece spells bytes that are no character as <0x0A>.
            let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
            if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                return vec![byte];
            }
            if !self.byte_level {
                return token.replace('\u{2581}', " ").into_bytes();
            }
        }
        token.into_bytes()
    }
}

impl Decode for TextTokenizer {
    fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        // Fails only for decoders that cannot handle a token's spelling; such a token has no text.
        self.inner.decode(ids, skip_special).unwrap_or_default()
    }

    fn is_text(&self, id: u32, skip_special: bool) -> bool {
        self.inner.id_to_token(id).is_some() && !(skip_special && self.special(id).is_some())
    }
}

impl fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextTokenizer").field("byte_level", &self.byte_level).finish_non_exhaustive()
    }
}

/// The most bytes of text that one token can stand for, if there is such a bound: nothing may rewrite the text first, no
/// token may take the white space around it along, and no run of unknown characters may become a single token.
fn token_bytes_max(tokenizer: &Tokenizer, byte_level: bool) -> Option<usize> {
    let mut added = tokenizer.get_added_vocabulary().get_added_tokens_decoder().values();
    let knows_all_bytes =
        byte_level || matches!(tokenizer.get_model(), ModelWrapper::BPE(bpe) if bpe.byte_fallback);
    if tokenizer.get_normalizer().is_some()
        || added.any(|token| token.lstrip || token.rstrip)
        || !knows_all_bytes
    {
        return None;
    }
    tokenizer.get_vocab(true).keys().map(String::len).max()
}

/// The byte that a character of a byte-level vocabulary stands for: printable Latin-1 stands for itself, the other 68
/// bytes follow from U+0100 in order.
fn byte_of(stand_in: char) -> Option<u8> {
    let code = u32::from(stand_in);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::model::test_tokenizer::{BOS, EOS, byte_level, byte_level_with_bos, byte_token};

    #[test]
    fn only_a_plain_prompt_gets_what_the_post_processor_adds() {
        let tokenizer = byte_level_with_bos();
        let h = byte_token(b'h');
        for (text, special, ids) in [
            ("h", true, vec![BOS, h]),
            ("h", false, vec![h]),
            ("", true, vec![BOS]),
            // As transformers and vLLM: the text's own token is the text's.
            ("<|begin|>h", true, vec![BOS, BOS, h]),
            ("<|begin|>h", false, vec![BOS, h]),
        ] {
            assert_eq!(tokenizer.encode(text, special).unwrap(), ids, "{text} {special}");
        }
        assert_eq!(byte_level().encode("h", true).unwrap(), [h]);
    }

    #[test]
    fn every_byte_has_its_token() {
        let tokenizer = byte_level();
        for byte in 0..=255 {
            assert_eq!(tokenizer.token_bytes(byte_token(byte)), [byte]);
        }
        assert_eq!(tokenizer.token_bytes(256), b"th");
        assert_eq!(tokenizer.token_bytes(EOS), b"<|end|>");
        assert_eq!(tokenizer.token_bytes(99_999), b"");
    }

    #[test]
    fn the_least_number_of_tokens_is_a_lower_bound() {
        let tokenizer = byte_level();
        for text in ["", "the the the", "<|begin|><|begin|>", "€€€"] {
            assert!(tokenizer.tokens_min(text) <= tokenizer.encode(text, false).unwrap().len(), "{text}");
        }
        assert!(tokenizer.tokens_min(&"x".repeat(1000)) > 100);
    }
}
