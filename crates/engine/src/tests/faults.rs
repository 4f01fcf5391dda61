//! Backends that fail.

use std::sync::atomic::Ordering;

use disagg_core::{Epoch, HandoffId};

use super::harness::{Shape, Worker, request};
use crate::engine::RemotePrefill;
use crate::request::FinishReason;

const HANDOFF: HandoffId = HandoffId { epoch: Epoch(1), number: 1 };

#[test]
fn a_failed_step_ends_its_sequences_and_no_others() {
    for depth in [1, 2] {
        for at_launch in [true, false] {
            let mut worker = Worker::new(Shape { depth, seqs: 3, ..Shape::default() });
            let doomed = [1, 2].map(|token| worker.submit(request(vec![token; 6], 20)));
            let prefill =
                RemotePrefill { handoff: HANDOFF, request: request(vec![5; 40], 2), first_block: 0 };
            worker.shape.tokens = 64;
            worker.engine.submit_prefill(prefill).unwrap();
            // Too early, and ignored: it has pushed nothing yet.
            worker.engine.push_drained(HANDOFF);
            let waits = worker.submit(request(vec![3; 6], 5));
            let flag = if at_launch { &worker.control.fail_launch } else { &worker.control.fail_collect };
            flag.store(true, Ordering::SeqCst);
            let result = (0..2).find_map(|_| worker.engine.step(&mut worker.transport).err());
            assert!(result.is_some_and(|error| error.to_string().starts_with("backend fake: told to fail")));
            worker.take_events();
            for id in doomed {
                assert_eq!(worker.finished(id, 0), Some(FinishReason::Error));
            }
            assert_eq!(worker.prefilled[&HANDOFF], None);
            worker.run();
            assert_eq!(worker.finished(waits, 0), Some(FinishReason::Length));
            worker.assert_as_expected();
            assert_eq!(worker.engine.load().blocks_used, 10, "what was pushed may still be read");
            worker.engine.push_drained(HANDOFF);
            worker.assert_idle();
        }
    }
}

/// The second half of a prompt is launched before the first is collected. It fails, so it must not be found later.
#[test]
fn what_a_failed_step_should_have_computed_is_not_cached() {
    let mut worker = Worker::new(Shape { depth: 2, tokens: 8, ..Shape::default() });
    let doomed = worker.submit(request((0..17).collect(), 4));
    worker.step();
    worker.step();
    worker.control.fail_collect.store(true, Ordering::SeqCst);
    assert!(worker.engine.step(&mut worker.transport).is_err());
    worker.take_events();
    assert_eq!(worker.finished(doomed, 0), Some(FinishReason::Error));
    assert_eq!(worker.engine.overlap_tokens(&(0..17).collect::<Vec<_>>(), ""), 0);
    worker.submit(request((0..17).collect(), 4));
    worker.run();
    worker.assert_as_expected();
    worker.assert_idle();
}

#[test]
fn a_row_that_can_not_be_drawn_ends_alone() {
    for depth in [1, 2] {
        let mut worker = Worker::new(Shape { depth, ..Shape::default() });
        let mut bad = request(vec![1; 6], 20);
        bad.choices = 2;
        let bad = worker.submit(bad);
        let good = worker.submit(request(vec![2; 6], 20));
        worker.control.fail_sample.store(true, Ordering::SeqCst);
        worker.run();
        for choice in 0..2 {
            assert_eq!(worker.finished(bad, choice), Some(FinishReason::Error));
        }
        assert_eq!(worker.finished(good, 0), Some(FinishReason::Length));
        worker.assert_as_expected();
        worker.assert_idle();
    }
}

/// As when a prompt drives the model to numbers that are none: others with the same prompt must not find its KV.
#[test]
fn what_could_not_be_drawn_from_is_neither_cached_nor_told() {
    for (depth, tokens) in [(1, 64), (1, 8), (2, 8)] {
        let mut worker = Worker::new(Shape { depth, tokens, ..Shape::default() });
        let prompt: Vec<u32> = (0..20).collect();
        let bad = worker.submit(request(prompt.clone(), 4));
        worker.control.fail_sample.store(true, Ordering::SeqCst);
        worker.run();
        assert_eq!(worker.finished(bad, 0), Some(FinishReason::Error));
        assert_eq!(worker.engine.overlap_tokens(&prompt, ""), 0);
        assert_eq!(worker.engine.take_kv_events(), []);
        worker.assert_idle();

        // While it decodes: what was drawn from before stays, the block that its last token completes does not.
        let late = worker.submit(request(prompt.clone(), 20));
        while worker.tokens(late, 0).len() < 4 {
            worker.step();
        }
        worker.control.fail_sample.store(true, Ordering::SeqCst);
        worker.run();
        assert_eq!(worker.finished(late, 0), Some(FinishReason::Error));
        let mut all = prompt;
        all.extend(worker.tokens(late, 0));
        all.extend([1; 8]);
        let drawn_from = 20 + worker.tokens(late, 0).len() - 1;
        assert_eq!(worker.engine.overlap_tokens(&all, "") as usize, drawn_from / 4 * 4);
        worker.assert_idle();
    }
}

#[test]
fn a_bias_that_forbids_everything_is_an_error() {
    let mut worker = Worker::new(Shape::default());
    let mut asked = request(vec![1; 6], 20);
    asked.stop.stop_token_ids = (0..24).collect();
    asked.stop.min_tokens = 3;
    let id = worker.submit(asked);
    worker.run();
    assert_eq!(worker.finished(id, 0), Some(FinishReason::Error));
    worker.assert_idle();
}

/// Whatever a request is doing when the device goes, it ends with one error, and nothing waits for ever.
#[test]
fn a_lost_device_ends_every_request_once() {
    for depth in [1, 2] {
        for step in 1..12 {
            let mut worker = Worker::new(Shape { depth, seqs: 3, tokens: 8, ..Shape::default() });
            worker.control.lose_at_step.store(step, Ordering::SeqCst);
            let mut several = request(vec![4; 6], 20);
            several.choices = 2;
            let ids = [request(vec![1; 6], 20), several, request(vec![3; 30], 20), request(vec![2; 6], 20)]
                .map(|request| worker.submit(request));
            let prefill =
                RemotePrefill { handoff: HANDOFF, request: request(vec![5; 40], 2), first_block: 0 };
            worker.engine.submit_prefill(prefill).unwrap();
            // Four requests of at most 30 prompt tokens and one of 40, 8 tokens a step: far fewer steps than this.
            for _ in 0..200 {
                let _ = worker.engine.step(&mut worker.transport);
                worker.take_events();
            }
            assert!(!worker.engine.has_work(), "depth {depth}, lost in step {step}");
            let late = worker.submit(request(vec![9; 6], 2));
            assert!(worker.engine.step(&mut worker.transport).is_err());
            worker.take_events();
            assert_eq!(worker.finished(late, 0), Some(FinishReason::Error));
            for (id, choices) in ids.into_iter().zip([1, 2, 1, 1]) {
                for choice in 0..choices {
                    assert_eq!(worker.finished(id, choice), Some(FinishReason::Error), "lost in step {step}");
                }
            }
            worker.engine.push_drained(HANDOFF);
            worker.assert_idle();
        }
    }
}
