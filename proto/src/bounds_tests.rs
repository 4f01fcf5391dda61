//! Every limit of the contract, on encoded messages.

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::limits::{self, REPEATED};
use crate::v1;

fn check<M: Message + Bounded>(message: &M) -> Result<(), OutOfBounds> {
    M::SHAPE.check(&message.encode_to_vec())
}

fn many<T: Clone + Default>(count: u32) -> Vec<T> {
    vec![T::default(); count as usize]
}

fn prompt(tokens: u32) -> v1::Prompt {
    v1::Prompt {
        request_id: "r".repeat(128),
        token_ids: vec![300; tokens as usize],
        model_fingerprint: Some(v1::Hash128 { high: u64::MAX, low: 1 }),
        cache_salt: "salt".into(),
        sampling: Some(v1::Sampling {
            logit_bias: many(limits::LOGIT_BIAS_MAX),
            top_logprobs: Some(20),
            ..Default::default()
        }),
        stop: Some(v1::StopRules {
            eos_token_ids: many(limits::STOP_TOKENS_MAX),
            stop_token_ids: many(limits::STOP_TOKENS_MAX),
            ..Default::default()
        }),
        choices: 128,
    }
}

fn generate(candidates: u32) -> v1::GenerateRequest {
    let remote = v1::RemotePrefill { candidates: many(candidates), ..Default::default() };
    v1::GenerateRequest { prompt: Some(prompt(9)), remote: Some(remote), placement_reason: "why".into() }
}

fn token(top_logprobs: u32) -> v1::Token {
    v1::Token { token_id: 1, logprob: Some(0.5), top_logprobs: many(top_logprobs) }
}

/// One entry less than too many, and one more than that, of every repeated field there is.
#[test]
fn every_repeated_field_has_its_limit() {
    type Make = fn(u32) -> Result<(), OutOfBounds>;
    let messages: [(&str, &str, Make); REPEATED.len()] = [
        ("Prompt", "token_ids", |n| check(&prompt(n))),
        ("Sampling", "logit_bias", |n| check(&v1::Sampling { logit_bias: many(n), ..Default::default() })),
        ("StopRules", "eos_token_ids", |n| {
            check(&v1::StopRules { eos_token_ids: many(n), ..Default::default() })
        }),
        ("StopRules", "stop_token_ids", |n| {
            check(&v1::StopRules { stop_token_ids: many(n), ..Default::default() })
        }),
        ("Token", "top_logprobs", |n| check(&token(n))),
        ("Tokens", "tokens", |n| check(&v1::Tokens { choice: 1, tokens: many(n) })),
        ("RemotePrefill", "candidates", |n| check(&generate(n))),
        ("Landing", "block_ids", |n| check(&v1::Landing { block_ids: many(n), ..Default::default() })),
        ("PrefillCompleted", "first_tokens", |n| {
            check(&v1::PrefillCompleted { first_tokens: vec![token(20); n as usize], chunks: 1 })
        }),
        ("KvEventBatch", "events", |n| check(&v1::KvEventBatch { events: many(n), ..Default::default() })),
        ("LoadReport", "transfers", |n| check(&v1::LoadReport { transfers: many(n), ..Default::default() })),
        ("HelloResponse", "transports", |n| {
            check(&v1::HelloResponse { transports: many(n), ..Default::default() })
        }),
        ("ModelCardHeader", "files", |n| {
            check(&v1::ModelCardHeader { files: many(n), ..Default::default() })
        }),
    ];
    for (known, (message, field, check)) in REPEATED.iter().zip(messages) {
        assert_eq!((known.0, known.1), (message, field));
        let max = known.2;
        assert_eq!(check(max), Ok(()), "{message}.{field}");
        assert_eq!(check(max + 1), Err(OutOfBounds::TooMany { message, field, max }));
    }
}

/// Two bytes each on the wire, over fifty in memory.
#[test]
fn empty_entries_are_counted_too() {
    let inner = [0x0a, 0].repeat(2_000_000);
    let mut bytes = vec![0x12];
    prost::encoding::encode_varint(inner.len() as u64, &mut bytes);
    bytes.extend(inner);
    let refused = v1::GenerateRequest::SHAPE.check(&bytes).unwrap_err();
    assert_eq!(refused.to_string(), "RemotePrefill.candidates: more than 8 entries; 8 are allowed");
}

/// Decoders merge a message that comes twice: each time within its limit would be far beyond it in all.
#[test]
fn what_is_not_repeated_comes_once() {
    let mut bytes = generate(8).encode_to_vec();
    bytes.extend(generate(8).encode_to_vec());
    let refused = v1::GenerateRequest::SHAPE.check(&bytes).unwrap_err();
    assert_eq!(refused, OutOfBounds::Twice { message: "GenerateRequest", field: "prompt" });
}

#[test]
fn numbers_are_counted_packed_and_one_by_one() {
    let mut bytes = Vec::new();
    for token in 0..=limits::STOP_TOKENS_MAX {
        bytes.extend([0x18, token as u8]);
    }
    assert!(v1::StopRules::SHAPE.check(&bytes).is_err());
    assert_eq!(v1::StopRules::SHAPE.check(&bytes[2..]), Ok(()));
}

#[test]
fn what_is_no_message_is_refused_and_unknown_fields_are_not() {
    let malformed = Err(OutOfBounds::Malformed { message: "Hash128" });
    for bytes in [&[0x80][..], &[0x0a, 5, 1], &[0x09, 1, 2], &[0x0b, 0x0c], &[0xff; 11]] {
        assert_eq!(v1::Hash128::SHAPE.check(bytes), malformed, "{bytes:?}");
    }
    let mut unknown = v1::Hash128 { high: 1, low: 2 }.encode_to_vec();
    unknown.extend([0x7a, 3, 1, 2, 3, 0x78, 1]);
    assert_eq!(v1::Hash128::SHAPE.check(&unknown), Ok(()));
}

proptest! {
    /// Whatever is done to the bytes: what passes decodes to no more than may be.
    #[test]
    fn what_passes_is_within_the_limits(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        again in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let mut bytes = generate(3).encode_to_vec();
        bytes.truncate(300);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for from in again {
            let tail = bytes[from.index(bytes.len())..].to_vec();
            bytes.extend(tail);
        }
        let checked = v1::GenerateRequest::SHAPE.check(&bytes);
        if let (Ok(()), Ok(request)) = (checked, v1::GenerateRequest::decode(bytes.as_slice())) {
            let prompt = request.prompt.unwrap_or_default();
            let (sampling, stop) = (prompt.sampling.unwrap_or_default(), prompt.stop.unwrap_or_default());
            prop_assert!(request.remote.unwrap_or_default().candidates.len() <= 8);
            prop_assert!(sampling.logit_bias.len() <= 1024);
            prop_assert!(stop.eos_token_ids.len() <= 64 && stop.stop_token_ids.len() <= 64);
        }
    }
}
