//! States that cannot be, forced: each ends one sequence with an error, and nothing else.

use disagg_core::{Epoch, HandoffId};

use super::harness::{Shape, Worker, request};
use crate::engine::{BlockFate, EngineEvent, RemotePrefill};
use crate::request::FinishReason;
use crate::sequences::tolerance;

const HANDOFF: HandoffId = HandoffId { epoch: Epoch(1), number: 1 };

#[test]
fn a_row_without_its_token_never_takes_that_of_another() {
    tolerance::turn_on();
    let mut worker = Worker::new(Shape { depth: 2, ..Shape::default() });
    let [whole, broken] = [1, 2].map(|token| worker.submit(request(vec![token; 6], 20)));
    worker.step();
    let launched = worker.engine.launch_without_pending(broken, &mut worker.transport);
    assert_eq!(launched, Ok(()));
    worker.run();
    assert_eq!(worker.finished(broken, 0), Some(FinishReason::Error));
    assert_eq!(worker.finished(whole, 0), Some(FinishReason::Length));
    worker.assert_as_expected();
    worker.assert_idle();
}

#[test]
fn every_choice_of_a_lost_sequence_ends_with_an_error() {
    tolerance::turn_on();
    let mut worker = Worker::new(Shape::default());
    let mut many = request(vec![1; 6], 20);
    many.choices = 3;
    let (lost, other) = (worker.submit(many), worker.submit(request(vec![2; 6], 20)));
    worker.engine.lose(lost);
    worker.run();
    for choice in 0..3 {
        assert_eq!(worker.finished(lost, choice), Some(FinishReason::Error));
    }
    assert_eq!(worker.finished(other, 0), Some(FinishReason::Length));
    worker.assert_as_expected();
    worker.assert_idle();
}

#[test]
fn a_lost_sequence_in_a_step_under_way_ends_once() {
    tolerance::turn_on();
    let mut worker = Worker::new(Shape { depth: 2, ..Shape::default() });
    let [lost, other] = [1, 2].map(|token| worker.submit(request(vec![token; 6], 8)));
    worker.step();
    worker.step();
    worker.engine.lose(lost);
    let mut ended = Vec::new();
    while worker.engine.has_work() {
        assert_eq!(worker.engine.step(&mut worker.transport), Ok(()));
        for event in worker.engine.take_events() {
            if let EngineEvent::Finished { sequence, reason, .. } = event {
                ended.push((sequence, reason));
            }
        }
    }
    assert_eq!(ended, [(lost, FinishReason::Error), (other, FinishReason::Length)]);
}

#[test]
fn a_lost_reservation_and_a_lost_prefill_are_told_to_those_who_wait_for_them() {
    tolerance::turn_on();
    let mut worker = Worker::new(Shape::default());
    let awaiting = worker.engine.reserve(request(vec![1; 6], 20)).unwrap().sequence;
    worker.engine.lose(awaiting);
    assert!(worker.engine.fall_back(awaiting).is_err());
    let prefill = RemotePrefill { handoff: HANDOFF, request: request(vec![5; 8], 2), first_block: 0 };
    worker.engine.submit_prefill(prefill).unwrap();
    let queued = worker.engine.load().prefill_queue;
    assert_eq!(queued, 1);
    // Ids count up: it came after the reservation.
    worker.engine.lose(disagg_core::SequenceId(awaiting.0 + 1));
    let mut events = Vec::new();
    while worker.engine.has_work() {
        assert_eq!(worker.engine.step(&mut worker.transport), Ok(()));
        events.extend(worker.engine.take_events());
    }
    let finished = EngineEvent::Finished { sequence: awaiting, choice: 0, reason: FinishReason::Error };
    assert_eq!(events, [finished, EngineEvent::PrefillFailed { handoff: HANDOFF }]);
    assert!(!worker.engine.cancel(awaiting, BlockFate::Free), "it is over");
    assert!(!worker.engine.cancel_prefill(HANDOFF), "it is over");
}

/// Tests and simulations run with debug assertions: they stop where a sequence is lost, and not some steps later.
#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "is held and has no sequence")]
fn with_debug_assertions_a_lost_sequence_is_a_panic() {
    let mut worker = Worker::new(Shape::default());
    let lost = worker.submit(request(vec![1; 6], 20));
    worker.engine.lose(lost);
    worker.step();
}
