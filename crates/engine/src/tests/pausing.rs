//! Requests whose reader is behind.

use std::sync::atomic::Ordering;

use disagg_core::{Epoch, HandoffId};

use super::harness::{Shape, Worker, request};
use crate::engine::{BlockFate, RemotePrefill};
use crate::request::FinishReason;

#[test]
fn a_paused_request_gives_its_slot_to_others_and_goes_on_where_it_was() {
    for depth in [1, 2] {
        let mut worker = Worker::new(Shape { depth, seqs: 1, ..Shape::default() });
        let unread = worker.submit(request(vec![1; 6], 20));
        (0..4).for_each(|_| worker.step());
        worker.engine.pause(unread);
        let had = worker.tokens(unread, 0).len();
        let others = [2, 3].map(|token| worker.submit(request(vec![token; 6], 8)));
        worker.run();
        assert!(others.iter().all(|id| worker.finished(*id, 0) == Some(FinishReason::Length)));
        let now = worker.tokens(unread, 0).len();
        assert!(now < had + depth, "{now} tokens, {had} when it was paused: only what was under way");
        let load = worker.engine.load();
        assert_eq!((load.paused, load.running, load.waiting), (1, 0, 0));
        assert_eq!(load.blocks_used, ((6 + now) as u32).div_ceil(4), "nobody needed its blocks");

        worker.engine.resume(unread);
        let steps = worker.control.steps.load(Ordering::SeqCst);
        worker.run();
        let steps = worker.control.steps.load(Ordering::SeqCst) - steps;
        assert!(steps as usize <= 20 - now + 1, "nothing is computed again");
        worker.assert_as_expected();
        worker.assert_idle();
    }
}

#[test]
fn blocks_of_a_paused_request_go_first_even_to_later_ones() {
    let mut worker = Worker::new(Shape { blocks: 12, seqs: 2, caching: false, ..Shape::default() });
    let unread = worker.submit(request(vec![1; 20], 20));
    let other = worker.submit(request(vec![2; 10], 20));
    (0..3).for_each(|_| worker.step());
    worker.engine.pause(unread);
    // 6 and 4 blocks are held, and this one needs 5.
    let late = worker.submit(request(vec![3; 18], 4));
    worker.step();
    assert_eq!(worker.tokens(late, 0).len(), 1);
    assert_eq!((worker.engine.load().running, worker.engine.load().waiting), (2, 0), "nobody else gave way");
    worker.run();
    assert!([other, late].iter().all(|id| worker.finished(*id, 0).is_some()));
    assert_eq!(worker.engine.load().blocks_used, 0);
    worker.engine.resume(unread);
    worker.run();
    worker.assert_as_expected();
    worker.assert_idle();
}

/// Handoffs take their blocks at once or are refused, so that they too have to get what paused requests hold.
#[test]
fn blocks_of_a_paused_request_go_to_reservations_and_prefills() {
    let mut worker = Worker::new(Shape { blocks: 12, ..Shape::default() });
    let hold = |worker: &mut Worker, token| {
        let unread = worker.submit(request(vec![token; 36], 20));
        worker.step();
        worker.engine.pause(unread);
        unread
    };
    let first = hold(&mut worker, 1);
    let reserved = worker.engine.reserve(request(vec![3; 20], 4)).unwrap();
    assert_eq!(reserved.blocks.len(), 5);
    assert!(
        worker.engine.cancel(first, BlockFate::Free)
            && worker.engine.cancel(reserved.sequence, BlockFate::Free)
    );
    worker.engine.take_events();
    worker.outcomes.clear();
    worker.requests.clear();

    let second = hold(&mut worker, 2);
    let handoff = HandoffId { epoch: Epoch(1), number: 1 };
    let prefill = RemotePrefill { handoff, request: request(vec![4; 30], 2), first_block: 0 };
    assert_eq!(worker.engine.submit_prefill(prefill), Ok(0));
    worker.run();
    worker.engine.push_drained(handoff);
    worker.engine.resume(second);
    worker.run();
    worker.assert_as_expected();
    worker.assert_idle();
}

#[test]
fn all_choices_are_paused_together_and_a_cancel_ends_them() {
    for depth in [1, 2] {
        for steps in 0..4 {
            let mut worker = Worker::new(Shape { depth, ..Shape::default() });
            let mut many = request((0..10).collect(), 30);
            many.choices = 3;
            let id = worker.submit(many);
            for _ in 0..steps {
                worker.step();
            }
            worker.engine.pause(id);
            worker.run();
            let load = worker.engine.load();
            assert_eq!((load.running, load.waiting), (0, 0), "depth {depth}, {steps} steps");
            assert!(!worker.engine.has_work());
            // Unknown ones, and one that is not paused, are ignored.
            worker.engine.pause(disagg_core::SequenceId(99));
            worker.engine.resume(disagg_core::SequenceId(99));
            assert!(worker.engine.cancel(id, BlockFate::Free));
            worker.take_events();
            assert!((0..3).all(|choice| worker.finished(id, choice) == Some(FinishReason::Cancelled)));
            worker.assert_as_expected();
            worker.assert_idle();
        }
    }
}
