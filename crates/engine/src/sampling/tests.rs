//! Sampling against a naive implementation, and against the distribution it should follow.

use proptest::prelude::*;

use super::{SampleError, sample, uniform};
use crate::backend::SampleRow;
use crate::request::SamplingParams;

/// A row for tests: borrowed parts with defaults.
#[derive(Debug)]
struct Setting {
    params: SamplingParams,
    history: Vec<u32>,
    prompt_len: usize,
    forbidden: Vec<u32>,
    position: u32,
}

impl Setting {
    fn new(params: SamplingParams) -> Self {
        Self { params, history: Vec::new(), prompt_len: 0, forbidden: Vec::new(), position: 0 }
    }

    fn row(&self) -> SampleRow<'_> {
        SampleRow {
            row: 0,
            params: &self.params,
            choices: 0..1,
            position: self.position,
            history: &self.history,
            prompt_len: self.prompt_len,
            forbidden: &self.forbidden,
        }
    }

    fn draw(&self, logits: &[f32], choice: u32) -> Result<u32, SampleError> {
        sample(logits, &self.row(), choice).map(|sampled| sampled.token)
    }
}

fn with_temperature(temperature: f32) -> SamplingParams {
    SamplingParams { temperature, ..SamplingParams::greedy() }
}

#[test]
fn greedy_takes_the_first_of_equals() {
    let greedy = Setting::new(SamplingParams::greedy());
    assert_eq!(greedy.draw(&[1.0, 3.0, 3.0, 2.0], 0), Ok(1));
    assert_eq!(greedy.draw(&[-0.0, 0.0], 0), Ok(0));
    assert_eq!(greedy.draw(&[0.0], 7), Ok(0));
}

#[test]
fn logits_that_are_no_numbers_are_errors() {
    for params in [SamplingParams::greedy(), with_temperature(1.0)] {
        let setting = Setting::new(params);
        assert_eq!(setting.draw(&[0.0, f32::NAN], 0), Err(SampleError::NotANumber { token: 1 }));
        assert_eq!(setting.draw(&[f32::INFINITY, 0.0], 0), Err(SampleError::NotANumber { token: 0 }));
        assert_eq!(setting.draw(&[f32::NEG_INFINITY; 3], 0), Err(SampleError::NothingAllowed));
        assert_eq!(setting.draw(&[], 0), Err(SampleError::NothingAllowed));
        assert_eq!(setting.draw(&[f32::NEG_INFINITY, -5.0], 0), Ok(1));
    }
}

#[test]
fn forbidden_tokens_are_never_drawn() {
    for params in [SamplingParams::greedy(), with_temperature(2.0)] {
        let mut setting = Setting::new(params);
        setting.params.logit_bias = vec![(1, 100.0)];
        setting.forbidden = vec![1, 99];
        for choice in 0..200 {
            assert_ne!(setting.draw(&[0.0, 9.0, 1.0], choice), Ok(1));
        }
        setting.forbidden = vec![0, 1, 2];
        assert_eq!(setting.draw(&[0.0, 9.0, 1.0], 0), Err(SampleError::NothingAllowed));
    }
}

#[test]
fn bias_moves_the_choice() {
    let mut setting = Setting::new(SamplingParams::greedy());
    setting.params.logit_bias = vec![(0, 2.5), (1000, 5.0)];
    assert_eq!(setting.draw(&[0.0, 2.0], 0), Ok(0));
    setting.params.logit_bias = vec![(0, 1.5)];
    assert_eq!(setting.draw(&[0.0, 2.0], 0), Ok(1));
}

#[test]
fn penalties_look_where_they_should() {
    let logits = [2.0, 1.5, 1.0];
    let mut setting = Setting::new(SamplingParams::greedy());
    setting.history = vec![0, 0];
    // Presence and frequency count the output alone; repetition counts the prompt too.
    setting.params.presence_penalty = 2.0;
    setting.params.frequency_penalty = 2.0;
    setting.prompt_len = 2;
    assert_eq!(setting.draw(&logits, 0), Ok(0));
    setting.params.repetition_penalty = 1.5;
    assert_eq!(setting.draw(&logits, 0), Ok(1));
    // Presence once, frequency for each time.
    setting.params = SamplingParams { presence_penalty: 0.4, ..SamplingParams::greedy() };
    setting.prompt_len = 0;
    assert_eq!(setting.draw(&logits, 0), Ok(0));
    setting.params = SamplingParams { frequency_penalty: 0.4, ..SamplingParams::greedy() };
    assert_eq!(setting.draw(&logits, 0), Ok(1));
    // A negative logit is made smaller, too.
    setting.params = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::greedy() };
    assert_eq!(setting.draw(&[-1.0, -1.5], 0), Ok(1));
    // The most extreme penalty leaves something defined.
    setting.params.repetition_penalty = f32::MIN_POSITIVE;
    assert_eq!(setting.draw(&logits, 0), Ok(0));
    setting.params.temperature = 1.0;
    assert_eq!(setting.draw(&logits, 0), Ok(0));
}

#[test]
fn logprobs_are_those_of_the_model() {
    let mut setting = Setting::new(SamplingParams { top_logprobs: Some(2), ..SamplingParams::greedy() });
    setting.forbidden = vec![3];
    setting.params.logit_bias = vec![(0, 50.0)];
    let logits = [0.0f32, 1.0, 1.0, 2.0];
    let sampled = sample(&logits, &setting.row(), 0).unwrap();
    let log_sum = logits.iter().map(|logit| logit.exp()).sum::<f32>().ln();
    assert_eq!(sampled.token, 0);
    assert!((sampled.logprob.unwrap() + log_sum).abs() < 1e-6, "before bias and forbidden tokens");
    let tokens: Vec<u32> = sampled.top_logprobs.iter().map(|(token, _)| *token).collect();
    assert_eq!(tokens, [3, 1], "most likely first, ties by id");
    assert!((sampled.top_logprobs[0].1 - (2.0 - log_sum)).abs() < 1e-6);
    setting.params.top_logprobs = Some(0);
    let sampled = sample(&logits, &setting.row(), 0).unwrap();
    assert!(sampled.logprob.is_some() && sampled.top_logprobs.is_empty());
    setting.params.top_logprobs = Some(50);
    assert_eq!(sample(&logits, &setting.row(), 0).unwrap().top_logprobs.len(), 4);
    setting.params.top_logprobs = None;
    assert_eq!(sample(&logits, &setting.row(), 0).unwrap().logprob, None);
}

#[test]
fn a_draw_depends_on_seed_choice_and_position_alone() {
    let logits = vec![0.0; 1000];
    let mut setting = Setting::new(with_temperature(1.0));
    let base = setting.draw(&logits, 0);
    assert_eq!(setting.draw(&logits, 0), base);
    assert_ne!(setting.draw(&logits, 1), base);
    setting.position = 1;
    assert_ne!(setting.draw(&logits, 0), base);
    setting.position = 0;
    setting.params.seed = 1;
    assert_ne!(setting.draw(&logits, 0), base);
}

/// Draws from `logits` many times and compares with `expected` by chi-square. Seeds are fixed, so this can not flicker.
fn follows(setting: &Setting, logits: &[f32], expected: &[f64]) {
    const DRAWS: u32 = 40_000;
    let mut counts = vec![0u32; logits.len()];
    for choice in 0..DRAWS {
        counts[setting.draw(logits, choice).unwrap() as usize] += 1;
    }
    let sum: f64 = expected.iter().sum();
    let mut chi2 = 0.0;
    let mut cells = 0;
    for (count, weight) in counts.iter().zip(expected) {
        if *weight == 0.0 {
            assert_eq!(*count, 0, "{counts:?}");
            continue;
        }
        let mean = f64::from(DRAWS) * weight / sum;
        chi2 += (f64::from(*count) - mean).powi(2) / mean;
        cells += 1;
    }
    // Beyond the mean by four standard deviations of chi-square.
    let freedom = f64::from(cells - 1);
    assert!(
        chi2 < freedom + 4.0 * (2.0 * freedom).sqrt() + 4.0,
        "chi-square {chi2}, {counts:?} for {expected:?}"
    );
}

#[test]
fn draws_follow_the_distribution() {
    let logits: Vec<f32> = (0..10u8).map(|i| f32::from(i * 7 % 10) * 0.4).collect();
    let at =
        |temperature: f64| logits.iter().map(|l| (f64::from(*l) / temperature).exp()).collect::<Vec<_>>();
    for seed in [0, 1, u64::MAX] {
        let set = |params| Setting::new(SamplingParams { seed, ..params });
        follows(&set(with_temperature(1.0)), &logits, &at(1.0));
        follows(&set(with_temperature(0.5)), &logits, &at(0.5));
        follows(&set(with_temperature(1.7)), &logits, &at(f64::from(1.7f32)));

        // 7 * i % 10: the largest logits are those of tokens 7, 4 and 1.
        let top3: Vec<f64> = (0..10).map(|i| if [7, 4, 1].contains(&i) { at(1.0)[i] } else { 0.0 }).collect();
        follows(&set(SamplingParams { top_k: 3, ..with_temperature(1.0) }), &logits, &top3);
        let relative = SamplingParams { min_p: 0.44, ..with_temperature(1.0) };
        follows(&set(relative), &logits, &top3);
        // The three have 0.33, 0.22 and 0.15 of the mass: 0.6 needs all of them, 0.5 two.
        follows(&set(SamplingParams { top_p: 0.6, ..with_temperature(1.0) }), &logits, &top3);
        let top2: Vec<f64> = (0..10).map(|i| if [7, 4].contains(&i) { at(1.0)[i] } else { 0.0 }).collect();
        follows(&set(SamplingParams { top_p: 0.5, ..with_temperature(1.0) }), &logits, &top2);
        // Of what top-k left, two tokens have 0.78.
        let both = SamplingParams { top_p: 0.7, top_k: 3, ..with_temperature(1.0) };
        follows(&set(both), &logits, &top2);
    }
}

/// Straight from the definitions, with sorting instead of selecting. `None` where rounding may decide.
fn naive(logits: &[f32], setting: &Setting, choice: u32) -> Option<Result<u32, SampleError>> {
    let params = &setting.params;
    let mut logits: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
    for (token, bias) in &params.logit_bias {
        logits[*token as usize] += f64::from(*bias);
    }
    for token in &setting.forbidden {
        logits[*token as usize] = f64::NEG_INFINITY;
    }
    let output = &setting.history[setting.prompt_len..];
    for (token, logit) in (0..).zip(&mut logits) {
        if setting.history.contains(&token) {
            let penalty = f64::from(params.repetition_penalty);
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
        let count = output.iter().filter(|seen| **seen == token).count();
        *logit -= f64::from(params.frequency_penalty) * count as f64;
        *logit -= if count > 0 { f64::from(params.presence_penalty) } else { 0.0 };
    }
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * (1.0 + a.abs());
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    let most = logits[order[0]];
    if most == f64::NEG_INFINITY {
        return Some(Err(SampleError::NothingAllowed));
    }
    let unsure = |a: usize, b: usize| logits[a].total_cmp(&logits[b]).is_ne() && close(logits[a], logits[b]);
    if params.temperature == 0.0 {
        return (order.len() < 2 || !unsure(order[0], order[1])).then_some(Ok(order[0] as u32));
    }
    let weight = |token: usize| ((logits[token] - most) / f64::from(params.temperature)).exp();
    let before = order.len();
    order.retain(|token| weight(*token) > 0.0 && weight(*token) >= f64::from(params.min_p));
    let near_min_p = |token: usize| close(weight(token), f64::from(params.min_p));
    if params.min_p > 0.0 && (0..before).any(near_min_p) {
        return None;
    }
    if params.top_k > 0 && (params.top_k as usize) < order.len() {
        if unsure(order[params.top_k as usize - 1], order[params.top_k as usize]) {
            return None;
        }
        order.truncate(params.top_k as usize);
    }
    if params.top_p < 1.0 {
        let total: f64 = order.iter().map(|token| weight(*token)).sum();
        let mut sum = 0.0;
        let mut keep = 0;
        for token in &order {
            sum += weight(*token) / total;
            keep += 1;
            if close(sum, f64::from(params.top_p)) {
                return None;
            }
            if sum >= f64::from(params.top_p) {
                break;
            }
        }
        if keep < order.len() && unsure(order[keep - 1], order[keep]) {
            return None;
        }
        order.truncate(keep);
    }
    order.sort_unstable();
    let total: f64 = order.iter().map(|token| weight(*token)).sum();
    let target = uniform(params.seed, choice, setting.position);
    let mut sum = 0.0;
    for token in &order {
        sum += weight(*token) / total;
        if close(sum, target) {
            return None;
        }
        if sum > target {
            return Some(Ok(*token as u32));
        }
    }
    None
}

fn settings() -> impl Strategy<Value = (Vec<f32>, Setting)> {
    let logit = prop_oneof![8 => (-40i32..40).prop_map(|l| l as f32 / 8.0), 1 => Just(f32::NEG_INFINITY)];
    let logits = prop::collection::vec(logit, 1..30);
    let or_off = |values: std::ops::Range<f32>, off: f32| prop_oneof![Just(off), values];
    let params = (
        or_off(0.05..3.0, 0.0),
        or_off(0.01..1.0, 1.0),
        0u32..12,
        or_off(0.0..1.0, 0.0),
        or_off(-2.0..2.0, 0.0),
        or_off(-2.0..2.0, 0.0),
        or_off(0.3..3.0, 1.0),
        any::<u64>(),
    );
    let history = prop::collection::vec(any::<prop::sample::Index>(), 0..12);
    let some = || prop::collection::vec((any::<prop::sample::Index>(), -3.0f32..3.0), 0..4);
    (logits, params, history, any::<prop::sample::Index>(), some(), some(), any::<u32>()).prop_map(
        |(logits, params, history, prompt, bias, forbidden, position)| {
            let (
                temperature,
                top_p,
                top_k,
                min_p,
                presence_penalty,
                frequency_penalty,
                repetition_penalty,
                seed,
            ) = params;
            let size = logits.len();
            let params = SamplingParams {
                temperature,
                top_p,
                top_k,
                min_p,
                presence_penalty,
                frequency_penalty,
                repetition_penalty,
                logit_bias: bias.iter().map(|(token, bias)| (token.index(size) as u32, *bias)).collect(),
                seed,
                top_logprobs: None,
            };
            let setting = Setting {
                params,
                prompt_len: prompt.index(history.len() + 1),
                history: history.iter().map(|token| token.index(size) as u32).collect(),
                forbidden: forbidden.iter().map(|(token, _)| token.index(size) as u32).collect(),
                position,
            };
            (logits, setting)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn draws_what_the_naive_implementation_draws((logits, setting) in settings(), choice in 0u32..4) {
        if let Some(expected) = naive(&logits, &setting, choice) {
            prop_assert_eq!(setting.draw(&logits, choice), expected);
        }
    }

    #[test]
    fn any_bits_give_a_token_or_an_error(bits in prop::collection::vec(any::<u32>(), 0..8), setting in settings()) {
        let logits: Vec<f32> = bits.iter().map(|bits| f32::from_bits(*bits)).collect();
        if let Ok(token) = setting.1.draw(&logits, 0) {
            prop_assert!(logits[token as usize] > f32::NEG_INFINITY);
            prop_assert!(!setting.1.forbidden.contains(&token));
        }
    }
}
