//! Where bytes from outside enter this crate, for `tests/fuzz`: each function takes any bytes, and must neither panic nor
//! take long. No part of the API.

use std::collections::BTreeMap;

use indexmap::IndexMap;

use crate::model::{ChatTemplate, Render, TemplateValue, TextTokenizer};
use crate::openai::{Endpoint, Request};

/// The body of a request. Whatever is wrong with it is the client's fault, and said so.
pub fn http_body(bytes: &[u8]) {
    for endpoint in [Endpoint::Completions, Endpoint::Chat] {
        if let Err(error) = Request::parse(endpoint, bytes) {
            assert!(error.status.is_client_error(), "{}", error.status);
            assert!(!error.body.message.is_empty());
        }
    }
}

/// A `tokenizer.json`, and after a zero byte a text for it.
///
/// The library panics on some malformed files, such as decoders with a key that is no string. The router builds a
/// model in a task of its own, for which a panic is one more error; so it is here.
pub fn tokenizer(bytes: &[u8]) {
    let (json, text) = halves(bytes);
    let built = std::panic::catch_unwind(|| TextTokenizer::from_json(json));
    let Ok(Ok(tokenizer)) = built else { return };
    let text = String::from_utf8_lossy(text);
    let prompt = tokenizer.encode(&text, true).unwrap_or_default();
    let rendered = tokenizer.encode(&text, false).unwrap_or_default();
    for token in prompt.into_iter().chain(rendered).chain([0, u32::MAX]) {
        tokenizer.token_bytes(token);
    }
}

/// A chat template, and after a zero byte the messages as JSON.
pub fn chat_template(bytes: &[u8]) {
    let (source, messages) = halves(bytes);
    let specials = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let Ok(template) = ChatTemplate::new(&String::from_utf8_lossy(source), specials) else { return };
    let Ok(messages) = serde_json::from_slice::<Vec<TemplateValue>>(messages) else { return };
    for add_generation_prompt in [false, true] {
        let render = Render { messages: &messages, add_generation_prompt, kwargs: &IndexMap::new() };
        // Templates may refuse a conversation.
        let _ = template.render(&render);
    }
}

fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    (&bytes[..at], bytes.get(at + 1..).unwrap_or_default())
}
