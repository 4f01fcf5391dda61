//! Every bound of the wire contract, once. Whoever checks a message, or tells a user what is allowed, takes it from
//! here; the comments of the `.proto` files state the same numbers, and a test compares them.
//!
//! How many entries a repeated field may have ([`REPEATED`]) is enforced on the bytes of a message, before it is decoded
//! ([`crate::bounds`]). All other bounds are enforced by the receiver on the decoded message. A receiver may ask for
//! less than what is allowed here.

use std::ops::RangeInclusive;

/// Bytes of a gRPC message, in either direction: a part of a model card and its framing, or a prompt of 10^6 tokens.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Bytes of the payload of one KV chunk of several blocks, or of one part of a model card.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Bytes of a message on a push connection, without a chunk's payload. The longest has the name of a worker.
pub const PUSH_MESSAGE_BYTES_MAX: u32 = 4096;

/// Bytes of `WorkerRef.name`: the length of a Kubernetes pod name.
pub const WORKER_NAME_BYTES_MAX: usize = 253;

/// Bytes of a `host:port`: a DNS name, a colon and a port.
pub const ADDRESS_BYTES_MAX: usize = 253 + 1 + 5;

/// Bytes of `Prompt.request_id`.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

/// Bytes of `Prompt.cache_salt`.
pub const CACHE_SALT_BYTES_MAX: usize = 128;

/// Bytes of `Landing.token`: all tokens are this long.
pub const LANDING_TOKEN_BYTES: usize = 16;

/// Bytes of `ModelCardHeader.served_model_name`.
pub const SERVED_MODEL_NAME_BYTES_MAX: usize = 255;

/// Bytes of `ModelCardFile.name`.
pub const CARD_FILE_NAME_BYTES_MAX: usize = 255;

/// Bytes of all files of a model card together.
pub const CARD_BYTES_MAX: u64 = 64 << 20;

/// `Sampling.temperature`, from 0.
pub const TEMPERATURE_MAX: f32 = 2.0;

/// `Sampling.presence_penalty` and `frequency_penalty`, to either side of 0.
pub const PENALTY_MAX: f32 = 2.0;

/// `LogitBias.bias`, to either side of 0.
pub const BIAS_MAX: f32 = 100.0;

/// `PrefillStart.lease_ms`.
pub const LEASE_MS: RangeInclusive<u32> = 100..=60_000;

/// `Prompt.token_ids`: the longest prompts there are. A worker allows what its model does.
pub const PROMPT_TOKENS_MAX: u32 = 1 << 21;

/// `Prompt.choices`, and so what goes with each of them.
pub const CHOICES_MAX: u32 = 128;

/// `Sampling.logit_bias`.
pub const LOGIT_BIAS_MAX: u32 = 1024;

/// `StopRules.eos_token_ids` and `stop_token_ids`, each.
pub const STOP_TOKENS_MAX: u32 = 64;

/// `Token.top_logprobs`, and `Sampling.top_logprobs`, which asks for them.
pub const TOP_LOGPROBS_MAX: u32 = 20;

/// `RemotePrefill.candidates`; at least one.
pub const CANDIDATES_MAX: u32 = 8;

/// `Tokens.tokens`.
pub const TOKENS_PER_EVENT_MAX: u32 = 4096;

/// `KvEventBatch.events`.
pub const KV_EVENTS_PER_BATCH_MAX: u32 = 4096;

/// `LoadReport.transfers`: the peers whose transfer speed a worker remembers and reports.
pub const TRANSFERS_MAX: u32 = 256;

/// `HelloResponse.transports`.
pub const TRANSPORTS_MAX: u32 = 16;

/// `ModelCardHeader.files`.
pub const CARD_FILES_MAX: u32 = 32;

/// Of every repeated field: message, field, and the most entries. The build fails if one is missing here.
pub const REPEATED: [(&str, &str, u32); 13] = [
    ("Prompt", "token_ids", PROMPT_TOKENS_MAX),
    ("Sampling", "logit_bias", LOGIT_BIAS_MAX),
    ("StopRules", "eos_token_ids", STOP_TOKENS_MAX),
    ("StopRules", "stop_token_ids", STOP_TOKENS_MAX),
    ("Token", "top_logprobs", TOP_LOGPROBS_MAX),
    ("Tokens", "tokens", TOKENS_PER_EVENT_MAX),
    ("RemotePrefill", "candidates", CANDIDATES_MAX),
    ("Landing", "block_ids", PROMPT_TOKENS_MAX),
    ("PrefillCompleted", "first_tokens", CHOICES_MAX),
    ("KvEventBatch", "events", KV_EVENTS_PER_BATCH_MAX),
    ("LoadReport", "transfers", TRANSFERS_MAX),
    ("HelloResponse", "transports", TRANSPORTS_MAX),
    ("ModelCardHeader", "files", CARD_FILES_MAX),
];

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
