//! From samples to numbers.
//!
//! - TTFT: from the sending of a request to its first chunk with text.
//! - ITL: each gap between two chunks with text, of all requests together. A chunk may hold several tokens, and chunks
//!   that the client reads at once have no gap; both are as a user sees them, and `tokens_per_chunk` tells of the first.
//! - TPOT: of each request, the time from its first to its last chunk, by its output tokens less one.
//! - End to end: from the sending of a request to the end of its stream.
//! - Percentiles are by nearest rank: the smallest value that at least p percent of all values do not exceed. No value
//!   is made up by interpolation.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::args::Slo;
use super::client::Answer;
use super::load::Sample;

/// Mean and percentiles of one measured quantity.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Stats {
    pub(super) count: usize,
    pub(super) mean: f64,
    pub(super) min: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

/// Errors of one kind.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Errors {
    pub(super) count: usize,
    /// The message of one of them.
    pub(super) example: String,
}

/// Requests that were placed in one way.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Placed {
    pub(super) count: usize,
    pub(super) ttft_ms: Option<Stats>,
}

/// Requests that met the limits.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(super) struct Goodput {
    pub(super) slo: Slo,
    pub(super) good_requests: usize,
    pub(super) requests_per_second: f64,
}

/// Who counted the output tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CountedBy {
    /// `usage` of every answer.
    Server,
    /// Some answers had none, and the chunks were counted: an estimate.
    Chunks,
}

/// All that was measured.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Summary {
    pub(super) completed: usize,
    pub(super) failed: usize,
    /// From the first request sent to the last one ended.
    pub(super) duration_seconds: f64,
    pub(super) requests_per_second: f64,
    pub(super) output_tokens_per_second: f64,
    pub(super) goodput: Option<Goodput>,
    pub(super) ttft_ms: Option<Stats>,
    pub(super) itl_ms: Option<Stats>,
    pub(super) tpot_ms: Option<Stats>,
    pub(super) e2e_ms: Option<Stats>,
    pub(super) input_tokens: Option<Stats>,
    /// All together, if the server tells.
    pub(super) cached_input_tokens: Option<u64>,
    pub(super) output_tokens: Option<Stats>,
    pub(super) output_tokens_counted_by: CountedBy,
    pub(super) tokens_per_chunk: f64,
    /// By the header `x-disagg-placement`, if the server sends it.
    pub(super) placements: BTreeMap<String, Placed>,
    pub(super) errors: BTreeMap<String, Errors>,
    /// Open loop: how much later than its time a request was sent, at most.
    pub(super) late_ms_max: f64,
}

/// The value of rank ⌈p/100 · n⌉. `sorted` is ascending and not empty.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

impl Stats {
    /// `None` of nothing.
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        Some(Self {
            count: sorted.len(),
            mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
            min,
            p50: percentile(&sorted, 50),
            p90: percentile(&sorted, 90),
            p99: percentile(&sorted, 99),
            max,
        })
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Answer {
    fn ttft_ms(&self) -> Option<f64> {
        self.chunks.first().copied().map(ms)
    }

    fn gaps_ms(&self) -> impl Iterator<Item = f64> {
        self.chunks.windows(2).map(|pair| ms(pair[1].saturating_sub(pair[0])))
    }

    fn output_tokens(&self) -> u64 {
        self.usage.map_or(self.chunks.len() as u64, |usage| usage.completion_tokens)
    }

    /// `None` for an answer of one token.
    fn tpot_ms(&self) -> Option<f64> {
        let gaps = self.output_tokens().checked_sub(1).filter(|&gaps| gaps > 0)?;
        Some(ms(self.chunks.last()?.saturating_sub(*self.chunks.first()?)) / gaps as f64)
    }

    fn is_good(&self, slo: Slo) -> bool {
        let within = |value: Option<f64>, limit: Option<f64>| {
            value.is_none_or(|value| limit.is_none_or(|limit| value <= limit))
        };
        within(self.ttft_ms(), slo.ttft_ms) && within(self.tpot_ms(), slo.itl_ms)
    }

    /// `remote, above-threshold`
    fn placement(&self) -> Option<String> {
        let header = self.placement.as_deref()?;
        let (placement, rest) = header.split_once(';').unwrap_or((header, ""));
        let reason = rest.split(';').find_map(|part| part.trim().strip_prefix("reason="));
        Some(reason.map_or_else(|| placement.to_owned(), |reason| format!("{placement}, {reason}")))
    }
}

impl Summary {
    pub(super) fn of(samples: &[Sample], slo: Slo) -> Self {
        let answers: Vec<&Answer> = samples.iter().filter_map(|sample| sample.result.as_ref().ok()).collect();
        let begin = samples.iter().map(|sample| sample.sent).min();
        let end = samples.iter().map(|sample| sample.ended).max();
        let seconds = begin.zip(end).map_or(0.0, |(begin, end)| (end - begin).as_secs_f64());
        let per_second = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
        let output: u64 = answers.iter().map(|answer| answer.output_tokens()).sum();
        let chunks: usize = answers.iter().map(|answer| answer.chunks.len()).sum();
        let usages = || answers.iter().filter_map(|answer| answer.usage);
        let goodput = (slo != Slo::default()).then(|| {
            let good_requests = answers.iter().filter(|answer| answer.is_good(slo)).count();
            Goodput { slo, good_requests, requests_per_second: per_second(good_requests as f64) }
        });
        Self {
            completed: answers.len(),
            failed: samples.len() - answers.len(),
            duration_seconds: seconds,
            requests_per_second: per_second(answers.len() as f64),
            output_tokens_per_second: per_second(output as f64),
            goodput,
            ttft_ms: Stats::of(answers.iter().filter_map(|answer| answer.ttft_ms())),
            itl_ms: Stats::of(answers.iter().flat_map(|answer| answer.gaps_ms())),
            tpot_ms: Stats::of(answers.iter().filter_map(|answer| answer.tpot_ms())),
            e2e_ms: Stats::of(answers.iter().map(|answer| ms(answer.whole))),
            input_tokens: Stats::of(usages().map(|usage| usage.prompt_tokens as f64)),
            cached_input_tokens: usages().filter_map(|usage| usage.cached_tokens()).reduce(|a, b| a + b),
            output_tokens: Stats::of(answers.iter().map(|answer| answer.output_tokens() as f64)),
            output_tokens_counted_by: if answers.iter().all(|answer| answer.usage.is_some()) {
                CountedBy::Server
            } else {
                CountedBy::Chunks
            },
            tokens_per_chunk: if chunks == 0 { 0.0 } else { output as f64 / chunks as f64 },
            placements: placements(&answers),
            errors: errors(samples),
            late_ms_max: samples.iter().map(|sample| ms(sample.late)).fold(0.0, f64::max),
        }
    }
}

fn placements(answers: &[&Answer]) -> BTreeMap<String, Placed> {
    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for answer in answers {
        if let Some(placement) = answer.placement() {
            times.entry(placement).or_default().extend(answer.ttft_ms());
        }
    }
    times
        .into_iter()
        .map(|(name, ttft)| (name, Placed { count: ttft.len(), ttft_ms: Stats::of(ttft) }))
        .collect()
}

fn errors(samples: &[Sample]) -> BTreeMap<String, Errors> {
    let mut errors: BTreeMap<String, Errors> = BTreeMap::new();
    for failure in samples.iter().filter_map(|sample| sample.result.as_ref().err()) {
        let example = || Errors { count: 0, example: failure.message.clone() };
        errors.entry(failure.kind.clone()).or_insert_with(example).count += 1;
    }
    errors
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // values are exact by their making
mod tests {
    use super::*;
    use crate::bench::client::{Failure, Usage};
    use proptest::prelude::*;
    use std::time::Instant;

    proptest! {
        /// Against the definition: the smallest value that at least p percent do not exceed.
        #[test]
        fn percentiles_are_by_nearest_rank(
            mut values in proptest::collection::vec(0_u16..50, 1..200),
            percent in 1_usize..=100,
        ) {
            let naive = values.iter().copied().filter(|&candidate| {
                let not_above = values.iter().filter(|&&value| value <= candidate).count();
                not_above * 100 >= percent * values.len()
            }).min().unwrap();
            values.sort_unstable();
            let sorted: Vec<f64> = values.iter().copied().map(f64::from).collect();
            prop_assert_eq!(percentile(&sorted, percent), f64::from(naive));
        }
    }

    #[test]
    fn stats_of_few() {
        assert_eq!(Stats::of([]), None);
        let of = |values: &[f64]| Stats::of(values.iter().copied()).unwrap();
        let one = of(&[3.0]);
        assert_eq!((one.mean, one.p50, one.p99), (3.0, 3.0, 3.0));
        let stats = of(&[5.0, 1.0, 2.0, 4.0]);
        assert_eq!((stats.count, stats.mean, stats.min, stats.max), (4, 3.0, 1.0, 5.0));
        assert_eq!((stats.p50, stats.p90, stats.p99), (2.0, 5.0, 5.0), "no value between two");
    }

    fn answer(chunks_ms: &[u64], tokens: Option<u64>, placement: Option<&str>) -> Answer {
        Answer {
            chunks: chunks_ms.iter().copied().map(Duration::from_millis).collect(),
            whole: Duration::from_millis(chunks_ms.last().unwrap() + 1),
            usage: tokens.map(|completion_tokens| Usage {
                completion_tokens,
                prompt_tokens: 64,
                ..Usage::default()
            }),
            placement: placement.map(str::to_owned),
        }
    }

    fn samples(results: Vec<Result<Answer, Failure>>) -> Vec<Sample> {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let sample = |(number, result)| Sample {
            sent: at(number),
            ended: at(number + 2),
            late: Duration::ZERO,
            result,
        };
        (0..).zip(results).map(sample).collect()
    }

    #[test]
    fn every_number_from_its_definition() {
        let remote = "remote; reason=above-threshold; prefill=prefill-0; decode=decode-0";
        let local = "local; reason=below-threshold; decode=decode-0";
        let failed = |message: &str| Failure {
            kind: "HTTP 429".to_owned(),
            message: message.to_owned(),
            status: Some(429),
        };
        let samples = samples(vec![
            Ok(answer(&[100, 110, 140], Some(3), Some(remote))),
            // Two chunks of two tokens.
            Ok(answer(&[200, 230], Some(4), Some(remote))),
            Ok(answer(&[50], Some(1), Some(local))),
            Err(failed("later")),
            Err(failed("much later")),
        ]);
        let slo = Slo { ttft_ms: Some(150.0), itl_ms: Some(20.0) };
        let summary = Summary::of(&samples, slo);
        assert_eq!((summary.completed, summary.failed), (3, 2));
        // The first is sent at 0 s, the last ends at 6 s.
        assert_eq!((summary.duration_seconds, summary.requests_per_second), (6.0, 0.5));
        assert!((summary.output_tokens_per_second - 8.0 / 6.0).abs() < 1e-9);
        let (ttft, itl) = (summary.ttft_ms.unwrap(), summary.itl_ms.unwrap());
        assert_eq!((ttft.p50, ttft.p90), (100.0, 200.0));
        assert_eq!((itl.count, itl.min, itl.p50, itl.max), (3, 10.0, 30.0, 30.0));
        let tpot = summary.tpot_ms.unwrap();
        assert_eq!(
            (tpot.count, tpot.min, tpot.max),
            (2, 10.0, 20.0),
            "30 ms for three tokens, 40 ms for two"
        );
        assert!((summary.tokens_per_chunk - 8.0 / 6.0).abs() < 1e-9);
        // The second is too late; the third has only one token and needs no gap.
        let goodput = summary.goodput.unwrap();
        assert_eq!((goodput.good_requests, goodput.requests_per_second), (2, 2.0 / 6.0));
        let counts: Vec<_> =
            summary.placements.iter().map(|(name, placed)| (name.as_str(), placed.count)).collect();
        assert_eq!(counts, [("local, below-threshold", 1), ("remote, above-threshold", 2)]);
        assert_eq!(summary.errors["HTTP 429"], Errors { count: 2, example: "later".to_owned() });
        assert_eq!(summary.output_tokens_counted_by, CountedBy::Server);
        assert_eq!(summary.input_tokens.unwrap().min, 64.0);
    }

    #[test]
    fn without_usage_chunks_are_counted_and_it_is_said() {
        let summary = Summary::of(&samples(vec![Ok(answer(&[1, 2, 3], None, None))]), Slo::default());
        assert_eq!((summary.output_tokens.unwrap().max, summary.input_tokens), (3.0, None));
        assert_eq!(summary.output_tokens_counted_by, CountedBy::Chunks);
        assert!(summary.goodput.is_none() && summary.placements.is_empty());
    }

    #[test]
    fn nothing_completed_has_no_numbers() {
        let summary = Summary::of(&[], Slo { ttft_ms: Some(1.0), itl_ms: None });
        assert_eq!((summary.completed, summary.requests_per_second, summary.ttft_ms), (0, 0.0, None));
    }
}
