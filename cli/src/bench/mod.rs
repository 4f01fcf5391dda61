//! `disagg bench`: a load with synthetic prompts against any OpenAI-compatible server, and what a client sees of it.

mod args;
mod calibrate;
mod client;
mod load;
mod measure;
mod progress;
mod prompts;
mod random;
mod report;
mod sse;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use disagg_worker::https;

use crate::console;
pub(crate) use args::BenchArgs;
use client::{Dialect, Server};
use load::Sample;
use measure::Summary;
use progress::Progress;
use prompts::{Prompts, Purpose, Shape};
use report::{Load, Report};

pub(crate) async fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let mut server = connect(args).await?;
    let notes = calibrate::learn_dialect(&mut server).await?;
    let costs = calibrate::learn_costs(&server).await?;
    let shape = Shape {
        tokens: args.isl,
        shared_prefix_tokens: args.shared_prefix_tokens,
        prefix_groups: args.prefix_groups,
        seed: args.seed,
    };
    let load = Load::new(args, &server.base, &server.model);
    let run = Run { prompts: Arc::new(Prompts::new(costs, shape)?), server: Arc::new(server) };
    if args.warmup > 0 {
        let samples = run.phase(args, Purpose::Warmup, args.warmup).await;
        let failures: Vec<_> = samples.into_iter().filter_map(|sample| sample.result.err()).collect();
        if let Some(failure) = failures.first() {
            bail!("{} of {} requests of the warm-up failed; {failure}", failures.len(), args.warmup);
        }
    }
    let samples = run.phase(args, Purpose::Measured, args.requests).await;
    let summary = Summary::of(&samples, args.slo());
    let failed = summary.failed;
    publish(&Report::new(load, summary, notes), args.json.as_deref())?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether others see what is sent there.
fn is_readable_on_the_way(base: &str) -> bool {
    reqwest::Url::parse(base).is_ok_and(|url| url.scheme() == "http" && !https::is_loopback(&url))
}

/// The server and the model that the load is for, checked as far as that can be done beforehand.
async fn connect(args: &BenchArgs) -> anyhow::Result<Server> {
    let base = args.base_url()?;
    if args.api_key.is_some() && is_readable_on_the_way(&base) {
        console::note(&format!("{base} is not encrypted: the API key can be read on the way there"));
    }
    let http = https::client_builder(&base)
        .connect_timeout(std::time::Duration::from_secs(10))
        .pool_max_idle_per_host(usize::MAX)
        .tcp_nodelay(true)
        .build()
        .with_context(|| format!("cannot make an HTTP client for {base}"))?;
    let mut server = Server {
        http,
        base,
        api_key: args.api_key.clone(),
        model: args.model.clone().unwrap_or_default(),
        endpoint: args.endpoint,
        timeout: args.request_timeout(),
        more: args.more_fields(),
        dialect: Dialect { limit: "max_tokens", min_tokens: true, ignore_eos: true, stream_usage: true },
    };
    let models = server.models().await?;
    let model = match &args.model {
        // A server may list names other than those it serves.
        Some(name) => models.into_iter().find(|model| model.id == *name),
        None => Some(models.into_iter().next().context("the server lists no model; name one with --model")?),
    };
    if let Some(model) = model {
        let tokens = u64::from(args.isl) + u64::from(args.osl);
        if let Some(max) = model.max_model_len.filter(|&max| max < tokens) {
            bail!(
                "--isl {} and --osl {} make {tokens} tokens, but {} has room for {max}",
                args.isl,
                args.osl,
                model.id
            );
        }
        server.model = model.id;
    }
    Ok(server)
}

/// What all requests need.
#[derive(Clone)]
struct Run {
    server: Arc<Server>,
    prompts: Arc<Prompts>,
}

impl Run {
    /// Sends `count` requests and waits for all.
    async fn phase(&self, args: &BenchArgs, purpose: Purpose, count: u32) -> Vec<Sample> {
        let progress = Arc::new(Progress::default());
        let (run, following, osl) = (self.clone(), Arc::clone(&progress), args.osl);
        let send = move |number| {
            let (run, progress) = (run.clone(), Arc::clone(&following));
            // Made before the clock starts.
            let prompt = run.prompts.prompt(purpose, number);
            async move { progress.follow(run.server.stream(&prompt, osl)).await }
        };
        let name = match purpose {
            Purpose::Warmup => "warm-up",
            Purpose::Measured => "measured",
        };
        progress::shown(&progress, name, count, load::drive(args.arrivals(), args.seed, count, send)).await
    }
}

/// The table on standard output; with `--json -` the JSON there and the table on standard error.
fn publish(report: &Report, json: Option<&Path>) -> anyhow::Result<()> {
    match json {
        Some(path) if path == Path::new("-") => {
            console::inform(&report.table());
            console::print(&report.json()?);
        }
        Some(path) => {
            console::print(&report.table());
            std::fs::write(path, report.json()?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        None => console::print(&report.table()),
    }
    Ok(())
}
