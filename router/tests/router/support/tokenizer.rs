//! A byte-level tokenizer made in code: 256 bytes, a few merges, three special tokens.

/// The id of a single byte.
pub fn byte_token(byte: u8) -> u32 {
    u32::from(byte)
}

/// Begin of text, added by the post-processor.
pub const BOS: u32 = 260;
/// End of text.
pub const EOS: u32 = 261;

/// `tokenizer.json`. With `bos`, its post-processor puts `<|begin|>` first.
pub fn tokenizer_json(bos: bool) -> String {
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255_u8 {
        vocab.insert(printable(byte).to_string(), serde_json::json!(byte_token(byte)));
    }
    let merges = ["t h", "th e", "i n", "Ġ a"];
    for (number, merge) in merges.iter().enumerate() {
        vocab.insert(merge.replace(' ', ""), serde_json::json!(256 + number));
    }
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let post = if bos {
        serde_json::json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [BOS], "tokens": ["<|begin|>"]}}})
    } else {
        serde_json::Value::Null
    };
    let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": false});
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(BOS, "<|begin|>"), special(EOS, "<|end|>"), special(262, "<|turn|>")],
        "pre_tokenizer": bytes, "post_processor": post, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges},
    })
    .to_string()
}

/// GPT-2's printable stand-in for a byte.
fn printable(byte: u8) -> char {
    if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)).count();
    char::from_u32(256 + u32::try_from(before).expect("few")).expect("a character")
}
