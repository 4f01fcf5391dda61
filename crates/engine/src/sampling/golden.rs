//! Sampling against distributions made with numpy: `tests/parity/sampling.py` makes `tests/parity/data/sampling.json`.

use serde::Deserialize;

use super::{adjust, argmax, keep, sample};
use crate::backend::SampleRow;
use crate::request::SamplingParams;

const GOLDEN: &str = include_str!("../../../../tests/parity/data/sampling.json");

/// Draws of each case. Seeds are fixed, so this can not flicker.
const DRAWS: u32 = 20_000;

#[derive(Deserialize)]
struct Case {
    temperature: f32,
    top_p: f32,
    top_k: u32,
    min_p: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    repetition_penalty: f32,
    logits: Vec<f32>,
    history: Vec<u32>,
    prompt_len: usize,
    logit_bias: Vec<(u32, f32)>,
    forbidden: Vec<u32>,
    /// Of every token that may be drawn, in order of id.
    probabilities: Vec<(u32, f64)>,
    /// The most likely token.
    best: u32,
    /// The model's own, of all tokens.
    logprobs: Vec<f64>,
}

impl Case {
    fn all() -> Vec<Self> {
        serde_json::from_str(GOLDEN).expect("golden data")
    }

    fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: 17,
            top_logprobs: Some(self.logits.len() as u32),
        }
    }

    fn row<'a>(&'a self, params: &'a SamplingParams) -> SampleRow<'a> {
        SampleRow {
            row: 0,
            params,
            choices: 0..1,
            position: 3,
            history: &self.history,
            prompt_len: self.prompt_len,
            forbidden: &self.forbidden,
        }
    }
}

#[test]
fn every_parameter_has_cases_of_its_own_and_with_others() {
    type IsOn = fn(&Case) -> bool;
    let cases = Case::all();
    let on: [(&str, IsOn); 9] = [
        ("greedy", |case| case.temperature == 0.0),
        ("top_p", |case| case.top_p < 1.0),
        ("top_k", |case| case.top_k > 0),
        ("min_p", |case| case.min_p > 0.0),
        ("presence_penalty", |case| case.presence_penalty != 0.0),
        ("frequency_penalty", |case| case.frequency_penalty != 0.0),
        ("repetition_penalty", |case| (case.repetition_penalty - 1.0).abs() > 0.0),
        ("logit_bias", |case| !case.logit_bias.is_empty()),
        ("forbidden", |case| !case.forbidden.is_empty()),
    ];
    for (name, is_on) in on {
        assert!(cases.iter().filter(|case| is_on(case)).count() >= 5, "{name}");
    }
    // Half of them leave several tokens and cut some: where all or one is kept, little is tested.
    let cut = |case: &&Case| (2..case.logits.len()).contains(&case.probabilities.len());
    assert!(2 * cases.iter().filter(cut).count() > cases.len());
}

#[test]
fn probabilities_are_numpys() {
    for (number, case) in Case::all().iter().enumerate() {
        let params = case.params();
        let row = case.row(&params);
        let adjusted = adjust(&case.logits, &row);
        assert_eq!(argmax(&adjusted), Ok(case.best), "case {number}");
        if case.temperature == 0.0 {
            continue;
        }
        let kept = keep(&adjusted, adjusted[case.best as usize], &row);
        let tokens: Vec<u32> = kept.iter().map(|candidate| candidate.token).collect();
        let wanted: Vec<u32> = case.probabilities.iter().map(|(token, _)| *token).collect();
        assert_eq!(tokens, wanted, "case {number}: tokens that may be drawn");
        let total: f64 = kept.iter().map(|candidate| candidate.weight).sum();
        for (candidate, (token, wanted)) in kept.iter().zip(&case.probabilities) {
            let probability = candidate.weight / total;
            // Logits are adjusted in 32 bits.
            assert!(
                (probability - wanted).abs() < 1e-5,
                "case {number}: token {token} has {probability}, not {wanted}"
            );
        }
    }
}

#[test]
fn draws_follow_numpys_probabilities() {
    for (number, case) in Case::all().iter().enumerate() {
        let params = case.params();
        let row = case.row(&params);
        let mut counts = vec![0_u32; case.logits.len()];
        for choice in 0..DRAWS {
            let sampled = sample(&case.logits, &row, choice).expect("a token");
            counts[sampled.token as usize] += 1;
        }
        let possible: u32 = case.probabilities.iter().map(|(token, _)| counts[*token as usize]).sum();
        assert_eq!(possible, DRAWS, "case {number}: {counts:?}");
        // Cells with fewer than five draws expected go together, as chi-square asks for.
        let (mut chi2, mut cells) = (0.0, 0);
        let (mut rare, mut rare_expected) = (0, 0.0);
        let mut cell = |count: u32, expected: f64| {
            chi2 += (f64::from(count) - expected).powi(2) / expected;
            cells += 1;
        };
        for (token, probability) in &case.probabilities {
            let (count, expected) = (counts[*token as usize], probability * f64::from(DRAWS));
            if expected < 5.0 {
                rare += count;
                rare_expected += expected;
            } else {
                cell(count, expected);
            }
        }
        if rare_expected >= 5.0 {
            cell(rare, rare_expected);
        }
        let freedom = f64::from((cells - 1).max(0));
        // Beyond the mean by four standard deviations.
        let limit = freedom + 4.0 * (2.0 * freedom).sqrt() + 4.0;
        assert!(chi2 < limit, "case {number}: chi-square {chi2} of {freedom} degrees, {counts:?}");
    }
}

#[test]
fn log_probabilities_are_numpys() {
    for (number, case) in Case::all().iter().enumerate() {
        let params = case.params();
        let sampled = sample(&case.logits, &case.row(&params), 0).expect("a token");
        assert_eq!(sampled.top_logprobs.len(), case.logits.len());
        for (token, logprob) in sampled.top_logprobs {
            let wanted = case.logprobs[token as usize];
            assert!(
                (f64::from(logprob) - wanted).abs() < 1e-5,
                "case {number}: token {token}: {logprob}, {wanted}"
            );
        }
    }
}
