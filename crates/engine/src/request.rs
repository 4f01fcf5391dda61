//! What is asked of the engine: a prompt, how to draw tokens, and when to stop.

/// How the next token is drawn. Validated where a request enters the worker; the engine trusts it.
#[derive(Clone, PartialEq, Debug)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep tokens at least this likely relative to the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Taken off the logit of every token that the output already has.
    pub presence_penalty: f32,
    /// Taken off for every time the output already has it.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Added to logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the request's random stream.
    pub seed: u64,
    /// `None`: no logprobs. `Some(k)`: the drawn token's, and those of the `k` most likely.
    pub top_logprobs: Option<u32>,
}

impl SamplingParams {
    /// Greedy, without penalties or logprobs.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
            top_logprobs: None,
        }
    }
}

/// When a choice ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StopRules {
    /// At least 1.
    pub max_tokens: u32,
    /// End-of-sequence and stop tokens are not drawn before this many tokens.
    pub min_tokens: u32,
    /// Tokens that end the text by the model's own rules; ignored with `ignore_eos`.
    pub eos_token_ids: Vec<u32>,
    /// Tokens that the request ends at.
    pub stop_token_ids: Vec<u32>,
    /// Go on past end-of-sequence tokens.
    pub ignore_eos: bool,
}

/// Why a choice ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FinishReason {
    /// It drew this end-of-sequence or stop token.
    Stop(u32),
    /// `max_tokens`, or the model's maximum length.
    Length,
    /// Someone asked for it.
    Cancelled,
    /// The worker could not go on.
    Error,
}

/// One request as the engine takes it.
#[derive(Clone, PartialEq, Debug)]
pub struct Request {
    /// `1..=max_model_len - 1` token ids, each below the vocabulary size.
    pub prompt: Vec<u32>,
    /// Separates prefix caches.
    pub cache_salt: String,
    /// How to draw.
    pub sampling: SamplingParams,
    /// When to stop.
    pub stop: StopRules,
    /// Number of choices, at least 1.
    pub choices: u32,
}
