//! Tokenizers of every kind, with tokens declared in every way, beside what transformers makes of the same files. The data
//! is made by `tests/parity/tokens.py`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use disagg_tokenizer::{Error, Files, Loaded, load};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

const KINDS: [&str; 6] =
    ["byte-level", "byte-level-nfc", "byte-level-bos", "byte-fallback-prepend", "byte-fallback", "metaspace"];

#[derive(Deserialize)]
struct Golden {
    variants: Vec<Variant>,
}

#[derive(Deserialize)]
struct Variant {
    name: String,
    /// As they are: the order of their keys matters.
    files: BTreeMap<String, Box<RawValue>>,
    /// By id: the token's text, and the flags that are set.
    added: BTreeMap<u32, Vec<String>>,
    named: BTreeMap<String, String>,
    /// Each with its ids, then with those without what the post-processor adds.
    texts: Vec<(String, String, String)>,
}

fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/data/tokenizers").join(kind)
}

fn load_with(tokenizer: &str, files: &BTreeMap<String, String>) -> Result<Loaded, Error> {
    let file = |name| files.get(name).map(String::as_bytes);
    load(&Files {
        tokenizer: tokenizer.as_bytes(),
        config: file("tokenizer_config.json"),
        special_tokens_map: file("special_tokens_map.json"),
        added_tokens: file("added_tokens.json"),
    })
}

fn ids(text: &str) -> Vec<u32> {
    text.split_whitespace().map(|id| id.parse().expect("an id")).collect()
}

#[test]
fn declared_tokens_are_those_of_transformers() {
    let mut compared = 0;
    for kind in KINDS {
        let tokenizer = fs::read_to_string(folder(kind).join("tokenizer.json")).expect("a tokenizer");
        let golden = fs::read(folder(kind).join("golden.json")).expect("golden data");
        let golden: Golden = serde_json::from_slice(&golden).expect("as tokens.py writes it");
        for Variant { name, files, added, named, texts } in golden.variants {
            let files = files.into_iter().map(|(name, content)| (name, content.get().to_owned())).collect();
            let loaded = match load_with(&tokenizer, &files) {
                Ok(loaded) => loaded,
                Err(error) => panic!("{kind}, {name}: {error}"),
            };
            assert_eq!(loaded.named, named, "{kind}, {name}");
            let ours: BTreeMap<u32, Vec<String>> = loaded
                .tokenizer
                .get_added_vocabulary()
                .get_added_tokens_decoder()
                .iter()
                .map(|(id, token)| {
                    let flags = [
                        ("single_word", token.single_word),
                        ("lstrip", token.lstrip),
                        ("rstrip", token.rstrip),
                        ("normalized", token.normalized),
                        ("special", token.special),
                    ];
                    let set = flags.into_iter().filter(|(_, set)| *set).map(|(flag, _)| flag.to_owned());
                    (*id, std::iter::once(token.content.clone()).chain(set).collect())
                })
                .collect();
            assert_eq!(ours, added, "{kind}, {name}");
            for (text, with, without) in texts {
                for (special, expected) in [(true, with), (false, without)] {
                    let encoding = loaded.tokenizer.encode_fast(text.as_str(), special).expect("encoded");
                    assert_eq!(
                        encoding.get_ids(),
                        ids(&expected),
                        "{kind}, {name}: {text:?}, special {special}"
                    );
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 1000, "{compared} token lists were compared");
}

/// The message for a folder of these files beside a byte-level tokenizer of 318 tokens.
fn refusal(files: &[(&str, Value)]) -> String {
    let tokenizer = fs::read_to_string(folder("byte-level").join("tokenizer.json")).expect("a tokenizer");
    let mut files: BTreeMap<String, String> =
        files.iter().map(|(name, content)| ((*name).to_owned(), content.to_string())).collect();
    let tokenizer = match files.remove("tokenizer.json") {
        None => tokenizer,
        Some(changes) => {
            let mut whole: Value = serde_json::from_str(&tokenizer).expect("JSON");
            let changes: Value = serde_json::from_str(&changes).expect("JSON");
            whole.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
            whole.to_string()
        }
    };
    load_with(&tokenizer, &files).map(|_| ()).expect_err("refused").to_string()
}

#[test]
fn ids_that_do_not_come_out_as_declared_are_refused() {
    let token = |text: &str| json!({"content": text, "special": true});
    let flags = |text: &str, id: u32| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    for (files, wanted) in [
        (
            vec![(
                "tokenizer_config.json",
                json!({"added_tokens_decoder": {"318": token("<a>"), "320": token("<b>")}}),
            )],
            "tokenizer_config.json: added_tokens_decoder.320: token \"<b>\" is declared with id 320, but gets id 319",
        ),
        (
            vec![("tokenizer_config.json", json!({"added_tokens_decoder": {"65": token("<a>")}}))],
            "added_tokens_decoder.65: token \"<a>\" is declared with id 65, but gets id 318",
        ),
        (
            vec![(
                "tokenizer_config.json",
                json!({"added_tokens_decoder": {"318": token("<a>"), "319": token("<a>")}}),
            )],
            "added_tokens_decoder.319: token \"<a>\" is declared with id 319, but gets id 318",
        ),
        (
            vec![("added_tokens.json", json!({"<a>": 400}))],
            "added_tokens.json: <a>: token \"<a>\" is declared with id 400, but gets id 318",
        ),
        (
            // The token of tokenizer.json has that id, and wins.
            vec![("added_tokens.json", json!({"<a>": 317}))],
            "added_tokens.json: <a>: token \"<a>\" is declared with id 317, but is not added",
        ),
        (
            vec![("tokenizer.json", json!({"added_tokens": [flags("<s>", 316), flags("</s>", 400)]}))],
            "tokenizer.json: added_tokens: token \"</s>\" is declared with id 400, but gets id 317",
        ),
    ] {
        let error = refusal(&files);
        assert!(error.contains(wanted), "{error}\n{wanted}");
    }
}

#[test]
fn values_of_another_form_are_refused_by_file_and_key() {
    let config = "tokenizer_config.json";
    for (file, content, wanted) in [
        (config, json!([]), "tokenizer_config.json: invalid type: sequence, expected an object"),
        (config, json!({"eos_token": 5}), "tokenizer_config.json: eos_token: 5 is not a token"),
        (config, json!({"eos_token": {"text": "x"}}), "eos_token: {\"text\":\"x\"} is not a token"),
        (
            config,
            json!({"extra_special_tokens": "x"}),
            "extra_special_tokens: \"x\" is not a list or an object",
        ),
        (config, json!({"extra_special_tokens": [1]}), "extra_special_tokens: 1 is not a token"),
        (
            config,
            json!({"additional_special_tokens": {}}),
            "additional_special_tokens: {} is not a list of tokens",
        ),
        (config, json!({"added_tokens_decoder": []}), "added_tokens_decoder: [] is not an object"),
        (config, json!({"added_tokens_decoder": {"x": {"content": "a"}}}), "added_tokens_decoder.x: "),
        (
            config,
            json!({"added_tokens_decoder": {"318": "a"}}),
            "added_tokens_decoder.318: \"a\" is not a token",
        ),
        (
            config,
            json!({"added_tokens_decoder": {"318": {"content": "a", "lstrip": 1}}}),
            "flags that are true or false",
        ),
        (config, json!({"split_special_tokens": "no"}), "split_special_tokens: \"no\" is not true or false"),
        ("added_tokens.json", json!({"a": -1}), "added_tokens.json: a: -1 is not a token id"),
        (
            "special_tokens_map.json",
            json!({"bos_token": []}),
            "special_tokens_map.json: bos_token: [] is not a token",
        ),
    ] {
        let error = refusal(&[(file, content)]);
        assert!(error.contains(wanted), "{error}\n{wanted}");
    }
    // A switch whose name ends like a token's.
    let tokenizer = fs::read_to_string(folder("byte-level").join("tokenizer.json")).expect("a tokenizer");
    let content = json!({"add_bos_token": true, "eos_token": null}).to_string();
    let files = [(config.to_owned(), content)].into();
    assert!(load_with(&tokenizer, &files).expect("accepted").named.is_empty());
}
