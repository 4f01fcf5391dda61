//! Serves a model with one prefill and one decode worker behind a router and measures what a client sees, with every
//! prompt prefilled locally and then with every prompt prefilled remotely. `make bench` runs it against a release build.
//!
//! `DISAGG_BENCH_MODEL` names another model folder than the small one made on the spot; `DISAGG_BENCH_ISL`,
//! `DISAGG_BENCH_OSL` and `DISAGG_BENCH_REQUESTS` set prompt length, output length and requests of each row.

#![allow(clippy::print_stdout)] // the table is the product

use std::path::PathBuf;
use std::time::Duration;

use disagg_e2e::deployment::MODEL;
use disagg_e2e::router::PlacementHeader;
use disagg_e2e::sse::SseBody;
use disagg_e2e::{Plan, Router};
use futures::StreamExt;
use serde_json::json;
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_mins(10);

/// Lengths and count of the requests of one row.
#[derive(Clone, Copy, Debug)]
struct Load {
    input_tokens: usize,
    output_tokens: usize,
    requests: usize,
}

/// Times of one request, in seconds.
struct Sample {
    ttft: f64,
    itl: Vec<f64>,
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, which is no whole number"))
    })
}

/// Nearest-rank percentile, in milliseconds.
fn percentile_ms(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values.get(rank - 1).map_or(f64::NAN, |seconds| seconds * 1e3)
}

async fn request(router: &Router, load: Load, number: usize, remote: bool) -> Sample {
    // Token ids that differ from the first on, so that no prefix is ever found.
    let prompt: Vec<u32> =
        (0..load.input_tokens).map(|i| 3 + ((number * 131 + i * 7) % 240) as u32).collect();
    let body = json!({
        "model": MODEL, "prompt": prompt, "max_tokens": load.output_tokens, "ignore_eos": true, "temperature": 0,
        "stream": true, "cache_salt": number.to_string(),
    });
    let start = Instant::now();
    let response = router.post("/v1/completions", &body).await;
    assert_eq!(response.status(), 200);
    assert_eq!(PlacementHeader::of(&response).remote, remote, "every prompt goes the way of its row");
    let times: Vec<_> = SseBody::new(response).collect(LIMIT).await.into_iter().map(|(at, _)| at).collect();
    Sample {
        ttft: (times[0] - start).as_secs_f64(),
        itl: times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect(),
    }
}

async fn row(model: &std::path::Path, load: Load, remote: bool, concurrency: usize) {
    let threshold = if remote { "0" } else { "10000000" };
    let plan =
        Plan::of(model).router(["--max-local-prefill-length", threshold, "--max-prefill-queue-depth", "64"]);
    let deployment = plan.start().await;
    let router = deployment.router();
    // Warm-up: connections, page faults of the weights.
    request(router, load, usize::MAX / 1024, remote).await;

    let start = Instant::now();
    let samples: Vec<Sample> = futures::stream::iter(0..load.requests)
        .map(|number| request(router, load, number, remote))
        .buffer_unordered(concurrency)
        .collect()
        .await;
    let seconds = start.elapsed().as_secs_f64();
    let mut ttft: Vec<f64> = samples.iter().map(|sample| sample.ttft).collect();
    let mut itl: Vec<f64> = samples.into_iter().flat_map(|sample| sample.itl).collect();
    println!(
        "{:9} {concurrency:>11} {:>9.1} {:>9.1} {:>9.2} {:>9.2} {:>9.2} {:>11.1}",
        if remote { "remote" } else { "local" },
        percentile_ms(&mut ttft, 50),
        percentile_ms(&mut ttft, 99),
        percentile_ms(&mut itl, 50),
        percentile_ms(&mut itl, 99),
        load.requests as f64 / seconds,
        (load.requests * load.output_tokens) as f64 / seconds,
    );
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = std::env::var_os("DISAGG_BENCH_MODEL").map_or_else(
        || {
            disagg_worker::model::tiny::write(folder.path(), 7).expect("a small model");
            folder.path().to_owned()
        },
        PathBuf::from,
    );
    let load = Load {
        input_tokens: number("DISAGG_BENCH_ISL", 1000),
        output_tokens: number("DISAGG_BENCH_OSL", 64),
        requests: number("DISAGG_BENCH_REQUESTS", 16),
    };
    println!("{load:?}, one prefill and one decode worker with one thread each, {} cores", num_cores());
    println!(
        "placement concurrency  TTFT p50  TTFT p99   ITL p50   ITL p99     req/s    tokens/s   (times in ms)"
    );
    for concurrency in [1, 4] {
        for remote in [false, true] {
            row(&model, load, remote, concurrency).await;
        }
    }
}

fn num_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
