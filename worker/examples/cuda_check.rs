//! Checks the CUDA backend against the CPU backend: whole small models through the engine, and the draw of tokens
//! against `disagg_engine::sampling`. Ends with an error if one of the bounds does not hold.
//!
//!     cargo run --profile ci -p disagg-worker --example cuda_check
//!
//! Without a GPU it says why it does nothing; with `DISAGG_REQUIRE_GPU` set that is an error.
#![allow(unsafe_code, clippy::print_stdout, clippy::unwrap_used, missing_docs)]
#![allow(clippy::cast_possible_wrap, reason = "sizes of a test")]

use std::collections::HashMap;
use std::process::ExitCode;

use cudarc::driver::result::{memcpy_dtoh_sync, memcpy_htod_sync};
use disagg_core::{BlockId, ModelFingerprint};
use disagg_engine::{
    Backend, Engine, EngineConfig, EngineEvent, KvMemory, NoTransport, Request, SampleRow, SampledToken,
    SamplingParams, StopRules, sampling,
};
use disagg_worker::backend::candle::CandleBackend;
use disagg_worker::cuda::backend::{BLOCK_SIZE, CudaBackend, CudaOptions};
use disagg_worker::cuda::compile::{self, Target};
use disagg_worker::cuda::device::{Arg, Buffer, Device, Kernel};
use disagg_worker::cuda::lists::{RawRow, sampling_lists};
use disagg_worker::cuda::weights::Origin;
use disagg_worker::model::weights::TensorSource;
use disagg_worker::model::{DummyWeights, Family, ModelConfig, ModelError, RopeScaling, Weights};

const OUTPUT_TOKENS: u32 = 24;
const MODEL_LEN: u32 = 1024;
const TOP: u32 = 20;
/// Between bf16 and f32: of a log-probability, on average.
const MEAN_ERROR_MAX: f64 = 0.05;
/// Greedy tokens may differ where the reference's two best are no further apart than this.
const MARGIN_MAX: f32 = 0.3;

/// The dummy weights rounded to bf16, so that both backends compute with the same numbers.
struct Rounded(DummyWeights);

impl TensorSource for Rounded {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let mut values = self.0.tensor(name, shape)?;
        for value in &mut values {
            *value = f32::from_bits(u32::from(disagg_worker::cuda::weights::to_bf16(*value)) << 16);
        }
        Ok(values)
    }
}

fn config(family: Family, head_dim: usize, num_heads: usize, num_kv_heads: usize) -> ModelConfig {
    ModelConfig {
        family,
        vocab_size: 2048,
        hidden_size: 512,
        intermediate_size: 1024,
        num_layers: 3,
        num_heads,
        num_kv_heads,
        head_dim,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: match family {
            Family::Llama => RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position: 256,
            },
            _ => RopeScaling::None,
        },
        tie_word_embeddings: family == Family::Qwen2,
        qkv_bias: family == Family::Qwen2,
        attention_output_bias: false,
        mlp_bias: false,
        qk_norm: family == Family::Qwen3,
        max_model_len: MODEL_LEN,
    }
}

/// splitmix64, as a stream.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// About normal.
    fn normal(&mut self) -> f32 {
        (0..6).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).sum::<f32>() / 2_f32.sqrt()
    }
}

fn request(prompt: Vec<u32>, sampling: SamplingParams, choices: u32) -> Request {
    let stop = StopRules {
        max_tokens: OUTPUT_TOKENS,
        min_tokens: 0,
        eos_token_ids: Vec::new(),
        stop_token_ids: Vec::new(),
        ignore_eos: true,
    };
    Request { prompt, cache_salt: String::new(), sampling, stop, choices }
}

fn engine<B: Backend>(backend: B, budget: u32) -> Engine<B> {
    let config = EngineConfig {
        fingerprint: ModelFingerprint(1),
        max_model_len: MODEL_LEN,
        max_num_seqs: 16,
        max_num_batched_tokens: budget,
        max_waiting: 64,
        max_prefill_queue: 4,
        enable_chunked_prefill: true,
        enable_prefix_caching: true,
    };
    Engine::new(config, backend).unwrap()
}

type Outputs = Vec<Vec<SampledToken>>;

/// Tokens of every request and choice, in order.
fn generate<B: Backend>(engine: &mut Engine<B>, requests: &[Request]) -> Outputs {
    let ids: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut outputs: HashMap<_, Vec<SampledToken>> = HashMap::new();
    while engine.has_work() {
        engine.step(&mut NoTransport).unwrap();
        for event in engine.take_events() {
            if let EngineEvent::Tokens { sequence, choice, tokens } = event {
                outputs.entry((sequence, choice)).or_default().extend(tokens);
            }
        }
    }
    engine.check();
    assert_eq!(engine.load().blocks_used, 0);
    let choices =
        ids.iter().zip(requests).flat_map(|(&id, r)| (0..r.choices).map(move |choice| (id, choice)));
    choices.map(|key| outputs.remove(&key).unwrap_or_default()).collect()
}

/// How far one backend's outputs are from the reference's, up to each sequence's first other token.
#[derive(Default)]
struct Distance {
    compared: usize,
    diverged: usize,
    margin: f32,
    sum: f64,
    count: usize,
    max: f32,
}

impl Distance {
    fn of(got: &Outputs, want: &Outputs) -> Self {
        let mut distance = Self::default();
        for (got, want) in got.iter().zip(want) {
            assert_eq!(got.len(), want.len(), "tokens of one request");
            for (got, want) in got.iter().zip(want) {
                distance.compared += 1;
                let reference: HashMap<u32, f32> = want.top_logprobs.iter().copied().collect();
                for (token, logprob) in &got.top_logprobs {
                    let Some(expected) = reference.get(token) else { continue };
                    let error = (logprob - expected).abs();
                    distance.sum += f64::from(error);
                    distance.count += 1;
                    distance.max = distance.max.max(error);
                }
                if got.token != want.token {
                    distance.diverged += 1;
                    let best = want.logprob.unwrap_or(0.0);
                    // Not even among the reference's most likely ones: as far as can be.
                    let other = reference.get(&got.token).copied().unwrap_or(f32::NEG_INFINITY);
                    distance.margin = distance.margin.max((best - other).abs());
                    break;
                }
            }
        }
        distance
    }

    fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }

    fn show(&self, what: &str) -> bool {
        let Self { compared, diverged, margin, max, .. } = self;
        let mean = self.mean();
        println!(
            "  {what}: {diverged} of {compared} tokens diverge (largest margin {margin:.4}), \
             logprob error mean {mean:.5} max {max:.4}"
        );
        mean <= MEAN_ERROR_MAX
    }
}

fn prompts(random: &mut Random, lengths: &[usize], vocab: usize) -> Vec<Vec<u32>> {
    lengths.iter().map(|&len| (0..len).map(|_| random.below(vocab) as u32).collect()).collect()
}

fn check_model(name: &str, config: &ModelConfig) -> bool {
    println!("{name}");
    let weights = Rounded(DummyWeights::new(3).with_standard_deviation(0.06));
    let cpu = Weights::build(config, &weights).unwrap();
    let cpu_engine =
        |budget| engine(CandleBackend::new(config.clone(), cpu.clone(), BLOCK_SIZE, 512).unwrap(), budget);
    let cuda = |blocks: u32, budget: u32| {
        let options = CudaOptions {
            ordinal: 0,
            max_num_batched_tokens: budget,
            max_num_seqs: 16,
            max_model_len: MODEL_LEN,
            gpu_memory_utilization: 0.5,
            num_blocks: Some(blocks),
        };
        engine(CudaBackend::new(config.clone(), Origin::Tensors(&weights), options).unwrap(), budget)
    };
    let mut random = Random(11);
    let lengths = [1, 2, 63, 64, 65, 127, 128, 129, 200, 256, 300, 383, 500, 640, 700, 17];
    let prompts = prompts(&mut random, &lengths, config.vocab_size);
    let greedy = SamplingParams { top_logprobs: Some(TOP), ..SamplingParams::greedy() };
    let greedy: Vec<Request> = prompts.iter().map(|p| request(p.clone(), greedy.clone(), 1)).collect();
    let want = generate(&mut cpu_engine(4096), &greedy);
    let mut good = true;
    let mut judge = |what: &str, got: &Outputs| {
        let distance = Distance::of(got, &want);
        good &= distance.show(what) && distance.margin <= MARGIN_MAX;
    };

    let mut whole = cuda(512, 4096);
    judge("whole prompts, 16 at once", &generate(&mut whole, &greedy));
    judge("again, prefixes cached", &generate(&mut whole, &greedy));
    assert!(whole.overlap_tokens(&prompts[14], "") >= 640, "nothing was cached");
    let mut engine = cuda(512, 1024);
    let alone: Outputs = greedy.iter().flat_map(|r| generate(&mut engine, std::slice::from_ref(r))).collect();
    judge("one at a time", &alone);
    judge("in chunks of at most 100", &generate(&mut cuda(512, 100), &greedy));
    judge("in a pool of 20 blocks, preempted", &generate(&mut cuda(20, 512), &greedy));

    let drawn: Vec<Request> = prompts
        .iter()
        .enumerate()
        .map(|(seed, prompt)| {
            let sampling = SamplingParams {
                temperature: 0.8,
                top_p: 0.95,
                top_k: if seed % 2 == 0 { 0 } else { 40 },
                repetition_penalty: if seed % 3 == 0 { 1.2 } else { 1.0 },
                presence_penalty: if seed % 4 == 0 { 0.5 } else { 0.0 },
                logit_bias: vec![(5, 3.0), (9, -100.0)],
                seed: seed as u64,
                top_logprobs: Some(TOP),
                ..SamplingParams::greedy()
            };
            request(prompt.clone(), sampling, 3)
        })
        .collect();
    let expected = generate(&mut cpu_engine(4096), &drawn);
    let mut engine = cuda(512, 4096);
    let got = generate(&mut engine, &drawn);
    let distance = Distance::of(&got, &expected);
    good &= distance.show("sampled, 3 choices each");
    let equal_first = got.iter().zip(&expected).filter(|(a, b)| a[0].token == b[0].token).count();
    let logprob_error = got
        .iter()
        .zip(&expected)
        .flat_map(|(a, b)| a.iter().zip(b).take_while(|(a, b)| a.token == b.token))
        .map(|(a, b)| (a.logprob.unwrap() - b.logprob.unwrap()).abs())
        .fold(0_f32, f32::max);
    println!(
        "    first tokens equal: {equal_first} of {}; drawn logprob error max {logprob_error:.4}",
        got.len()
    );
    // Among hundreds of likely tokens, bf16's rounding alone moves many draws to a neighbour, so this bound is loose;
    // `check_draws` shows that equal logits give equal tokens.
    good &= equal_first * 2 >= got.len() && logprob_error < 0.5;
    good &= generate(&mut engine, &drawn).iter().flatten().count() == got.iter().flatten().count();
    good & check_memory(&*engine.memory())
}

/// What is written to a block comes back, and nothing else changes.
fn check_memory(memory: &dyn KvMemory) -> bool {
    let layout = memory.layout();
    let (layer, block) = (layout.layers - 1, BlockId(memory.num_blocks() - 1));
    let bytes: Vec<u8> = (0..layout.layer_block_bytes()).map(|i| (i * 31 % 251) as u8).collect();
    let read = |layer, block| {
        let mut out = Vec::new();
        memory.read(layer, block, &mut out).unwrap();
        out
    };
    let before = read(layer, BlockId(block.0 - 1));
    memory.write(layer, block, &bytes).unwrap();
    assert!(
        memory.write(layer, block, &bytes[1..]).is_err()
            && memory.read(layer + 1, block, &mut Vec::new()).is_err()
    );
    let good = read(layer, block) == bytes && read(layer, BlockId(block.0 - 1)) == before;
    println!("  KV through host memory: {}", if good { "equal" } else { "NOT EQUAL" });
    good
}

/// Plain structures or numbers, as the words that they are.
fn upload<T: Copy>(device: &Device, values: &[T]) -> Buffer<u32> {
    let words = unsafe {
        std::slice::from_raw_parts(values.as_ptr().cast::<u32>(), size_of_val(values) / size_of::<u32>())
    };
    let buffer = device.buffer(words.len()).unwrap();
    if !words.is_empty() {
        unsafe { memcpy_htod_sync(buffer.address(), words) }.unwrap();
    }
    buffer
}

fn download<T: Copy + Default>(buffer: &Buffer<T>) -> Vec<T> {
    let mut values = vec![T::default(); buffer.len()];
    unsafe { memcpy_dtoh_sync(&mut values, buffer.address()) }.unwrap();
    values
}

/// Random logits and parameters: the same tokens as the reference draws, but where rounding decides.
fn check_draws(vocab: usize, rounds: usize) -> bool {
    const ROWS: usize = 64;
    let device = Device::open(0).unwrap();
    let target = Target { capability: device.capability, head_dim: 128, block_size: BLOCK_SIZE };
    let module = device.load(compile::SAMPLE, &target).unwrap();
    let kernel = |name| Kernel::new(&module, name, 0).unwrap();
    let (raw_logprobs, adjust, draw) =
        (kernel("raw_logprobs"), kernel("adjust_logits"), kernel("draw_tokens"));
    let mut random = Random(vocab as u64);
    let (mut total, mut equal, mut error, mut top_equal) = (0, 0, 0_f32, 0);
    for round in 0..rounds {
        let spread = random.pick(&[1.0, 3.0, 8.0]);
        let logits: Vec<f32> = (0..ROWS * vocab)
            .map(|_| {
                let x = random.normal() * spread;
                // Every other round has many equals.
                if round % 2 == 0 { x } else { (x * 8.0).round() / 8.0 }
            })
            .collect();
        let params: Vec<SamplingParams> = (0..ROWS)
            .map(|_| SamplingParams {
                temperature: random.pick(&[0.0, 0.3, 0.7, 1.0, 1.5]),
                top_p: random.pick(&[1.0, 1.0, 0.95, 0.9, 0.5, 0.05]),
                top_k: random.pick(&[0, 0, 1, 2, 20, 50, 1000]),
                min_p: random.pick(&[0.0, 0.0, 0.05, 0.3]),
                presence_penalty: random.pick(&[0.0, 0.0, 0.7]),
                frequency_penalty: random.pick(&[0.0, 0.0, 0.4]),
                repetition_penalty: random.pick(&[1.0, 1.0, 1.3]),
                logit_bias: (0..random.pick(&[0, 0, 30]))
                    .map(|_| (random.below(vocab) as u32, random.normal() * 5.0))
                    .collect(),
                seed: random.next(),
                top_logprobs: Some(TOP),
            })
            .collect();
        let history: Vec<u32> = (0..300).map(|_| random.below(vocab) as u32).collect();
        let rows: Vec<SampleRow<'_>> = params
            .iter()
            .enumerate()
            .map(|(row, params)| SampleRow {
                row: row as u32,
                params,
                choices: 0..1,
                position: 300,
                history: &history,
                prompt_len: 200,
                forbidden: if row % 5 == 0 { &history[..7] } else { &[] },
            })
            .collect();
        let (draws, raw, adjusts, _) = sampling_lists(&rows, vocab);
        let on_device = upload(&device, &logits);
        let (draws, raw, count) =
            (upload(&device, &draws), upload(&device, &raw), upload(&device, &[adjusts.len() as u32]));
        let adjusts = upload(&device, &adjusts);
        let (tokens, logprobs) = (device.buffer::<u32>(ROWS).unwrap(), device.buffer::<f32>(ROWS).unwrap());
        let sums = device.buffer::<f32>(ROWS).unwrap();
        let (ids, tops) = (
            device.buffer::<u32>(ROWS * RawRow::TOP_MAX).unwrap(),
            device.buffer::<f32>(ROWS * RawRow::TOP_MAX).unwrap(),
        );
        let a = |address| Arg::Address(address);
        let (size, grid) = (Arg::Int(vocab as i32), (ROWS as u32, 1));
        unsafe {
            let args = [
                a(sums.address()),
                a(ids.address()),
                a(tops.address()),
                a(on_device.address()),
                a(raw.address()),
                size,
            ];
            raw_logprobs.launch(&device, grid, 1024, &args).unwrap();
            let args = [a(on_device.address()), a(adjusts.address()), a(count.address()), size];
            adjust.launch(&device, (8, 1), 256, &args).unwrap();
            let args = [
                a(tokens.address()),
                a(logprobs.address()),
                a(on_device.address()),
                a(sums.address()),
                a(draws.address()),
                a(adjusts.address()),
                a(count.address()),
                size,
            ];
            draw.launch(&device, grid, 1024, &args).unwrap();
        }
        device.synchronize().unwrap();
        let (tokens, logprobs, ids) = (download(&tokens), download(&logprobs), download(&ids));
        for (index, row) in rows.iter().enumerate() {
            let want = sampling::sample(&logits[index * vocab..(index + 1) * vocab], row, 0).unwrap();
            total += 1;
            if want.token == tokens[index] {
                equal += 1;
                error = error.max((want.logprob.unwrap() - logprobs[index]).abs());
            } else {
                println!("    other token: {:?}: {} for {}", row.params, tokens[index], want.token);
            }
            let top = &ids[index * RawRow::TOP_MAX..(index + 1) * RawRow::TOP_MAX];
            top_equal += usize::from(want.top_logprobs.iter().map(|(token, _)| token).eq(top));
        }
    }
    println!(
        "draws, vocabulary {vocab}: {equal} of {total} tokens equal, {top_equal} lists of {TOP} equal, \
         logprob error max {error:.6}"
    );
    equal * 1000 >= total * 999 && top_equal == total && error < 1e-3
}

fn main() -> ExitCode {
    if let Err(why) = disagg_worker::cuda::available() {
        println!("not run: {why}");
        return if std::env::var_os("DISAGG_REQUIRE_GPU").is_some() {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        };
    }
    let models = [
        ("Llama, head_dim 128, 4 heads to a KV head", config(Family::Llama, 128, 8, 2)),
        ("Qwen3, head norms, head_dim 128, a KV head each", config(Family::Qwen3, 128, 2, 2)),
        ("Qwen2, biases, head_dim 128, 4 heads to a KV head", config(Family::Qwen2, 128, 4, 1)),
        ("Llama, head_dim 64, 4 heads to a KV head", config(Family::Llama, 64, 8, 2)),
        ("Qwen2, biases, head_dim 64, 8 heads to a KV head", config(Family::Qwen2, 64, 8, 1)),
    ];
    let mut good = check_draws(4096, 24);
    good &= check_draws(128_256, 8);
    for (name, config) in &models {
        good &= check_model(name, config);
    }
    println!("{}", if good { "all bounds hold" } else { "SOME BOUNDS DO NOT HOLD" });
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
