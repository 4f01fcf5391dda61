//! This worker's types as messages.

use disagg_core::{Epoch, HandoffId, KvEvent, Role, WorkerId};
use disagg_engine::{FinishReason, SampledToken};
use disagg_proto::{limits, v1};

use super::prefill::Peer;
use super::request::ValidPrompt;
use crate::engine_thread::{Load, SequenceEvent};
use crate::identity::Identity;
use crate::model::ModelCard;

/// A hash of 128 bits.
pub fn hash(value: u128) -> v1::Hash128 {
    v1::Hash128 { high: (value >> 64) as u64, low: value as u64 }
}

/// A role.
pub fn role(role: Role) -> v1::Role {
    match role {
        Role::Prefill => v1::Role::Prefill,
        Role::Decode => v1::Role::Decode,
        Role::Both => v1::Role::Both,
    }
}

/// One life of a worker.
pub fn worker_ref_to_wire(peer: &Peer) -> v1::WorkerRef {
    v1::WorkerRef { name: peer.worker.as_str().to_owned(), epoch: peer.epoch.0 }
}

/// A handoff's name.
pub fn handoff_to_wire(handoff: HandoffId) -> v1::HandoffRef {
    v1::HandoffRef { epoch: handoff.epoch.0, number: handoff.number }
}

/// A drawn token.
pub fn token_to_wire(token: SampledToken) -> v1::Token {
    let top_logprobs = token
        .top_logprobs
        .into_iter()
        .map(|(token_id, logprob)| v1::TokenLogprob { token_id, logprob })
        .collect();
    v1::Token { token_id: token.token, logprob: token.logprob, top_logprobs }
}

/// The prompt as it goes on to a prefill worker: what came from the router, unchanged.
pub fn prompt_to_wire(prompt: &ValidPrompt) -> v1::Prompt {
    let request = &prompt.request;
    let sampling = &request.sampling;
    let stop = &request.stop;
    v1::Prompt {
        request_id: prompt.request_id.clone(),
        token_ids: request.prompt.clone(),
        model_fingerprint: Some(hash(prompt.fingerprint.0)),
        cache_salt: request.cache_salt.clone(),
        sampling: Some(v1::Sampling {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            repetition_penalty: sampling.repetition_penalty,
            logit_bias: sampling
                .logit_bias
                .iter()
                .map(|&(token_id, bias)| v1::LogitBias { token_id, bias })
                .collect(),
            seed: sampling.seed,
            top_logprobs: sampling.top_logprobs,
        }),
        stop: Some(v1::StopRules {
            max_tokens: stop.max_tokens,
            min_tokens: stop.min_tokens,
            eos_token_ids: stop.eos_token_ids.clone(),
            stop_token_ids: stop.stop_token_ids.clone(),
            ignore_eos: stop.ignore_eos,
        }),
        choices: request.choices,
    }
}

/// An event of a request.
pub fn sequence_event(event: SequenceEvent) -> v1::GenerateEvent {
    let event = match event {
        SequenceEvent::Tokens { choice, tokens } => v1::generate_event::Event::Tokens(v1::Tokens {
            choice,
            tokens: tokens.into_iter().map(token_to_wire).collect(),
        }),
        SequenceEvent::Finished { choice, reason, message } => {
            let (reason, stop_token_id) = match reason {
                FinishReason::Stop(token) => (v1::FinishReason::Stop, Some(token)),
                FinishReason::Length => (v1::FinishReason::Length, None),
                FinishReason::Cancelled => (v1::FinishReason::Cancelled, None),
                FinishReason::Error => (v1::FinishReason::Error, None),
            };
            v1::generate_event::Event::Finished(v1::Finished {
                choice,
                reason: reason.into(),
                message: message.unwrap_or_default(),
                stop_token_id,
            })
        }
    };
    v1::GenerateEvent { event: Some(event) }
}

/// A change of the prefix cache.
pub fn kv_event(event: KvEvent) -> v1::KvEvent {
    let event = match event {
        KvEvent::BlockStored { hash: block, parent } => v1::kv_event::Event::Stored(v1::BlockStored {
            hash: Some(hash(block.0)),
            parent: parent.map(|parent| hash(parent.0)),
        }),
        KvEvent::BlockRemoved { hash: block } => {
            v1::kv_event::Event::Removed(v1::BlockRemoved { hash: Some(hash(block.0)) })
        }
        KvEvent::AllBlocksCleared => v1::kv_event::Event::Cleared(v1::AllBlocksCleared {}),
    };
    v1::KvEvent { event: Some(event) }
}

/// Load as routing uses it.
pub fn load_report(
    epoch: Epoch,
    load: &Load,
    refusing: bool,
    transfers: Vec<(WorkerId, f64)>,
) -> v1::LoadReport {
    let engine = &load.engine;
    let transfer = |(worker, bytes_per_second): (WorkerId, f64)| v1::PeerTransfer {
        worker: worker.as_str().to_owned(),
        bytes_per_second,
    };
    v1::LoadReport {
        epoch: epoch.0,
        running: engine.running,
        waiting: engine.waiting,
        awaiting_kv: engine.awaiting_kv,
        blocks_total: engine.blocks_total,
        blocks_used: engine.blocks_used,
        blocks_quarantined: engine.blocks_quarantined,
        prefill_queue: engine.prefill_queue,
        prefill_queue_tokens: engine.prefill_queue_tokens,
        draining: refusing,
        prefill_tokens_per_second: load.prefill_tokens_per_second,
        transfers: transfers.into_iter().map(transfer).collect(),
    }
}

// What a worker takes for the files of a card, a router accepts.
const _: () = assert!(crate::model::card::CARD_BYTES_MAX == limits::CARD_BYTES_MAX);
const _: () = assert!(crate::model::CARD_FILES.len() <= limits::CARD_FILES_MAX as usize);

/// Head of the model card.
pub fn card_header(card: &ModelCard, identity: &Identity) -> v1::ModelCardHeader {
    v1::ModelCardHeader {
        served_model_name: card.served_model_name.clone(),
        model_fingerprint: Some(hash(identity.fingerprint.0)),
        kv_compat: Some(hash(identity.kv_compat.0)),
        max_model_len: identity.max_model_len,
        block_size: identity.layout.block_size,
        vocab_size: identity.vocab_size,
        created: card.created_seconds,
        files: card
            .files
            .iter()
            .map(|file| v1::ModelCardFile { name: file.name.to_owned(), size: file.bytes.len() as u64 })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::tests::{LIMITS, good_prompt};
    use super::super::{hash128, prompt};
    use super::*;

    #[test]
    fn a_prompt_goes_on_as_it_came() {
        let mut came = good_prompt();
        let sampling = came.sampling.as_mut().unwrap();
        sampling.logit_bias = vec![v1::LogitBias { token_id: 3, bias: -1.5 }];
        sampling.seed = 77;
        sampling.top_logprobs = Some(4);
        sampling.temperature = 0.5;
        sampling.min_p = 0.1;
        let valid = prompt(Some(came.clone()), LIMITS).unwrap();
        assert_eq!(prompt_to_wire(&valid), came);
    }

    #[test]
    fn hashes_keep_all_bits() {
        let value = 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210;
        assert_eq!(hash128(hash(value)), value);
    }

    #[test]
    fn a_stop_names_its_token() {
        let event = sequence_event(SequenceEvent::Finished {
            choice: 1,
            reason: FinishReason::Stop(9),
            message: None,
        });
        let Some(v1::generate_event::Event::Finished(finished)) = event.event else { panic!("{event:?}") };
        assert_eq!((finished.reason(), finished.stop_token_id), (v1::FinishReason::Stop, Some(9)));
    }
}
