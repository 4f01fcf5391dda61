use std::path::Path;
use std::time::{Duration, Instant};

use disagg_core::{BlockId, Epoch, HandoffId};
use disagg_engine::fake::FakeTransport;
use disagg_engine::{
    Backend, Batch, KvPush, KvTransport, NoTransport, SampleRow, SampledToken, SamplingParams, TokenInput,
};
use proptest::prelude::*;
use serde_json::json;

use super::{SimBackend, Speed};
use crate::model::ModelSpec;

const BLOCK_SIZE: u32 = 4;
const BLOCKS: u32 = 24;

fn backend(speed: &str) -> SimBackend {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 512, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 3, "num_attention_heads": 2, "head_dim": 4, "max_position_embeddings": 512,
    });
    let spec = ModelSpec::parse(Path::new("config.json"), config.to_string().as_bytes()).expect("valid");
    SimBackend::new(&spec, speed.parse::<Speed>().expect("a speed"), BLOCK_SIZE, BLOCKS).expect("a pool")
}

fn instant() -> SimBackend {
    backend("decode-step-ms=0,prefill-tokens-per-second=1000000000")
}

fn tokens(length: u32, seed: u32) -> Vec<u32> {
    (0..length).map(|i| (i * 31 + seed * 17) % 512).collect()
}

/// Computes the tokens of one sequence from `from` on in one step, and draws the next one.
fn step(
    backend: &mut SimBackend,
    history: &[u32],
    from: usize,
    table: &[u32],
    pushes: &[KvPush],
    transport: &mut dyn KvTransport,
) -> Vec<SampledToken> {
    let table: Vec<BlockId> = table.iter().copied().map(BlockId).collect();
    let positions: Vec<u32> = (from as u32..history.len() as u32).collect();
    let slot =
        |position: &u32| table[(position / BLOCK_SIZE) as usize].0 * BLOCK_SIZE + position % BLOCK_SIZE;
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
        input_ids: &history[from..].iter().copied().map(TokenInput::Id).collect::<Vec<_>>(),
        positions: &positions,
        cu_seqlens: &[0, positions.len() as u32],
        slot_mapping: &positions.iter().map(slot).collect::<Vec<_>>(),
        block_tables: &[&table],
        samples: &[sample],
        pushes,
    };
    backend.launch(&batch, transport).expect("launched");
    backend.collect(&mut NoTransport).expect("collected").remove(0)
}

fn compute(backend: &mut SimBackend, history: &[u32], from: usize, table: &[u32]) -> Vec<SampledToken> {
    step(backend, history, from, table, &[], &mut NoTransport)
}

proptest! {
    #[test]
    fn tokens_depend_on_the_context_and_on_nothing_else(cuts in prop::collection::vec(1usize..7, 1..12), seed in 0u32..9) {
        let prompt = tokens(30, seed);
        let whole = compute(&mut instant(), &prompt, 0, &[0, 1, 2, 3, 4, 5, 6, 7]);
        prop_assert_eq!(whole.len(), 1);
        let (mut backend, mut from) = (instant(), 0);
        let mut last = Vec::new();
        for cut in cuts.into_iter().chain([30]) {
            if from < prompt.len() {
                let end = (from + cut).min(prompt.len());
                last = compute(&mut backend, &prompt[..end], from, &[17, 3, 9, 20, 1, 0, 5, 12]);
                from = end;
            }
        }
        prop_assert_eq!(&last, &whole);
        let other = compute(&mut instant(), &tokens(30, seed + 1), 0, &[0, 1, 2, 3, 4, 5, 6, 7]);
        prop_assert_ne!(other, whole);
    }

    /// Any byte of the context, soon.
    #[test]
    fn a_flipped_bit_is_noticed(layer in 0u32..3, block in 0usize..7, byte in 0usize..256, bit in 0u32..8) {
        let mut backend = instant();
        let mut history = tokens(28, 1);
        let table = [8, 6, 4, 2, 0, 1, 3, 5, 7, 9, 10, 11, 12, 13, 14];
        compute(&mut backend, &history, 0, &table);
        let (memory, target) = (backend.memory(), BlockId(table[block]));
        let mut bytes = vec![0; memory.layout().layer_block_bytes()];
        memory.read(layer, target, &mut bytes).expect("in the pool");
        bytes[byte] ^= 1 << bit;
        memory.write(layer, target, &bytes).expect("in the pool");
        let noticed = (0..24).any(|_| {
            history.push(7);
            compute(&mut backend, &history, history.len() - 1, &table).is_empty()
        });
        prop_assert!(noticed);
    }
}

#[test]
fn kv_of_another_context_is_noticed_at_once() {
    let mut backend = instant();
    let (ours, theirs) = (tokens(20, 1), tokens(20, 2));
    compute(&mut backend, &ours, 0, &[0, 1, 2, 3, 4]);
    compute(&mut backend, &theirs, 0, &[10, 11, 12, 13, 14]);
    let mut next = ours.clone();
    next.push(3);
    let mut draw = |table: &[u32]| compute(&mut backend, &next, 20, table).len();
    assert_eq!(draw(&[0, 1, 2, 3, 4, 5]), 1, "its own");
    for (what, table) in [
        ("one block of another sequence", [0, 1, 12, 3, 4, 5]),
        ("all blocks of another sequence", [10, 11, 12, 13, 14, 5]),
        ("two blocks in the wrong order", [0, 2, 1, 3, 4, 5]),
        ("a block that nobody wrote", [0, 1, 2, 20, 4, 5]),
        ("a last block that nobody wrote", [0, 1, 2, 3, 20, 5]),
    ] {
        assert_eq!(draw(&table), 0, "{what}");
    }
}

#[test]
fn a_stale_token_in_the_last_block_is_noticed() {
    let mut backend = instant();
    let history = tokens(22, 1);
    // The block of the last two tokens still has what another sequence left there.
    compute(&mut backend, &tokens(24, 2), 0, &[10, 11, 12, 13, 14, 5]);
    compute(&mut backend, &history[..20], 0, &[0, 1, 2, 3, 4]);
    // Position 20 is left out.
    assert_eq!(compute(&mut backend, &history, 21, &[0, 1, 2, 3, 4, 5]), []);
}

#[test]
fn pushed_blocks_are_as_good_as_computed_ones() {
    let (mut prefill, mut decode) = (instant(), instant());
    let prompt = tokens(18, 5);
    let handoff = HandoffId { epoch: Epoch(1), number: 1 };
    let source = [9, 8, 7, 6, 5];
    let push = KvPush { handoff, first: 0, blocks: source.iter().copied().map(BlockId).collect() };
    let mut transport = FakeTransport::new(prefill.memory());
    let first = step(&mut prefill, &prompt, 0, &source, &[push], &mut transport);
    let target = [1, 3, 5, 7, 11];
    for pushed in std::mem::take(&mut transport.pushed) {
        let bytes = transport.read(&pushed);
        let block = BlockId(target[pushed.position as usize]);
        decode.memory().write(pushed.layer, block, &bytes).expect("in the pool");
    }
    let mut next = prompt;
    next.push(first[0].token);
    let local = compute(&mut prefill, &next, 18, &source);
    assert_eq!(local.len(), 1);
    assert_eq!(compute(&mut decode, &next, 18, &target), local);
}

#[test]
fn steps_take_their_time() {
    let mut backend = backend("decode-step-ms=5,prefill-tokens-per-second=1000");
    let begun = Instant::now();
    let mut history = tokens(20, 1);
    compute(&mut backend, &history, 0, &[0, 1, 2, 3, 4]);
    assert!(begun.elapsed() >= Duration::from_millis(25), "a step, and 20 tokens of a prompt");
    let begun = Instant::now();
    history.push(1);
    compute(&mut backend, &history, 20, &[0, 1, 2, 3, 4, 5]);
    assert!(begun.elapsed() >= Duration::from_millis(5), "a decode takes a step");
}
