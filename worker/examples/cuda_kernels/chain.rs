//! Decode steps of a small model as a chain of launches of which each may begin before the one in front has ended, issued
//! without a wait between them and replayed as a graph: the logits must be those of the general form, which has no such
//! launches, and the same in every run.

use std::path::Path;

use disagg_worker::cuda::backend::BLOCK_SIZE;
use disagg_worker::cuda::device::{Buffer, Device};
use disagg_worker::cuda::format::Format;
use disagg_worker::cuda::forward::{Capacity, DecodeForm, Model};
use disagg_worker::cuda::step::Step;
use disagg_worker::cuda::weights::{Origin, load_weights};
use disagg_worker::model::{DummyWeights, ModelSpec};
use serde_json::json;

use crate::support::Gpu;

/// Blocks that each row has.
const ROW_BLOCKS: u32 = 3;
const ROWS_MAX: u32 = 64;
/// Runs of a recorded step.
const REPLAYS: usize = 3;

// Llama, Qwen2 with its biases, Qwen3 with its head norms, and Mistral with a window shorter than most contexts.
const LLAMA: &str = "LlamaForCausalLM";
const QWEN2: &str = "Qwen2ForCausalLM";
const QWEN3: &str = "Qwen3ForCausalLM";
const MISTRAL: &str = "MistralForCausalLM";

fn spec(gpu: &Gpu, architecture: &str) -> ModelSpec {
    let dtype = if gpu.target.format == Format::F16 { "float16" } else { "bfloat16" };
    let config = json!({
        "architectures": [architecture], "vocab_size": 320,
        "hidden_size": if gpu.small { 256 } else { 1024 },
        "intermediate_size": if gpu.small { 392 } else { 2816 },
        "num_hidden_layers": if gpu.small { 2 } else { 4 },
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": gpu.head_dim, "rms_norm_eps": 1e-5,
        "max_position_embeddings": ROW_BLOCKS * BLOCK_SIZE, "sliding_window": 70, "torch_dtype": dtype,
    });
    ModelSpec::parse(Path::new("config.json"), config.to_string().as_bytes()).unwrap()
}

pub fn check(gpu: &mut Gpu) {
    if !gpu.target.hopper() {
        println!("not run: the decode chain is written for compute capability 9.0");
        return;
    }
    let (families, rows): (&[&str], &[u32]) = if gpu.small {
        (&[QWEN2, QWEN3, MISTRAL], &[1, 20])
    } else {
        (&[LLAMA, QWEN2, QWEN3, MISTRAL], &[1, 9, 20, ROWS_MAX])
    };
    for &family in families {
        let mut model = model(gpu, family);
        for &rows in rows {
            let (step, _inputs) = decode(gpu, &model, rows);
            model.prepare_parts(rows).unwrap();
            let want: Vec<f64> =
                run(gpu, &mut model, &step, DecodeForm::General, 0).0.into_iter().map(f64::from).collect();
            let forms = [[false; 4], [true, false, true, false], [false, true, false, true]];
            for form in forms.map(DecodeForm::Chain) {
                let (got, same) = run(gpu, &mut model, &step, form, REPLAYS);
                let what = format!("chain of {family}, {rows} rows, products {}", form.as_word());
                // Both forms round, each at other places.
                gpu.expect(&what, &got, &want, 4.0 * gpu.bound());
                gpu.expect_true(&format!("{what}: {REPLAYS} replays give the same bits"), same);
            }
        }
    }
}

/// Logits of a first run, and whether replays of a recorded one give the same.
fn run(gpu: &Gpu, model: &mut Model, step: &Step, form: DecodeForm, replays: usize) -> (Vec<f32>, bool) {
    model.set_decode_form(step.tokens, form);
    poison(gpu, model);
    model.step(step, |_, _| Ok(())).unwrap();
    let first = logits(gpu, model, step.tokens);
    let graph = model.record(|model| model.step(step, |_, _| Ok(()))).unwrap();
    let same = (0..replays).all(|_| {
        poison(gpu, model);
        graph.launch().unwrap();
        logits(gpu, model, step.tokens) == first
    });
    (first, same)
}

fn model(gpu: &mut Gpu, architecture: &str) -> Model {
    let spec = spec(gpu, architecture);
    let device = Device::open(0).unwrap();
    let origin = Origin::Dummy(DummyWeights::new(5).with_standard_deviation(0.05));
    let weights = load_weights(&device, &spec, &gpu.target, origin).unwrap();
    let capacity = Capacity {
        tokens: ROWS_MAX,
        sequences: ROWS_MAX,
        draws: ROWS_MAX,
        model_len: spec.max_model_len,
        blocks: ROWS_MAX * ROW_BLOCKS,
    };
    let model = Model::new(device, spec, weights, &gpu.target, capacity).unwrap();
    let kv = gpu.random.stored(model.pool.len());
    model.device.synchronize().unwrap();
    gpu.write_stored(&model.pool, &kv);
    model
}

/// One token for each of `rows` sequences with contexts around the borders of blocks.
fn decode(gpu: &mut Gpu, model: &Model, rows: u32) -> (Step, Buffer<u32>) {
    const CONTEXTS: [u32; 8] = [1, 64, 65, 130, 2, 63, 128, 192];
    let contexts: Vec<u32> = (0..rows as usize).map(|row| CONTEXTS[row % CONTEXTS.len()]).collect();
    let blocks = gpu.random.order((ROWS_MAX * ROW_BLOCKS) as usize);
    let table = |row: u32| &blocks[(row * ROW_BLOCKS) as usize..][..ROW_BLOCKS as usize];
    let slot = |(row, &context): (usize, &u32)| {
        let at = context - 1;
        let slot = table(row as u32)[(at / BLOCK_SIZE) as usize] * BLOCK_SIZE + at % BLOCK_SIZE;
        if at.is_multiple_of(BLOCK_SIZE) { slot | 1 << 31 } else { slot }
    };
    let vocab = model.spec.vocab_size;
    let sections: Vec<Vec<u32>> = vec![
        (0..rows).map(|_| gpu.random.below(vocab) as u32).collect(),
        contexts.iter().map(|context| context - 1).collect(),
        contexts.iter().enumerate().map(slot).collect(),
        (0..rows).collect(),
        contexts.clone(),
        (0..rows).flat_map(|row| table(row).to_vec()).collect(),
        // Nothing is asked of the raw logits, nothing is drawn, nothing is adjusted.
        (0..rows).flat_map(|row| [row, u32::MAX]).collect(),
        vec![0; 8 * rows as usize],
        vec![0],
    ];
    let (mut words, mut starts) = (Vec::new(), Vec::new());
    for section in sections {
        starts.push(words.len());
        words.extend(section);
        words.resize(words.len().next_multiple_of(8), 0);
    }
    let inputs = gpu.upload(&words);
    let at = |section: usize| inputs.at(starts[section]);
    let step = Step {
        tokens: rows,
        ids: at(0),
        positions: at(1),
        slots: at(2),
        decode_rows: rows,
        q_rows: at(3),
        context_lens: at(4),
        decode_tables: at(5),
        table_stride: ROW_BLOCKS,
        samples: rows,
        sample_rows: at(3),
        raw_list: at(6),
        draws: rows,
        draw_list: at(7),
        adjust_list: at(8),
        adjust_count: at(8),
        ..Step::default()
    };
    (step, inputs)
}

/// So that a run that writes nothing is noticed.
fn poison(gpu: &Gpu, model: &Model) {
    model.device.synchronize().unwrap();
    gpu.poison(model.logits());
}

fn logits(gpu: &Gpu, model: &Model, rows: u32) -> Vec<f32> {
    model.device.synchronize().unwrap();
    let mut logits = gpu.download(model.logits());
    logits.truncate(rows as usize * model.spec.vocab_size);
    logits
}
