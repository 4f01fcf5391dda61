//! How many entries each repeated field of the contract may have. Enforced on the bytes of a message, before it is
//! decoded ([`crate::bounds`]); receivers may ask for less.

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

/// `RemotePrefill.candidates`.
pub const CANDIDATES_MAX: u32 = 8;

/// `Tokens.tokens`.
pub const TOKENS_PER_EVENT_MAX: u32 = 4096;

/// `KvEventBatch.events`.
pub const KV_EVENTS_PER_BATCH_MAX: u32 = 4096;

/// `LoadReport.transfers`.
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
