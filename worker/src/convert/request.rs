//! Requests of the router: prompt, sampling, stop rules, and the proposal of a remote prefill.

use disagg_core::{FallbackPolicy, ModelFingerprint, PlacementReason};
use disagg_engine::{Request, SamplingParams, StopRules};
use disagg_proto::limits::{
    BIAS_MAX, CACHE_SALT_BYTES_MAX, CANDIDATES_MAX, CHOICES_MAX, LOGIT_BIAS_MAX, PENALTY_MAX,
    REQUEST_ID_BYTES_MAX, STOP_TOKENS_MAX, TEMPERATURE_MAX, TOP_LOGPROBS_MAX,
};
use disagg_proto::v1;

use super::{
    InvalidField, Peer, address, bytes_within, count_within, fingerprint, required, within, worker_ref,
};

/// What a prompt may be on this worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PromptLimits {
    /// Prompt and output together, in tokens.
    pub max_model_len: u32,
    /// Token ids are below this.
    pub vocab_size: u32,
}

/// A checked prompt.
#[derive(Clone, PartialEq, Debug)]
pub struct ValidPrompt {
    /// Chosen by the router.
    pub request_id: String,
    /// The model it was tokenized for. Not yet compared with this worker's.
    pub fingerprint: ModelFingerprint,
    /// What the engine takes.
    pub request: Request,
}

/// A checked `GenerateRequest`.
#[derive(Clone, PartialEq, Debug)]
pub struct Generate {
    /// What to compute.
    pub prompt: ValidPrompt,
    /// Where else to prefill it.
    pub remote: Option<Remote>,
    /// Why the router placed it so.
    pub reason: PlacementReason,
}

/// The proposal of a remote prefill.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remote {
    /// Best first; 1 to 8.
    pub candidates: Vec<RemoteCandidate>,
    /// With no more net-new tokens than this the prefill is local.
    pub max_local_prefill_length: u32,
    /// What to do when no candidate delivers.
    pub fallback: FallbackPolicy,
}

/// A prefill worker to ask.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteCandidate {
    /// Who the router thinks it is.
    pub peer: Peer,
    /// host:port of its gRPC server.
    pub address: String,
}

/// Checks a `GenerateRequest`.
pub fn generate(request: v1::GenerateRequest, limits: PromptLimits) -> Result<Generate, InvalidField> {
    let reason = request.placement_reason.parse().map_err(|_| {
        let names = PlacementReason::ALL.map(PlacementReason::as_str).join(", ");
        InvalidField::new(
            "placement_reason",
            format!("{:?}", request.placement_reason),
            format!("one of {names}"),
        )
    })?;
    Ok(Generate {
        prompt: prompt(request.prompt, limits)?,
        remote: request.remote.map(remote).transpose()?,
        reason,
    })
}

fn remote(remote: v1::RemotePrefill) -> Result<Remote, InvalidField> {
    count_within("remote.candidates", remote.candidates.len(), 1, CANDIDATES_MAX as usize)?;
    let candidates = remote.candidates.into_iter().map(|candidate| {
        Ok(RemoteCandidate {
            peer: worker_ref("remote.candidates.worker", candidate.worker)?,
            address: address("remote.candidates.address", candidate.address)?,
        })
    });
    Ok(Remote {
        candidates: candidates.collect::<Result<_, _>>()?,
        max_local_prefill_length: remote.max_local_prefill_length,
        fallback: if remote.fail_without_remote { FallbackPolicy::Fail } else { FallbackPolicy::Local },
    })
}

/// Checks a `Prompt`.
pub fn prompt(prompt: Option<v1::Prompt>, limits: PromptLimits) -> Result<ValidPrompt, InvalidField> {
    let prompt = required("prompt", prompt)?;
    bytes_within("prompt.request_id", &prompt.request_id, 1, REQUEST_ID_BYTES_MAX)?;
    let prompt_max = limits.max_model_len - 1;
    count_within("prompt.token_ids", prompt.token_ids.len(), 1, prompt_max as usize)?;
    if let Some(token) = prompt.token_ids.iter().find(|token| **token >= limits.vocab_size) {
        let allowed = format!("token ids are below {}", limits.vocab_size);
        return Err(InvalidField::new("prompt.token_ids", token, allowed));
    }
    let fingerprint = fingerprint("prompt.model_fingerprint", prompt.model_fingerprint)?;
    bytes_within("prompt.cache_salt", &prompt.cache_salt, 0, CACHE_SALT_BYTES_MAX)?;
    let output_max = limits.max_model_len - prompt.token_ids.len() as u32;
    let request = Request {
        sampling: sampling(required("prompt.sampling", prompt.sampling)?, limits)?,
        stop: stop_rules(required("prompt.stop", prompt.stop)?, output_max, limits)?,
        choices: within("prompt.choices", prompt.choices, 1, CHOICES_MAX)?,
        prompt: prompt.token_ids,
        cache_salt: prompt.cache_salt,
    };
    Ok(ValidPrompt { request_id: prompt.request_id, fingerprint, request })
}

fn sampling(sampling: v1::Sampling, limits: PromptLimits) -> Result<SamplingParams, InvalidField> {
    const SMALLEST: f32 = f32::MIN_POSITIVE;
    count_within("prompt.sampling.logit_bias", sampling.logit_bias.len(), 0, LOGIT_BIAS_MAX as usize)?;
    let logit_bias = sampling.logit_bias.into_iter().map(|entry| {
        if entry.token_id >= limits.vocab_size {
            let allowed = format!("token ids are below {}", limits.vocab_size);
            return Err(InvalidField::new("prompt.sampling.logit_bias.token_id", entry.token_id, allowed));
        }
        Ok((entry.token_id, within("prompt.sampling.logit_bias.bias", entry.bias, -BIAS_MAX, BIAS_MAX)?))
    });
    Ok(SamplingParams {
        temperature: within("prompt.sampling.temperature", sampling.temperature, 0.0, TEMPERATURE_MAX)?,
        top_p: within("prompt.sampling.top_p", sampling.top_p, SMALLEST, 1.0)?,
        top_k: sampling.top_k,
        min_p: within("prompt.sampling.min_p", sampling.min_p, 0.0, 1.0)?,
        presence_penalty: within(
            "prompt.sampling.presence_penalty",
            sampling.presence_penalty,
            -PENALTY_MAX,
            PENALTY_MAX,
        )?,
        frequency_penalty: within(
            "prompt.sampling.frequency_penalty",
            sampling.frequency_penalty,
            -PENALTY_MAX,
            PENALTY_MAX,
        )?,
        repetition_penalty: within(
            "prompt.sampling.repetition_penalty",
            sampling.repetition_penalty,
            SMALLEST,
            f32::MAX,
        )?,
        logit_bias: logit_bias.collect::<Result<_, _>>()?,
        seed: sampling.seed,
        top_logprobs: match sampling.top_logprobs {
            None => None,
            Some(count) => Some(within("prompt.sampling.top_logprobs", count, 0, TOP_LOGPROBS_MAX)?),
        },
    })
}

fn stop_rules(stop: v1::StopRules, output_max: u32, limits: PromptLimits) -> Result<StopRules, InvalidField> {
    count_within("prompt.stop.eos_token_ids", stop.eos_token_ids.len(), 0, STOP_TOKENS_MAX as usize)?;
    count_within("prompt.stop.stop_token_ids", stop.stop_token_ids.len(), 0, STOP_TOKENS_MAX as usize)?;
    // Models name tokens outside their vocabulary now and then; what can never be drawn ends nothing.
    let drawable = |tokens: Vec<u32>| tokens.into_iter().filter(|token| *token < limits.vocab_size).collect();
    Ok(StopRules {
        max_tokens: within("prompt.stop.max_tokens", stop.max_tokens, 1, output_max)?,
        min_tokens: within("prompt.stop.min_tokens", stop.min_tokens, 0, stop.max_tokens)?,
        eos_token_ids: drawable(stop.eos_token_ids),
        stop_token_ids: drawable(stop.stop_token_ids),
        ignore_eos: stop.ignore_eos,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const LIMITS: PromptLimits = PromptLimits { max_model_len: 64, vocab_size: 100 };

    pub(crate) fn good_prompt() -> v1::Prompt {
        v1::Prompt {
            request_id: "r".into(),
            token_ids: vec![1, 2, 3],
            model_fingerprint: Some(v1::Hash128 { high: 1, low: 2 }),
            cache_salt: String::new(),
            sampling: Some(v1::Sampling { top_p: 1.0, repetition_penalty: 1.0, ..Default::default() }),
            stop: Some(v1::StopRules { max_tokens: 61, ..Default::default() }),
            choices: 1,
        }
    }

    fn good_generate() -> v1::GenerateRequest {
        v1::GenerateRequest {
            prompt: Some(good_prompt()),
            remote: Some(v1::RemotePrefill {
                candidates: vec![v1::PrefillCandidate {
                    worker: Some(v1::WorkerRef { name: "p".into(), epoch: 1 }),
                    address: "p:80".into(),
                }],
                max_local_prefill_length: 512,
                fail_without_remote: false,
            }),
            placement_reason: "above-threshold".into(),
        }
    }

    #[test]
    fn a_good_request_passes() {
        let generate = generate(good_generate(), LIMITS).unwrap();
        assert_eq!(generate.prompt.fingerprint, ModelFingerprint((1 << 64) | 2));
        assert_eq!(generate.prompt.request.stop.max_tokens, 61);
        assert_eq!(generate.remote.unwrap().fallback, FallbackPolicy::Local);
    }

    /// Each entry breaks one rule; the error names its field.
    #[test]
    fn every_rule_of_a_prompt_is_enforced() {
        type Break = fn(&mut v1::Prompt);
        fn sampling(prompt: &mut v1::Prompt) -> &mut v1::Sampling {
            prompt.sampling.as_mut().unwrap()
        }
        fn stop(prompt: &mut v1::Prompt) -> &mut v1::StopRules {
            prompt.stop.as_mut().unwrap()
        }
        let breaks: &[(&str, Break)] = &[
            ("prompt.request_id", |p| p.request_id.clear()),
            ("prompt.request_id", |p| p.request_id = "r".repeat(129)),
            ("prompt.token_ids", |p| p.token_ids.clear()),
            ("prompt.token_ids", |p| p.token_ids = vec![1; 64]),
            ("prompt.token_ids", |p| p.token_ids[1] = 100),
            ("prompt.model_fingerprint", |p| p.model_fingerprint = None),
            ("prompt.cache_salt", |p| p.cache_salt = "s".repeat(129)),
            ("prompt.sampling", |p| p.sampling = None),
            ("prompt.stop", |p| p.stop = None),
            ("prompt.choices", |p| p.choices = 0),
            ("prompt.choices", |p| p.choices = 129),
            ("prompt.sampling.temperature", |p| sampling(p).temperature = 2.1),
            ("prompt.sampling.temperature", |p| sampling(p).temperature = -0.1),
            ("prompt.sampling.temperature", |p| sampling(p).temperature = f32::NAN),
            ("prompt.sampling.top_p", |p| sampling(p).top_p = 0.0),
            ("prompt.sampling.top_p", |p| sampling(p).top_p = 1.1),
            ("prompt.sampling.min_p", |p| sampling(p).min_p = 1.1),
            ("prompt.sampling.presence_penalty", |p| sampling(p).presence_penalty = 2.1),
            ("prompt.sampling.frequency_penalty", |p| sampling(p).frequency_penalty = -2.1),
            ("prompt.sampling.repetition_penalty", |p| sampling(p).repetition_penalty = 0.0),
            ("prompt.sampling.repetition_penalty", |p| sampling(p).repetition_penalty = f32::INFINITY),
            ("prompt.sampling.logit_bias", |p| {
                sampling(p).logit_bias = vec![v1::LogitBias { token_id: 1, bias: 0.0 }; 1025];
            }),
            ("prompt.sampling.logit_bias.bias", |p| {
                sampling(p).logit_bias = vec![v1::LogitBias { token_id: 1, bias: 101.0 }];
            }),
            ("prompt.sampling.logit_bias.token_id", |p| {
                sampling(p).logit_bias = vec![v1::LogitBias { token_id: 100, bias: 0.0 }];
            }),
            ("prompt.sampling.top_logprobs", |p| sampling(p).top_logprobs = Some(21)),
            ("prompt.stop.max_tokens", |p| stop(p).max_tokens = 0),
            ("prompt.stop.max_tokens", |p| stop(p).max_tokens = 62),
            ("prompt.stop.min_tokens", |p| stop(p).min_tokens = 62),
            ("prompt.stop.eos_token_ids", |p| stop(p).eos_token_ids = vec![1; 65]),
            ("prompt.stop.stop_token_ids", |p| stop(p).stop_token_ids = vec![1; 65]),
        ];
        assert!(prompt(Some(good_prompt()), LIMITS).is_ok());
        assert_eq!(prompt(None, LIMITS).unwrap_err().field, "prompt");
        for (index, (field, break_it)) in breaks.iter().enumerate() {
            let mut broken = good_prompt();
            break_it(&mut broken);
            let error = prompt(Some(broken), LIMITS).unwrap_err();
            assert_eq!(error.field, *field, "rule {index}: {error}");
        }
    }

    #[test]
    fn every_rule_of_a_generate_request_is_enforced() {
        type Break = fn(&mut v1::GenerateRequest);
        fn remote(request: &mut v1::GenerateRequest) -> &mut v1::RemotePrefill {
            request.remote.as_mut().unwrap()
        }
        let breaks: &[(&str, Break)] = &[
            ("prompt", |r| r.prompt = None),
            ("placement_reason", |r| r.placement_reason = "because".into()),
            ("remote.candidates", |r| remote(r).candidates.clear()),
            ("remote.candidates", |r| {
                let one = remote(r).candidates[0].clone();
                remote(r).candidates = vec![one; 9];
            }),
            ("remote.candidates.worker", |r| remote(r).candidates[0].worker = None),
            ("remote.candidates.address", |r| remote(r).candidates[0].address = "nowhere".into()),
        ];
        for (field, break_it) in breaks {
            let mut broken = good_generate();
            break_it(&mut broken);
            assert_eq!(generate(broken, LIMITS).unwrap_err().field, *field);
        }
    }

    #[test]
    fn stop_tokens_that_cannot_be_drawn_are_left_out() {
        let mut good = good_prompt();
        good.stop.as_mut().unwrap().eos_token_ids = vec![5, 100];
        assert_eq!(prompt(Some(good), LIMITS).unwrap().request.stop.eos_token_ids, [5]);
    }
}
