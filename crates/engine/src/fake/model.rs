//! The model of the fake backend.

use crate::backend::{SampleRow, SampledToken};
use crate::request::{FinishReason, Request};
use crate::sampling::sample;

/// The model, as pure functions.
#[derive(Clone, Copy, Debug)]
pub struct FakeModel {
    /// Tokens it knows.
    pub vocab_size: u32,
}

impl FakeModel {
    /// What layer 0 keeps for a token.
    pub(super) fn embed(token: u32, position: u32) -> u64 {
        mix(u64::from(token) << 32 | u64::from(position))
    }

    /// Output of a layer for the last of the tokens whose values it has kept.
    pub(super) fn attend(kept: impl Iterator<Item = u64>) -> u64 {
        kept.fold(1, |sum, value| mix(sum ^ value))
    }

    pub(super) fn logits(self, hidden: u64) -> Vec<f32> {
        let logit = |token: u32| (mix(hidden ^ u64::from(token)) >> 40) as f32 / (1u64 << 21) as f32;
        (0..self.vocab_size).map(logit).collect()
    }

    /// Logits after `tokens`, without any memory.
    pub fn logits_after(self, tokens: &[u32]) -> Vec<f32> {
        let embedded = tokens.iter().zip(0..).map(|(token, position)| Self::embed(*token, position));
        let mut sum = 1;
        let attended = embedded.map(|value| {
            sum = mix(sum ^ value);
            sum
        });
        self.logits(Self::attend(attended))
    }

    /// What an engine with sequences of at most `max_len` tokens must answer: tokens and end of each choice.
    pub fn generate(self, request: &Request, max_len: usize) -> Vec<(Vec<SampledToken>, FinishReason)> {
        (0..request.choices).map(|choice| self.generate_choice(request, choice, max_len)).collect()
    }

    fn generate_choice(
        self,
        request: &Request,
        choice: u32,
        max_len: usize,
    ) -> (Vec<SampledToken>, FinishReason) {
        let stop = &request.stop;
        let mut ends: Vec<u32> = stop.stop_token_ids.clone();
        if !stop.ignore_eos {
            ends.extend(&stop.eos_token_ids);
        }
        let mut history = request.prompt.clone();
        let mut output = Vec::new();
        loop {
            let row = SampleRow {
                row: 0,
                params: &request.sampling,
                choices: 0..1,
                position: history.len() as u32,
                history: &history,
                prompt_len: request.prompt.len(),
                forbidden: if output.len() < stop.min_tokens as usize { &ends } else { &[] },
            };
            let Ok(sampled) = sample(&self.logits_after(&history), &row, choice) else {
                return (output, FinishReason::Error);
            };
            let token = sampled.token;
            history.push(token);
            output.push(sampled);
            if ends.contains(&token) {
                return (output, FinishReason::Stop(token));
            }
            if output.len() >= stop.max_tokens as usize || history.len() >= max_len {
                return (output, FinishReason::Length);
            }
        }
    }
}

/// splitmix64's output function (Steele, Lea, Flood 2014).
pub(super) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}
