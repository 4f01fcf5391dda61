//! What a step's rows draw, in the words of `sample.cu`: the structures its kernels read, and how they are filled in.

use std::collections::HashMap;
use std::ops::Range;

use disagg_engine::{SampleRow, sampling};

/// A token to draw; `struct Draw` of `sample.cu`.
#[repr(C, align(32))]
#[derive(Clone, Copy, Default, Debug)]
pub struct Draw {
    /// Row of the logits.
    pub row: u32,
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// [`Draw::ACTIVE`], [`Draw::LOGPROB`].
    pub flags: u32,
    /// In `[0, 1)`.
    pub uniform: f64,
}

impl Draw {
    /// Without it the entry is padding.
    pub const ACTIVE: u32 = 1;
    /// The token's log-probability is wanted.
    pub const LOGPROB: u32 = 2;
}

/// What is asked of a row's raw logits; `struct RawRow` of `sample.cu`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct RawRow {
    /// Row of the logits.
    pub row: u32,
    /// Number of most likely tokens; [`RawRow::NOTHING`].
    pub top: u32,
}

impl RawRow {
    /// Not even the log sum.
    pub const NOTHING: u32 = u32::MAX;
    /// Most tokens that can be asked for.
    pub const TOP_MAX: usize = 20;
}

/// One change of one logit; `struct Adjust` of `sample.cu`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct Adjust {
    /// Row of the logits.
    pub row: u32,
    /// Token.
    pub token: u32,
    /// Added first; minus infinity forbids.
    pub bias: f32,
    /// Then divides positive and multiplies negative logits.
    pub scale: f32,
    /// Added last.
    pub add: f32,
    /// Bits of the logit as it was; written on the device.
    pub raw: u32,
}

/// What one row of `samples` gets back.
pub struct Wanted {
    /// Entries of the step's draws.
    pub draws: Range<usize>,
    /// Most likely tokens to report; `None`: no log-probabilities at all.
    pub top_logprobs: Option<usize>,
}

/// What a step's rows draw, in the words of `sample.cu`.
pub fn sampling_lists(
    samples: &[SampleRow<'_>],
    vocab: usize,
) -> (Vec<Draw>, Vec<RawRow>, Vec<Adjust>, Vec<Wanted>) {
    let (mut draws, mut raw, mut adjusts, mut wanted) = (vec![], vec![], vec![], vec![]);
    for (index, sample) in samples.iter().enumerate() {
        let (row, params) = (index as u32, sample.params);
        let logprobs = params.top_logprobs.map(|top| (top as usize).min(RawRow::TOP_MAX));
        raw.push(RawRow { row, top: logprobs.map_or(RawRow::NOTHING, |top| top as u32) });
        let first = draws.len();
        draws.extend(sample.choices.clone().map(|choice| Draw {
            row,
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            flags: Draw::ACTIVE | if logprobs.is_some() { Draw::LOGPROB } else { 0 },
            uniform: if params.temperature > 0.0 {
                sampling::uniform(params.seed, choice, sample.position)
            } else {
                0.0
            },
        }));
        wanted.push(Wanted { draws: first..draws.len(), top_logprobs: logprobs });
        let listed = adjustments(row, sample).into_values();
        adjusts.extend(listed.filter(|adjust| (adjust.token as usize) < vocab));
    }
    (draws, raw, adjusts, wanted)
}

/// The change of each logit that changes, by token: bias and forbidden tokens, then penalties, as
/// `disagg_engine::sampling` has them.
fn adjustments(row: u32, sample: &SampleRow<'_>) -> HashMap<u32, Adjust> {
    let params = sample.params;
    let mut list: HashMap<u32, Adjust> = HashMap::new();
    let unchanged = |token| Adjust { row, token, bias: 0.0, scale: 1.0, add: 0.0, raw: 0 };
    for &(token, bias) in &params.logit_bias {
        list.entry(token).or_insert(unchanged(token)).bias += bias;
    }
    for &token in sample.forbidden {
        list.entry(token).or_insert(unchanged(token)).bias = f32::NEG_INFINITY;
    }
    if sampling::has_penalties(params) {
        let mut seen: HashMap<u32, u32> = HashMap::new();
        for (index, &token) in sample.history.iter().enumerate() {
            *seen.entry(token).or_default() += u32::from(index >= sample.prompt_len);
        }
        for (token, count) in seen {
            let adjust = list.entry(token).or_insert(unchanged(token));
            adjust.scale = params.repetition_penalty;
            if count > 0 {
                adjust.add = -(params.frequency_penalty * count as f32 + params.presence_penalty);
            }
        }
    }
    list
}
