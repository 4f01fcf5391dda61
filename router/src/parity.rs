//! Prompts and texts as transformers makes them, from the files of a card to token ids and back. The data is made by
//! `tests/parity/tokens.py`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use disagg_proto::v1;
use proptest::collection::vec;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::budget::{Budget, Held};
use crate::model::{CardAssembler, Model, TextTokenizer};
use crate::openai::{Endpoint, Request};
use crate::prepare::prepare;
use crate::text::{Decode, Detokenizer};

const KINDS: [&str; 6] =
    ["byte-level", "byte-level-nfc", "byte-level-bos", "byte-fallback-prepend", "byte-fallback", "metaspace"];
/// Of the models here: more than any of their tokenizers has.
const VOCAB_SIZE: u32 = 1000;
const MAX_MODEL_LEN: u32 = 4096;

/// Files of a folder as they are: the order of keys matters. A template is a JSON string.
type Files = BTreeMap<String, Box<RawValue>>;

#[derive(Deserialize)]
struct Golden {
    variants: Vec<Variant>,
    chats: Vec<Chat>,
    streams: Vec<Stream>,
}

#[derive(Deserialize)]
struct Variant {
    name: String,
    files: Files,
    texts: Vec<(String, String, String)>,
}

#[derive(Deserialize)]
struct Chat {
    files: Files,
    messages: Value,
    ids: String,
}

#[derive(Deserialize)]
struct Stream {
    prompt: String,
    output: String,
    /// The output's text without special tokens, and with them.
    skipped: String,
    shown: String,
}

/// The tokenizer of each kind, and what transformers makes of it.
fn all() -> impl Iterator<Item = (&'static str, String, Golden)> {
    KINDS.into_iter().map(|kind| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/data/tokenizers").join(kind);
        let golden = std::fs::read(folder.join("golden.json")).unwrap();
        let tokenizer = std::fs::read_to_string(folder.join("tokenizer.json")).unwrap();
        (kind, tokenizer, serde_json::from_slice(&golden).unwrap())
    })
}

fn ids(text: &str) -> Vec<u32> {
    text.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

/// The model of a card with these files.
fn model(tokenizer: &str, files: &Files, vocab_size: u32) -> Model {
    let text = |raw: &RawValue| serde_json::from_str(raw.get()).unwrap_or_else(|_| raw.get().to_owned());
    let mut files: BTreeMap<&str, String> =
        files.iter().map(|(name, content)| (name.as_str(), text(content))).collect();
    files.insert("tokenizer.json", tokenizer.to_owned());
    let announced = files
        .iter()
        .map(|(name, text)| v1::ModelCardFile { name: (*name).to_owned(), size: text.len() as u64 });
    let header = v1::ModelCardHeader {
        served_model_name: "m".to_owned(),
        model_fingerprint: Some(v1::Hash128 { high: 1, low: 2 }),
        max_model_len: MAX_MODEL_LEN,
        block_size: 16,
        vocab_size,
        files: announced.collect(),
        ..Default::default()
    };
    let mut card = CardAssembler::default();
    card.push(v1::ModelCardPart { header: Some(header), ..Default::default() }).unwrap();
    for (name, text) in files {
        let payload = text.into_bytes().into();
        card.push(v1::ModelCardPart { header: None, file: name.to_owned(), payload }).unwrap();
    }
    Model::from_card(&card.finish().unwrap()).unwrap_or_else(|error| panic!("{error}"))
}

/// The token ids of a request's prompt, or the error's message.
fn prompt(model: &Model, endpoint: Endpoint, body: &Value) -> Result<Vec<u32>, String> {
    let request = Request::parse(endpoint, body.to_string().as_bytes()).unwrap();
    let prepared = prepare(&request, 0, model, MAX_MODEL_LEN, 0, Held::none(&Budget::new(1 << 30)));
    prepared.map(|prepared| prepared.prompt.token_ids).map_err(|error| {
        assert_eq!(error.status, http::StatusCode::BAD_REQUEST);
        error.body.message
    })
}

#[test]
fn prompts_of_completions_are_those_of_transformers() {
    for (kind, tokenizer, golden) in all() {
        for Variant { name, files, texts } in golden.variants {
            let model = model(&tokenizer, &files, VOCAB_SIZE);
            for (text, with, without) in texts {
                for (body, expected) in [
                    (json!({"model": "m", "prompt": text}), with),
                    (json!({"model": "m", "prompt": text, "add_special_tokens": false}), without),
                ] {
                    let expected = ids(&expected);
                    match prompt(&model, Endpoint::Completions, &body) {
                        Ok(ids) => assert_eq!(ids, expected, "{kind}, {name}: {body}"),
                        Err(error) => {
                            assert!(
                                expected.is_empty() && error.contains("at least one token"),
                                "{body}: {error}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn prompts_of_chats_are_those_of_transformers() {
    for (kind, tokenizer, golden) in all() {
        for Chat { files, messages, ids: expected } in golden.chats {
            let model = model(&tokenizer, &files, VOCAB_SIZE);
            let mut body = json!({"model": "m", "messages": messages});
            assert_eq!(prompt(&model, Endpoint::Chat, &body), Ok(ids(&expected)), "{kind}: {files:?}");
            body["add_special_tokens"] = true.into();
            let with = prompt(&model, Endpoint::Chat, &body).unwrap();
            assert!(with.ends_with(&ids(&expected)), "{kind}: {with:?}");
            assert_eq!(
                with.len() > ids(&expected).len(),
                tokenizer.contains("\"post_processor\":{"),
                "{kind}"
            );
        }
    }
}

#[test]
fn pieces_of_an_answer_are_the_text_of_transformers() {
    let mut compared = 0;
    for (kind, tokenizer, golden) in all() {
        let tokenizer = TextTokenizer::from_json(tokenizer.as_bytes()).unwrap();
        for Stream { prompt, output, skipped, shown } in golden.streams {
            let (prompt, output) = (ids(&prompt), ids(&output));
            for (skip_special, expected) in [(true, &skipped), (false, &shown)] {
                let mut detokenizer = Detokenizer::new(&tokenizer, &prompt, skip_special);
                let mut text: String = output.iter().map(|id| detokenizer.push(&tokenizer, *id)).collect();
                text.push_str(&detokenizer.finish(&tokenizer));
                assert_eq!(text, *expected, "{kind}, skip {skip_special}: {prompt:?} {output:?}");
                let whole = tokenizer.decode(&[prompt.as_slice(), &output].concat(), skip_special);
                assert!(whole.ends_with(expected), "the reference is what the tokenizer decodes at once");
                compared += 1;
            }
        }
    }
    assert!(compared > 150, "{compared}");
}

/// A part of an answer: a character, in as many tokens as it takes, or some token that is text by itself.
fn part(tokenizer: &TextTokenizer, texts: &[u32], (char, token): (Option<char>, usize)) -> Vec<u32> {
    match char {
        Some(char) => tokenizer.encode(&char.to_string(), false).unwrap(),
        None => vec![texts[token % texts.len()]],
    }
}

proptest! {
    #[test]
    fn pieces_are_the_whole_with_every_kind_of_tokenizer(
        prompt in vec((any::<Option<char>>(), any::<usize>()), 0..8),
        output in vec((any::<Option<char>>(), any::<usize>()), 0..12),
        skip_special in any::<bool>(),
    ) {
        static TOKENIZERS: LazyLock<Vec<TextTokenizer>> =
            LazyLock::new(|| all().map(|(_, json, _)| TextTokenizer::from_json(json.as_bytes()).unwrap()).collect());
        for (kind, tokenizer) in KINDS.iter().zip(TOKENIZERS.iter()) {
            let is_text = |id: &u32| {
                let bytes = tokenizer.token_bytes(*id);
                !bytes.is_empty() && std::str::from_utf8(&bytes).is_ok()
            };
            let texts: Vec<u32> = (0..VOCAB_SIZE).filter(is_text).collect();
            let ids = |parts: &[(Option<char>, usize)]| -> Vec<u32> {
                parts.iter().flat_map(|part_of| part(tokenizer, &texts, *part_of)).collect()
            };
            let (prompt, output) = (ids(&prompt), ids(&output));
            let before = tokenizer.decode(&prompt, skip_special);
            let whole = tokenizer.decode(&[prompt.as_slice(), &output].concat(), skip_special);
            let mut detokenizer = Detokenizer::new(tokenizer, &prompt, skip_special);
            let mut text: String = output.iter().map(|id| detokenizer.push(tokenizer, *id)).collect();
            text.push_str(&detokenizer.finish(tokenizer));
            prop_assert_eq!(before + &text, whole, "{}: {:?} {:?}", kind, prompt, output);
        }
    }
}

#[test]
fn a_token_beyond_the_embedding_is_refused_by_name() {
    let (_, tokenizer, golden) = all().next().unwrap();
    let files = &golden.variants.iter().find(|variant| variant.name == "decoder").unwrap().files;
    // The tokenizer's own 318 tokens, and not those that the configuration adds.
    let model = model(&tokenizer, files, 318);
    assert_eq!(
        prompt(&model, Endpoint::Completions, &json!({"model": "m", "prompt": "a"})).unwrap().len(),
        1
    );
    let error =
        prompt(&model, Endpoint::Completions, &json!({"model": "m", "prompt": ["a<|im_end|>"]})).unwrap_err();
    assert_eq!(
        error,
        "Invalid value for 'prompt': token \"<|im_end|>\" (id 319). It must be text of tokens that the model has, which \
         are those with ids below 318."
    );
    assert_eq!(model.eos_token_ids, [0_u32; 0], "a model cannot end with a token that it does not have");
}

#[test]
fn a_template_that_does_not_parse_is_told_and_leaves_completions_alone() {
    let (_, tokenizer, _) = all().next().unwrap();
    let template = serde_json::value::to_raw_value("{% for m in messages %}{{ m.content }").unwrap();
    let files = [("chat_template.jinja".to_owned(), template)].into();
    let model = model(&tokenizer, &files, VOCAB_SIZE);
    assert!(prompt(&model, Endpoint::Completions, &json!({"model": "m", "prompt": "a"})).is_ok());
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "a"}]});
    let request = Request::parse(Endpoint::Chat, body.to_string().as_bytes()).unwrap();
    let error =
        prepare(&request, 0, &model, MAX_MODEL_LEN, 0, Held::none(&Budget::new(1 << 30))).unwrap_err();
    assert_eq!((error.status.as_u16(), error.body.code), (500, Some("broken_chat_template")));
    assert!(
        error.body.message.contains("chat template of the model `m` does not parse: "),
        "{}",
        error.body.message
    );
    assert!(error.body.message.contains("/v1/completions"), "{}", error.body.message);
}
