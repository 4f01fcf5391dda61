//! Incremental detokenization.
//!
//! A token is not a piece of text: a character may be spread over several tokens, and some decoders treat the first
//! token differently from the others. So text is found by difference, as vLLM and text-generation-inference do:
//! decode a short window with and without the new token, and what was added is the new text, unless it ends in the
//! replacement character, which means that a character is not complete yet.

/// Tokens of the prompt that give the first output token its context.
const CONTEXT_TOKENS: usize = 6;

/// An incomplete character is at most a few tokens. A run longer than this is not text, and is given out as it is.
const HELD_TOKENS_MAX: usize = 64;

/// Stands for bytes that are no character.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// What turns token ids into text as a whole.
pub(crate) trait Decode {
    /// The text of `ids`. Ids that the vocabulary lacks have no text.
    fn decode(&self, ids: &[u32], skip_special: bool) -> String;
}

/// Turns a stream of token ids into text. The pieces together are what decoding everything at once would give.
#[derive(Debug)]
pub(crate) struct Detokenizer {
    skip_special: bool,
    /// Tokens of the window. Those before `read` are in the text already and only give context.
    window: Vec<u32>,
    read: usize,
    /// Decoded `window[..read]`.
    context: String,
}

impl Detokenizer {
    /// Starts after `prompt`, whose text is not given out.
    pub(crate) fn new(decoder: &impl Decode, prompt: &[u32], skip_special: bool) -> Self {
        let window = prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..].to_vec();
        let context = decoder.decode(&window, skip_special);
        Self { skip_special, read: window.len(), window, context }
    }

    /// Takes the next token and returns the text that is now certain; often one token's, sometimes none.
    pub(crate) fn push(&mut self, decoder: &impl Decode, token: u32) -> String {
        self.window.push(token);
        let text = decoder.decode(&self.window, self.skip_special);
        let new = added(&self.context, &text).to_owned();
        let incomplete = new.is_empty() || text.ends_with(REPLACEMENT);
        if incomplete && self.window.len() - self.read < HELD_TOKENS_MAX {
            return String::new();
        }
        // The tokens just given out are the context of the next.
        self.window.drain(..self.read);
        self.read = self.window.len();
        self.context = decoder.decode(&self.window, self.skip_special);
        new
    }

    /// The text of an incomplete character that will never be completed.
    pub(crate) fn finish(&mut self, decoder: &impl Decode) -> String {
        if self.read == self.window.len() {
            return String::new();
        }
        let text = decoder.decode(&self.window, self.skip_special);
        let new = added(&self.context, &text).to_owned();
        self.read = self.window.len();
        self.context = text;
        new
    }
}

/// What `text` has beyond `context`. They part before the end of `context` only where it ended in an incomplete
/// character that `text` completes.
fn added<'a>(context: &str, text: &'a str) -> &'a str {
    let common: usize =
        context.chars().zip(text.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    &text[common..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::test_tokenizer::{byte_level, byte_token};
    use proptest::prelude::*;

    fn stream(prompt: &[u32], ids: &[u32]) -> (Vec<String>, String) {
        let tokenizer = byte_level();
        let mut detokenizer = Detokenizer::new(&tokenizer, prompt, true);
        let pieces: Vec<String> = ids.iter().map(|id| detokenizer.push(&tokenizer, *id)).collect();
        let rest = detokenizer.finish(&tokenizer);
        (pieces, rest)
    }

    fn bytes(text: &str) -> Vec<u32> {
        text.bytes().map(byte_token).collect()
    }

    #[test]
    fn a_character_comes_out_whole() {
        let (pieces, rest) = stream(&[], &bytes("a€b"));
        assert_eq!(pieces, ["a", "", "", "€", "b"]);
        assert_eq!(rest, "");
    }

    #[test]
    fn an_incomplete_character_at_the_end_is_given_out_at_the_end() {
        let (pieces, rest) = stream(&[], &bytes("a€")[..3]);
        assert_eq!(pieces, ["a", "", ""]);
        assert_eq!(rest, "\u{fffd}");
    }

    #[test]
    fn a_character_that_began_in_the_prompt_is_completed() {
        let all = bytes("x€");
        let (pieces, _) = stream(&all[..2], &all[2..]);
        assert_eq!(pieces, ["", "€"]);
    }

    #[test]
    fn special_tokens_have_no_text() {
        let eos = byte_level().special("<|end|>").unwrap();
        let (pieces, rest) = stream(&[], &[byte_token(b'a'), eos, byte_token(b'b'), eos]);
        assert_eq!(pieces.concat() + &rest, "ab");
    }

    #[test]
    fn endless_garbage_is_not_held_for_ever() {
        let (pieces, _) = stream(&[], &vec![byte_token(0xff); 3 * HELD_TOKENS_MAX]);
        assert!(!pieces.concat().is_empty());
    }

    proptest! {
        #[test]
        fn pieces_are_the_whole(text in "\\PC{0,40}", prompt in "[a-z ]{0,12}", specials in proptest::collection::vec(0_usize..60, 0..3)) {
            let tokenizer = byte_level();
            let mut ids = tokenizer.encode_plain(&text);
            for at in specials {
                ids.insert(at.min(ids.len()), tokenizer.special("<|end|>").unwrap());
            }
            let (pieces, rest) = stream(&tokenizer.encode_plain(&prompt), &ids);
            prop_assert_eq!(pieces.concat() + &rest, tokenizer.decode(&ids, true));
            prop_assert!(!pieces.concat().contains(REPLACEMENT) || text.contains(REPLACEMENT)
                || tokenizer.decode(&ids, true).contains(REPLACEMENT));
        }

        #[test]
        fn any_bytes_are_the_whole(raw in proptest::collection::vec(any::<u8>(), 0..40)) {
            let ids: Vec<u32> = raw.iter().copied().map(byte_token).collect();
            let (pieces, rest) = stream(&[], &ids);
            prop_assert_eq!(pieces.concat() + &rest, String::from_utf8_lossy(&raw).into_owned());
        }
    }
}
