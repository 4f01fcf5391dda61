//! A byte-level BPE tokenizer, trained on a few sentences.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Tokens: 256 bytes, then what training merged, then the special ones.
pub const VOCAB_SIZE: usize = 512;

const SPECIAL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const END_OF_TEXT: usize = VOCAB_SIZE - 3;
/// Ends a turn of a chat.
pub(super) const IM_END: usize = VOCAB_SIZE - 1;
const MERGES: usize = VOCAB_SIZE - 256 - SPECIAL_TOKENS.len();

/// ChatML.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' \
    + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// What the merges are learned from: words only, so that spaces are the only boundaries, and short ones, so that most
/// become a token.
const CORPUS: &str = "the quick brown fox and the lazy dog had a long day in the sun and by the sea they saw a red ship \
    come in with the tide and a king on the ship said that he had lost his way in the rain so the fox told him how to \
    find the road to the old town on the hill where the air is cold and the bread is warm and when the king had gone \
    the dog lay down and the fox sang a song of the wind and the stars for all who were there to hear it and none of \
    them could say what the song meant but it was good and they had time and the night was long and soft and slow then \
    the sun rose over the sea again and she gave each of them a word to take home one said light and one said stone \
    and one said tell me a story about the time when the world was new and the last word was yes so we wrote it down \
    here for you to read if you like and no one knows why seven green birds flew past my small blue boat that morning \
    or from which far river they came just before snow fell";

/// Tokens that the model says: a space and a whole word each, so that its noise reads well.
pub(super) fn spoken() -> Vec<usize> {
    let space = byte_char(b' ');
    let is_word = |token: &str| {
        token.strip_prefix(space).is_some_and(|word| CORPUS.split_whitespace().any(|w| w == word))
    };
    let merges = train().into_iter().map(|(left, right)| left + &right).enumerate();
    merges.filter(|(_, token)| is_word(token)).map(|(index, _)| 256 + index).collect()
}

/// `tokenizer.json`.
pub(super) fn tokenizer_json() -> Value {
    let merges = train();
    let mut vocab: BTreeMap<String, usize> =
        (0..=255).map(|byte| (byte_char(byte).to_string(), usize::from(byte))).collect();
    for (index, (left, right)) in merges.iter().enumerate() {
        vocab.insert(format!("{left}{right}"), 256 + index);
    }
    let added: Vec<Value> = SPECIAL_TOKENS
        .iter()
        .enumerate()
        .map(|(index, content)| {
            json!({
                "id": END_OF_TEXT + index, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    let byte_level = |add_prefix_space: bool| {
        json!({
            "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": true,
        })
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level(false),
        "post_processor": null,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    })
}

/// `tokenizer_config.json`.
pub(super) fn tokenizer_config_json() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 8192,
        "bos_token": null,
        "eos_token": SPECIAL_TOKENS[2],
        "pad_token": SPECIAL_TOKENS[0],
        "unk_token": null,
        "clean_up_tokenization_spaces": false,
        "chat_template": CHAT_TEMPLATE,
    })
}

/// `special_tokens_map.json`.
pub(super) fn special_tokens_map_json() -> Value {
    json!({ "eos_token": SPECIAL_TOKENS[2], "pad_token": SPECIAL_TOKENS[0] })
}

/// `generation_config.json`.
pub(super) fn generation_config_json() -> Value {
    json!({ "eos_token_id": [END_OF_TEXT, IM_END], "pad_token_id": END_OF_TEXT })
}

/// Byte-pair encoding as Sennrich et al. (2016) train it: merge the most frequent pair, again and again. Of equally
/// frequent pairs the alphabetically first is taken, so that the result depends on the corpus alone.
fn train() -> Vec<(String, String)> {
    let mut words: BTreeMap<Vec<String>, usize> = BTreeMap::new();
    for (index, word) in CORPUS.split_whitespace().enumerate() {
        let spaced = if index == 0 { word.to_owned() } else { format!(" {word}") };
        *words.entry(spaced.bytes().map(|byte| byte_char(byte).to_string()).collect()).or_default() += 1;
    }
    let mut merges = Vec::with_capacity(MERGES);
    while merges.len() < MERGES {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (word, count) in &words {
            for pair in word.windows(2) {
                *counts.entry((&pair[0], &pair[1])).or_default() += count;
            }
        }
        // `max_by_key` takes the last of equals, hence the reversal.
        let Some((&(left, right), _)) = counts.iter().rev().max_by_key(|&(_, count)| *count) else { break };
        let (left, right) = (left.to_owned(), right.to_owned());
        words = words.into_iter().map(|(word, count)| (merge(&word, &left, &right), count)).collect();
        merges.push((left, right));
    }
    merges
}

/// `word` with every `left`, `right` made one.
fn merge(word: &[String], left: &str, right: &str) -> Vec<String> {
    let mut merged: Vec<String> = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, tail)) = rest.split_first() {
        if first == left && tail.first().is_some_and(|next| next == right) {
            merged.push(format!("{left}{right}"));
            rest = &tail[1..];
        } else {
            merged.push(first.clone());
            rest = tail;
        }
    }
    merged
}

/// The printable character that stands for a byte in byte-level BPE, as GPT-2 chose them: printable ones stand for
/// themselves, the others follow from U+0100 on.
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let earlier = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + earlier).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::Tokenizer;

    fn tokenizer() -> Tokenizer {
        tokenizer_json().to_string().parse().expect("valid")
    }

    #[test]
    fn every_text_survives_and_words_are_short() {
        let tokenizer = tokenizer();
        assert_eq!(tokenizer.get_vocab_size(true), VOCAB_SIZE);
        for text in
            ["the quick brown fox", "naïve café, 東京 🦊\r\n\t\0", "  two  spaces ", "x = {\"a\": [1, 2]};"]
        {
            let ids = tokenizer.encode(text, false).expect("encodes");
            assert!(ids.get_ids().iter().all(|&id| (id as usize) < VOCAB_SIZE));
            assert_eq!(tokenizer.decode(ids.get_ids(), false).expect("decodes"), text);
        }
        let ids = tokenizer.encode("the story of the river", false).expect("encodes");
        assert!(ids.len() < 12, "{:?}", ids.get_tokens());
    }

    #[test]
    fn special_tokens_are_one_token_each() {
        let tokenizer = tokenizer();
        for (index, token) in SPECIAL_TOKENS.iter().enumerate() {
            let ids = tokenizer.encode(*token, false).expect("encodes");
            assert_eq!(ids.get_ids(), [(END_OF_TEXT + index) as u32]);
        }
    }

    #[test]
    fn what_the_model_says_is_words() {
        let tokenizer = tokenizer();
        let spoken = spoken();
        assert!(spoken.len() >= 100, "{}", spoken.len());
        for id in spoken {
            let text = tokenizer.decode(&[id as u32], false).expect("decodes");
            let word = text.strip_prefix(' ').expect("a space");
            assert!(!word.is_empty() && word.chars().all(|c| c.is_ascii_alphabetic()), "{id}: {text:?}");
        }
    }
}
