//! A worker: loads a model, computes with it on one engine thread, and serves it over gRPC.
//!
//! Invariant of this crate: wire messages are checked and converted in [`convert`] and go no deeper; tokio ends at
//! the channels of the engine thread; only the landing registry writes KV that came from outside.

pub mod args;
pub mod backend;
pub mod convert;
pub mod engine_thread;
pub mod handoff;
mod http;
pub mod identity;
pub mod metrics;
pub mod model;
pub mod server;
pub mod service;
pub mod state;
pub mod transport;

use std::future::Future;
use std::io::Read;

use anyhow::Context;
use disagg_engine::KvLayout;
use tokio::sync::oneshot;

pub use args::WorkerArgs;
use args::{ArgsError, ModelConfig, PoolSize};
use backend::candle::CandleBackend;
use model::{LoadedModel, ModelCard, ModelSource};
use server::Server;

/// Runs a worker until `shutdown` resolves and its work is drained, or until it cannot go on.
pub async fn run(args: WorkerArgs, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let config = args.resolve()?;
    let parent_gone = config.exit_with_stdin.then(stdin_closed).transpose()?;
    let shutdown = async {
        match parent_gone {
            Some(parent_gone) => tokio::select! {
                () = shutdown => {}
                // Closed, or the thread that reads it is gone.
                _ = parent_gone => {}
            },
            None => shutdown.await,
        }
    };
    tokio::pin!(shutdown);

    let loading = tokio::task::spawn_blocking(move || load(&config.model));
    let (card, max_model_len, backend) = tokio::select! {
        loaded = loading => loaded.context("loading the model panicked")??,
        () = &mut shutdown => return Ok(()),
    };
    let role = config.serve.role;
    let name = config.serve.name.clone();
    let model = card.served_model_name.clone();
    let server = Server::bind(config.serve, card, max_model_len, backend).await?;
    let epoch = server.state().identity.epoch;
    tracing::info!(%name, %role, %epoch, model, max_model_len, listen = %server.grpc_address(), "worker is ready");
    server.run(shutdown).await?;
    tracing::info!(%name, "worker has ended");
    Ok(())
}

/// Reads the model and makes its backend. Blocks.
fn load(config: &ModelConfig) -> anyhow::Result<(ModelCard, u32, CandleBackend)> {
    if let Some(threads) = config.threads {
        // Fails if something has used the pool before, as tests may; the model then runs on the threads there are.
        if let Err(error) = rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global() {
            tracing::warn!(%error, "--threads has no effect");
        }
    }
    let source = ModelSource {
        path: config.folder.clone(),
        format: config.load_format,
        seed: config.seed,
        served_model_name: Some(config.served_model_name.clone()),
    };
    let LoadedModel { config: shapes, card, weights } = LoadedModel::load(&source)?;
    let max_model_len = max_model_len(config.max_model_len, card.max_model_len)?;
    let layout = CandleBackend::layout_of(&shapes, config.block_size);
    let blocks = num_blocks(config.pool, &layout)?;
    let backend = match config.device {
        args::Device::Auto | args::Device::Cpu => {
            CandleBackend::new(shapes, weights, config.block_size, blocks)?
        }
    };
    Ok((card, max_model_len, backend))
}

fn max_model_len(asked: Option<u32>, model: u32) -> Result<u32, ArgsError> {
    match asked {
        Some(asked) if asked > model => {
            let message = format!("{asked} given; the model allows at most {model}");
            Err(ArgsError::new("max-model-len", message))
        }
        Some(asked) => Ok(asked),
        None => Ok(model),
    }
}

fn num_blocks(pool: PoolSize, layout: &KvLayout) -> Result<u32, ArgsError> {
    let block_bytes = layout.block_bytes() as u64;
    match pool {
        PoolSize::Blocks(blocks) => Ok(blocks),
        PoolSize::Bytes(bytes) if bytes < block_bytes => {
            let message = format!("{bytes} bytes hold no block of {block_bytes} bytes");
            Err(ArgsError::new("kv-cache-bytes", message))
        }
        PoolSize::Bytes(bytes) => Ok(u32::try_from(bytes / block_bytes).unwrap_or(u32::MAX)),
    }
}

/// Resolves when standard input ends. Read on a thread of its own, which cannot keep the process alive.
fn stdin_closed() -> std::io::Result<oneshot::Receiver<()>> {
    let (closed, receiver) = oneshot::channel();
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut ignored = [0; 256];
        let mut stdin = std::io::stdin().lock();
        while matches!(stdin.read(&mut ignored), Ok(1..)) {}
        // Nobody waits for it once the worker has ended.
        let _ = closed.send(());
    })?;
    Ok(receiver)
}

/// Resolves on SIGTERM or Ctrl-C.
pub async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};

    // Without a handler the default action ends the process, which is what the signal asks for.
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
