//! Times the CPU backend on a model's files: loading, the prefill of one prompt in one step, and decode steps behind it.
//! Prints one line of JSON, with the fastest of several runs of each; `bench/cpu/beside_transformers.py` makes the files
//! and puts transformers' figures beside these.
//!
//!     cargo run --profile ci -p disagg-worker --example cpu_steps FOLDER [TOKENS] [RUNS]
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use disagg_core::BlockId;
use disagg_engine::{Backend, Batch, KvDtype, NoTransport, SampleRow, SamplingParams, TokenInput};
use disagg_worker::backend::candle::{CandleBackend, load_weights};
use disagg_worker::model::{ModelSpec, SafetensorsFolder};

const BLOCK_SIZE: u32 = 16;

/// Decode steps of a run.
const STEPS: u32 = 16;

fn main() {
    // As a worker does.
    disagg_process::malloc::set_up();
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().unwrap());
    let tokens: u32 = args.next().map_or(512, |tokens| tokens.parse().unwrap());
    let runs: u32 = args.next().map_or(5, |runs| runs.parse().unwrap());

    let spec = ModelSpec::read(&folder).unwrap();
    let start = Instant::now();
    let weights = Arc::new(load_weights(&spec, &SafetensorsFolder::open(&folder).unwrap()).unwrap());
    let layout = CandleBackend::layout_of(&spec, BLOCK_SIZE, KvDtype::F32);
    let blocks = (tokens + STEPS).div_ceil(BLOCK_SIZE);
    let mut backend = CandleBackend::new(spec, weights, layout, blocks).unwrap();
    let load = start.elapsed().as_secs_f64();
    let (rss, peak) = (status_mib("VmRSS:"), status_mib("VmHWM:"));

    let mut best = (f64::INFINITY, f64::INFINITY);
    for _ in 0..runs {
        let start = Instant::now();
        let mut history: Vec<u32> = (0..tokens).map(|token| token * 7919 % 50_000).collect();
        history.push(step(&mut backend, &history, 0));
        best.0 = best.0.min(start.elapsed().as_secs_f64());
        for _ in 0..STEPS {
            let start = Instant::now();
            let next = step(&mut backend, &history, history.len() - 1);
            best.1 = best.1.min(start.elapsed().as_secs_f64());
            history.push(next);
        }
    }
    println!(
        "{{\"load_s\": {load:.2}, \"rss_mib\": {rss}, \"peak_mib\": {peak}, \"threads\": {}, \
         \"prefill_tokens_per_s\": {:.1}, \"decode_tokens_per_s\": {:.2}}}",
        rayon::current_num_threads(),
        f64::from(tokens) / best.0,
        1.0 / best.1,
    );
}

/// Computes `history[from..]` behind what is in the pool, and gives the token that follows.
fn step(backend: &mut CandleBackend, history: &[u32], from: usize) -> u32 {
    let inputs: Vec<TokenInput> = history[from..].iter().map(|&id| TokenInput::Id(id)).collect();
    // Blocks lie in the pool in the sequence's order, so a token's slot is its position.
    let positions: Vec<u32> = (from as u32..history.len() as u32).collect();
    let table: Vec<BlockId> = (0..(history.len() as u32).div_ceil(BLOCK_SIZE)).map(BlockId).collect();
    let params = SamplingParams::greedy();
    let sample = SampleRow {
        row: 0,
        params: &params,
        choices: 0..1,
        position: history.len() as u32,
        history,
        prompt_len: history.len(),
        forbidden: &[],
    };
    let batch = Batch {
        input_ids: &inputs,
        positions: &positions,
        cu_seqlens: &[0, inputs.len() as u32],
        slot_mapping: &positions,
        block_tables: &[&table],
        samples: &[sample],
        pushes: &[],
    };
    backend.launch(&batch, &mut NoTransport).unwrap();
    backend.collect(&mut NoTransport).unwrap()[0][0].token
}

/// A line of this process's status, in MiB.
fn status_mib(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}
