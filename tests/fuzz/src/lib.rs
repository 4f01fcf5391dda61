//! Everything in `disagg` that reads bytes from outside, one function each. A function takes any bytes; it must not
//! panic, and what it accepts must hold what it promises.
//!
//! `tests/inputs.rs` calls them with the files of `corpus/` and with random changes of these, `bin/coverage.rs` with
//! what libFuzzer makes of them.

use std::path::Path;

use disagg_api::DisaggDeployment;
use disagg_api::settings::RouterSettings;
use disagg_proto::bounds::Bounded;
use disagg_proto::v1;
use disagg_worker::convert::{self, PromptLimits};
use disagg_worker::model::ModelSpec;
use prost::Message;

pub use disagg_router::fuzz::{chat_template, http_body, tokenizer};

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// All of them by name, which is also the name of their corpus.
pub const TARGETS: [(&str, Target); 7] = [
    ("http_body", http_body),
    ("custom_resource", custom_resource),
    ("settings", settings),
    ("model_config", model_config),
    ("tokenizer", tokenizer),
    ("chat_template", chat_template),
    ("protobuf", protobuf),
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}

/// A `DisaggDeployment` in YAML. What is wrong with it is said.
pub fn custom_resource(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(resource) = DisaggDeployment::from_yaml(text) else { return };
    if let Err(invalid) = resource.validate() {
        assert!(!invalid.0.is_empty() && !invalid.to_string().is_empty());
    }
}

/// A settings file. What is accepted is accepted again as it is written.
pub fn settings(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(settings) = RouterSettings::from_yaml(text) {
        assert_eq!(RouterSettings::from_yaml(&settings.to_yaml()), Ok(settings));
    }
}

/// A model's `config.json`. Sizes of what is accepted can be computed with.
pub fn model_config(bytes: &[u8]) {
    let Ok(spec) = ModelSpec::parse(Path::new("config.json"), bytes) else { return };
    assert!(spec.num_kv_heads > 0 && spec.num_heads.is_multiple_of(spec.num_kv_heads));
    assert!(spec.q_size() > 0 && spec.kv_size() > 0 && spec.max_model_len > 0);
    assert!(spec.parameters() > 0 && spec.shortest_window().is_none_or(|window| window < spec.max_model_len));
}

/// A message to a worker: one byte that says which, and its protobuf encoding.
pub fn protobuf(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let limits = PromptLimits { max_model_len: 1000, vocab_size: 500 };
    match kind % 4 {
        0 => {
            if let Some(request) = decode::<v1::GenerateRequest>(bytes)
                && let Ok(valid) = convert::generate(request, limits)
            {
                check_prompt(&valid.prompt, limits);
            }
        }
        1 => {
            if let Some(start) = decode::<v1::PrefillStart>(bytes)
                && let Ok(valid) = convert::start_prefill(start, limits, 4)
            {
                check_prompt(&valid.prompt, limits);
            }
        }
        2 => {
            if let Some(begin) = decode::<v1::PushBegin>(bytes) {
                let _ = convert::push_begin(begin);
            }
        }
        _ => {
            if let Some(chunk) = decode::<v1::KvChunk>(bytes)
                && let Ok(bytes) = convert::chunk_bytes(&chunk, 8)
            {
                assert_eq!(bytes, chunk.block_count as usize * 8);
                assert_eq!(bytes, chunk.payload_bytes as usize);
            }
        }
    }
}

/// As it comes in: within the contract's bounds, and then decoded.
fn decode<M: Message + Default + Bounded>(bytes: &[u8]) -> Option<M> {
    M::SHAPE.check(bytes).ok()?;
    M::decode(bytes).ok()
}

fn check_prompt(prompt: &convert::ValidPrompt, limits: PromptLimits) {
    let tokens = &prompt.request.prompt;
    assert!(!tokens.is_empty() && tokens.len() < limits.max_model_len as usize);
    assert!(tokens.iter().all(|token| *token < limits.vocab_size));
}
