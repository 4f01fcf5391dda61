//! Two engines that prefill for each other under a random order of events, against the naive model: whatever is
//! pushed, lost, late, cancelled or given up, the tokens are those of one machine, and every block comes home.

use std::collections::BTreeSet;

use disagg_core::{Epoch, HandoffId};
use proptest::prelude::*;

use super::harness::{Shape, Worker, requests, shapes};
use crate::engine::{BlockFate, RemotePrefill, Reservation};
use crate::fake::PushedBlock;
use crate::request::Request;

#[derive(Clone, Debug)]
enum Action {
    /// A request for this worker, prefilled by itself.
    Submit(usize, Request),
    /// A request for this worker, prefilled by the other.
    Handoff(usize, Request),
    Step(usize),
    /// So many pushed blocks land, in this order: first or last first.
    Land(usize, u8, bool),
    /// This handoff's prefill worker is given up: prefill at home.
    FallBack(usize),
    Cancel(usize, bool),
    CancelPrefill(usize),
    EndQuarantine(usize),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let worker = 0usize..2;
    let action = prop_oneof![
        2 => (worker.clone(), requests()).prop_map(|(at, request)| Action::Submit(at, request)),
        6 => (worker.clone(), requests()).prop_map(|(at, request)| Action::Handoff(at, request)),
        12 => worker.clone().prop_map(Action::Step),
        8 => (worker, 0u8..12, any::<bool>()).prop_map(|(at, count, last)| Action::Land(at, count, last)),
        1 => (0usize..6).prop_map(Action::FallBack),
        1 => (0usize..6, any::<bool>()).prop_map(|(which, quarantine)| Action::Cancel(which, quarantine)),
        1 => (0usize..6).prop_map(Action::CancelPrefill),
        1 => (0usize..6).prop_map(Action::EndQuarantine),
    ];
    prop::collection::vec(action, 1..50)
}

/// Who may write the reserved blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Zone {
    /// The pushes of this handoff land.
    Open,
    /// They are refused.
    Closed,
    /// The request is gone and nobody could stop the peer: pushes still land.
    Quarantined,
}

#[derive(Debug)]
struct Handoff {
    id: HandoffId,
    /// The decode worker; the other one prefills.
    home: usize,
    reservation: Reservation,
    zone: Zone,
    landed: BTreeSet<(u32, u32)>,
    /// The prefill worker knows of it and has not been told that it drained.
    at_peer: bool,
    /// No end of it will be told.
    cancelled_at_peer: bool,
}

struct Pair {
    workers: [Worker; 2],
    handoffs: Vec<Handoff>,
}

impl Pair {
    fn act(&mut self, action: &Action) {
        match action {
            Action::Submit(at, request) => {
                let worker = &mut self.workers[*at];
                if let Ok(id) = worker.engine.submit(request.clone()) {
                    worker.expect(id, request.clone());
                }
            }
            Action::Handoff(at, request) => self.begin(*at, request),
            Action::Step(at) => self.step(*at),
            Action::Land(to, count, last_first) => self.land(*to, *count, *last_first),
            Action::FallBack(which) => {
                if let Some(handoff) = self.handoffs.get_mut(*which)
                    && handoff.zone == Zone::Open
                {
                    handoff.zone = Zone::Closed;
                    self.workers[handoff.home].engine.fall_back(handoff.reservation.sequence).unwrap();
                    self.cancel_prefill(*which);
                }
            }
            Action::Cancel(which, quarantine) => {
                let Some(handoff) = self.handoffs.get_mut(*which) else { return };
                let fate = if *quarantine { BlockFate::Quarantine } else { BlockFate::Free };
                let found = self.workers[handoff.home].engine.cancel(handoff.reservation.sequence, fate);
                if found && handoff.zone == Zone::Open {
                    handoff.zone = if *quarantine { Zone::Quarantined } else { Zone::Closed };
                }
            }
            Action::CancelPrefill(which) => self.cancel_prefill(*which),
            Action::EndQuarantine(which) => self.end_quarantine(*which),
        }
        self.settle();
    }

    fn begin(&mut self, home: usize, request: &Request) {
        let number = self.handoffs.len() as u64;
        let Ok(reservation) = self.workers[home].engine.reserve(request.clone()) else { return };
        assert!(!reservation.blocks.is_empty());
        let size = self.workers[home].shape.block_size;
        assert_eq!(
            reservation.first_block + reservation.blocks.len() as u32,
            (request.prompt.len() as u32).div_ceil(size)
        );
        self.workers[home].expect(reservation.sequence, request.clone());
        let id = HandoffId { epoch: Epoch(1 + home as u64), number };
        let prefill =
            RemotePrefill { handoff: id, request: request.clone(), first_block: reservation.first_block };
        let taken = self.workers[1 - home].engine.submit_prefill(prefill).is_ok();
        if !taken {
            self.workers[home].engine.fall_back(reservation.sequence).unwrap();
        }
        self.handoffs.push(Handoff {
            id,
            home,
            reservation,
            zone: if taken { Zone::Open } else { Zone::Closed },
            landed: BTreeSet::new(),
            at_peer: taken,
            cancelled_at_peer: false,
        });
    }

    fn step(&mut self, at: usize) {
        self.workers[at].step();
    }

    fn land(&mut self, to: usize, count: u8, last_first: bool) {
        let pushed = &mut self.workers[1 - to].transport.pushed;
        let count = usize::from(count).min(pushed.len());
        let landing: Vec<PushedBlock> =
            if last_first { pushed.split_off(pushed.len() - count) } else { pushed.drain(..count).collect() };
        for block in landing {
            let handoff = self.handoffs.iter_mut().find(|handoff| handoff.id == block.handoff).unwrap();
            let bytes = self.workers[1 - to].transport.read(&block);
            if handoff.zone == Zone::Closed {
                continue;
            }
            assert!(handoff.landed.insert((block.layer, block.position)), "a block was pushed twice");
            let target = handoff.reservation.blocks[block.position as usize];
            self.workers[to].engine.memory().write(block.layer, target, &bytes).unwrap();
        }
    }

    fn cancel_prefill(&mut self, which: usize) {
        let Some(handoff) = self.handoffs.get_mut(which) else { return };
        let peer = &mut self.workers[1 - handoff.home];
        handoff.cancelled_at_peer |= peer.engine.cancel_prefill(handoff.id);
    }

    fn end_quarantine(&mut self, which: usize) {
        let Some(handoff) = self.handoffs.get_mut(which) else { return };
        if handoff.zone == Zone::Quarantined {
            handoff.zone = Zone::Closed;
            self.workers[handoff.home].engine.end_quarantine(handoff.reservation.sequence);
        }
    }

    /// What the drivers on both sides do as soon as they can.
    fn settle(&mut self) {
        for worker in &mut self.workers {
            worker.take_events();
        }
        for handoff in &mut self.handoffs {
            let [peer, home] = [1 - handoff.home, handoff.home];
            let ended = self.workers[peer].prefilled.get(&handoff.id).cloned();
            let all = 2 * handoff.reservation.blocks.len();
            if handoff.zone == Zone::Open {
                let sequence = handoff.reservation.sequence;
                match &ended {
                    Some(Some(first_tokens)) if handoff.landed.len() == all => {
                        handoff.zone = Zone::Closed;
                        self.workers[home].engine.activate(sequence, first_tokens.clone()).unwrap();
                    }
                    None if handoff.cancelled_at_peer => {
                        handoff.zone = Zone::Closed;
                        self.workers[home].engine.fall_back(sequence).unwrap();
                    }
                    _ => {}
                }
            }
            let under_way =
                self.workers[peer].transport.pushed.iter().any(|block| block.handoff == handoff.id);
            if handoff.at_peer && !under_way && (ended.is_some() || handoff.cancelled_at_peer) {
                handoff.at_peer = false;
                self.workers[peer].engine.push_drained(handoff.id);
            }
        }
        for worker in &mut self.workers {
            worker.take_events();
        }
    }

    /// Both run until nothing is left to do.
    fn finish(&mut self) {
        for which in 0..self.handoffs.len() {
            self.end_quarantine(which);
        }
        let work: usize =
            self.workers.iter().flat_map(|w| w.requests.values()).map(|r| (r.prompt.len() + 12) * 3).sum();
        let mut rounds = 0;
        loop {
            self.settle();
            let busy = |worker: &Worker| worker.engine.has_work() || !worker.transport.pushed.is_empty();
            if !self.workers.iter().any(busy) {
                break;
            }
            for at in 0..2 {
                self.step(at);
                self.land(at, u8::MAX, false);
            }
            rounds += 1;
            assert!(
                rounds < 100 + 8 * work,
                "somebody starves: {:?}",
                self.workers.each_ref().map(|w| w.engine.load())
            );
        }
        for worker in &self.workers {
            worker.assert_as_expected();
            worker.assert_idle();
        }
    }
}

fn two_shapes() -> impl Strategy<Value = [Shape; 2]> {
    (shapes(), shapes()).prop_map(|(one, other)| {
        // What two workers of one model have in common.
        [one, Shape { block_size: one.block_size, max_len: one.max_len, ..other }]
    })
}

proptest! {
    #![proptest_config(super::harness::cases())]

    #[test]
    fn a_handoff_never_changes_a_token_nor_loses_a_block(shapes in two_shapes(), actions in actions()) {
        let mut pair = Pair { workers: shapes.map(Worker::new), handoffs: Vec::new() };
        for action in &actions {
            pair.act(action);
        }
        pair.finish();
    }
}
