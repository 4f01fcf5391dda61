//! Times KV blocks on their way between the GPU's pool and host memory, as the `tcp` transport reads and writes them:
//! the KV of 3000 tokens of the Llama-3.1-8B shape, layer by layer, in chunks of several sizes, on one thread and on four.
//!
//!     cargo run --profile ci -p disagg-worker --example cuda_transfer
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

#[path = "support/gpu.rs"]
mod gpu;
#[path = "support/shape.rs"]
mod shape;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use disagg_core::BlockId;
use disagg_engine::{Backend, KvMemory, KvStage};
use disagg_worker::cuda::backend::{CudaBackend, CudaOptions};
use disagg_worker::cuda::weights::Origin;
use disagg_worker::model::{DummyWeights, ModelSpec};
use disagg_worker::transport::stages;
use serde_json::json;

/// The KV of the 8B shape with little else: 32 layers, 8 KV heads of 128.
fn spec() -> ModelSpec {
    let changes = json!({
        "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8,
        "tie_word_embeddings": true,
    });
    shape::llama_8b(32, &changes)
}

fn main() -> ExitCode {
    if let Some(code) = gpu::missing() {
        return code;
    }
    let options = CudaOptions {
        ordinal: 0,
        max_num_batched_tokens: 1024,
        max_num_seqs: 8,
        max_model_len: 4096,
        gpu_memory_utilization: 0.3,
        num_blocks: Some(256),
        blocking_wait: false,
    };
    let backend = CudaBackend::new(spec(), Origin::Dummy(DummyWeights::new(1)), options).unwrap();
    let memory = backend.memory();
    let blocks: Vec<BlockId> = (0..47).map(|i| BlockId(i * 5 % 256)).collect();
    let bytes = blocks.len() * memory.layout().block_bytes();
    println!(
        "{} blocks of {} KiB a layer, {} MB in all",
        blocks.len(),
        memory.layout().layer_block_bytes() >> 10,
        bytes / 1_000_000
    );
    // At most the size of a stage.
    for chunk in [1, 4] {
        for threads in [1, 4] {
            let read = time(threads, &memory, |stage, layer| {
                blocks.chunks(chunk).for_each(|part| stage.read(layer, part).unwrap());
            });
            let written = time(threads, &memory, |stage, layer| {
                blocks.chunks(chunk).for_each(|part| stage.write(layer, part).unwrap());
            });
            let rate = |seconds: f64| bytes as f64 / seconds / 1e9;
            println!(
                "chunks of {chunk} blocks, {threads} threads: from the GPU {:.1} GB/s, to the GPU {:.1} GB/s",
                rate(read),
                rate(written)
            );
        }
    }
    ExitCode::SUCCESS
}

/// The fastest of five runs over all layers, in seconds.
fn time(threads: u32, memory: &Arc<dyn KvMemory>, layer: impl Fn(&mut dyn KvStage, u32) + Sync) -> f64 {
    let mut made: Vec<_> = (0..threads).map(|_| stages::make(memory).unwrap()).collect();
    let mut run = || {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for (stage, first) in made.iter_mut().zip(0..) {
                let layer = &layer;
                scope.spawn(move || {
                    (first..32).step_by(threads as usize).for_each(|n| layer(&mut **stage, n));
                });
            }
        });
        begun.elapsed().as_secs_f64()
    };
    (0..5).map(|_| run()).fold(f64::INFINITY, f64::min)
}
