//! The result, as a table for people and as JSON for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::args::{Arrivals, BenchArgs, Endpoint};
use super::measure::{CountedBy, Stats, Summary};

/// Open loop: requests sent later than this after their time make the load not what was asked for.
const LATE_MS: f64 = 10.0;

/// The load, as it was.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Load {
    pub(super) url: String,
    pub(super) model: String,
    endpoint: Endpoint,
    isl: u32,
    osl: u32,
    arrivals: Arrivals,
    requests: u32,
    warmup: u32,
    seed: u64,
    shared_prefix_tokens: u32,
    prefix_groups: u32,
}

impl Load {
    pub(super) fn new(args: &BenchArgs, url: &str, model: &str) -> Self {
        Self {
            url: url.to_owned(),
            model: model.to_owned(),
            endpoint: args.endpoint,
            isl: args.isl,
            osl: args.osl,
            arrivals: args.arrivals(),
            requests: args.requests,
            warmup: args.warmup,
            seed: args.seed,
            shared_prefix_tokens: args.shared_prefix_tokens,
            prefix_groups: args.prefix_groups,
        }
    }
}

/// The result of one run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    load: Load,
    summary: Summary,
    /// What to know when reading the numbers.
    notes: Vec<String>,
}

impl Report {
    /// `notes` is what was found out before the load.
    pub(super) fn new(load: Load, summary: Summary, mut notes: Vec<String>) -> Self {
        if let Some(input) = &summary.input_tokens
            && (input.min, input.max) != (f64::from(load.isl), f64::from(load.isl))
        {
            notes.push(format!(
                "prompts have {} to {} tokens by the server's count, not {}",
                input.min, input.max, load.isl
            ));
        }
        if let Some(output) = &summary.output_tokens
            && (output.min, output.max) != (f64::from(load.osl), f64::from(load.osl))
        {
            notes.push(format!("answers have {} to {} tokens, not {}", output.min, output.max, load.osl));
        }
        if summary.output_tokens_counted_by == CountedBy::Chunks && summary.completed > 0 {
            notes.push(
                "the server did not count output tokens; each chunk counts as one, an estimate".to_owned(),
            );
        } else if summary.completed > 0 && !(0.99..=1.01).contains(&summary.tokens_per_chunk) {
            notes.push(format!(
                "a chunk with text holds {:.2} tokens on average: ITL is between chunks, TPOT by tokens",
                summary.tokens_per_chunk
            ));
        }
        if summary.late_ms_max > LATE_MS {
            notes.push(format!(
                "some requests were sent up to {:.0} ms after their time: this machine could not make the load",
                summary.late_ms_max
            ));
        }
        Self { load, summary, notes }
    }

    pub(super) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    pub(super) fn table(&self) -> String {
        let (load, summary) = (&self.load, &self.summary);
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text, load, summary);
        text
    }

    fn write(&self, text: &mut String, load: &Load, summary: &Summary) -> std::fmt::Result {
        let arrivals = match load.arrivals {
            Arrivals::Concurrency(count) => format!("{count} in flight"),
            Arrivals::Rate(rate) => format!("{rate} a second (Poisson)"),
        };
        writeln!(text, "\n{} at {}: ISL {}, OSL {}, {arrivals}", load.model, load.url, load.isl, load.osl)?;
        if load.shared_prefix_tokens > 0 {
            let (shared, groups) = (load.shared_prefix_tokens, load.prefix_groups);
            writeln!(text, "first {shared} tokens shared in each of {groups} groups")?;
        }
        writeln!(text)?;
        writeln!(text, "{:26}{:>10}{:>10}{:>10}{:>10}", "", "mean", "p50", "p90", "p99")?;
        row(text, "TTFT (ms)", summary.ttft_ms.as_ref())?;
        row(text, "ITL (ms)", summary.itl_ms.as_ref())?;
        row(text, "TPOT (ms)", summary.tpot_ms.as_ref())?;
        row(text, "end to end (ms)", summary.e2e_ms.as_ref())?;
        writeln!(text)?;
        let seconds = summary.duration_seconds;
        let mut fact = |name: &str, value: String| writeln!(text, "{name:26}{value}");
        fact(
            "requests",
            format!("{} completed, {} failed in {seconds:.2} s", summary.completed, summary.failed),
        )?;
        fact("requests/s", format!("{:.3}", summary.requests_per_second))?;
        fact("output tokens/s", format!("{:.2}", summary.output_tokens_per_second))?;
        if let Some(goodput) = &summary.goodput {
            let good = goodput.good_requests;
            let limits: Vec<String> = [("TTFT", goodput.slo.ttft_ms), ("TPOT", goodput.slo.itl_ms)]
                .into_iter()
                .filter_map(|(name, limit)| Some(format!("{name} <= {} ms", limit?)))
                .collect();
            let rate = goodput.requests_per_second;
            let all = summary.completed + summary.failed;
            fact("goodput (requests/s)", format!("{rate:.3}: {good} of {all} with {}", limits.join(", ")))?;
        }
        if let Some(cached) = summary.cached_input_tokens {
            let all = summary.input_tokens.as_ref().map_or(0.0, |input| input.mean * input.count as f64);
            let share = if all > 0.0 { 100.0 * cached as f64 / all } else { 0.0 };
            fact("cached prompt tokens", format!("{cached} ({share:.1} %)"))?;
        }
        for (name, placed) in &summary.placements {
            let ttft = placed.ttft_ms.as_ref();
            let ttft = ttft.map_or_else(String::new, |ttft| format!(", TTFT p50 {:.1} ms", ttft.p50));
            fact("prefilled", format!("{name}: {}{ttft}", placed.count))?;
        }
        for (kind, errors) in &summary.errors {
            fact("failed", format!("{kind}: {} (for example: {})", errors.count, errors.example))?;
        }
        for note in &self.notes {
            writeln!(text, "note: {note}")?;
        }
        Ok(())
    }
}

fn row(text: &mut String, name: &str, stats: Option<&Stats>) -> std::fmt::Result {
    match stats {
        Some(Stats { mean, p50, p90, p99, .. }) => {
            writeln!(text, "{name:26}{mean:>10.2}{p50:>10.2}{p90:>10.2}{p99:>10.2}")
        }
        None => writeln!(text, "{name:26}{:>10}{:>10}{:>10}{:>10}", "-", "-", "-", "-"),
    }
}
