//! What lies between the decode steps of a whole engine: the share of time in which the GPU computes nothing, and what a
//! step costs the host. Dummy weights of the Llama-3.1-8B shape; a step's tokens feed the next one, as when serving.
//!
//!     cargo run --profile ci -p disagg-worker --example cuda_idle
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

#[path = "support/gpu.rs"]
mod gpu;
#[path = "support/shape.rs"]
mod shape;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use disagg_core::ModelFingerprint;
use disagg_engine::{Engine, EngineConfig, EngineEvent, NoTransport, Request, SamplingParams, StopRules};
use disagg_worker::cuda::backend::{CudaBackend, CudaOptions, StepTimes};
use disagg_worker::cuda::weights::Origin;
use disagg_worker::model::DummyWeights;
use parking_lot::Mutex;
use serde_json::json;

const CONTEXT: u32 = 500;
const OUTPUT: u32 = 200;
const SEQUENCES: u32 = 64;

fn main() -> ExitCode {
    if let Some(code) = gpu::missing() {
        return code;
    }
    for blocking_wait in [false, true] {
        let options = CudaOptions {
            ordinal: 0,
            max_num_batched_tokens: 8192,
            max_num_seqs: SEQUENCES,
            max_model_len: 1024,
            gpu_memory_utilization: 0.9,
            num_blocks: Some(SEQUENCES * 1024 / 64),
            blocking_wait,
        };
        let origin = Origin::Dummy(DummyWeights::new(1));
        let mut backend = CudaBackend::new(shape::llama_8b(32, &json!({})), origin, options).unwrap();
        let times = backend.time_steps();
        let config = EngineConfig {
            fingerprint: ModelFingerprint(1),
            max_model_len: 1024,
            max_num_seqs: SEQUENCES,
            max_num_batched_tokens: 8192,
            max_waiting: SEQUENCES,
            max_prefill_queue: 1,
            enable_chunked_prefill: true,
            enable_prefix_caching: false,
        };
        let mut engine = Engine::new(config, backend).unwrap();
        let wait = if blocking_wait { "sleep" } else { "spin" };
        for rows in [1, 10, SEQUENCES] {
            measure(&mut engine, &times, rows, wait);
        }
    }
    ExitCode::SUCCESS
}

fn measure(engine: &mut Engine<CudaBackend>, times: &Arc<Mutex<StepTimes>>, rows: u32, wait: &str) {
    let stop = StopRules {
        max_tokens: OUTPUT,
        min_tokens: 0,
        eos_token_ids: Vec::new(),
        stop_token_ids: Vec::new(),
        ignore_eos: true,
    };
    for row in 0..rows {
        let prompt = (0..CONTEXT).map(|i| (i * 7919 + row * 31) % 128_000).collect();
        let sampling = SamplingParams::greedy();
        let (cache_salt, stop) = (String::new(), stop.clone());
        engine.submit(Request { prompt, cache_salt, sampling, stop, choices: 1 }).unwrap();
    }
    // Prompts, the recording of the graph, and some steps more.
    let mut tokens = 0;
    let mut step = |engine: &mut Engine<CudaBackend>| {
        engine.step(&mut NoTransport).unwrap();
        for event in engine.take_events() {
            if let EngineEvent::Tokens { .. } = event {
                tokens += 1;
            }
        }
        tokens
    };
    while step(engine) < rows * 20 {}
    let (before, cpu, begun) = (*times.lock(), thread_cpu_ms(), Instant::now());
    while step(engine) < rows * (OUTPUT - 20) {}
    let (after, wall, cpu) = (*times.lock(), begun.elapsed(), thread_cpu_ms() - cpu);
    while engine.has_work() {
        step(engine);
    }
    let steps = f64::from(after.steps - before.steps);
    let (busy, idle) = ((after.busy_ms - before.busy_ms) / steps, (after.idle_ms - before.idle_ms) / steps);
    println!(
        "{wait}, batch {rows}, context {CONTEXT} to {}: {:.3} ms a step, GPU busy {busy:.3} ms, idle {:.1} us \
         ({:.2} %); thread {:.3} ms of CPU a step",
        CONTEXT + OUTPUT,
        wall.as_secs_f64() * 1e3 / steps,
        idle * 1e3,
        100.0 * idle / (busy + idle),
        cpu / steps,
    );
}

/// CPU time of this thread so far, in milliseconds.
fn thread_cpu_ms() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6
}
