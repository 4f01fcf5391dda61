//! Messages between workers: the start of a prefill, its completion, and pushed chunks.

use std::time::Duration;

use disagg_core::{Epoch, HandoffId, KvCompat, WorkerId};
use disagg_engine::SampledToken;
use disagg_proto::limits::{CHUNK_BYTES_MAX, LEASE_MS};
use disagg_proto::v1;

use super::request::{PromptLimits, ValidPrompt, prompt};
use super::{InvalidField, address, count_within, handoff_ref, kv_compat, required, within, worker_ref};
use crate::transport::token::LandingToken;

/// The one transport that carries KV between processes so far.
pub(crate) const TCP_TRANSPORT: &str = "tcp";

/// One life of another worker.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Peer {
    /// Stable name.
    pub worker: WorkerId,
    /// Which life.
    pub epoch: Epoch,
}

/// A checked `PrefillStart`.
#[derive(Clone, PartialEq, Debug)]
pub struct StartPrefill {
    /// Names the transfer.
    pub handoff: HandoffId,
    /// Who is meant. Not yet compared with this worker.
    pub prefill_worker: Peer,
    /// Who asks.
    pub decode_worker: Peer,
    /// Not yet compared with this worker's.
    pub kv_compat: KvCompat,
    /// What to compute.
    pub prompt: ValidPrompt,
    /// host:port that takes the blocks.
    pub landing_address: String,
    /// What the decode worker asks of whoever pushes there.
    pub token: LandingToken,
    /// Index of the first block the decode worker lacks.
    pub first_block: u32,
    /// Silence of the decode worker that ends the handoff.
    pub lease: Duration,
}

/// Checks a `PrefillStart`.
pub fn start_prefill(
    start: v1::PrefillStart,
    limits: PromptLimits,
    block_size: u32,
) -> Result<StartPrefill, InvalidField> {
    let prompt = prompt(start.prompt, limits)?;
    let landing = required("landing", start.landing)?;
    if landing.transport != TCP_TRANSPORT {
        let allowed = format!("this worker pushes by {TCP_TRANSPORT:?}");
        return Err(InvalidField::new("landing.transport", format!("{:?}", landing.transport), allowed));
    }
    let blocks = (prompt.request.prompt.len() as u32).div_ceil(block_size);
    let first_block = within("landing.first_block", landing.first_block, 0, blocks)?;
    let lacking = (blocks - first_block) as usize;
    if landing.block_ids.len() != lacking {
        let given = format!("{} blocks", landing.block_ids.len());
        let allowed = format!("the prompt has {lacking} blocks from block {first_block} on");
        return Err(InvalidField::new("landing.block_ids", given, allowed));
    }
    let decode_worker = worker_ref("decode_worker", start.decode_worker)?;
    let handoff = handoff_ref("handoff", start.handoff)?;
    if handoff.epoch != decode_worker.epoch {
        let allowed = format!("the decode worker's epoch is {}", decode_worker.epoch);
        return Err(InvalidField::new("handoff.epoch", handoff.epoch, allowed));
    }
    let lease_ms = within("lease_ms", start.lease_ms, *LEASE_MS.start(), *LEASE_MS.end())?;
    Ok(StartPrefill {
        handoff,
        prefill_worker: worker_ref("prefill_worker", start.prefill_worker)?,
        decode_worker,
        kv_compat: kv_compat("kv_compat", start.kv_compat)?,
        prompt,
        landing_address: address("landing.address", landing.address)?,
        token: landing_token("landing.token", &landing.token)?,
        first_block,
        lease: Duration::from_millis(lease_ms.into()),
    })
}

/// A checked `PrefillCompleted`.
#[derive(Clone, PartialEq, Debug)]
pub struct FirstTokens {
    /// One for each choice.
    pub tokens: Vec<SampledToken>,
    /// Chunks that were handed to the transport.
    pub chunks: u64,
}

/// Checks a `PrefillCompleted` against the request it answers.
pub fn first_tokens(
    completed: &v1::PrefillCompleted,
    choices: u32,
    limits: PromptLimits,
) -> Result<FirstTokens, InvalidField> {
    let choices = choices as usize;
    count_within("completed.first_tokens", completed.first_tokens.len(), choices, choices)?;
    let tokens = completed.first_tokens.iter().map(|token| sampled_token(token, limits));
    Ok(FirstTokens { tokens: tokens.collect::<Result<_, _>>()?, chunks: completed.chunks })
}

fn sampled_token(token: &v1::Token, limits: PromptLimits) -> Result<SampledToken, InvalidField> {
    if token.token_id >= limits.vocab_size {
        let allowed = format!("token ids are below {}", limits.vocab_size);
        return Err(InvalidField::new("completed.first_tokens.token_id", token.token_id, allowed));
    }
    Ok(SampledToken {
        token: token.token_id,
        logprob: token.logprob,
        top_logprobs: token.top_logprobs.iter().map(|top| (top.token_id, top.logprob)).collect(),
    })
}

/// A checked `PushBegin`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PushStart {
    /// Names the transfer.
    pub handoff: HandoffId,
    /// Who pushes.
    pub prefill_worker: Peer,
    /// Not yet compared with this worker's.
    pub kv_compat: KvCompat,
    /// Not yet compared with the landing's.
    pub token: LandingToken,
}

/// Checks a `PushBegin`.
pub fn push_begin(begin: v1::PushBegin) -> Result<PushStart, InvalidField> {
    Ok(PushStart {
        handoff: handoff_ref("begin.handoff", begin.handoff)?,
        prefill_worker: worker_ref("begin.prefill_worker", begin.prefill_worker)?,
        kv_compat: kv_compat("begin.kv_compat", begin.kv_compat)?,
        token: landing_token("begin.token", &begin.token)?,
    })
}

fn landing_token(field: &'static str, bytes: &[u8]) -> Result<LandingToken, InvalidField> {
    let given = || format!("{} bytes", bytes.len());
    let allowed = || format!("a token has {} bytes", LandingToken::BYTES);
    LandingToken::from_wire(bytes).ok_or_else(|| InvalidField::new(field, given(), allowed()))
}

/// Checks that a chunk's payload is as long as its blocks are, and within the limit; gives its bytes.
/// `layer_block_bytes` are those of one block of one layer.
pub fn chunk_bytes(chunk: &v1::KvChunk, layer_block_bytes: usize) -> Result<usize, InvalidField> {
    if chunk.block_count == 0 {
        return Err(InvalidField::new("chunk.block_count", 0, "at least 1"));
    }
    let wanted = (chunk.block_count as usize).saturating_mul(layer_block_bytes);
    if chunk.payload_bytes as usize != wanted {
        let allowed = format!("{} blocks have {wanted} bytes", chunk.block_count);
        return Err(InvalidField::new("chunk.payload_bytes", chunk.payload_bytes, allowed));
    }
    if chunk.block_count > 1 && wanted > CHUNK_BYTES_MAX {
        let allowed = format!("at most {CHUNK_BYTES_MAX} bytes in a chunk of several blocks");
        return Err(InvalidField::new("chunk.payload_bytes", wanted, allowed));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::super::request::tests::{LIMITS, good_prompt};
    use super::*;

    const HASH: Option<v1::Hash128> = Some(v1::Hash128 { high: 3, low: 4 });

    #[allow(clippy::unnecessary_wraps)] // as the fields want it
    fn worker(epoch: u64) -> Option<v1::WorkerRef> {
        Some(v1::WorkerRef { name: "w".into(), epoch })
    }

    /// Three tokens in blocks of two: two blocks.
    fn good_start() -> v1::PrefillStart {
        v1::PrefillStart {
            handoff: Some(v1::HandoffRef { epoch: 9, number: 1 }),
            prefill_worker: worker(8),
            decode_worker: worker(9),
            kv_compat: HASH,
            prompt: Some(good_prompt()),
            landing: Some(v1::Landing {
                address: "d:80".into(),
                transport: "tcp".into(),
                first_block: 0,
                block_ids: vec![5, 6],
                token: vec![7; LandingToken::BYTES].into(),
            }),
            lease_ms: 2000,
        }
    }

    #[test]
    fn every_rule_of_a_prefill_start_is_enforced() {
        type Break = fn(&mut v1::PrefillStart);
        fn landing(start: &mut v1::PrefillStart) -> &mut v1::Landing {
            start.landing.as_mut().unwrap()
        }
        let breaks: &[(&str, Break)] = &[
            ("handoff", |s| s.handoff = None),
            ("handoff.epoch", |s| s.handoff.as_mut().unwrap().epoch = 10),
            ("prefill_worker", |s| s.prefill_worker = None),
            ("prefill_worker", |s| s.prefill_worker = worker(0)),
            ("decode_worker", |s| s.decode_worker = None),
            ("kv_compat", |s| s.kv_compat = None),
            ("prompt", |s| s.prompt = None),
            ("landing", |s| s.landing = None),
            ("landing.address", |s| landing(s).address.clear()),
            ("landing.transport", |s| landing(s).transport = "nixl".into()),
            ("landing.first_block", |s| landing(s).first_block = 3),
            ("landing.block_ids", |s| landing(s).block_ids = vec![5]),
            ("landing.block_ids", |s| landing(s).first_block = 1),
            ("landing.token", |s| landing(s).token = vec![7; 15].into()),
            ("landing.token", |s| landing(s).token.clear()),
            ("lease_ms", |s| s.lease_ms = 99),
            ("lease_ms", |s| s.lease_ms = 60_001),
        ];
        assert!(start_prefill(good_start(), LIMITS, 2).is_ok());
        for (index, (field, break_it)) in breaks.iter().enumerate() {
            let mut broken = good_start();
            break_it(&mut broken);
            let error = start_prefill(broken, LIMITS, 2).unwrap_err();
            assert_eq!(error.field, *field, "rule {index}: {error}");
        }
    }

    #[test]
    fn a_prompt_whose_output_ends_with_the_first_token_needs_no_blocks() {
        let mut start = good_start();
        *start.landing.as_mut().unwrap() =
            v1::Landing { first_block: 2, block_ids: Vec::new(), ..start.landing.clone().unwrap() };
        assert_eq!(start_prefill(start, LIMITS, 2).unwrap().first_block, 2);
    }

    #[test]
    fn there_is_one_first_token_for_each_choice() {
        let token = |token_id| v1::Token { token_id, logprob: None, top_logprobs: Vec::new() };
        let completed = |ids: &[u32]| v1::PrefillCompleted {
            first_tokens: ids.iter().map(|id| token(*id)).collect(),
            chunks: 4,
        };
        assert_eq!(first_tokens(&completed(&[7, 8]), 2, LIMITS).unwrap().tokens.len(), 2);
        assert!(first_tokens(&completed(&[7]), 2, LIMITS).is_err());
        assert!(first_tokens(&completed(&[7, 100]), 2, LIMITS).is_err());
    }

    #[test]
    fn a_push_names_handoff_worker_and_compat() {
        type Break = fn(&mut v1::PushBegin);
        let good = v1::PushBegin {
            handoff: Some(v1::HandoffRef { epoch: 1, number: 1 }),
            prefill_worker: worker(2),
            kv_compat: HASH,
            token: vec![7; LandingToken::BYTES].into(),
        };
        assert!(push_begin(good.clone()).is_ok());
        let breaks: [(&str, Break); 4] = [
            ("begin.token", |b| b.token.clear()),
            ("begin.handoff", |b| b.handoff = None),
            ("begin.prefill_worker", |b| b.prefill_worker = None),
            ("begin.kv_compat", |b| b.kv_compat = None),
        ];
        for (field, break_it) in breaks {
            let mut broken = good.clone();
            break_it(&mut broken);
            assert_eq!(push_begin(broken).unwrap_err().field, field);
        }
    }

    #[test]
    fn a_chunk_is_as_long_as_it_says() {
        let chunk = |block_count, bytes: usize| v1::KvChunk {
            layer: 0,
            first_block: 0,
            block_count,
            payload_bytes: bytes as u32,
            checksum: None,
        };
        assert_eq!(chunk_bytes(&chunk(2, 32), 16), Ok(32));
        assert_eq!(chunk_bytes(&chunk(0, 0), 16).unwrap_err().field, "chunk.block_count");
        assert_eq!(chunk_bytes(&chunk(2, 31), 16).unwrap_err().field, "chunk.payload_bytes");
        // A block that alone is larger than the limit may come alone.
        let large = CHUNK_BYTES_MAX + 1;
        assert_eq!(chunk_bytes(&chunk(1, large), large), Ok(large));
        assert!(chunk_bytes(&chunk(2, 2 * large), large).is_err());
    }
}
