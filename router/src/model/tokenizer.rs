//! The model's tokenizer: text to token ids with the begin-of-text token exactly once, and back.

use std::fmt;

use tokenizers::{DecoderWrapper, Tokenizer};

use super::least_tokens::LeastTokens;
use crate::text::Decode;

/// A tokenizer and what it takes to use it right.
pub(crate) struct TextTokenizer {
    inner: Tokenizer,
    /// The begin-of-text token, if this tokenizer puts one before a text.
    bos: Option<u32>,
    /// Tokens are spelled in GPT-2's printable stand-ins for bytes.
    byte_level: bool,
    /// Known for most kinds of tokenizers.
    least_tokens: Option<LeastTokens>,
}

impl TextTokenizer {
    /// Reads `tokenizer.json`. `bos` is the begin-of-text token by `tokenizer_config.json`.
    pub(crate) fn from_bytes(json: &[u8], bos: Option<&str>) -> Result<Self, tokenizers::Error> {
        let mut inner = Tokenizer::from_bytes(json)?;
        // Some files carry these from training. Prompts are refused when too long, never cut.
        inner.with_truncation(None)?;
        inner.with_padding(None);
        let first = inner.encode_fast("a", true)?.get_ids().first().copied();
        let bos = bos.and_then(|token| inner.token_to_id(token)).filter(|id| first == Some(*id));
        let byte_level = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let least_tokens = LeastTokens::of(&inner);
        Ok(Self { inner, bos, byte_level, least_tokens })
    }

    /// Token ids of a plain prompt, with the begin-of-text token first if the model wants one, and only once even if
    /// the text brings its own.
    pub(crate) fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, tokenizers::Error> {
        let mut ids = self.inner.encode_fast(text, true)?.get_ids().to_vec();
        if let (Some(bos), [first, second, ..]) = (self.bos, ids.as_slice())
            && *first == bos
            && *second == bos
        {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// Token ids of a rendered chat template, which usually writes the begin-of-text token itself.
    pub(crate) fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, tokenizers::Error> {
        let mut ids = self.inner.encode_fast(text, false)?.get_ids().to_vec();
        if let Some(bos) = self.bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The least number of tokens that `text` can be; costs next to nothing. 0 where nothing is known.
    pub(crate) fn tokens_min(&self, text: &str) -> usize {
        self.least_tokens.as_ref().map_or(0, |least| least.count(text))
    }

    /// The id of a special token, or of any token by its spelling.
    pub(crate) fn special(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
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

    /// Token ids without any special token.
    #[cfg(test)]
    pub(crate) fn encode_plain(&self, text: &str) -> Vec<u32> {
        self.inner.encode_fast(text, false).unwrap().get_ids().to_vec()
    }
}

impl Decode for TextTokenizer {
    fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        // Fails only for decoders that cannot handle a token's spelling; such a token has no text.
        self.inner.decode(ids, skip_special).unwrap_or_default()
    }
}

impl fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextTokenizer").field("bos", &self.bos).finish_non_exhaustive()
    }
}

/// The byte that a character of a byte-level vocabulary stands for: printable Latin-1 stands for itself, the other 68
/// bytes follow from U+0100 in order.
pub(super) fn byte_of(stand_in: char) -> Option<u8> {
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
    fn begin_of_text_comes_exactly_once() {
        let tokenizer = byte_level_with_bos();
        for text in ["hi", "<|begin|>hi"] {
            assert_eq!(tokenizer.encode_prompt(text).unwrap()[..2], [BOS, byte_token(b'h')], "{text}");
            assert_eq!(tokenizer.encode_rendered(text).unwrap()[..2], [BOS, byte_token(b'h')], "{text}");
        }
        assert_eq!(tokenizer.encode_prompt("").unwrap(), [BOS]);
        assert_eq!(byte_level().encode_rendered("h").unwrap(), [byte_token(b'h')]);
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
            assert!(tokenizer.tokens_min(text) <= tokenizer.encode_plain(text).len(), "{text}");
        }
        assert!(tokenizer.tokens_min(&"x".repeat(1000)) > 100);
    }
}
