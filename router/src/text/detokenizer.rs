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

    /// Whether [`Decode::decode`] looks at `id` at all: special tokens may be skipped, unknown ids always are.
    fn is_text(&self, id: u32, skip_special: bool) -> bool;
}

/// Turns a stream of token ids into text. The pieces together are what decoding everything at once would give.
#[derive(Debug)]
pub(crate) struct Detokenizer {
    skip_special: bool,
    /// Tokens of the window, without those that decoding skips. Those before `read` are in the text already and only
    /// give context.
    window: Vec<u32>,
    read: usize,
    /// Decoded `window[..read]`.
    context: String,
}

impl Detokenizer {
    /// Starts after `prompt`, whose text is not given out.
    pub(crate) fn new(decoder: &impl Decode, prompt: &[u32], skip_special: bool) -> Self {
        let text = prompt.iter().rev().copied().filter(|id| decoder.is_text(*id, skip_special));
        let mut text: Vec<u32> = text.take(HELD_TOKENS_MAX).collect();
        text.reverse();
        let mut start = text.len().saturating_sub(CONTEXT_TOKENS);
        let mut context = decoder.decode(&text[start..], skip_special);
        // A window must not begin inside a character: some decoders then find no text in all bytes up to the next word.
        while context.starts_with(REPLACEMENT) && start > 0 {
            start -= 1;
            context = decoder.decode(&text[start..], skip_special);
        }
        let window = text.split_off(start);
        Self { skip_special, read: window.len(), window, context }
    }

    /// Takes the next token and returns the text that is now certain; often one token's, sometimes none.
    pub(crate) fn push(&mut self, decoder: &impl Decode, token: u32) -> String {
        if !decoder.is_text(token, self.skip_special) {
            // Any number of them may come, and must not push the context out of the window.
            return String::new();
        }
        self.window.push(token);
        let new = self.new_text(decoder);
        let incomplete = new.is_empty() || new.ends_with(REPLACEMENT);
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
        let new = self.new_text(decoder);
        self.window.drain(..self.read);
        self.read = self.window.len();
        self.context = decoder.decode(&self.window, self.skip_special);
        new
    }

    /// What the tokens from `read` on add to the context.
    fn new_text(&self, decoder: &impl Decode) -> String {
        let text = decoder.decode(&self.window, self.skip_special);
        if let Some(new) = text.strip_prefix(&self.context) {
            return new.to_owned();
        }
        if self.context.ends_with(REPLACEMENT) {
            // It ended in an incomplete character, which is completed now.
            let same = self.context.chars().zip(text.chars()).take_while(|(a, b)| a == b);
            let common: usize = same.map(|(char, _)| char.len_utf8()).sum();
            return text[common..].to_owned();
        }
        // A byte that is no part of a character spoils those before it, for decoders that put bytes together. What
        // was given out stays.
        decoder.decode(&self.window[self.read..], self.skip_special)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TextTokenizer;
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
        let eos = byte_level().id("<|end|>").unwrap();
        let (pieces, rest) = stream(&[], &[byte_token(b'a'), eos, byte_token(b'b'), eos]);
        assert_eq!(pieces.concat() + &rest, "ab");
    }

    #[test]
    fn endless_garbage_is_not_held_for_ever() {
        let (pieces, _) = stream(&[], &vec![byte_token(0xff); 3 * HELD_TOKENS_MAX]);
        assert!(!pieces.concat().is_empty());
    }

    /// As Llama 2 and Mistral have it: spaces are spelled in the tokens, the first one of a text is not shown, and what
    /// the vocabulary lacks is spelled in bytes.
    fn sentence_piece() -> TextTokenizer {
        let mut vocab = serde_json::Map::new();
        let mut add = |token: String| {
            let id = vocab.len();
            vocab.insert(token, id.into());
        };
        for byte in 0..=255_u8 {
            add(format!("<0x{byte:02X}>"));
        }
        for token in
            ["<unk>", "\u{2581}", "a", "b", "é", "\u{2581}a", "\u{2581}the", "ba", "\u{2581}\u{2581}"]
        {
            add(token.to_owned());
        }
        let end = vocab.len();
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null,
            "added_tokens": [{"id": end, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocab, "merges": []},
        });
        TextTokenizer::from_json(json.to_string().as_bytes()).unwrap()
    }

    fn stream_with(tokenizer: &TextTokenizer, prompt: &[u32], ids: &[u32]) -> String {
        let mut detokenizer = Detokenizer::new(tokenizer, prompt, true);
        let mut text: String = ids.iter().map(|id| detokenizer.push(tokenizer, *id)).collect();
        text.push_str(&detokenizer.finish(tokenizer));
        assert_eq!(detokenizer.finish(tokenizer), "", "the end comes once");
        text
    }

    #[test]
    fn a_broken_byte_does_not_repeat_what_came_before() {
        let tokenizer = sentence_piece();
        let a = tokenizer.id("a").unwrap();
        assert_eq!(stream_with(&tokenizer, &[], &[a, 0xe2, 0x82, 0xac, 0xe2, a]), "a€\u{fffd}a");
        assert_eq!(stream_with(&tokenizer, &[], &[a, 0xe2, 0x82]), "a\u{fffd}\u{fffd}");
    }

    #[test]
    fn the_first_space_of_an_answer_is_kept_after_a_prompt() {
        let tokenizer = sentence_piece();
        let [a, the] = ["a", "\u{2581}the"].map(|token| tokenizer.id(token).unwrap());
        assert_eq!(stream_with(&tokenizer, &[], &[the, the]), "the the");
        assert_eq!(stream_with(&tokenizer, &[a], &[the, the]), " the the");
    }

    #[test]
    fn any_number_of_special_tokens_takes_no_space_from_the_word_behind() {
        let tokenizer = sentence_piece();
        let [the, end] = ["\u{2581}the", "</s>"].map(|token| tokenizer.id(token).unwrap());
        let specials = vec![end; 2 * HELD_TOKENS_MAX];
        let unknown = vec![u32::MAX; 2 * HELD_TOKENS_MAX];
        for between in [specials, unknown] {
            let output = [&[the], between.as_slice(), &[the]].concat();
            assert_eq!(stream_with(&tokenizer, &[], &output), "the the");
            let prompt = [&[the], between.as_slice()].concat();
            assert_eq!(stream_with(&tokenizer, &prompt, &[the]), " the");
            assert_eq!(stream_with(&tokenizer, &between, &[the]), "the", "nothing with text came before");
        }
    }

    proptest! {
        /// Tokens of words, of spaces, and characters in bytes, with special tokens between them.
        #[test]
        fn pieces_are_the_whole_with_bytes_and_leading_spaces(
            parts in proptest::collection::vec(prop_oneof![
                (257_u32..=265).prop_map(|id| vec![id]),
                any::<char>().prop_map(|char| char.to_string().bytes().map(u32::from).collect()),
            ], 0..20),
            prompt in proptest::collection::vec(258_u32..=264, 0..10),
        ) {
            let tokenizer = sentence_piece();
            prop_assert_eq!(tokenizer.id("</s>"), Some(265));
            let ids = parts.concat();
            let before = tokenizer.decode(&prompt, true);
            let whole = tokenizer.decode(&[prompt.as_slice(), ids.as_slice()].concat(), true);
            prop_assert_eq!(before + &stream_with(&tokenizer, &prompt, &ids), whole);
        }

        /// Whatever a model says in bytes, no character of it is shown before it is complete, and none twice.
        #[test]
        fn any_bytes_between_words_end_and_never_panic(ids in proptest::collection::vec(0_u32..=265, 0..60)) {
            let tokenizer = sentence_piece();
            let text = stream_with(&tokenizer, &[], &ids);
            let letters = |text: &str| text.chars().filter(|char| matches!(char, 'a' | 'b' | 'é')).count();
            let of_ids: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id)).collect();
            // Bytes that spell a letter may be spoiled by their neighbours; the others are there once.
            prop_assert!(letters(&text) <= letters(&String::from_utf8_lossy(&of_ids).replace("</s>", "")));
            let sure = ids.iter().filter(|id| matches!(id, 258..=261 | 263)).count();
            prop_assert!(letters(&text) >= sure);
        }

        #[test]
        fn pieces_are_the_whole(text in "\\PC{0,40}", prompt in "[a-z ]{0,12}", specials in proptest::collection::vec(0_usize..60, 0..3)) {
            let tokenizer = byte_level();
            let mut ids = tokenizer.encode(&text, false).unwrap();
            for at in specials {
                ids.insert(at.min(ids.len()), tokenizer.id("<|end|>").unwrap());
            }
            let (pieces, rest) = stream(&tokenizer.encode(&prompt, false).unwrap(), &ids);
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
