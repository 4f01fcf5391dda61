//! Batch invariance of the whole decoder: equal bits however tokens are cut into steps.

use std::path::Path;
use std::sync::Arc;

use disagg_core::BlockId;
use disagg_engine::{Backend, Batch, KvDtype, NoTransport, SampleRow, SamplingParams, TokenInput};
use proptest::prelude::*;
use serde_json::json;

use super::forward::Decoder;
use super::reference::Reference;
use super::simd::Isa;
use super::{CandleBackend, error, load_weights};
use crate::backend::pool::PagedPool;
use crate::model::{DummyWeights, ModelSpec};

/// Sizes that are no multiples of the vectors' lanes, and all that a family may have: norms of heads, biases, a window.
fn spec(family: &str, head_dim: usize, num_kv_heads: usize, window: Option<u32>) -> ModelSpec {
    let config = json!({
        "architectures": [family], "vocab_size": 40, "hidden_size": 24, "intermediate_size": 50,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim, "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "attention_bias": true,
        "mlp_bias": true, "max_position_embeddings": 512, "sliding_window": window,
    });
    ModelSpec::parse(Path::new("config.json"), config.to_string().as_bytes()).expect("valid")
}

fn weights() -> DummyWeights {
    DummyWeights::new(5).with_standard_deviation(0.3)
}

fn decoder(spec: &ModelSpec, isa: Isa) -> Decoder {
    Decoder::new(spec.clone(), Arc::new(load_weights(spec, &weights()).expect("never fails")), isa)
}

/// A sequence on its way through steps.
struct Sequence {
    tokens: Vec<u32>,
    computed: usize,
    blocks: Vec<BlockId>,
}

/// Sequences with blocks of one pool, handed out in an order given by `shuffle`.
fn sequences(all_tokens: &[Vec<u32>], block_size: usize, shuffle: u32) -> (Vec<Sequence>, u32) {
    let counts: Vec<usize> = all_tokens.iter().map(|tokens| tokens.len().div_ceil(block_size)).collect();
    let total: usize = counts.iter().sum();
    let mut ids: Vec<BlockId> = (0..total as u32).map(BlockId).collect();
    ids.sort_by_key(|id| (id.0 ^ shuffle).wrapping_mul(0x9e37_79b9));
    let sequences = all_tokens.iter().zip(counts).map(|(tokens, count)| Sequence {
        tokens: tokens.clone(),
        computed: 0,
        blocks: ids.drain(..count).collect(),
    });
    (sequences.collect(), total as u32)
}

/// Computes the next `take[i]` tokens of sequence `i` in one batch; gives the logits after each one's last.
fn step(
    decoder: &Decoder,
    pool: &PagedPool,
    sequences: &mut [Sequence],
    take: &[usize],
) -> Vec<(usize, Vec<u32>)> {
    let params = SamplingParams::greedy();
    let (mut ids, mut positions, mut slots, mut ends) = (Vec::new(), Vec::new(), Vec::new(), vec![0]);
    let (mut tables, mut samples, mut rows): (Vec<&[BlockId]>, Vec<SampleRow<'_>>, Vec<usize>) =
        Default::default();
    for (index, (sequence, &take)) in sequences.iter().zip(take).enumerate() {
        let end = (sequence.computed + take).min(sequence.tokens.len());
        if end == sequence.computed {
            continue;
        }
        for position in sequence.computed..end {
            ids.push(sequence.tokens[position]);
            positions.push(position as u32);
            let block = sequence.blocks[position / pool.block_size()].0 as usize;
            slots.push((block * pool.block_size() + position % pool.block_size()) as u32);
        }
        ends.push(ids.len() as u32);
        samples.push(SampleRow {
            row: tables.len() as u32,
            params: &params,
            choices: 0..1,
            position: end as u32,
            history: &sequence.tokens[..end],
            prompt_len: end,
            forbidden: &[],
        });
        tables.push(&sequence.blocks);
        rows.push(index);
    }
    let inputs: Vec<TokenInput> = ids.iter().map(|&id| TokenInput::Id(id)).collect();
    let batch = Batch {
        input_ids: &inputs,
        positions: &positions,
        cu_seqlens: &ends,
        slot_mapping: &slots,
        block_tables: &tables,
        samples: &samples,
        pushes: &[],
    };
    let logits = decoder.forward(&batch, &ids, pool, &mut NoTransport);
    let logits = logits.chunks(decoder.spec().vocab_size);
    for (sequence, take) in sequences.iter_mut().zip(take) {
        sequence.computed = (sequence.computed + take).min(sequence.tokens.len());
    }
    rows.into_iter().zip(logits.map(|row| row.iter().map(|l| l.to_bits()).collect())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// f32 against candle's f64, at every position: of the largest logit, a hundred thousandth.
    #[test]
    fn logits_are_those_of_plain_candle_operations(
        tokens in prop::collection::vec(0_u32..40, 1..90),
        block_size in 1_u32..24,
        family in prop::sample::select(vec!["LlamaForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"]),
        window in 1_u32..60,
        head_dim in prop::sample::select(vec![6_usize, 16, 34, 80]),
        kv_heads in prop::sample::select(vec![1_usize, 2, 4]),
    ) {
        let spec = spec(family, head_dim, kv_heads, Some(window));
        let want = Reference { spec: &spec, source: &weights() }.logits(&tokens).expect("candle computes it");
        let decoder = decoder(&spec, Isa::best());
        let (mut alone, blocks) = sequences(std::slice::from_ref(&tokens), block_size as usize, 0);
        let pool = PagedPool::new(CandleBackend::layout_of(&spec, block_size, KvDtype::F32), blocks);
        for (position, want) in want.iter().enumerate() {
            let (_, logits) = step(&decoder, &pool, &mut alone, &[1]).remove(0);
            let largest = want.iter().fold(0.0_f64, |max, logit| max.max(logit.abs()));
            for (logit, want) in logits.into_iter().map(f32::from_bits).zip(want) {
                prop_assert!(
                    (f64::from(logit) - want).abs() <= 1e-5 * largest,
                    "position {position}: {logit}, not {want}"
                );
            }
        }
    }

    #[test]
    fn however_tokens_are_cut_into_steps_logits_have_equal_bits(
        all_tokens in prop::collection::vec(prop::collection::vec(0_u32..40, 1..90), 1..5),
        takes in prop::collection::vec(prop::collection::vec(0_usize..50, 4), 1..12),
        block_size in 1_u32..24,
        family in prop::sample::select(vec!["LlamaForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"]),
        window in 1_u32..60,
        head_dim in prop::sample::select(vec![6_usize, 16, 34, 80]),
        kv_heads in prop::sample::select(vec![1_usize, 2, 4]),
        dtype in prop::sample::select(vec![KvDtype::F32, KvDtype::Bf16, KvDtype::F16]),
        shuffle in any::<u32>(),
    ) {
        let spec = spec(family, head_dim, kv_heads, Some(window));
        let layout = CandleBackend::layout_of(&spec, block_size, dtype);
        // Token by token, each sequence alone: `[sequence][position]`.
        let best = decoder(&spec, Isa::best());
        let want: Vec<Vec<Vec<u32>>> = all_tokens.iter().map(|tokens| {
            let (mut alone, blocks) = sequences(std::slice::from_ref(tokens), block_size as usize, 0);
            let pool = PagedPool::new(layout, blocks);
            tokens.iter().map(|_| step(&best, &pool, &mut alone, &[1]).remove(0).1).collect()
        }).collect();

        for isa in Isa::available() {
            let decoder = decoder(&spec, isa);
            let (mut together, blocks) = sequences(&all_tokens, block_size as usize, shuffle);
            let pool = PagedPool::new(layout, blocks);
            for take in takes.iter().cycle().take(2 * takes.len()).chain([&vec![90; 4]]) {
                let take = &take[..together.len()];
                let idle = together.iter().zip(take).all(|(s, &take)| take == 0 || s.computed == s.tokens.len());
                if idle {
                    continue;
                }
                for (index, logits) in step(&decoder, &pool, &mut together, take) {
                    let last = together[index].computed - 1;
                    prop_assert!(logits == want[index][last], "{isa:?}: sequence {index}, position {last}");
                }
            }
        }
    }
}

#[test]
fn batches_that_reach_outside_are_refused() {
    let spec = spec("Qwen3ForCausalLM", 16, 2, None);
    let weights = Arc::new(load_weights(&spec, &DummyWeights::new(1)).expect("never fails"));
    let backend = |block_size, num_blocks| {
        let layout = CandleBackend::layout_of(&spec, block_size, KvDtype::F32);
        CandleBackend::new(spec.clone(), weights.clone(), layout, num_blocks)
    };
    assert!(backend(0, 4).is_err());
    assert!(backend(16, 0).is_err());
    assert!(backend(1024, 1 << 22).is_err());
    let mut backend = backend(4, 4).expect("valid");
    assert_eq!(backend.memory().num_blocks(), 4);
    let good: (_, [u32; 2], [u32; 2], [u32; 2]) =
        ([TokenInput::Id(3), TokenInput::Id(39)], [3, 4], [0, 2], [15, 0]);
    let mut launch = |(ids, positions, ends, slots): ([TokenInput; 2], [u32; 2], [u32; 2], [u32; 2]),
                      table: &[u32]| {
        let table: Vec<BlockId> = table.iter().copied().map(BlockId).collect();
        let batch = Batch {
            input_ids: &ids,
            positions: &positions,
            cu_seqlens: &ends,
            slot_mapping: &slots,
            block_tables: &[&table],
            samples: &[],
            pushes: &[],
        };
        backend
            .launch(&batch, &mut NoTransport)
            .map(|()| backend.collect(&mut NoTransport))
            .map_err(|error| error.message)
    };
    assert_eq!(launch(good, &[3, 0]), Ok(Ok(Vec::new())));
    let with_ids = |second| ([TokenInput::Id(3), second], good.1, good.2, good.3);
    for (batch, table, want) in [
        (with_ids(TokenInput::Id(40)), &[3, 0][..], "token 40 is outside the vocabulary of 40"),
        (with_ids(TokenInput::Sampled(0)), &[3, 0], "a token was scheduled before it was drawn"),
        (good, &[3], "a token of the batch lies outside its blocks"),
        (good, &[3, 4], "a token of the batch lies outside its blocks"),
        ((good.0, good.1, good.2, [15, 16]), &[3, 0], "a token of the batch lies outside its blocks"),
        ((good.0, good.1, [0, 1], good.3), &[3, 0], "the parts of the batch do not fit each other"),
    ] {
        assert_eq!(launch(batch, table), Err(want.to_owned()));
    }
    assert_eq!(backend.collect(&mut NoTransport), Err(error("no step is under way".to_owned())));
}
