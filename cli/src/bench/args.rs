//! Arguments of `disagg bench`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

/// In flight when nothing else is said: the load of the original's measurements.
const CONCURRENCY: usize = 10;

/// Measure an OpenAI-compatible server under load: latencies, throughput, goodput
///
/// Sends streamed requests with synthetic prompts of exactly --isl tokens, --concurrency at a time or at random times
/// with --rate. The size of prompts is calibrated with a few short requests. The exit code is 1 when any request failed.
#[derive(Args, Debug, Clone)]
pub(crate) struct BenchArgs {
    /// URL of the server, http or https, with or without `/v1`
    #[arg(long, env = "DISAGG_ROUTER", value_name = "URL", default_value = "http://127.0.0.1:8181")]
    pub(super) url: String,

    /// Model to ask for [default: the first of /v1/models]
    #[arg(long, value_name = "NAME")]
    pub(super) model: Option<String>,

    /// Key for servers that want one
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub(super) api_key: Option<String>,

    /// Endpoint to use
    #[arg(long, value_enum, default_value_t = Endpoint::Chat)]
    pub(super) endpoint: Endpoint,

    /// Tokens of each prompt, what the server adds (chat template) included
    #[arg(long, value_name = "TOKENS", default_value_t = 3000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(super) isl: u32,

    /// Tokens of each answer
    #[arg(long, value_name = "TOKENS", default_value_t = 150, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(super) osl: u32,

    /// Requests in flight; each is followed by the next as soon as it ends [default: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), conflicts_with = "rate")]
    concurrency: Option<u32>,

    /// Requests a second, at random times (a Poisson process), however many are in flight
    #[arg(long, value_name = "PER_SECOND", value_parser = positive)]
    rate: Option<f64>,

    /// Requests to measure
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) requests: u32,

    /// Requests before them that are not measured, with other prompts
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(super) warmup: u32,

    /// Seed of prompts and of arrival times
    #[arg(long, default_value_t = 123)]
    pub(super) seed: u64,

    /// Tokens at the start of each prompt that it shares with the others of its group
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) shared_prefix_tokens: u32,

    /// Groups of prompts with the same start, by turns
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) prefix_groups: u32,

    /// For goodput: a good request has its first token within this
    #[arg(long, value_name = "MS", value_parser = positive)]
    slo_ttft_ms: Option<f64>,

    /// For goodput: the mean time between tokens of a good request (its TPOT) is at most this
    #[arg(long, value_name = "MS", value_parser = positive)]
    slo_itl_ms: Option<f64>,

    /// More fields for every request, as a JSON object, for example `{"temperature": 0}`
    #[arg(long, value_name = "JSON", value_parser = json_object)]
    body: Option<JsonObject>,

    /// A request that takes longer has failed
    #[arg(long, value_name = "S", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    request_timeout_seconds: u32,

    /// Write the result as JSON to a file, or to standard output with `-`
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
}

/// Which endpoint serves the load.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

/// When requests are sent.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Arrivals {
    /// So many at a time (closed loop).
    Concurrency(usize),
    /// So many a second on average, by a Poisson process (open loop).
    Rate(f64),
}

/// Limits of a good request, in milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub(super) struct Slo {
    pub(super) ttft_ms: Option<f64>,
    pub(super) itl_ms: Option<f64>,
}

/// Fields of a JSON object. A type of its own, since clap takes a `Vec` or a map apart.
#[derive(Clone, Debug, Default)]
pub(super) struct JsonObject(pub(super) serde_json::Map<String, serde_json::Value>);

impl BenchArgs {
    /// The same load at another place.
    pub(crate) fn at(self, url: String) -> Self {
        Self { url, ..self }
    }

    pub(super) fn arrivals(&self) -> Arrivals {
        match self.rate {
            Some(rate) => Arrivals::Rate(rate),
            None => Arrivals::Concurrency(self.concurrency.map_or(CONCURRENCY, |count| count as usize)),
        }
    }

    pub(super) fn slo(&self) -> Slo {
        Slo { ttft_ms: self.slo_ttft_ms, itl_ms: self.slo_itl_ms }
    }

    pub(super) fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.request_timeout_seconds.into())
    }

    pub(super) fn more_fields(&self) -> serde_json::Map<String, serde_json::Value> {
        self.body.clone().unwrap_or_default().0
    }

    /// The URL up to and without `/v1`.
    pub(super) fn base_url(&self) -> anyhow::Result<String> {
        let url = self.url.trim_end_matches('/');
        let url = url.strip_suffix("/v1").unwrap_or(url);
        let parsed = reqwest::Url::parse(url).with_context(|| format!("--url {}: not a URL", self.url))?;
        match parsed.scheme() {
            "http" | "https" => Ok(url.to_owned()),
            other => bail!("--url {}: {other} is no scheme of a server; use http or https", self.url),
        }
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("must be a number over 0".to_owned()),
    }
}

fn json_object(text: &str) -> Result<JsonObject, String> {
    serde_json::from_str(text).map(JsonObject).map_err(|error| format!("must be a JSON object: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parse(words: &[&str]) -> Result<BenchArgs, clap::Error> {
        Line::try_parse_from(std::iter::once(&"bench").chain(words)).map(|line| line.args)
    }

    #[test]
    fn defaults_are_the_load_of_the_original() {
        let args = parse(&["--url", "http://h:1"]).unwrap();
        assert_eq!((args.isl, args.osl, args.requests, args.warmup, args.seed), (3000, 150, 300, 10, 123));
        assert_eq!(args.arrivals(), Arrivals::Concurrency(10));
        assert_eq!(args.slo(), Slo::default());
        assert_eq!(parse(&["--rate", "2.5"]).unwrap().arrivals(), Arrivals::Rate(2.5));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for line in [
            &["--rate", "0"][..],
            &["--rate", "nan"],
            &["--rate", "2", "--concurrency", "3"],
            &["--concurrency", "0"],
            &["--isl", "0"],
            &["--prefix-groups", "0"],
            &["--body", "[1]"],
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn urls_are_taken_with_and_without_v1() {
        let base = |url: &str| parse(&["--url", url]).unwrap().base_url();
        for url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
            assert_eq!(base(url).unwrap(), "http://h:1");
        }
        assert_eq!(base("http://h/path/v1").unwrap(), "http://h/path");
        assert_eq!(base("https://h/v1").unwrap(), "https://h");
        assert!(base("ftp://h").unwrap_err().to_string().contains("use http or https"));
        assert!(base("h:1").is_err());
        assert!(base("nothing").is_err());
    }
}
