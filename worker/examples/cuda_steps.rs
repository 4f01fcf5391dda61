//! Times single steps of the CUDA forward pass with dummy weights of the Llama-3.1-8B shape.
//!
//!     cargo run --profile ci -p disagg-worker --example cuda_steps              # the table
//!     .../cuda_steps decode                                                    # decode steps alone
//!     ncu --metrics gpu__time_duration.sum .../cuda_steps profile               # time by kernel: two layers, no graphs
#![allow(unsafe_code, clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::time::Instant;

use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use disagg_worker::cuda::compile::{Target, compile_ahead};
use disagg_worker::cuda::device::{Buffer, Device};
use disagg_worker::cuda::forward::{Capacity, Model};
use disagg_worker::cuda::lists::Draw;
use disagg_worker::cuda::step::Step;
use disagg_worker::cuda::weights::{Origin, Weights};
use disagg_worker::model::{DummyWeights, Family, ModelConfig, RopeScaling};

fn config(layers: usize) -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        vocab_size: 128_256,
        hidden_size: 4096,
        intermediate_size: 14336,
        num_layers: layers,
        num_heads: 32,
        num_kv_heads: 8,
        head_dim: 128,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: false,
        qkv_bias: false,
        attention_output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        max_model_len: 20_000,
    }
}

struct Inputs {
    words: Vec<u32>,
    device: Buffer<u32>,
}

impl Inputs {
    fn push(&mut self, values: impl IntoIterator<Item = u32>) -> u64 {
        let at = self.words.len();
        self.words.extend(values);
        self.words.resize(self.words.len().next_multiple_of(8), 0);
        self.device.at(at)
    }

    /// Greedy draws with log-probabilities, nothing adjusted.
    fn greedy(&mut self, rows: u32) -> (u64, u64, u64) {
        let draw = |row| [row, 0, 0, 1_f32.to_bits(), 0, Draw::ACTIVE | Draw::LOGPROB, 0, 0];
        let draws = self.push((0..rows).flat_map(draw));
        let raw = self.push((0..rows).flat_map(|row| [row, 0]));
        let none = self.push([0]);
        (draws, raw, none)
    }

    fn send(&self, device: &Device) {
        unsafe {
            cudarc::driver::result::memcpy_htod_async(
                self.device.address(),
                &self.words,
                device.stream.cu_stream(),
            )
            .unwrap();
        }
        device.synchronize().unwrap();
    }
}

/// One sequence's chunk: tokens `start..start + len`, blocks from `first_block`.
fn prefill(inputs: &mut Inputs, start: u32, ids: &[u32], first_block: u32, stride: u32) -> Step {
    inputs.words.clear();
    let len = ids.len() as u32;
    let ids = inputs.push(ids.iter().copied());
    let positions = inputs.push(start..start + len);
    let slots = inputs.push(
        (start..start + len).map(|p| (first_block * 64 + p) | if p + 1 == start + len { 1 << 31 } else { 0 }),
    );
    let mut tiles: Vec<[u32; 4]> = (0..len).step_by(128).map(|q| [0, q, q, start + q]).collect();
    tiles.reverse();
    let tile_list = inputs.push(tiles.iter().flatten().copied());
    let row_lens = inputs.push([len]);
    let prefill_tables = inputs.push((0..stride).map(|b| first_block + b));
    let sample_rows = inputs.push([len - 1]);
    let (draw_list, raw_list, adjust_count) = inputs.greedy(1);
    Step {
        tokens: len,
        ids,
        positions,
        slots,
        tiles: tiles.len() as u32,
        tile_list,
        row_lens,
        prefill_tables,
        table_stride: stride,
        samples: 1,
        sample_rows,
        draws: 1,
        draw_list,
        raw_list,
        adjust_count,
        ..Step::default()
    }
}

fn decode(inputs: &mut Inputs, rows: u32, context: u32, stride: u32) -> Step {
    inputs.words.clear();
    let ids = inputs.push((0..rows).map(|r| (r * 7919 + 11) % 128_000));
    let positions = inputs.push((0..rows).map(|_| context - 1));
    let slots = inputs.push((0..rows).map(|r| r * stride * 64 + context - 1));
    let q_rows = inputs.push(0..rows);
    let context_lens = inputs.push((0..rows).map(|_| context));
    let decode_tables = inputs.push(0..rows * stride);
    let sample_rows = inputs.push(0..rows);
    let (draw_list, raw_list, adjust_count) = inputs.greedy(rows);
    Step {
        tokens: rows,
        ids,
        positions,
        slots,
        decode_rows: rows,
        q_rows,
        context_lens,
        decode_tables,
        table_stride: stride,
        samples: rows,
        sample_rows,
        draws: rows,
        draw_list,
        raw_list,
        adjust_count,
        ..Step::default()
    }
}

fn median(mut times: Vec<f32>) -> f32 {
    times.sort_by(f32::total_cmp);
    times[times.len() / 2]
}

fn sampled(model: &Model, n: usize) -> Vec<(u32, f32)> {
    let (mut tokens, mut logprobs) = (vec![0_u32; n], vec![0_f32; n]);
    model.device.synchronize().unwrap();
    unsafe {
        cudarc::driver::result::memcpy_dtoh_sync(&mut tokens, model.sampled.address()).unwrap();
        cudarc::driver::result::memcpy_dtoh_sync(&mut logprobs, model.logprobs.address()).unwrap();
    }
    tokens.into_iter().zip(logprobs).collect()
}

/// Every kernel of a prefill of 3000 tokens and of decode steps of 1, 10 and 64 sequences once, for a profiler.
fn profile(model: &mut Model, inputs: &mut Inputs, stride: u32) {
    let ids: Vec<u32> = (0..3000).map(|i| (i * 7919) % 128_000).collect();
    let step = prefill(inputs, 0, &ids, 0, stride);
    run(model, inputs, &step);
    for rows in [1, 10, 64] {
        let step = decode(inputs, rows, 3000, 48);
        run(model, inputs, &step);
    }
}

fn run(model: &mut Model, inputs: &Inputs, step: &Step) {
    inputs.send(&model.device);
    model.step(step, |_, _| Ok(())).unwrap();
    model.device.synchronize().unwrap();
}

fn main() {
    let mode = std::env::args().nth(1);
    let profiling = mode.as_deref() == Some("profile");
    let started = Instant::now();
    let device = Device::open(0).unwrap();
    println!("GPU {} capability {:?}", device.context.name().unwrap(), device.capability);
    let target = Target { capability: device.capability, head_dim: 128, block_size: 64 };
    compile_ahead(&target);
    println!("kernels at {:.2} s", started.elapsed().as_secs_f32());
    let config = config(if profiling { 2 } else { 32 });
    let origin = Origin::Dummy(DummyWeights::new(1));
    let weights = Weights::load(&device, &config, &target, origin).unwrap();
    println!("weights at {:.2} s", started.elapsed().as_secs_f32());
    let stride = 258;
    let capacity =
        Capacity { tokens: 16_384, sequences: 256, draws: 256, model_len: 20_000, blocks: 64 * 48 };
    let mut model = Model::new(device, config, weights, &target, capacity).unwrap();
    model.device.synchronize().unwrap();
    println!("model at {:.2} s", started.elapsed().as_secs_f32());
    let mut inputs = Inputs { words: Vec::new(), device: model.device.buffer(1 << 22).unwrap() };
    if profiling {
        profile(&mut model, &mut inputs, stride);
        return;
    }

    // The same 300 tokens whole, in chunks, and token by token must agree.
    let prompt: Vec<u32> = (0..300_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) % 128_000).collect();
    let step = prefill(&mut inputs, 0, &prompt, 0, stride);
    inputs.send(&model.device);
    model.step(&step, |_, _| Ok(())).unwrap();
    let whole = sampled(&model, 1);
    for (start, end) in [(0, 100), (100, 164), (164, 300)] {
        let step = prefill(&mut inputs, start as u32, &prompt[start..end], 300, stride);
        inputs.send(&model.device);
        model.step(&step, |_, _| Ok(())).unwrap();
    }
    let chunked = sampled(&model, 1);
    let step = prefill(&mut inputs, 0, &prompt[..290], 600, stride);
    inputs.send(&model.device);
    model.step(&step, |_, _| Ok(())).unwrap();
    for position in 290..300_u32 {
        let mut step = decode(&mut inputs, 1, position + 1, stride);
        inputs.words.clear();
        step.ids = inputs.push([prompt[position as usize]]);
        step.positions = inputs.push([position]);
        step.slots = inputs.push([600 * 64 + position]);
        step.q_rows = inputs.push([0]);
        step.context_lens = inputs.push([position + 1]);
        step.decode_tables = inputs.push(600..600 + stride);
        step.sample_rows = inputs.push([0]);
        (step.draw_list, step.raw_list, step.adjust_count) = inputs.greedy(1);
        inputs.send(&model.device);
        model.step(&step, |_, _| Ok(())).unwrap();
    }
    let decoded = sampled(&model, 1);
    println!("whole {whole:?} chunked {chunked:?} decoded {decoded:?}");

    let flush = model.device.buffer::<u8>(256 << 20).unwrap();
    let tuning = Instant::now();
    for rows in [1, 2, 4, 8, 10, 16, 32, 64] {
        model.tune_head(rows, &flush).unwrap();
    }
    println!("head tuned for 8 batch sizes in {:.2} s", tuning.elapsed().as_secs_f32());

    if mode.as_deref() == Some("decode") {
        time_decode(&mut model, &mut inputs, "own products");
        return;
    }
    time_prefill(&mut model, &mut inputs, stride, "first choice of algorithm");
    let tuning = Instant::now();
    for tokens in [128, 1000, 2048, 3000, 8192, 16_384] {
        model.tune(tokens, &flush).unwrap();
    }
    println!("products tuned for 6 lengths in {:.2} s", tuning.elapsed().as_secs_f32());
    time_prefill(&mut model, &mut inputs, stride, "timed choice");

    time_decode(&mut model, &mut inputs, "own products");
    model.without_decode_chain();
    let tuning = Instant::now();
    for rows in [1, 2, 4, 8, 10, 16, 32, 64] {
        model.tune(rows, &flush).unwrap();
    }
    println!("products tuned for 8 batch sizes in {:.2} s", tuning.elapsed().as_secs_f32());
    time_decode(&mut model, &mut inputs, "cublasLt");
    model.blas.save();
}

fn time_prefill(model: &mut Model, inputs: &mut Inputs, stride: u32, what: &str) {
    for len in [128_u32, 1000, 2048, 3000, 8192, 16_384] {
        let ids: Vec<u32> = (0..len).map(|i| (i * 7919) % 128_000).collect();
        let step = prefill(inputs, 0, &ids, 0, stride);
        inputs.send(&model.device);
        let times = (0..8)
            .map(|_| {
                let a = model.device.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
                model.step(&step, |_, _| Ok(())).unwrap();
                let b = model.device.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
                a.elapsed_ms(&b).unwrap()
            })
            .skip(1)
            .collect();
        println!("prefill {len}, {what}: {:.2} ms", median(times));
    }
}

fn time_decode(model: &mut Model, inputs: &mut Inputs, what: &str) {
    for context in [64_u32, 3000] {
        for rows in [1_u32, 2, 4, 8, 10, 16, 32, 64] {
            let step = decode(inputs, rows, context, 48);
            inputs.send(&model.device);
            model.step(&step, |_, _| Ok(())).unwrap();
            let eager = sampled(model, rows as usize);
            model
                .device
                .stream
                .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
                .unwrap();
            model.step(&step, |_, _| Ok(())).unwrap();
            let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            let graph = model.device.stream.end_capture(flags).unwrap().unwrap();
            let times = (0..22)
                .map(|_| {
                    let a = model.device.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
                    graph.launch().unwrap();
                    let b = model.device.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
                    a.elapsed_ms(&b).unwrap()
                })
                .skip(2)
                .collect();
            // A step writes the same keys and values again, so it has to draw the same tokens every time.
            assert_eq!(sampled(model, rows as usize), eager, "replays differ from the first run");
            println!("decode context {context} batch {rows}, {what}: {:.3} ms", median(times));
        }
    }
}
