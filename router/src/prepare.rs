//! From a valid request and a model to what workers are asked: token ids, and every default filled in.

use std::time::{Duration, Instant};

use disagg_proto::v1;

use crate::budget::Held;
use crate::model::{Model, Render};
use crate::openai::{ApiError, Endpoint, Input, Params, Request};
use crate::text::{Decode, TextRules};
use crate::wire;

/// What OpenAI's completions generate when a request does not say.
const COMPLETION_TOKENS_DEFAULT: u32 = 16;
/// OpenAI's default, for models that advise none.
const TEMPERATURE_DEFAULT: f32 = 1.0;

/// Memory that a token id of a prompt takes: here, in the copy that is sent to a worker, and in the message made of that.
const BYTES_PER_TOKEN: usize = 12;

/// Texts up to this size are tokenized even if they cannot fit, so that the client is told how long they are.
const EXACT_BYTES_MAX: usize = 16 * 1024;
/// How long a text waits for the memory that tokenizing takes, if others have it. They tokenize too, and will be done soon.
const MEMORY_PATIENCE: Duration = Duration::from_secs(10);

/// A request for one generation of a model.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// As it goes to the worker, but for the request id.
    pub prompt: v1::Prompt,
    /// How its output becomes text.
    pub text: TextRules,
    /// Text that each choice begins with: the prompt's, if it is to be echoed.
    pub echo: Option<String>,
    /// Time that the chat template took, if there was one to render.
    pub rendering: Option<Duration>,
    /// Time that tokenizing took, if there was text.
    pub tokenizing: Option<Duration>,
    /// The memory of all this.
    _held: Held,
}

/// The token ids of an input, and what making them took.
#[derive(Default)]
struct Tokens {
    ids: Vec<u32>,
    rendering: Option<Duration>,
    tokenizing: Option<Duration>,
}

/// Turns one input of `request` into token ids and checks it against the model. `max_model_len` is what every worker of the
/// generation can take; `seed` is used if the request has none. `held`, empty, becomes the memory of the work and then of
/// the result. Takes milliseconds for long prompts.
pub(crate) fn prepare(
    request: &Request,
    input: usize,
    model: &Model,
    max_model_len: u32,
    seed: u64,
    mut held: Held,
) -> Result<Prepared, ApiError> {
    let params = &request.params;
    let Tokens { ids: token_ids, rendering, tokenizing } =
        tokenize(request, input, model, max_model_len, &mut held)?;
    let max_tokens = max_tokens(request, token_ids.len(), max_model_len)?;
    if params.min_tokens > max_tokens {
        let rule = format!("at most the limit on tokens, which is {max_tokens}");
        return Err(ApiError::bad_value("min_tokens", &params.min_tokens.to_string(), &rule));
    }
    if let Some((id, _)) = params.logit_bias.iter().find(|(id, _)| *id >= model.vocab_size) {
        let rule = format!("of token ids below {}", model.vocab_size);
        return Err(ApiError::bad_value("logit_bias", &id.to_string(), &rule));
    }
    let eos_token_ids = model.eos_token_ids.clone();
    let mut end_tokens = params.stop_token_ids.clone();
    if !params.ignore_eos {
        end_tokens.extend(&eos_token_ids);
    }
    let text = TextRules {
        skip_special: params.skip_special,
        stops: params.stops.clone(),
        include_stop: params.include_stop,
        end_tokens,
        min_tokens: params.min_tokens,
    };
    let echo = request.echo.then(|| match &request.inputs[input] {
        Input::Text(text) => text.clone(),
        Input::Tokens(_) | Input::Conversation(_) => model.tokenizer.decode(&token_ids, params.skip_special),
    });
    held.resize(token_ids.len() * BYTES_PER_TOKEN + echo.as_ref().map_or(0, String::len))?;
    let prompt = v1::Prompt {
        request_id: String::new(),
        token_ids,
        model_fingerprint: Some(wire::hash128(model.fingerprint.0)),
        cache_salt: params.cache_salt.clone(),
        sampling: Some(sampling(params, model, seed)),
        stop: Some(v1::StopRules {
            max_tokens,
            min_tokens: params.min_tokens,
            eos_token_ids,
            stop_token_ids: params.stop_token_ids.clone(),
            ignore_eos: params.ignore_eos,
        }),
        choices: request.n,
    };
    Ok(Prepared { prompt, text, echo, rendering, tokenizing, _held: held })
}

fn tokenize(
    request: &Request,
    input: usize,
    model: &Model,
    max_model_len: u32,
    held: &mut Held,
) -> Result<Tokens, ApiError> {
    let failed =
        |error: tokenizers::Error| ApiError::internal(format!("Tokenizing the prompt failed: {error}"));
    let param = request.input_name(input);
    let too_long =
        |tokens: usize, least: &str| too_long(request.endpoint, &param, max_model_len, tokens, least);
    let encode = |text: &str, held: &mut Held| {
        // What cannot fit is refused before the work of tokenizing it, unless that is little: then the number is exact.
        let least = if text.len() > EXACT_BYTES_MAX { model.tokenizer.tokens_min(text) } else { 0 };
        if least >= max_model_len as usize {
            return Err(too_long(least, "at least "));
        }
        held.grow_within(tokenizing_bytes(text), MEMORY_PATIENCE)?;
        let begun = Instant::now();
        let ids = model.tokenizer.encode(text, request.add_special_tokens).map_err(failed)?;
        Ok(Tokens { ids, tokenizing: Some(begun.elapsed()), rendering: None })
    };
    let tokens = match &request.inputs[input] {
        Input::Tokens(ids) => {
            if let Some(id) = ids.iter().find(|id| **id >= model.vocab_size) {
                let rule = format!("of token ids below {}", model.vocab_size);
                return Err(ApiError::bad_value(param, &id.to_string(), &rule));
            }
            if ids.len() >= max_model_len as usize {
                return Err(too_long(ids.len(), ""));
            }
            held.resize(ids.len() * BYTES_PER_TOKEN)?;
            Tokens { ids: ids.clone(), ..Tokens::default() }
        }
        Input::Text(text) => encode(text, held)?,
        Input::Conversation(conversation) => {
            let template =
                model.template.as_ref().map_err(|error| ApiError::broken_template(&model.name, error))?;
            let template = template.as_ref().ok_or_else(|| ApiError::no_template(&model.name))?;
            // This copy, and the one that the template makes of it.
            held.grow(2 * request.inputs[input].bytes())?;
            let begun = Instant::now();
            if let Some(name) = conversation.kwargs.keys().find(|name| template.has_special(name)) {
                let rule = "absent: special tokens come from the model";
                return Err(ApiError::bad_value(format!("chat_template_kwargs.{name}"), name, rule));
            }
            let render = Render {
                messages: &conversation.messages,
                add_generation_prompt: conversation.add_generation_prompt,
                kwargs: &conversation.kwargs,
            };
            let text = template.render(&render).map_err(|error| ApiError::template(&model.name, error))?;
            let rendering = Some(begun.elapsed());
            Tokens { rendering, ..encode(&text, held)? }
        }
    };
    let ids = &tokens.ids;
    if ids.is_empty() {
        return Err(ApiError::bad_value(param, "no tokens", "at least one token"));
    }
    if let Some(id) = ids.iter().find(|id| **id >= model.vocab_size) {
        // The tokenizer knows more tokens than the embedding has rows; such a model serves all other texts.
        let token = format!("token {:?} (id {id})", model.tokenizer.spelling(*id).unwrap_or_default());
        let rule =
            format!("text of tokens that the model has, which are those with ids below {}", model.vocab_size);
        return Err(ApiError::bad_value(param, &token, &rule));
    }
    if ids.len() >= max_model_len as usize {
        return Err(too_long(ids.len(), ""));
    }
    Ok(tokens)
}

/// What turning `text` into token ids takes at its peak, at most: the library keeps offsets for each byte and an object for
/// each token, of which there may be one a byte, and another for each piece that it splits the text into, which are words,
/// single signs and digits. (Measured with tokenizers 0.23, Qwen's pattern and with NFC or without: 130 to 410 bytes a
/// byte.)
fn tokenizing_bytes(text: &str) -> usize {
    const BYTES_PER_BYTE: usize = 224;
    const BYTES_PER_PIECE: usize = 200;
    let (mut pieces, mut in_word) = (1, false);
    for byte in text.bytes() {
        let letter = byte.is_ascii_alphabetic();
        // The rest of a character is no piece of its own.
        pieces += usize::from(if letter { !in_word } else { !matches!(byte, b' ' | 0x80..=0xbf) });
        in_word = letter;
    }
    text.len() * BYTES_PER_BYTE + pieces * BYTES_PER_PIECE
}

/// OpenAI's wording for a prompt that leaves no room for a token.
fn too_long(endpoint: Endpoint, param: &str, max_model_len: u32, tokens: usize, least: &str) -> ApiError {
    let what = match endpoint {
        Endpoint::Completions => "prompt",
        Endpoint::Chat => "messages",
    };
    ApiError::context_length(
        param,
        format!(
            "This model's maximum context length is {max_model_len} tokens. However, your {what} resulted in \
             {least}{tokens} tokens. Please reduce the length of the {what}."
        ),
    )
}

/// The limit on tokens: what was asked for if it fits, else what is left.
fn max_tokens(request: &Request, prompt_tokens: usize, max_model_len: u32) -> Result<u32, ApiError> {
    let room = max_model_len - prompt_tokens as u32;
    let (param, what, default) = match request.endpoint {
        Endpoint::Completions => ("max_tokens", "prompt", COMPLETION_TOKENS_DEFAULT),
        Endpoint::Chat => ("max_completion_tokens", "messages", u32::MAX),
    };
    match request.params.max_tokens {
        None => Ok(room.min(default)),
        Some(asked) if asked <= room => Ok(asked),
        Some(asked) => Err(ApiError::context_length(
            param,
            format!(
                "This model's maximum context length is {max_model_len} tokens. However, you requested {} tokens \
                 ({prompt_tokens} in the {what}, {asked} in the completion). Please reduce the length of the {what} \
                 or completion.",
                prompt_tokens as u64 + u64::from(asked)
            ),
        )),
    }
}

fn sampling(params: &Params, model: &Model, seed: u64) -> v1::Sampling {
    let defaults = &model.sampling;
    v1::Sampling {
        temperature: params.temperature.or(defaults.temperature).unwrap_or(TEMPERATURE_DEFAULT),
        top_p: params.top_p.or(defaults.top_p).unwrap_or(1.0),
        top_k: params.top_k.or(defaults.top_k).unwrap_or(0),
        min_p: params.min_p.or(defaults.min_p).unwrap_or(0.0),
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        repetition_penalty: params.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
        logit_bias: params
            .logit_bias
            .iter()
            .map(|(id, bias)| v1::LogitBias { token_id: *id, bias: *bias })
            .collect(),
        seed: params.seed.unwrap_or(seed),
        top_logprobs: params.top_logprobs,
    }
}
