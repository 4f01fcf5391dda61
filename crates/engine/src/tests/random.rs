//! One engine under random requests, cancels and failures, against the naive model.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use disagg_core::KvEvent;
use disagg_core::hash::BlockHasher;
use proptest::prelude::*;

use super::harness::{Shape, Worker, requests, shapes, tokens_of};
use crate::engine::BlockFate;
use crate::request::Request;

#[derive(Clone, Debug)]
enum Action {
    Submit(Request),
    Steps(u8),
    Cancel(usize),
    FailLaunch,
    FailCollect,
    FailSample,
    Pause(usize),
    Resume(usize),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        8 => requests().prop_map(Action::Submit),
        8 => (0u8..6).prop_map(Action::Steps),
        2 => (0usize..8).prop_map(Action::Cancel),
        1 => prop_oneof![Just(Action::FailLaunch), Just(Action::FailCollect), Just(Action::FailSample)],
        1 => (0usize..8).prop_map(Action::Pause),
        1 => (0usize..8).prop_map(Action::Resume),
    ];
    prop::collection::vec(action, 1..24)
}

/// Steps that a run may take: each request alone, with every token computed one at a time, many times over.
fn bound(worker: &Worker) -> usize {
    let tokens = |request: &Request| (request.prompt.len() + 12) * request.choices as usize;
    100 + 8 * worker.requests.values().map(tokens).sum::<usize>()
}

fn run(shape: Shape, actions: &[Action]) {
    let mut worker = Worker::new(shape);
    let mut ids = Vec::new();
    for action in actions {
        match action {
            Action::Submit(request) => {
                if let Ok(id) = worker.engine.submit(request.clone()) {
                    worker.expect(id, request.clone());
                    ids.push(id);
                }
            }
            Action::Steps(count) => {
                for _ in 0..*count {
                    // Told to fail, it may.
                    let _ = worker.engine.step(&mut worker.transport);
                    worker.take_events();
                }
            }
            Action::Cancel(which) => {
                if let Some(id) = ids.get(*which) {
                    worker.engine.cancel(*id, BlockFate::Free);
                    worker.take_events();
                }
            }
            Action::FailLaunch => worker.control.fail_launch.store(true, Ordering::SeqCst),
            Action::FailCollect => worker.control.fail_collect.store(true, Ordering::SeqCst),
            Action::FailSample => worker.control.fail_sample.store(true, Ordering::SeqCst),
            Action::Pause(which) => {
                if let Some(id) = ids.get(*which) {
                    worker.engine.pause(*id);
                }
            }
            Action::Resume(which) => {
                if let Some(id) = ids.get(*which) {
                    worker.engine.resume(*id);
                }
            }
        }
        assert_drawn_from(&worker);
    }
    for id in ids {
        worker.engine.resume(id);
    }
    let bound = bound(&worker);
    let mut steps = 0;
    while worker.engine.has_work() {
        let _ = worker.engine.step(&mut worker.transport);
        worker.take_events();
        steps += 1;
        assert!(steps < bound, "somebody starves: {:?}", worker.engine.load());
    }
    assert_drawn_from(&worker);
    worker.assert_as_expected();
    worker.assert_idle();
}

/// Every block that can be found is one of a sequence that has drawn a token after it.
fn assert_drawn_from(worker: &Worker) {
    let mut drawn_from = BTreeSet::new();
    for ((id, _), outcome) in &worker.outcomes {
        let Some(before_last) = outcome.tokens.len().checked_sub(1) else { continue };
        let request = &worker.requests[id];
        let mut tokens = request.prompt.clone();
        tokens.extend(&tokens_of(&outcome.tokens)[..before_last]);
        let hasher =
            BlockHasher::new(worker.shape.config().fingerprint, worker.shape.block_size, &request.cache_salt);
        drawn_from.extend(hasher.hash_blocks(&tokens));
    }
    for event in worker.engine.kv_snapshot() {
        let KvEvent::BlockStored { hash, .. } = event else { continue };
        assert!(drawn_from.contains(&hash), "a block can be found that nothing was drawn from");
    }
}

proptest! {
    #![proptest_config(super::harness::cases())]

    #[test]
    fn tokens_are_the_naive_models_whatever_happens(shape in shapes(), actions in actions()) {
        run(shape, &actions);
    }
}
