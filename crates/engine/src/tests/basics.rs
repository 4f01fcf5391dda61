//! Requests that are prefilled and decoded here.

use std::sync::atomic::Ordering;

use super::harness::{MODEL, Shape, Worker, request};
use crate::engine::{AdmitError, BlockFate, Engine};
use crate::fake::FakeBackend;
use crate::request::{FinishReason, SamplingParams};

#[test]
fn one_request_gets_the_naive_models_tokens() {
    let mut worker = Worker::new(Shape::default());
    let id = worker.submit(request(vec![1, 2, 3, 4, 5], 10));
    worker.run();
    assert_eq!(worker.tokens(id, 0).len(), 10);
    assert_eq!(worker.finished(id, 0), Some(FinishReason::Length));
    worker.assert_as_expected();
    worker.assert_idle();
}

#[test]
fn the_fake_model_is_not_monotonous() {
    let output = MODEL.generate(&request(vec![1, 2, 3], 40), 64);
    let mut tokens = super::harness::tokens_of(&output[0].0);
    tokens.sort_unstable();
    tokens.dedup();
    assert!(tokens.len() > 12, "{tokens:?}");
}

#[test]
fn stops_at_eos_and_stop_tokens_but_not_before_min_tokens() {
    let free = MODEL.generate(&request(vec![9, 8, 7], 12), 64);
    let tokens = super::harness::tokens_of(&free[0].0);
    let third = tokens[2];
    let at = tokens.iter().position(|token| *token == third).unwrap();

    let mut by_eos = request(vec![9, 8, 7], 12);
    by_eos.stop.eos_token_ids = vec![third];
    let mut by_stop = request(vec![9, 8, 7], 12);
    by_stop.stop.stop_token_ids = vec![third];
    let mut ignored = by_eos.clone();
    ignored.stop.ignore_eos = true;
    let mut later = by_eos.clone();
    later.stop.min_tokens = 6;

    let mut worker = Worker::new(Shape::default());
    let ids = [by_eos, by_stop, ignored, later].map(|request| worker.submit(request));
    worker.run();
    for id in &ids[..2] {
        assert_eq!(worker.tokens(*id, 0), tokens[..=at]);
        assert_eq!(worker.finished(*id, 0), Some(FinishReason::Stop(third)));
    }
    assert_eq!(worker.tokens(ids[2], 0), tokens);
    assert_eq!(worker.finished(ids[2], 0), Some(FinishReason::Length));
    let late = worker.tokens(ids[3], 0);
    assert!(late.len() > 6 && !late[..6].contains(&third), "{late:?}");
    worker.assert_as_expected();
    worker.assert_idle();
}

#[test]
fn one_token_and_the_longest_length() {
    let mut worker = Worker::new(Shape { max_len: 16, ..Shape::default() });
    let one = worker.submit(request(vec![1; 3], 1));
    let full = worker.submit(request(vec![2; 15], 100));
    let longer = worker.submit(request(vec![2; 10], 100));
    worker.run();
    assert_eq!(worker.tokens(one, 0).len(), 1);
    assert_eq!(worker.tokens(full, 0).len(), 1);
    assert_eq!(worker.tokens(longer, 0).len(), 6);
    worker.assert_as_expected();
}

#[test]
fn choices_differ_share_the_prompts_full_blocks_and_end_one_by_one() {
    let mut worker = Worker::new(Shape { caching: false, ..Shape::default() });
    let mut many = request((0..14).collect(), 9);
    many.choices = 3;
    many.sampling = SamplingParams { temperature: 1.0, seed: 5, ..SamplingParams::greedy() };
    let id = worker.submit(many);
    worker.step();
    // 4 blocks of the prompt, the last of them partial.
    assert_eq!(worker.engine.load().blocks_used, 4);
    assert_eq!(worker.engine.load().waiting, 2);
    worker.step();
    // The others share 3 and have computed the rest of the prompt in a block of their own.
    assert_eq!(worker.engine.load().blocks_used, 6);
    assert_eq!(worker.control.most_tokens.load(Ordering::SeqCst), 14);
    worker.run();
    assert_ne!(worker.tokens(id, 0), worker.tokens(id, 1));
    assert_ne!(worker.tokens(id, 1), worker.tokens(id, 2));
    worker.assert_as_expected();
    worker.assert_idle();
}

#[test]
fn a_cached_prompt_is_not_computed_again_but_for_its_last_block() {
    let mut worker = Worker::new(Shape { tokens: 8, ..Shape::default() });
    let prompt: Vec<u32> = (0..16).collect();
    worker.submit(request(prompt.clone(), 3));
    worker.run();
    assert_eq!(
        worker.engine.overlap_tokens(&prompt, ""),
        12,
        "the last token of a prompt is always computed"
    );
    assert_eq!(worker.engine.overlap_tokens(&(0..18).collect::<Vec<_>>(), ""), 16);
    assert_eq!(worker.engine.overlap_tokens(&prompt, "salt"), 0);
    assert_eq!(worker.engine.overlap_tokens(&prompt[1..], ""), 0);
    let before = worker.control.steps.load(Ordering::SeqCst);
    worker.submit(request(prompt, 3));
    worker.run();
    // One step for the last 4 tokens and the first drawn one, two for the others.
    assert_eq!(worker.control.steps.load(Ordering::SeqCst) - before, 3);
    worker.assert_as_expected();
    worker.assert_idle();
}

#[test]
fn output_is_cached_too() {
    let mut worker = Worker::new(Shape::default());
    let first = worker.submit(request(vec![3; 5], 8));
    worker.run();
    let mut next = vec![3; 5];
    next.extend(worker.tokens(first, 0));
    next.push(1);
    // 13 tokens of the first round; the last drawn one was never computed.
    assert_eq!(worker.engine.overlap_tokens(&next, ""), 12);
    worker.submit(request(next, 5));
    worker.run();
    worker.assert_as_expected();
}

#[test]
fn a_cancelled_request_ends_every_choice_once_and_frees_its_blocks() {
    for steps in 0..4 {
        let mut worker = Worker::new(Shape { depth: 2, ..Shape::default() });
        let mut many = request((0..10).collect(), 30);
        many.choices = 3;
        let id = worker.submit(many);
        for _ in 0..steps {
            worker.step();
        }
        assert!(worker.engine.cancel(id, BlockFate::Free));
        assert!(!worker.engine.cancel(id, BlockFate::Free));
        worker.take_events();
        assert!((0..3).all(|choice| worker.finished(id, choice) == Some(FinishReason::Cancelled)));
        worker.run();
        worker.assert_as_expected();
        worker.assert_idle();
    }
}

#[test]
fn refuses_what_can_never_run_and_what_is_too_much() {
    let mut config = Shape { max_len: 20, ..Shape::default() }.config();
    config.max_waiting = 2;
    let mut engine = Engine::new(config.clone(), FakeBackend::new(MODEL, 4, 4, 1)).unwrap();
    assert_eq!(engine.submit(request(vec![], 1)), Err(AdmitError::EmptyPrompt));
    let refused = engine.submit(request(vec![1; 16], 1));
    assert_eq!(refused, Err(AdmitError::PromptTooLong { tokens: 16, limit: 15 }), "the pool has 16 slots");
    engine.submit(request(vec![1; 15], 1)).unwrap();
    engine.submit(request(vec![1; 15], 1)).unwrap();
    assert_eq!(engine.submit(request(vec![1], 1)), Err(AdmitError::QueueFull { waiting: 2 }));
    assert_eq!(engine.reserve(request(vec![1], 1)), Err(AdmitError::QueueFull { waiting: 2 }));

    config.enable_chunked_prefill = false;
    config.max_num_batched_tokens = 10;
    let mut engine = Engine::new(config.clone(), FakeBackend::new(MODEL, 4, 4, 1)).unwrap();
    let refused = engine.submit(request(vec![1; 11], 1));
    assert_eq!(refused, Err(AdmitError::PromptTooLong { tokens: 11, limit: 10 }));

    config.max_num_batched_tokens = 7;
    let error = Engine::new(config, FakeBackend::new(MODEL, 4, 4, 1)).err().unwrap();
    assert_eq!(error.field, "max-num-batched-tokens");
}
