//! The two sides of a handoff, one rule at a time. All at once is in `disaggregated`.

use disagg_core::{Epoch, HandoffId};

use super::harness::{MODEL, Shape, Worker, request};
use crate::backend::SampledToken;
use crate::engine::{AdmitError, BlockFate, NotAwaitingKv, RemotePrefill, Reservation};
use crate::request::{FinishReason, Request, SamplingParams};

fn handoff(number: u64) -> HandoffId {
    HandoffId { epoch: Epoch(9), number }
}

fn reserve(worker: &mut Worker, request: &Request) -> Reservation {
    let reservation = worker.engine.reserve(request.clone()).unwrap();
    worker.expect(reservation.sequence, request.clone());
    reservation
}

/// Prefills on `p` and lands everything on `d`.
fn prefill(
    p: &mut Worker,
    d: &Worker,
    request: &Request,
    to: &Reservation,
    number: u64,
) -> Vec<SampledToken> {
    let prefill =
        RemotePrefill { handoff: handoff(number), request: request.clone(), first_block: to.first_block };
    p.engine.submit_prefill(prefill).unwrap();
    p.run();
    let memory = d.engine.memory();
    let pushed = std::mem::take(&mut p.transport.pushed);
    assert_eq!(pushed.len(), 2 * to.blocks.len(), "each layer of each block comes once");
    for block in &pushed {
        memory.write(block.layer, to.blocks[block.position as usize], &p.transport.read(block)).unwrap();
    }
    p.engine.push_drained(handoff(number));
    p.prefilled[&handoff(number)].clone().unwrap()
}

#[test]
fn a_prompt_prefilled_elsewhere_goes_on_here() {
    for (depth, tokens) in [(1, 64), (2, 5)] {
        let (mut p, mut d) = (
            Worker::new(Shape { tokens, seqs: 2, depth, ..Shape::default() }),
            Worker::new(Shape { depth, ..Shape::default() }),
        );
        let asked = request((0..18).collect(), 12);
        let to = reserve(&mut d, &asked);
        assert_eq!((to.overlap_tokens, to.first_block, to.blocks.len()), (0, 0, 5));
        assert_eq!(d.engine.load().awaiting_kv, 1);
        assert!(!d.engine.has_work());
        let first = prefill(&mut p, &d, &asked, &to, 1);
        if tokens == 5 {
            let computed: Vec<_> = p.progress.iter().map(|(_, computed)| *computed).collect();
            assert_eq!(computed, [5, 10, 15]);
        }
        d.engine.activate(to.sequence, first).unwrap();
        d.take_events();
        assert_eq!(d.tokens(to.sequence, 0).len(), 1);
        let steps = d.control.steps.load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(steps, 0, "nothing of the prompt is computed again");
        d.run();
        d.assert_as_expected();
        d.assert_idle();
        p.assert_idle();
        // Both have cached it, and D lacks only the last block when it comes again.
        assert_eq!(p.engine.overlap_tokens(&asked.prompt, ""), 16);
        let again = reserve(&mut d, &asked);
        assert_eq!((again.overlap_tokens, again.first_block, again.blocks.len()), (16, 4, 1));
        let first = prefill(&mut p, &d, &asked, &again, 2);
        d.engine.activate(again.sequence, first).unwrap();
        d.run();
        d.assert_as_expected();
        d.assert_idle();
        p.assert_idle();
    }
}

#[test]
fn a_cached_prompt_of_whole_blocks_still_sends_its_last() {
    let mut d = Worker::new(Shape::default());
    d.submit(request((0..16).collect(), 4));
    d.run();
    let to = reserve(&mut d, &request((0..16).collect(), 4));
    assert_eq!((to.overlap_tokens, to.first_block, to.blocks.len()), (12, 3, 1));
}

#[test]
fn what_p_has_cached_and_d_lacks_is_pushed_with_the_first_step() {
    let mut p = Worker::new(Shape { tokens: 8, ..Shape::default() });
    p.submit(request((0..16).collect(), 1));
    p.run();
    let mut d = Worker::new(Shape::default());
    d.submit(request((0..6).collect(), 1));
    d.run();
    let asked = request((0..23).collect(), 5);
    let to = reserve(&mut d, &asked);
    assert_eq!(to.first_block, 1);
    let first = RemotePrefill { handoff: handoff(1), request: asked.clone(), first_block: 1 };
    assert_eq!(p.engine.submit_prefill(first), Ok(16));
    p.step();
    let positions: Vec<_> = p.transport.pushed.iter().filter(|b| b.layer == 0).map(|b| b.position).collect();
    assert_eq!(positions, [0, 1, 2, 3, 4], "blocks 1 to 3 were cached, 4 and the partial 5 are computed");
    let duplicate = RemotePrefill { handoff: handoff(1), request: asked, first_block: 1 };
    assert_eq!(p.engine.submit_prefill(duplicate), Err(AdmitError::DuplicateHandoff(handoff(1))));
}

#[test]
fn a_finish_at_the_first_token_is_a_finish() {
    let (mut p, mut d) = (Worker::new(Shape::default()), Worker::new(Shape::default()));
    let mut by_stop = request((0..9).collect(), 12);
    let first = MODEL.generate(&by_stop, 64)[0].0[0].token;
    by_stop.stop.eos_token_ids = vec![first];
    for (number, asked) in [(1, request((0..9).collect(), 1)), (2, by_stop)] {
        let to = reserve(&mut d, &asked);
        let first = prefill(&mut p, &d, &asked, &to, number);
        d.engine.activate(to.sequence, first).unwrap();
        d.take_events();
        assert!(d.finished(to.sequence, 0).is_some());
        d.assert_as_expected();
        d.assert_idle();
    }
}

#[test]
fn choices_split_after_activation() {
    for prompt in [16, 18] {
        let (mut p, mut d) = (Worker::new(Shape::default()), Worker::new(Shape::default()));
        let mut asked = request((0..prompt).collect(), 6);
        asked.choices = 3;
        asked.sampling = SamplingParams { temperature: 1.5, seed: 11, ..SamplingParams::greedy() };
        let to = reserve(&mut d, &asked);
        let first = prefill(&mut p, &d, &asked, &to, 1);
        assert_eq!(first.len(), 3);
        d.engine.activate(to.sequence, first).unwrap();
        d.run();
        d.assert_as_expected();
        d.assert_idle();
    }
}

#[test]
fn reservations_hold_at_most_half_of_the_pool() {
    let mut d = Worker::new(Shape { blocks: 16, ..Shape::default() });
    let first = reserve(&mut d, &request(vec![1; 15], 4));
    let second = reserve(&mut d, &request(vec![2; 11], 4));
    // 4 and 3 blocks; one more is left of the half.
    let refused = d.engine.reserve(request(vec![3; 7], 4));
    assert_eq!(refused, Err(AdmitError::NoBlocks { needed: 2, available: 1 }));
    // What is in quarantine counts too.
    assert!(d.engine.cancel(first.sequence, BlockFate::Quarantine));
    d.take_events();
    assert_eq!((d.engine.load().blocks_used, d.engine.load().blocks_quarantined), (7, 4));
    assert!(d.engine.reserve(request(vec![3; 7], 4)).is_err());
    d.engine.end_quarantine(first.sequence);
    assert_eq!((d.engine.load().blocks_used, d.engine.load().blocks_quarantined), (3, 0));
    reserve(&mut d, &request(vec![3; 7], 4));
    // Activation makes room again: an active sequence is like any other.
    let tokens = vec![SampledToken { token: 1, logprob: None, top_logprobs: Vec::new() }];
    d.engine.activate(second.sequence, tokens).unwrap();
    reserve(&mut d, &request(vec![4; 15], 4));
}

/// Room for the first drawn token is part of the promise: a prompt of whole blocks needs one more.
#[test]
fn an_activated_sequence_has_room_for_its_first_token() {
    let mut d = Worker::new(Shape { blocks: 16, ..Shape::default() });
    let to = reserve(&mut d, &request(vec![1; 16], 4));
    assert_eq!(to.blocks.len(), 4);
    assert_eq!(d.engine.load().blocks_used, 5);
}

#[test]
fn cached_blocks_of_a_reservation_stay() {
    let mut d = Worker::new(Shape { blocks: 12, ..Shape::default() });
    d.submit(request((0..17).collect(), 1));
    d.run();
    let to = reserve(&mut d, &request((0..17).collect(), 2));
    assert_eq!(to.first_block, 4);
    // Ask for more than what is free: the cached blocks may not be given away.
    d.submit(request(vec![9; 28], 2));
    d.submit(request(vec![8; 28], 2));
    d.run();
    assert_eq!(d.engine.overlap_tokens(&(0..17).collect::<Vec<_>>(), ""), 16);
    d.engine.fall_back(to.sequence).unwrap();
    d.run();
    d.assert_as_expected();
    d.assert_idle();
}

#[test]
fn falls_back_into_the_reserved_blocks() {
    let mut d = Worker::new(Shape::default());
    let to = reserve(&mut d, &request((0..13).collect(), 5));
    let before = d.engine.load().blocks_used;
    d.engine.fall_back(to.sequence).unwrap();
    assert_eq!(d.engine.load().blocks_used, before);
    assert_eq!(d.engine.fall_back(to.sequence), Err(NotAwaitingKv(to.sequence)));
    assert_eq!(d.engine.activate(to.sequence, Vec::new()), Err(NotAwaitingKv(to.sequence)));
    d.run();
    d.assert_as_expected();
    d.assert_idle();
}

#[test]
fn an_abandoned_reservation_gives_the_request_back() {
    let mut d = Worker::new(Shape::default());
    let asked = request((0..13).collect(), 5);
    let to = d.engine.reserve(asked.clone()).unwrap();
    assert_eq!(d.engine.abandon(to.sequence, BlockFate::Quarantine), Ok(asked));
    assert_eq!(d.engine.abandon(to.sequence, BlockFate::Free), Err(NotAwaitingKv(to.sequence)));
    assert_eq!((d.engine.load().blocks_used, d.engine.load().awaiting_kv), (4, 0));
    d.take_events();
    d.engine.end_quarantine(to.sequence);
    d.assert_idle();
}

/// D vouches for what has landed with a draw of its own, P for what it has computed with its first token.
#[test]
fn what_was_handed_over_is_cached_only_when_it_was_drawn_from() {
    let (mut p, mut d) = (Worker::new(Shape::default()), Worker::new(Shape::default()));
    let asked = request((0..18).collect(), 12);
    let to = reserve(&mut d, &asked);
    let first = prefill(&mut p, &d, &asked, &to, 1);
    assert_eq!(p.engine.overlap_tokens(&asked.prompt, ""), 16);
    d.engine.activate(to.sequence, first).unwrap();
    assert_eq!(d.engine.overlap_tokens(&asked.prompt, ""), 0, "not before D has drawn from it");
    d.control.fail_sample.store(true, std::sync::atomic::Ordering::SeqCst);
    d.run();
    assert_eq!(d.finished(to.sequence, 0), Some(FinishReason::Error));
    assert_eq!((d.engine.overlap_tokens(&asked.prompt, ""), d.engine.take_kv_events()), (0, Vec::new()));
    d.assert_idle();

    let mut p = Worker::new(Shape { tokens: 8, ..Shape::default() });
    p.control.fail_sample.store(true, std::sync::atomic::Ordering::SeqCst);
    let remote = RemotePrefill { handoff: handoff(2), request: asked.clone(), first_block: 0 };
    p.engine.submit_prefill(remote).unwrap();
    p.run();
    assert_eq!(p.prefilled[&handoff(2)], None);
    p.engine.push_drained(handoff(2));
    assert_eq!((p.engine.overlap_tokens(&asked.prompt, ""), p.engine.take_kv_events()), (0, Vec::new()));
    p.assert_idle();
}

#[test]
fn choices_of_a_prompt_that_was_handed_over_publish_its_blocks_once() {
    let (mut p, mut d) = (Worker::new(Shape::default()), Worker::new(Shape::default()));
    let mut asked = request((0..18).collect(), 6);
    asked.choices = 3;
    asked.sampling.temperature = 1.0;
    let to = reserve(&mut d, &asked);
    let first = prefill(&mut p, &d, &asked, &to, 1);
    d.engine.activate(to.sequence, first).unwrap();
    d.run();
    assert_eq!(d.engine.overlap_tokens(&asked.prompt, ""), 16);
    d.assert_as_expected();
    d.assert_idle();
}

#[test]
fn too_few_first_tokens_are_an_error() {
    let mut d = Worker::new(Shape::default());
    let mut asked = request((0..13).collect(), 5);
    asked.choices = 2;
    let to = reserve(&mut d, &asked);
    let one = vec![SampledToken { token: 1, logprob: None, top_logprobs: Vec::new() }];
    d.engine.activate(to.sequence, one).unwrap();
    d.take_events();
    assert_eq!(d.finished(to.sequence, 1), Some(FinishReason::Error));
    d.assert_idle();
}

#[test]
fn a_prefills_blocks_stay_until_its_push_has_drained() {
    let mut p = Worker::new(Shape { tokens: 8, ..Shape::default() });
    let submit = |p: &mut Worker, number| {
        let request = request((0..20).collect(), 4);
        p.engine.submit_prefill(RemotePrefill { handoff: handoff(number), request, first_block: 0 })
    };
    submit(&mut p, 1).unwrap();
    p.step();
    // Too early: more pushes are to come.
    p.engine.push_drained(handoff(1));
    assert_eq!((p.engine.load().prefill_queue, p.engine.load().prefill_queue_tokens), (1, 12));
    p.run();
    assert!(p.prefilled.contains_key(&handoff(1)));
    assert_eq!((p.engine.load().prefill_queue, p.engine.load().blocks_used), (0, 5));
    assert!(!p.engine.cancel_prefill(handoff(1)));
    p.engine.push_drained(handoff(1));
    p.assert_idle();

    submit(&mut p, 2).unwrap();
    assert!(p.engine.cancel_prefill(handoff(2)));
    assert!(!p.engine.cancel_prefill(handoff(2)));
    assert_eq!((p.engine.load().prefill_queue, p.engine.load().blocks_used), (0, 5));
    p.engine.push_drained(handoff(2));
    p.run();
    p.assert_idle();
    assert!(!p.prefilled.contains_key(&handoff(2)));
}

#[test]
fn prefills_beyond_queue_or_memory_are_refused() {
    let mut p = Worker::new(Shape { blocks: 20, ..Shape::default() });
    let mut submit = |number: u64, tokens: usize| {
        let request = request(vec![number as u32; tokens], 4);
        p.engine.submit_prefill(RemotePrefill { handoff: handoff(number), request, first_block: 0 })
    };
    for number in 0..7 {
        submit(number, 8).unwrap();
    }
    assert_eq!(submit(7, 28), Err(AdmitError::NoBlocks { needed: 7, available: 6 }));
    submit(8, 8).unwrap();
    assert_eq!(submit(9, 1), Err(AdmitError::QueueFull { waiting: 8 }));
}
