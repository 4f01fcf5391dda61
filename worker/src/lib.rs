//! A worker: loads a model, computes with it on one engine thread, and serves it over gRPC.
//!
//! Invariant of this crate: wire messages are checked and converted in [`convert`], and what makes and reads them (services,
//! handoff drivers, transport) is all that sees their types; tokio ends at the channels of the engine thread; only the
//! landing registry writes KV that came from outside.

mod accept;
pub mod args;
pub mod backend;
pub mod convert;
pub mod cuda;
pub mod engine_thread;
mod failure;
pub mod handoff;
pub mod http;
pub mod https;
pub mod hub;
pub mod identity;
pub mod metrics;
pub mod model;
pub mod server;
pub mod service;
pub mod state;
pub mod transport;

use std::future::Future;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use disagg_core::Dtype;
use disagg_engine::Backend;
use tokio::sync::oneshot;

pub use args::WorkerArgs;
use args::{ArgsError, Device, EngineLimits, GpuWait, ModelConfig, PoolSize};
use backend::candle::{self, CandleBackend};
use backend::sim::{self, SimBackend};
use cuda::backend::{CudaBackend, CudaOptions};
use cuda::format::Format;
use cuda::weights::Origin;
pub use failure::failure;
use http::Probes;
use hub::{HubConfig, Lines, ModelRef};
use model::{LoadFormat, ModelCard, ModelSource, ModelSpec, OpenModel, WeightsChoice, WeightsSource, memory};
use server::Server;

/// KV pool of a CPU worker that was not told a size.
const CPU_POOL_BYTES: u64 = 512 << 20;

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

    let probes = match &config.metrics_listen {
        Some(address) => Some(Probes::listen(address).await?),
        None => None,
    };
    let limits = config.serve.limits;
    let folder = tokio::select! {
        folder = model_folder(&config.model) => folder?,
        () = &mut shutdown => return Ok(()),
    };
    let loading = tokio::task::spawn_blocking(move || load(&config.model, folder, limits));
    let (card, max_model_len, backend) = tokio::select! {
        loaded = loading => loaded.context("loading the model panicked")??,
        () = &mut shutdown => return Ok(()),
    };
    let role = config.serve.role;
    let name = config.serve.name.clone();
    let model = card.served_model_name.clone();
    let server = Server::bind(config.serve, card, max_model_len, backend, probes).await?;
    let epoch = server.state().identity.epoch;
    tracing::info!(%name, %role, %epoch, model, max_model_len, listen = %server.grpc_address(), "worker is ready");
    server.run(shutdown).await?;
    tracing::info!(%name, "worker has ended");
    Ok(())
}

/// The model's folder, downloaded or written first if need be.
async fn model_folder(config: &ModelConfig) -> anyhow::Result<PathBuf> {
    match &config.model {
        ModelRef::Folder(folder) => Ok(folder.clone()),
        ModelRef::BuiltIn(model) => {
            let model = *model;
            let write = move || model.write(&model::built_in::default_cache()?);
            let written = tokio::task::spawn_blocking(write).await.context("writing the model panicked")?;
            Ok(written
                .context("the model is part of disagg, but cannot be written into the cache folder")?
                .path)
        }
        ModelRef::Hub(model) => {
            let lines: Lines = Arc::new(|line| tracing::info!("{line}"));
            Ok(hub::fetch(model, config.load_format, &HubConfig::from_env()?, lines).await?)
        }
    }
}

/// Reads the model and makes its backend. Blocks.
fn load(
    config: &ModelConfig,
    folder: PathBuf,
    limits: EngineLimits,
) -> anyhow::Result<(ModelCard, u32, Box<dyn Backend>)> {
    if let Some(threads) = config.threads {
        // Fails if something has used the pool before, as tests may; the model then runs on the threads there are.
        if let Err(error) = rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global() {
            tracing::warn!(%error, "--threads has no effect");
        }
    }
    let gpu = choose_gpu(config.device)?;
    let source = ModelSource {
        path: folder,
        weights: match config.load_format {
            LoadFormat::Auto => WeightsChoice::Files,
            LoadFormat::Dummy => WeightsChoice::Dummy { seed: config.seed },
        },
        served_model_name: Some(config.served_model_name.clone()),
    };
    let OpenModel { spec, card, weights } = OpenModel::open(&source)?;
    let max_model_len = max_model_len(config.max_model_len, card.max_model_len())?;
    // `auto` must work wherever the CPU does; a GPU that was asked for by name says what it cannot do.
    let gpu = match cuda::check_config(&spec) {
        Err(why) if config.device == Device::Auto && gpu.is_some() => {
            tracing::info!(%why, "computing on the CPU");
            None
        }
        _ => gpu,
    };
    let computes = match gpu.map(|_| Format::of(&spec)) {
        None => Dtype::Float32,
        Some(Format::F16) => Dtype::Float16,
        Some(Format::Bf16) => Dtype::Bfloat16,
    };
    if let Some(problem) = args::dtype::problem(config.dtype, &[computes]) {
        return Err(ArgsError::new("dtype", problem).into());
    }
    if gpu.is_some()
        && let Some(problem) = args::dtype::kv_problem(config.kv_cache_dtype, &[computes])
    {
        return Err(ArgsError::new("kv-cache-dtype", problem).into());
    }
    let backend: Box<dyn Backend> = match (gpu, config.device) {
        (Some(ordinal), _) => Box::new(cuda_backend(config, limits, spec, &weights, max_model_len, ordinal)?),
        (None, Device::Sim(speed)) => Box::new(sim_backend(config, &spec, speed)?),
        (None, _) => Box::new(cpu_backend(config, &source.path, spec, &weights)?),
    };
    // The weights were hashed beside being loaded.
    let mut card = card.finish()?;
    if matches!(config.device, Device::Sim(_)) {
        card.fingerprint = sim::fingerprint(card.fingerprint);
    }
    Ok((card, max_model_len, backend))
}

/// The GPU to compute on; `None`: the CPU.
fn choose_gpu(device: Device) -> Result<Option<usize>, ArgsError> {
    match (device, cuda::available()) {
        (Device::Cpu | Device::Sim(_), _) => Ok(None),
        (Device::Auto, Ok(_)) => {
            tracing::info!("computing on the first GPU");
            Ok(Some(0))
        }
        (Device::Auto, Err(why)) => {
            tracing::info!(why, "computing on the CPU");
            Ok(None)
        }
        (Device::Cuda(ordinal), Ok(count)) if ordinal < count => Ok(Some(ordinal)),
        (Device::Cuda(ordinal), Ok(count)) => {
            let message = format!("there is no GPU {ordinal}; this process sees {count}, counted from 0");
            Err(ArgsError::new("device", message))
        }
        (device @ Device::Cuda(_), Err(why)) => {
            Err(ArgsError::new("device", format!("{device} cannot be used: {why}")))
        }
    }
}

fn cpu_backend(
    config: &ModelConfig,
    folder: &Path,
    spec: ModelSpec,
    weights: &WeightsSource,
) -> anyhow::Result<CandleBackend> {
    let dtype = args::dtype::kv_format(config.kv_cache_dtype, Dtype::Float32);
    let layout = CandleBackend::layout_of(&spec, config.block_size, dtype);
    let block_bytes = CandleBackend::block_bytes(&layout);
    let blocks = cpu_blocks(config.pool, block_bytes)?;
    let kv_bytes = u64::from(blocks).saturating_mul(block_bytes as u64);
    let weights = weights.tensors();
    memory::check_fits(&spec, weights, folder, kv_bytes, memory::available())?;
    let weights = candle::load_weights(&spec, weights)?;
    Ok(CandleBackend::new(spec, Arc::new(weights), layout, blocks)?)
}

fn sim_backend(config: &ModelConfig, spec: &ModelSpec, speed: sim::Speed) -> anyhow::Result<SimBackend> {
    let layout = SimBackend::layout_of(spec, config.block_size);
    let blocks = cpu_blocks(config.pool, layout.block_bytes())?;
    tracing::info!(%speed, blocks, "nothing is computed: the device is simulated, and answers are noise");
    Ok(SimBackend::new(spec, speed, config.block_size, blocks)?)
}

fn cuda_backend(
    config: &ModelConfig,
    limits: EngineLimits,
    spec: ModelSpec,
    weights: &WeightsSource,
    max_model_len: u32,
    ordinal: usize,
) -> anyhow::Result<CudaBackend> {
    if config.block_size != cuda::backend::BLOCK_SIZE {
        let message = format!("{} given; on a GPU it is {}", config.block_size, cuda::backend::BLOCK_SIZE);
        return Err(ArgsError::new("block-size", message).into());
    }
    let layout = CudaBackend::layout_of(&spec);
    let options = CudaOptions {
        ordinal,
        max_num_batched_tokens: limits.max_num_batched_tokens,
        max_num_seqs: limits.max_num_seqs,
        max_model_len,
        gpu_memory_utilization: config.gpu_memory_utilization,
        num_blocks: num_blocks(config.pool, layout.block_bytes())?,
        blocking_wait: config.gpu_wait == GpuWait::Sleep,
    };
    let origin = match weights {
        WeightsSource::Files(files) => Origin::Tensors(files),
        WeightsSource::Dummy(dummy) => Origin::Dummy(*dummy),
    };
    Ok(CudaBackend::new(spec, origin, options)?)
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

/// Blocks that were asked for; `None`: the backend decides.
fn num_blocks(pool: PoolSize, block_bytes: usize) -> Result<Option<u32>, ArgsError> {
    match pool {
        PoolSize::Blocks(blocks) => Ok(Some(blocks)),
        PoolSize::Bytes(bytes) => num_blocks_in(bytes, block_bytes).map(Some),
        PoolSize::Default => Ok(None),
    }
}

/// Blocks of a pool in main memory.
fn cpu_blocks(pool: PoolSize, block_bytes: usize) -> Result<u32, ArgsError> {
    num_blocks(pool, block_bytes)?.map_or_else(|| num_blocks_in(CPU_POOL_BYTES, block_bytes), Ok)
}

fn num_blocks_in(bytes: u64, block_bytes: usize) -> Result<u32, ArgsError> {
    let block_bytes = block_bytes as u64;
    if bytes < block_bytes {
        let message = format!("{bytes} bytes hold no block of {block_bytes} bytes");
        return Err(ArgsError::new("kv-cache-bytes", message));
    }
    Ok(u32::try_from(bytes / block_bytes).unwrap_or(u32::MAX))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_is_asked_for_and_missing_is_one_clear_error() {
        let asked = choose_gpu(Device::Cuda(1000)).expect_err("no machine has so many").to_string();
        match cuda::available() {
            Ok(count) => assert_eq!(
                asked,
                format!("--device: there is no GPU 1000; this process sees {count}, counted from 0")
            ),
            Err(why) => {
                assert_eq!(asked, format!("--device: cuda:1000 cannot be used: {why}"));
                assert_eq!(choose_gpu(Device::Auto), Ok(None));
            }
        }
        assert_eq!(choose_gpu(Device::Cpu), Ok(None));
    }
}
