//! Drawing a token: a pure function of (logits, parameters, seed, choice, position, history).
//!
//! Order of what is done to the logits, which is vLLM's: forbidden tokens and logit bias, repetition penalty (prompt
//! and output, as in CTRL, Keskar et al. 2019), frequency and presence penalty (output only, as OpenAI defines them);
//! then greedy takes the largest; otherwise temperature, min-p, top-k, top-p over what top-k left, and one draw by
//! inverse distribution function over the kept tokens in order of id. Ties go to the lowest id everywhere, so equal
//! logits give equal tokens.
//!
//! Log probabilities are those of the model: log-softmax of the logits as they came, before anything above.

#[cfg(test)]
mod golden;
mod philox;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use crate::backend::{SampleRow, SampledToken};

pub use philox::{philox4x32, uniform};

/// No token can be drawn from these logits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SampleError {
    /// The model computed something that is not a number.
    #[error("logit {token} is NaN or positive infinity")]
    NotANumber {
        /// The first such token.
        token: u32,
    },
    /// Every token is at minus infinity, by the model, the bias or the row's forbidden tokens.
    #[error("no token may be drawn")]
    NothingAllowed,
}

/// Draws the token of one choice of `row`. `logits` has one entry per token of the vocabulary; ids outside of it in
/// bias, history and forbidden tokens are ignored.
pub fn sample(logits: &[f32], row: &SampleRow<'_>, choice: u32) -> Result<SampledToken, SampleError> {
    if let Some(token) = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
        return Err(SampleError::NotANumber { token: token as u32 });
    }
    let params = row.params;
    let adjusted = adjust(logits, row);
    let best = argmax(&adjusted)?;
    let token = if params.temperature > 0.0 {
        let kept = keep(&adjusted, adjusted[best as usize], row);
        draw(&kept, uniform(params.seed, choice, row.position))
    } else {
        best
    };
    Ok(match params.top_logprobs {
        None => SampledToken { token, logprob: None, top_logprobs: Vec::new() },
        Some(count) => with_logprobs(logits, token, count as usize),
    })
}

/// Bias, forbidden tokens and penalties.
fn adjust(logits: &[f32], row: &SampleRow<'_>) -> Vec<f32> {
    let mut adjusted = logits.to_vec();
    let params = row.params;
    for &(token, bias) in &params.logit_bias {
        if let Some(logit) = adjusted.get_mut(token as usize) {
            *logit += bias;
        }
    }
    for &token in row.forbidden {
        if let Some(logit) = adjusted.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    if has_penalties(params) {
        // Occurrences in the output; 0 for a token that only the prompt has.
        let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
        for (index, token) in row.history.iter().enumerate() {
            *seen.entry(*token).or_default() += u32::from(index >= row.prompt_len);
        }
        for (token, count) in seen {
            let Some(logit) = adjusted.get_mut(token as usize) else { continue };
            if *logit == f32::NEG_INFINITY {
                continue;
            }
            if *logit > 0.0 {
                *logit /= params.repetition_penalty;
            } else {
                *logit *= params.repetition_penalty;
            }
            if count > 0 {
                *logit -= params.frequency_penalty * count as f32 + params.presence_penalty;
            }
            // An extreme penalty neither forbids a token nor makes the distribution undefined.
            *logit = logit.clamp(f32::MIN, f32::MAX);
        }
    }
    adjusted
}

/// Whether the row's history has a say in what is drawn.
pub fn has_penalties(params: &crate::request::SamplingParams) -> bool {
    #[expect(clippy::float_cmp, reason = "exactly these values mean off")]
    let off =
        params.presence_penalty == 0.0 && params.frequency_penalty == 0.0 && params.repetition_penalty == 1.0;
    !off
}

/// The token with the largest logit, the first of equals.
fn argmax(logits: &[f32]) -> Result<u32, SampleError> {
    let mut best = None;
    let mut most = f32::NEG_INFINITY;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > most {
            most = logit;
            best = Some(token as u32);
        }
    }
    best.ok_or(SampleError::NothingAllowed)
}

/// A token with its probability relative to the most likely one's.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    weight: f64,
}

/// The more likely is greater; of equals the one with the lower id.
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.weight.total_cmp(&other.weight).then(other.token.cmp(&self.token))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// The tokens that temperature, min-p, top-k and top-p leave, in order of id: at least one.
fn keep(logits: &[f32], most: f32, row: &SampleRow<'_>) -> Vec<Candidate> {
    let params = row.params;
    let temperature = f64::from(params.temperature);
    let weigh = |(token, logit): (usize, &f32)| Candidate {
        token: token as u32,
        weight: ((f64::from(*logit) - f64::from(most)) / temperature).exp(),
    };
    // The most likely token has weight 1, so min-p compares with it as it is.
    let least = f64::from(params.min_p);
    let candidates = logits.iter().enumerate().map(weigh).filter(|c| c.weight > 0.0 && c.weight >= least);
    let mut kept: Vec<Candidate> = candidates.collect();
    if params.top_k > 0 && (params.top_k as usize) < kept.len() {
        // The k greatest to the front; their order among themselves does not matter here.
        kept.select_nth_unstable_by(params.top_k as usize - 1, |a, b| b.cmp(a));
        kept.truncate(params.top_k as usize);
    }
    if params.top_p < 1.0 {
        kept.sort_unstable_by_key(|candidate| candidate.token);
        let enough = f64::from(params.top_p) * kept.iter().map(|candidate| candidate.weight).sum::<f64>();
        // A heap: the nucleus is small as a rule, and only so much of the vocabulary is put in order.
        let mut heap = BinaryHeap::from(std::mem::take(&mut kept));
        let mut sum = 0.0;
        while let Some(candidate) = heap.pop() {
            sum += candidate.weight;
            kept.push(candidate);
            if sum >= enough {
                break;
            }
        }
    }
    kept.sort_unstable_by_key(|candidate| candidate.token);
    kept
}

/// The token at `uniform` (in `[0, 1)`) of the distribution.
fn draw(kept: &[Candidate], uniform: f64) -> u32 {
    let target = uniform * kept.iter().map(|candidate| candidate.weight).sum::<f64>();
    let mut sum = 0.0;
    let mut token = 0;
    for candidate in kept {
        token = candidate.token;
        sum += candidate.weight;
        if sum > target {
            break;
        }
    }
    // Rounding may leave the sum short of the target: then it is the last one.
    token
}

/// Adds the log probabilities of the token and of the `count` most likely ones.
fn with_logprobs(logits: &[f32], token: u32, count: usize) -> SampledToken {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - f64::from(most)).exp()).sum();
    let log_sum = f64::from(most) + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| {
        let greater_first = logits[*b as usize].partial_cmp(&logits[*a as usize]).unwrap_or(Ordering::Equal);
        greater_first.then(a.cmp(b))
    };
    let count = count.min(order.len());
    if 0 < count && count < order.len() {
        order.select_nth_unstable_by(count - 1, by_logit);
    }
    order.truncate(count);
    order.sort_unstable_by(by_logit);
    SampledToken {
        token,
        logprob: Some(logprob(logits[token as usize])),
        top_logprobs: order.into_iter().map(|token| (token, logprob(logits[token as usize]))).collect(),
    }
}
