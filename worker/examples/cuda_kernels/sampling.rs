//! `sample.cu`: random logits and parameters give the tokens that `disagg_engine::sampling` draws.

use disagg_engine::{SampleRow, SamplingParams, sampling};
use disagg_worker::cuda::compile;
use disagg_worker::cuda::device::{Buffer, Kernel};
use disagg_worker::cuda::lists::{RawRow, sampling_lists};

use crate::support::{Gpu, Random, address, int};

const TOP: u32 = 20;

pub fn check(gpu: &mut Gpu) {
    if gpu.small {
        draws(gpu, 512, 12, 4);
    } else {
        draws(gpu, 4096, 64, 24);
        draws(gpu, 128_256, 64, 8);
    }
}

fn pick<T: Copy>(random: &mut Random, values: &[T]) -> T {
    values[random.below(values.len())]
}

fn params(random: &mut Random, vocab: usize) -> SamplingParams {
    SamplingParams {
        temperature: pick(random, &[0.0, 0.3, 0.7, 1.0, 1.5]),
        top_p: pick(random, &[1.0, 1.0, 0.95, 0.9, 0.5, 0.05]),
        top_k: pick(random, &[0, 0, 1, 2, 20, 50, 1000]),
        min_p: pick(random, &[0.0, 0.0, 0.05, 0.3]),
        presence_penalty: pick(random, &[0.0, 0.0, 0.7]),
        frequency_penalty: pick(random, &[0.0, 0.0, 0.4]),
        repetition_penalty: pick(random, &[1.0, 1.0, 1.3]),
        logit_bias: (0..pick(random, &[0, 0, 30]))
            .map(|_| (random.below(vocab) as u32, random.normal() * 5.0))
            .collect(),
        seed: random.next(),
        top_logprobs: Some(TOP),
    }
}

/// The same tokens as the reference draws, but where rounding decides: in one of a thousand at most.
fn draws(gpu: &mut Gpu, vocab: usize, rows: usize, rounds: usize) {
    let (mut total, mut equal, mut error, mut top_equal) = (0, 0, 0_f32, 0);
    for round in 0..rounds {
        let spread = pick(&mut gpu.random, &[1.0, 3.0, 8.0]);
        let logits: Vec<f32> = (0..rows * vocab)
            .map(|_| {
                let x = gpu.random.normal() * spread;
                // Every other round has many equals.
                if round % 2 == 0 { x } else { (x * 8.0).round() / 8.0 }
            })
            .collect();
        let params: Vec<SamplingParams> = (0..rows).map(|_| params(&mut gpu.random, vocab)).collect();
        let history: Vec<u32> = (0..300).map(|_| gpu.random.below(vocab) as u32).collect();
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
        let (tokens, logprobs, ids) = on_device(gpu, &logits, &rows, vocab);
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
    let what = format!(
        "draws, vocabulary {vocab}: {equal} of {total} tokens equal, {top_equal} lists of {TOP} equal, \
         logprob error max {error:.6}"
    );
    gpu.expect_true(&what, equal * 1000 >= total * 999 && top_equal == total && error < 1e-3);
}

/// Tokens, their log-probabilities and the most likely tokens.
fn on_device(
    gpu: &Gpu,
    logits: &[f32],
    rows: &[SampleRow<'_>],
    vocab: usize,
) -> (Vec<u32>, Vec<f32>, Vec<u32>) {
    let module = gpu.module(compile::SAMPLE);
    let kernel = |name| Kernel::new(&module, name, 0).unwrap();
    let (draws, raw, adjusts, _) = sampling_lists(rows, vocab);
    let logits = gpu.upload(logits);
    let (draws, raw, count) = (words(gpu, &draws), words(gpu, &raw), gpu.upload(&[adjusts.len() as u32]));
    let adjusts = words(gpu, &adjusts);
    let (tokens, logprobs) = (gpu.poisoned::<u32>(rows.len()), gpu.poisoned::<f32>(rows.len()));
    let sums = gpu.poisoned::<f32>(rows.len());
    let top = rows.len() * RawRow::TOP_MAX;
    let (ids, tops) = (gpu.poisoned::<u32>(top), gpu.poisoned::<f32>(top));
    let (size, grid) = (int(vocab), (rows.len() as u32, 1));
    let args = [address(&sums), address(&ids), address(&tops), address(&logits), address(&raw), size];
    gpu.run(&kernel("raw_logprobs"), grid, 1024, &args);
    let args = [address(&logits), address(&adjusts), address(&count), size];
    gpu.run(&kernel("adjust_logits"), (8, 1), 256, &args);
    let args = [
        address(&tokens),
        address(&logprobs),
        address(&logits),
        address(&sums),
        address(&draws),
        address(&adjusts),
        address(&count),
        size,
    ];
    gpu.run(&kernel("draw_tokens"), grid, 1024, &args);
    (gpu.download(&tokens), gpu.download(&logprobs), gpu.download(&ids))
}

/// Plain structures, as the words that they are.
fn words<T: Copy>(gpu: &Gpu, values: &[T]) -> Buffer<u32> {
    // SAFETY: the structures are `repr(C)` of 4- and 8-byte numbers without padding between them.
    let words = unsafe {
        std::slice::from_raw_parts(values.as_ptr().cast::<u32>(), size_of_val(values) / size_of::<u32>())
    };
    if words.is_empty() { gpu.upload(&[0]) } else { gpu.upload(words) }
}
