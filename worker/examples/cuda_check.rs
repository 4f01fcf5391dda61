//! Checks the CUDA backend against the CPU backend: whole small models through the engine. Ends with an error if one of the
//! bounds does not hold.
//!
//!     cargo run --profile ci -p disagg-worker --example cuda_check
//!
//! Without a GPU it says why it does nothing; with `DISAGG_REQUIRE_GPU` set that is an error.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

#[path = "support/gpu.rs"]
mod gpu;
#[path = "support/handover.rs"]
mod handover;

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use disagg_core::{BlockId, ModelFingerprint, SequenceId};
use disagg_engine::{
    Backend, Engine, EngineConfig, EngineEvent, KvDtype, KvMemory, NoTransport, Request, SampledToken,
    SamplingParams, StopRules,
};
use disagg_worker::backend::candle::{CandleBackend, load_weights};
use disagg_worker::cuda::backend::{BLOCK_SIZE, CudaBackend, CudaOptions};
use disagg_worker::cuda::format::Format;
use disagg_worker::cuda::weights::Origin;
use disagg_worker::model::{DummyWeights, ModelError, ModelSpec, TensorSource, WeightFormat};
use handover::hand_over;
use serde_json::{Value, json};

const OUTPUT_TOKENS: u32 = 24;
const MODEL_LEN: u32 = 1024;
const TOP: u32 = 20;

/// What storing 16 bits may cost against f32.
#[derive(Clone, Copy)]
struct Bounds {
    /// Of a log-probability, on average.
    mean_error: f64,
    /// Greedy tokens may differ where the reference's two best are no further apart than this.
    margin: f32,
}

impl Bounds {
    fn of(format: Format) -> Self {
        match format {
            Format::Bf16 => Self { mean_error: 0.05, margin: 0.3 },
            Format::F16 => Self { mean_error: 0.01, margin: 0.05 },
        }
    }
}

/// The dummy weights rounded as the GPU stores them, so that both backends compute with the same numbers.
struct Rounded(DummyWeights, Format);

impl TensorSource for Rounded {
    fn format(&self, name: &str, shape: &[usize]) -> Result<WeightFormat, ModelError> {
        self.0.format(name, shape)
    }

    fn read(&self, name: &str, offset: usize, out: &mut [u8]) -> Result<(), ModelError> {
        self.0.read(name, offset, out)?;
        for bytes in out.as_chunks_mut().0 {
            *bytes = self.1.decode(self.1.encode(f32::from_le_bytes(*bytes))).to_le_bytes();
        }
        Ok(())
    }
}

/// A model of this architecture and these heads, with some keys changed.
fn model(architecture: &str, head_dim: usize, heads: usize, kv_heads: usize, changes: &Value) -> ModelSpec {
    let mut config = json!({
        "architectures": [architecture], "vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1024,
        "num_hidden_layers": 3, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": head_dim, "rms_norm_eps": 1e-5, "max_position_embeddings": MODEL_LEN,
        "torch_dtype": "bfloat16",
    });
    let keys = config.as_object_mut().unwrap();
    keys.extend(changes.as_object().unwrap().clone());
    ModelSpec::parse(Path::new("config.json"), config.to_string().as_bytes()).unwrap()
}

fn llama(head_dim: usize, heads: usize, kv_heads: usize, dtype: &str) -> ModelSpec {
    let rope = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    });
    let changes = json!({"rope_scaling": rope, "torch_dtype": dtype});
    model("LlamaForCausalLM", head_dim, heads, kv_heads, &changes)
}

fn qwen2(head_dim: usize, heads: usize, kv_heads: usize, dtype: &str) -> ModelSpec {
    let changes = json!({"tie_word_embeddings": true, "torch_dtype": dtype});
    model("Qwen2ForCausalLM", head_dim, heads, kv_heads, &changes)
}

fn qwen3(dtype: &str) -> ModelSpec {
    model("Qwen3ForCausalLM", 128, 2, 2, &json!({"torch_dtype": dtype}))
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
    let mut outputs = finish(engine);
    let choices =
        ids.iter().zip(requests).flat_map(|(&id, r)| (0..r.choices).map(move |choice| (id, choice)));
    choices.map(|key| outputs.remove(&key).unwrap_or_default()).collect()
}

/// Steps until all work is done; tokens by sequence and choice.
fn finish<B: Backend>(engine: &mut Engine<B>) -> HashMap<(SequenceId, u32), Vec<SampledToken>> {
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
    outputs
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

    fn show(&self, what: &str, bounds: Bounds) -> bool {
        let Self { compared, diverged, margin, max, .. } = self;
        let mean = self.mean();
        println!(
            "  {what}: {diverged} of {compared} tokens diverge (largest margin {margin:.4}), \
             logprob error mean {mean:.5} max {max:.4}"
        );
        mean <= bounds.mean_error
    }
}

fn prompts(random: &mut Random, lengths: &[usize], vocab: usize) -> Vec<Vec<u32>> {
    lengths.iter().map(|&len| (0..len).map(|_| random.below(vocab) as u32).collect()).collect()
}

fn check_model(name: &str, spec: &ModelSpec) -> bool {
    println!("{name}");
    let format = Format::of(spec);
    let bounds = Bounds::of(format);
    let weights = Rounded(DummyWeights::new(3).with_standard_deviation(0.06), format);
    let cpu = Arc::new(load_weights(spec, &weights).unwrap());
    let cpu = |dtype, budget| {
        let layout = CandleBackend::layout_of(spec, BLOCK_SIZE, dtype);
        engine(CandleBackend::new(spec.clone(), cpu.clone(), layout, 512).unwrap(), budget)
    };
    let cuda = |blocks: u32, budget: u32| {
        let options = CudaOptions {
            ordinal: 0,
            max_num_batched_tokens: budget,
            max_num_seqs: 16,
            max_model_len: MODEL_LEN,
            gpu_memory_utilization: 0.5,
            num_blocks: Some(blocks),
            blocking_wait: false,
        };
        engine(CudaBackend::new(spec.clone(), Origin::Tensors(&weights), options).unwrap(), budget)
    };
    let mut random = Random(11);
    let lengths = [1, 2, 63, 64, 65, 127, 128, 129, 200, 256, 300, 383, 500, 640, 700, 17];
    let prompts = prompts(&mut random, &lengths, spec.vocab_size);
    let greedy = SamplingParams { top_logprobs: Some(TOP), ..SamplingParams::greedy() };
    let greedy: Vec<Request> = prompts.iter().map(|p| request(p.clone(), greedy.clone(), 1)).collect();
    let want = generate(&mut cpu(KvDtype::F32, 4096), &greedy);
    let mut good = true;
    let mut judge = |what: &str, got: &Outputs| {
        let distance = Distance::of(got, &want);
        good &= distance.show(what, bounds) && distance.margin <= bounds.margin;
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
    let handed = hand_over(&mut cpu(format.kv(), 300), &mut cuda(512, 1024), &greedy, finish);
    judge("prefilled on the CPU, decoded on the GPU", &handed);
    let handed = hand_over(&mut cuda(512, 300), &mut cpu(format.kv(), 1024), &greedy, finish);
    judge("prefilled on the GPU, decoded on the CPU", &handed);

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
    let expected = generate(&mut cpu(KvDtype::F32, 4096), &drawn);
    let mut engine = cuda(512, 4096);
    let got = generate(&mut engine, &drawn);
    let distance = Distance::of(&got, &expected);
    good &= distance.show("sampled, 3 choices each", bounds);
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
    // Among hundreds of likely tokens, rounding alone moves many draws to a neighbour, so this bound is loose;
    // `cuda_kernels` shows that equal logits give equal tokens.
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
        let mut out = vec![0; layout.layer_block_bytes()];
        memory.read(layer, block, &mut out).unwrap();
        out
    };
    let before = read(layer, BlockId(block.0 - 1));
    memory.write(layer, block, &bytes).unwrap();
    assert!(
        memory.write(layer, block, &bytes[1..]).is_err()
            && memory.read(layer + 1, block, &mut bytes.clone()).is_err()
    );
    let good = read(layer, block) == bytes && read(layer, BlockId(block.0 - 1)) == before;
    println!("  KV through host memory: {}", if good { "equal" } else { "NOT EQUAL" });
    good
}

fn main() -> ExitCode {
    if let Some(code) = gpu::missing() {
        return code;
    }
    let (bf16, f16) = ("bfloat16", "float16");
    // Shorter than most prompts, and no multiple of a block; in every layer, and in the last two.
    let window = json!({"sliding_window": 150});
    let some_layers = json!({"use_sliding_window": true, "sliding_window": 90, "max_window_layers": 1});
    let models = [
        ("Llama, head_dim 128, 4 heads to a KV head", llama(128, 8, 2, bf16)),
        ("Qwen3, head norms, head_dim 128, a KV head each", qwen3(bf16)),
        ("Qwen2, biases, head_dim 128, 4 heads to a KV head", qwen2(128, 4, 1, bf16)),
        ("Llama, head_dim 64, 4 heads to a KV head", llama(64, 8, 2, bf16)),
        ("Qwen2, biases, head_dim 64, 8 heads to a KV head", qwen2(64, 8, 1, bf16)),
        ("Mistral, a sliding window, head_dim 128", model("MistralForCausalLM", 128, 8, 2, &window)),
        ("Mistral, a sliding window, head_dim 64", model("MistralForCausalLM", 64, 8, 2, &window)),
        ("Qwen2, a window in some layers, head_dim 128", model("Qwen2ForCausalLM", 128, 4, 1, &some_layers)),
        ("f16: Llama, head_dim 128, 4 heads to a KV head", llama(128, 8, 2, f16)),
        ("f16: Qwen3, head norms, head_dim 128, a KV head each", qwen3(f16)),
        ("f16: Qwen2, biases, head_dim 64, 8 heads to a KV head", qwen2(64, 8, 1, f16)),
    ];
    let mut good = true;
    for (name, spec) in &models {
        good &= check_model(name, spec);
    }
    println!("{}", if good { "all bounds hold" } else { "SOME BOUNDS DO NOT HOLD" });
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
