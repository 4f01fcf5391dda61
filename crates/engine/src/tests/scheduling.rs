//! What runs in which step.

use std::sync::atomic::Ordering;

use super::harness::{Shape, Worker, request};
use crate::engine::{AdmitError, RemotePrefill};
use disagg_core::{Epoch, HandoffId};

#[test]
fn decodes_go_on_while_a_long_prompt_is_prefilled_in_chunks() {
    let mut worker = Worker::new(Shape { tokens: 8, seqs: 4, ..Shape::default() });
    let short = worker.submit(request(vec![1, 2], 20));
    worker.step();
    let long = worker.submit(request((0..21).collect(), 4));
    // 7 tokens of the prompt beside each decode.
    for step in 1..=3 {
        worker.step();
        assert_eq!(worker.tokens(short, 0).len(), 1 + step);
        assert_eq!(worker.tokens(long, 0).len(), usize::from(step == 3));
    }
    assert_eq!(worker.control.most_tokens.load(Ordering::SeqCst), 8);
    worker.run();
    worker.assert_as_expected();
}

#[test]
fn without_chunks_a_prompt_runs_whole_and_decodes_stand_back() {
    let mut worker = Worker::new(Shape { tokens: 8, seqs: 4, chunked: false, ..Shape::default() });
    let short = worker.submit(request(vec![1, 2], 20));
    worker.step();
    let long = worker.submit(request((0..8).collect(), 4));
    worker.step();
    assert_eq!((worker.tokens(short, 0).len(), worker.tokens(long, 0).len()), (1, 1));
    worker.step();
    assert_eq!((worker.tokens(short, 0).len(), worker.tokens(long, 0).len()), (2, 2));
    worker.run();
    worker.assert_as_expected();
}

#[test]
fn without_chunks_a_prompt_waits_for_a_step_that_takes_it_whole() {
    let mut worker = Worker::new(Shape { tokens: 8, seqs: 4, chunked: false, ..Shape::default() });
    let ids = [1, 2].map(|token| worker.submit(request(vec![token; 5], 3)));
    worker.step();
    assert_eq!(worker.control.most_tokens.load(Ordering::SeqCst), 5);
    assert_eq!(worker.engine.load().running, 1);
    worker.step();
    assert_eq!(ids.map(|id| worker.tokens(id, 0).len()), [2, 1]);
    worker.run();
    worker.assert_as_expected();
}

#[test]
fn the_latest_arrived_is_preempted_and_computed_again() {
    // 6 blocks of 4: three prompts of 2 blocks fill the pool.
    let mut worker = Worker::new(Shape { blocks: 6, seqs: 4, caching: false, ..Shape::default() });
    let ids = [1, 2, 3].map(|token| worker.submit(request(vec![token; 7], 9)));
    worker.step();
    assert_eq!(worker.engine.load().running, 3);
    worker.step();
    // Every sequence now has 9 tokens and lacks a block for the last.
    worker.step();
    let load = worker.engine.load();
    assert_eq!((load.running, load.waiting), (2, 1));
    let produced = ids.map(|id| worker.tokens(id, 0).len());
    assert_eq!(produced, [3, 3, 2], "the oldest two go on, the latest waits");
    worker.run();
    worker.assert_as_expected();
    worker.assert_idle();
}

#[test]
fn first_come_first_served() {
    let mut worker = Worker::new(Shape { seqs: 1, tokens: 4, ..Shape::default() });
    let ids: Vec<_> = (0..4).map(|token| worker.submit(request(vec![token; 6], 3))).collect();
    for (index, id) in ids.iter().enumerate() {
        while worker.finished(*id, 0).is_none() {
            worker.step();
            assert!(ids[index + 1..].iter().all(|later| worker.tokens(*later, 0).is_empty()));
        }
    }
    worker.assert_as_expected();
}

/// A request that lacks memory is not overtaken by smaller ones, and while it waits nobody else is promised memory.
#[test]
fn a_large_request_is_not_starved() {
    let mut worker = Worker::new(Shape { blocks: 8, seqs: 8, ..Shape::default() });
    let small = worker.submit(request(vec![1; 8], 12));
    worker.step();
    let large = worker.submit(request(vec![2; 30], 2));
    for _ in 0..2 {
        worker.submit(request(vec![3; 3], 2));
    }
    worker.step();
    assert_eq!(worker.engine.load().running, 1);
    let refused = worker.engine.reserve(request(vec![4; 3], 2));
    assert_eq!(refused, Err(AdmitError::NoBlocks { needed: 1, available: 0 }));
    let handoff = HandoffId { epoch: Epoch(1), number: 1 };
    let prefill = RemotePrefill { handoff, request: request(vec![4; 3], 2), first_block: 0 };
    assert_eq!(worker.engine.submit_prefill(prefill), Err(AdmitError::NoBlocks { needed: 1, available: 0 }));
    while worker.finished(small, 0).is_none() {
        assert!(worker.tokens(large, 0).is_empty());
        worker.step();
    }
    worker.step();
    assert_eq!(worker.tokens(large, 0).len(), 1);
    worker.run();
    worker.assert_as_expected();
    worker.assert_idle();
}

#[test]
fn a_deep_pipeline_runs_ahead_and_ends_as_it_would_without() {
    let mut results = Vec::new();
    for depth in [1, 2] {
        let mut worker = Worker::new(Shape { depth, blocks: 8, seqs: 3, tokens: 9, ..Shape::default() });
        for token in 0..5 {
            let mut one = request(vec![token; 6], 10);
            one.stop.eos_token_ids = vec![3, 7];
            worker.submit(one);
        }
        worker.run();
        worker.assert_as_expected();
        worker.assert_idle();
        let ran_ahead = worker.control.ran_ahead.load(Ordering::SeqCst);
        assert_eq!(ran_ahead > 10, depth == 2, "{ran_ahead} tokens were launched before they were known");
        results.push(worker.outcomes.into_values().map(|outcome| outcome.tokens).collect::<Vec<_>>());
    }
    assert_eq!(results[0], results[1]);
}
