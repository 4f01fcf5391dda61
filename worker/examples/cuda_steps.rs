//! Times single steps of the CUDA forward pass with dummy weights of the Llama-3.1-8B shape.
//!
//!     cargo run --profile ci -p disagg-worker --example cuda_steps              # the table
//!     .../cuda_steps decode                                                    # decode steps alone
//!     .../cuda_steps f16                                                       # the table, in f16 instead of bf16
//!     ncu --metrics gpu__time_duration.sum .../cuda_steps profile               # time by kernel: two layers, no graphs
#![allow(unsafe_code, clippy::print_stdout, clippy::unwrap_used, missing_docs)]

#[path = "support/gpu.rs"]
mod gpu;
#[path = "support/shape.rs"]
mod shape;

use std::process::ExitCode;
use std::time::Instant;

use cudarc::driver::sys::CUevent_flags;
use disagg_worker::cuda::blas::Shape;
use disagg_worker::cuda::compile::{Target, compile_ahead};
use disagg_worker::cuda::device::{Buffer, Device};
use disagg_worker::cuda::format::Format;
use disagg_worker::cuda::forward::{Capacity, DecodeForm, Model};
use disagg_worker::cuda::lists::Draw;
use disagg_worker::cuda::step::Step;
use disagg_worker::cuda::weights::{Origin, load_weights};
use disagg_worker::model::{DummyWeights, ModelSpec};
use serde_json::json;

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

/// Runs of one measurement; the first are a warm-up.
const RUNS: usize = 22;
const WARM: usize = 2;
const BATCHES: [u32; 8] = [1, 2, 4, 8, 10, 16, 32, 64];
const CONTEXTS: [u32; 2] = [64, 3000];

/// What this card can do, measured in this process: everything is given beside it.
struct Card {
    /// Bytes read and written by a copy on the device, in a millisecond.
    copy: f64,
    /// Operations of a product 8192³ through cublasLt, in a millisecond.
    flops: f64,
}

impl Card {
    fn measure(model: &mut Model, flush: &Buffer<u8>) -> Self {
        const SIDE: u32 = 8192;
        let device = &model.device;
        let (from, to) = (device.buffer::<u8>(1 << 30).unwrap(), device.buffer::<u8>(1 << 30).unwrap());
        let copy = time(model, |model| unsafe {
            cudarc::driver::result::memcpy_dtod_async(
                to.address(),
                from.address(),
                1 << 30,
                model.device.stream.cu_stream(),
            )
            .unwrap();
        });
        drop((from, to));
        // Some of the embedding, so random numbers.
        let (x, w) = (model.some_weights(), model.some_weights() + u64::from(SIDE) * u64::from(SIDE) * 2);
        let out = model.device.buffer::<u16>((SIDE * SIDE) as usize).unwrap();
        let square = Shape { m: SIDE, n: SIDE, k: SIDE, bias: false, float_out: false, accumulate: false };
        let device = &model.device;
        model.blas.tune(device, square, w, 0, x, out.address(), flush).unwrap();
        let product = time(model, |model| {
            model.blas.multiply(&model.device, square, w, 0, x, out.address()).unwrap();
        });
        let card = Self {
            copy: 2.0 * f64::from(1 << 30) / f64::from(copy),
            flops: 2.0 * f64::from(SIDE).powi(3) / f64::from(product),
        };
        println!("copy {:.2} TB/s, product 8192³ {:.0} TFLOP/s", card.copy / 1e9, card.flops / 1e9);
        card
    }

    /// Weights, and keys and values of the contexts, at the speed of a copy.
    fn decode_limit(&self, spec: &ModelSpec, rows: u32, context: u32) -> f64 {
        let embedding = (spec.vocab_size * spec.hidden_size) as u64;
        let weights = 2 * (spec.parameters() - embedding);
        let kv = 4 * (spec.layers.len() * spec.kv_size()) as u64 * u64::from(rows * context);
        (weights + kv) as f64 / self.copy
    }

    /// Products of every token, and attention over the tokens before it, at the speed of a large product.
    fn prefill_limit(&self, spec: &ModelSpec, tokens: u32) -> f64 {
        let embeddings = 2 * (spec.vocab_size * spec.hidden_size) as u64;
        let products = 2.0 * (spec.parameters() - embeddings) as f64 * f64::from(tokens);
        let attention = 2.0 * (spec.layers.len() * spec.q_size()) as f64 * f64::from(tokens).powi(2);
        (products + attention) / self.flops
    }
}

fn main() -> ExitCode {
    if let Some(code) = gpu::missing() {
        return code;
    }
    let mode = std::env::args().nth(1);
    let profiling = mode.as_deref() == Some("profile");
    let started = Instant::now();
    let device = Device::open(0).unwrap();
    println!("GPU {} capability {:?}", device.context.name().unwrap(), device.capability);
    let stored = if mode.as_deref() == Some("f16") { "float16" } else { "bfloat16" };
    let spec = shape::llama_8b(if profiling { 2 } else { 32 }, &json!({"torch_dtype": stored}));
    let format = Format::of(&spec);
    let target = Target { capability: device.capability, head_dim: 128, block_size: 64, format };
    compile_ahead(&target);
    println!("kernels at {:.2} s", started.elapsed().as_secs_f32());
    let origin = Origin::Dummy(DummyWeights::new(1));
    let weights = load_weights(&device, &spec, &target, origin).unwrap();
    println!("weights at {:.2} s", started.elapsed().as_secs_f32());
    let stride = 258;
    let capacity =
        Capacity { tokens: 16_384, sequences: 256, draws: 256, model_len: 20_000, blocks: 64 * 48 };
    let mut model = Model::new(device, spec, weights, &target, capacity).unwrap();
    model.device.synchronize().unwrap();
    println!("model at {:.2} s", started.elapsed().as_secs_f32());
    let mut inputs = Inputs { words: Vec::new(), device: model.device.buffer(1 << 22).unwrap() };
    if profiling {
        profile(&mut model, &mut inputs, stride);
        return ExitCode::SUCCESS;
    }
    agree(&mut model, &mut inputs, stride);

    let flush = model.device.buffer::<u8>(256 << 20).unwrap();
    let card = Card::measure(&mut model, &flush);
    let tuning = Instant::now();
    for rows in BATCHES {
        model.tune_head(rows, &flush).unwrap();
    }
    println!("head tuned for {} batch sizes in {:.2} s", BATCHES.len(), tuning.elapsed().as_secs_f32());
    time_forms(&mut model, &mut inputs, &card, &flush);
    if mode.as_deref() != Some("decode") {
        time_prefill(&mut model, &mut inputs, stride, &card, "first choice of algorithm");
        let tuning = Instant::now();
        for tokens in PROMPTS {
            model.tune(tokens, &flush).unwrap();
        }
        println!("products tuned for {} lengths in {:.2} s", PROMPTS.len(), tuning.elapsed().as_secs_f32());
        time_prefill(&mut model, &mut inputs, stride, &card, "timed choice");
    }
    model.blas.save();
    ExitCode::SUCCESS
}

/// The same 300 tokens whole, in chunks, and token by token must agree.
fn agree(model: &mut Model, inputs: &mut Inputs, stride: u32) {
    let prompt: Vec<u32> = (0..300_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) % 128_000).collect();
    let step = prefill(inputs, 0, &prompt, 0, stride);
    run(model, inputs, &step);
    let whole = sampled(model, 1);
    for (start, end) in [(0, 100), (100, 164), (164, 300)] {
        let step = prefill(inputs, start as u32, &prompt[start..end], 300, stride);
        run(model, inputs, &step);
    }
    let chunked = sampled(model, 1);
    let step = prefill(inputs, 0, &prompt[..290], 600, stride);
    run(model, inputs, &step);
    for position in 290..300_u32 {
        let mut step = decode(inputs, 1, position + 1, stride);
        inputs.words.clear();
        step.ids = inputs.push([prompt[position as usize]]);
        step.positions = inputs.push([position]);
        step.slots = inputs.push([600 * 64 + position]);
        step.q_rows = inputs.push([0]);
        step.context_lens = inputs.push([position + 1]);
        step.decode_tables = inputs.push(600..600 + stride);
        step.sample_rows = inputs.push([0]);
        (step.draw_list, step.raw_list, step.adjust_count) = inputs.greedy(1);
        run(model, inputs, &step);
    }
    let decoded = sampled(model, 1);
    println!("whole {whole:?} chunked {chunked:?} decoded {decoded:?}");
}

/// The median of some runs, in milliseconds on the device's clock.
fn time(model: &mut Model, mut issue: impl FnMut(&mut Model)) -> f32 {
    let event =
        |model: &Model| model.device.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    let one = |_| {
        let begun = event(model);
        issue(model);
        begun.elapsed_ms(&event(model)).unwrap()
    };
    median((0..RUNS).map(one).skip(WARM).collect())
}

const PROMPTS: [u32; 6] = [128, 1000, 2048, 3000, 8192, 16_384];

fn time_prefill(model: &mut Model, inputs: &mut Inputs, stride: u32, card: &Card, what: &str) {
    for len in PROMPTS {
        let ids: Vec<u32> = (0..len).map(|i| (i * 7919) % 128_000).collect();
        let step = prefill(inputs, 0, &ids, 0, stride);
        inputs.send(&model.device);
        let ms = time(model, |model| model.step(&step, |_, _| Ok(())).unwrap());
        let limit = card.prefill_limit(&model.spec, len);
        println!("prefill {len}, {what}: {ms:.2} ms, {:.2} of the limit {limit:.2}", f64::from(ms) / limit);
    }
}

/// Decode steps with all products our own, with the form that a worker would choose, and with the general form.
fn time_forms(model: &mut Model, inputs: &mut Inputs, card: &Card, flush: &Buffer<u8>) {
    time_decode(model, inputs, card, "own products");
    let choosing = Instant::now();
    for rows in BATCHES {
        model.choose_decode_form(rows, flush).unwrap();
        println!("batch {rows}: form {}", model.decode_form(rows).as_word());
    }
    println!("forms chosen for {} batch sizes in {:.2} s", BATCHES.len(), choosing.elapsed().as_secs_f32());
    time_decode(model, inputs, card, "chosen form");
    for rows in BATCHES {
        model.tune(rows, flush).unwrap();
        model.set_decode_form(rows, DecodeForm::General);
    }
    time_decode(model, inputs, card, "general form");
}

fn time_decode(model: &mut Model, inputs: &mut Inputs, card: &Card, what: &str) {
    for context in CONTEXTS {
        for rows in BATCHES {
            let step = decode(inputs, rows, context, 48);
            run(model, inputs, &step);
            let eager = sampled(model, rows as usize);
            let graph = model.record(|model| model.step(&step, |_, _| Ok(()))).unwrap();
            let ms = time(model, |_| graph.launch().unwrap());
            // A step writes the same keys and values again, so it has to draw the same tokens every time.
            assert_eq!(sampled(model, rows as usize), eager, "replays differ from the first run");
            let limit = card.decode_limit(&model.spec, rows, context);
            println!(
                "decode context {context} batch {rows}, {what}: {ms:.3} ms, {:.3} of the limit {limit:.2}",
                f64::from(ms) / limit
            );
        }
    }
}
