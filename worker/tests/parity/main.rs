//! Greedy tokens and logits against Hugging Face transformers, on every path that a prompt can take.
//!
//! The reference's data is in `tests/parity/data`; `tests/parity/golden.py` makes it. Beyond being right, all paths
//! must agree to the last bit: chunk sizes, batches, prefix hits and handoffs change nothing.

mod golden;
mod harness;
mod paths;

use disagg_engine::SampledToken;
use golden::Case;
use harness::{Worker, hand_over};

/// Largest difference of a logit from the reference's.
const TOLERANCE: f32 = 1e-3;

/// The plainest path: each prompt alone, in one piece, in an engine of its own.
fn alone(case: &Case) -> Vec<Vec<SampledToken>> {
    let prompts = case.golden.prompts.iter();
    prompts.map(|golden| Worker::new(case, 2048, 16).generate(&[&golden.prompt]).remove(0)).collect()
}

fn assert_golden(case: &Case, outputs: &[Vec<SampledToken>], path: &str) {
    for (golden, output) in case.golden.prompts.iter().zip(outputs) {
        let tokens: Vec<u32> = output.iter().map(|token| token.token).collect();
        assert_eq!(tokens, golden.output, "{}: {path}: prompt of {} tokens", case.name, golden.prompt.len());
    }
}

/// Tokens and the log probabilities of the whole vocabulary, bit by bit.
fn assert_same_bits(case: &Case, outputs: &[Vec<SampledToken>], want: &[Vec<SampledToken>], path: &str) {
    let bits = |output: &[SampledToken]| -> Vec<(u32, u32)> {
        let all = output.iter().flat_map(|token| &token.top_logprobs);
        all.map(|&(id, logprob)| (id, logprob.to_bits())).collect()
    };
    assert_eq!(outputs.len(), want.len());
    for ((golden, output), want) in case.golden.prompts.iter().zip(outputs).zip(want) {
        assert!(
            bits(output) == bits(want),
            "{}: {path}: logits of the prompt of {} tokens differ",
            case.name,
            golden.prompt.len()
        );
    }
}

#[test]
fn golden_data_can_tell_right_from_wrong() {
    let cases = Case::all();
    assert_eq!(cases.len(), 12);
    for case in &cases {
        assert!(case.golden.margin >= 1e-3 && case.golden.distinct >= 16);
        for golden in &case.golden.prompts {
            let mut distinct = golden.output.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(golden.output.len(), 32);
            assert!(distinct.len() >= case.golden.distinct, "{}: {distinct:?}", case.name);
            assert!(golden.min_margin > case.golden.margin, "{}: {}", case.name, golden.min_margin);
        }
    }
    let lengths: Vec<usize> = cases[0].golden.prompts.iter().map(|golden| golden.prompt.len()).collect();
    assert_eq!((cases[0].name, lengths), ("llama", vec![1, 15, 16, 17, 64, 100, 511, 700]));
}

/// The longest prompts of these cases are many windows long, and a model whose layers all had or all lacked the window
/// would give other logits.
#[test]
fn windows_are_where_the_configuration_says() {
    for (name, windows) in [
        ("mistral", vec![Some(1024); 2]),
        ("mistral-window", vec![Some(50); 2]),
        ("qwen2-no-window", vec![None; 2]),
        ("qwen2-window", vec![None, Some(64), Some(64)]),
        ("qwen3-window", vec![Some(33), None]),
    ] {
        let case = Case::load(name);
        let found: Vec<_> = case.model.spec.layers.iter().map(|layer| layer.window).collect();
        assert_eq!(found, windows, "{name}");
        assert_eq!(case.model.spec.max_model_len, 2048, "{name}");
    }
}

#[test]
fn tokenizer_files_are_the_small_models() {
    golden::check_tokenizer_files();
}

#[test]
fn logits_are_close_to_the_reference() {
    for case in Case::all() {
        let outputs = alone(&case);
        assert_golden(&case, &outputs, "alone");
        for (golden, output) in case.golden.prompts.iter().zip(&outputs) {
            let max = golden.first_logits.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = golden.first_logits.iter().map(|l| f64::from(l - max).exp()).sum();
            let log_sum = max + sum.ln() as f32;
            assert_eq!(output[0].top_logprobs.len(), golden.first_logits.len());
            for &(token, logprob) in &output[0].top_logprobs {
                let want = golden.first_logits[token as usize] - log_sum;
                assert!(
                    (logprob - want).abs() < TOLERANCE,
                    "{}: token {token}: {logprob}, not {want}",
                    case.name
                );
            }
        }
    }
}

#[test]
fn chunks_change_nothing() {
    for case in Case::all() {
        let want = alone(&case);
        for (budget, block_size) in [(16, 16), (512, 16)] {
            let mut worker = Worker::new(&case, budget, block_size);
            let outputs: Vec<_> = case
                .golden
                .prompts
                .iter()
                .map(|golden| worker.generate(&[&golden.prompt]).remove(0))
                .collect();
            let path = format!("chunks of {budget}");
            assert_golden(&case, &outputs, &path);
            assert_same_bits(&case, &outputs, &want, &path);
        }
    }
}

#[test]
fn every_block_size_gives_the_same_tokens() {
    for case in Case::all() {
        for block_size in [1, 7, 64] {
            let mut worker = Worker::new(&case, 100, block_size);
            let outputs: Vec<_> = case
                .golden
                .prompts
                .iter()
                .map(|golden| worker.generate(&[&golden.prompt]).remove(0))
                .collect();
            assert_golden(&case, &outputs, &format!("blocks of {block_size}"));
        }
    }
}

#[test]
fn a_prefix_hit_changes_nothing() {
    for case in Case::all() {
        let want = alone(&case);
        for budget in [16, 512] {
            let mut worker = Worker::new(&case, budget, 16);
            for run in 0..2 {
                for (golden, want) in case.golden.prompts.iter().zip(&want) {
                    let full_blocks = (golden.prompt.len() - 1) / 16 * 16;
                    let overlap = worker.engine.overlap_tokens(&golden.prompt, "") as usize;
                    assert_eq!(overlap, if run == 0 { 0 } else { full_blocks });
                    let output = worker.generate(&[&golden.prompt]);
                    assert_same_bits(&case, &output, std::slice::from_ref(want), "prefix hit");
                }
            }
        }
    }
}

#[test]
fn all_at_once_changes_nothing() {
    for case in Case::all() {
        let want = alone(&case);
        let prompts: Vec<&[u32]> = case.golden.prompts.iter().map(|golden| &*golden.prompt).collect();
        for budget in [16, 512] {
            let outputs = Worker::new(&case, budget, 16).generate(&prompts);
            let path = format!("{} at once, chunks of {budget}", prompts.len());
            assert_golden(&case, &outputs, &path);
            assert_same_bits(&case, &outputs, &want, &path);
        }
    }
}

#[test]
fn a_remote_prefill_changes_nothing() {
    for case in Case::all() {
        let want = alone(&case);
        let prompts: Vec<&[u32]> = case.golden.prompts.iter().map(|golden| &*golden.prompt).collect();
        for budget in [16, 512] {
            let path = format!("remote, chunks of {budget}");
            let (mut prefill, mut decode) = (Worker::new(&case, budget, 16), Worker::new(&case, 512, 16));
            // One by one, then all at once on workers that have the prompts cached: on both, and on the sender only.
            for (prompt, want) in prompts.iter().zip(&want) {
                let output = hand_over(&mut prefill, &mut decode, &[prompt], |_| {});
                assert_same_bits(&case, &output, std::slice::from_ref(want), &path);
            }
            let outputs = hand_over(&mut prefill, &mut decode, &prompts, |_| {});
            assert_golden(&case, &outputs, &path);
            assert_same_bits(&case, &outputs, &want, &path);
            let mut fresh = Worker::new(&case, 512, 16);
            let outputs = hand_over(&mut prefill, &mut fresh, &prompts, |_| {});
            assert_same_bits(&case, &outputs, &want, &path);
        }
    }
}

/// The other tests would be worth nothing if a wrong block went unnoticed.
#[test]
fn one_wrong_number_in_a_block_shows() {
    let case = Case::load("llama");
    let golden = &case.golden.prompts[5];
    let want = alone(&case).swap_remove(5);
    let (mut prefill, mut decode) = (Worker::new(&case, 512, 16), Worker::new(&case, 512, 16));
    let output = hand_over(&mut prefill, &mut decode, &[&golden.prompt], |block| {
        // In the first of the value heads of one block of one layer.
        if (block.layer, block.index) == (1, 2) {
            let middle = block.bytes.len() / 2;
            block.bytes[middle..middle + 4].copy_from_slice(&3_f32.to_le_bytes());
        }
    });
    // The first token came from the sender.
    assert_eq!(output[0][0], want[0]);
    assert_ne!(output[0][1].top_logprobs, want[1].top_logprobs);
}

/// What demonstrations and end-to-end tests rest on: noise, but noise that depends on the whole prompt.
#[test]
fn the_small_models_words_depend_on_every_token() {
    let folder = tempfile::tempdir().expect("a folder");
    let case = Case::tiny(folder.path());
    let mut worker = Worker::new(&case, 512, 64);
    let prompt: Vec<u32> = (0..300).map(|index| (index * 37 + 11) % 500).collect();
    let mut say = |prompt: &[u32]| -> Vec<u32> {
        worker.generate(&[prompt]).remove(0).iter().map(|token| token.token).collect()
    };
    let answer = say(&prompt);
    let mut distinct = answer.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() >= 16, "{distinct:?}");
    assert_eq!(say(&prompt), answer);
    for changed in [0, 150, 299] {
        let mut other = prompt.clone();
        other[changed] += 1;
        assert_ne!(say(&other), answer, "token {changed} has no effect");
    }
}
