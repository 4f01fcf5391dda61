//! The cases that matter, one by one, with the exact actions.

use std::time::Duration;

use super::world::World;
use crate::handoff::*;

const R0: ReservationNumber = ReservationNumber(0);
const R1: ReservationNumber = ReservationNumber(1);
const A0: Attempt = Attempt(0);
const A1: Attempt = Attempt(1);

fn plan(candidates: &[Writer], fallback: FallbackPolicy) -> Plan {
    Plan { candidates: candidates.to_vec(), fallback, timeouts: Timeouts::default() }
}

/// A handoff whose first reservation was granted.
fn reserved(candidates: &[Writer], fallback: FallbackPolicy) -> World {
    let mut world = World::start(plan(candidates, fallback));
    world.tell(Fact::Reserved { reservation: R0 });
    world
}

/// What a driver does, without its timers.
fn deeds(actions: Vec<Action>) -> Vec<Action> {
    let is_timer =
        |action: &Action| matches!(action, Action::ArmDeadline { .. } | Action::DisarmDeadline { .. });
    actions.into_iter().filter(|action| !is_timer(action)).collect()
}

/// Kinds and times of the deadlines that were armed.
fn armed(actions: &[Action]) -> Vec<(DeadlineKind, Duration)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::ArmDeadline { deadline, after } => Some((deadline.kind, *after)),
            _ => None,
        })
        .collect()
}

#[test]
fn the_usual_course() {
    let timeouts = Timeouts::default();
    let mut world = World::start(plan(&[Writer::Us, Writer::Us], FallbackPolicy::Local));
    assert_eq!(deeds(world.all_actions.clone()), [Action::Reserve { reservation: R0 }]);
    assert_eq!(armed(&world.all_actions), [(DeadlineKind::Reserve, timeouts.reserve)]);

    let actions = world.tell(Fact::Reserved { reservation: R0 });
    assert_eq!(
        armed(&actions),
        [(DeadlineKind::Accept, timeouts.accept), (DeadlineKind::Prefill, timeouts.prefill)]
    );
    assert_eq!(deeds(actions), [Action::StartPrefill { attempt: A0, reservation: R0 }]);

    let actions = world.tell(Fact::PrefillAccepted { attempt: A0 });
    assert_eq!(armed(&actions), [(DeadlineKind::Lease, timeouts.lease)]);
    let actions = world.tell(Fact::Progress { attempt: A0 });
    assert_eq!(armed(&actions), [(DeadlineKind::Lease, timeouts.lease)]);
    assert_eq!(deeds(actions), []);

    let actions = world.tell(Fact::Completed { attempt: A0 });
    assert_eq!(
        armed(&actions),
        [(DeadlineKind::Lease, timeouts.lease), (DeadlineKind::Transfer, timeouts.transfer)]
    );
    assert_eq!(world.handoff.state().as_str(), "transferring");

    let actions = world.tell(Fact::Landed { attempt: A0 });
    assert_eq!(armed(&actions), [(DeadlineKind::Drain, timeouts.drain)]);
    assert_eq!(
        deeds(actions),
        [Action::Fence { attempt: A0 }, Action::Activate { attempt: A0, reservation: R0 }]
    );

    let actions = world.tell(Fact::Drained { attempt: A0 });
    assert_eq!(deeds(actions), [Action::Finished { outcome: Outcome::Activated { attempt: A0 } }]);
    assert_eq!(*world.handoff.state(), State::Released);
}

#[test]
fn without_candidates_the_policy_decides_at_once() {
    let reason = PlacementReason::NoPrefillWorker;
    let world = World::start(plan(&[], FallbackPolicy::Local));
    assert_eq!(
        world.all_actions,
        [
            Action::PrefillLocally { reason, reservation: None },
            Action::Finished { outcome: Outcome::Local { reason } }
        ]
    );
    let world = World::start(plan(&[], FallbackPolicy::Fail));
    assert_eq!(
        world.all_actions,
        [Action::Fail { reason }, Action::Finished { outcome: Outcome::Failed { reason } }]
    );
}

#[test]
fn a_refused_reservation_is_prefilled_locally() {
    let reason = PlacementReason::ReservationRefused;
    let mut world = World::start(plan(&[Writer::Us], FallbackPolicy::Local));
    let actions = world.tell(Fact::ReserveRefused { reservation: R0 });
    assert_eq!(
        deeds(actions),
        [
            Action::PrefillLocally { reason, reservation: None },
            Action::Finished { outcome: Outcome::Local { reason } }
        ]
    );
}

#[test]
fn a_refusal_goes_to_the_next_candidate_in_the_same_blocks() {
    for writer in [Writer::Us, Writer::Peer] {
        let mut world = reserved(&[writer, writer], FallbackPolicy::Local);
        let actions = world.tell(Fact::PrefillRefused { attempt: A0 });
        assert_eq!(
            deeds(actions),
            [Action::Fence { attempt: A0 }, Action::StartPrefill { attempt: A1, reservation: R0 }]
        );
        let actions = world.tell(Fact::PrefillRefused { attempt: A1 });
        let reason = PlacementReason::PrefillRefused;
        assert_eq!(
            deeds(actions),
            [
                Action::Fence { attempt: A1 },
                Action::PrefillLocally { reason, reservation: Some(R0) },
                Action::Finished { outcome: Outcome::Local { reason } }
            ]
        );
    }
}

#[test]
fn a_lost_sender_costs_nothing_but_time() {
    let mut world = reserved(&[Writer::Us, Writer::Us], FallbackPolicy::Local);
    world.tell(Fact::PrefillAccepted { attempt: A0 });
    let actions = world.tell(Fact::PeerLost { attempt: A0 });
    assert_eq!(
        deeds(actions),
        [Action::Fence { attempt: A0 }, Action::StartPrefill { attempt: A1, reservation: R0 }]
    );
    // What comes late from the first candidate does nothing.
    assert_eq!(world.tell(Fact::Landed { attempt: A0 }), []);
    assert_eq!(world.tell(Fact::Completed { attempt: A0 }), []);
    // The failure is a better reason than the refusal after it.
    let reason = PlacementReason::PrefillFailed;
    let actions = world.tell(Fact::PrefillRefused { attempt: A1 });
    assert_eq!(
        deeds(actions),
        [
            Action::Fence { attempt: A1 },
            Action::PrefillLocally { reason, reservation: Some(R0) },
            Action::Finished { outcome: Outcome::Local { reason } }
        ]
    );
}

#[test]
fn a_lost_writer_leaves_its_blocks_in_quarantine_and_the_request_goes_on() {
    let mut world = reserved(&[Writer::Peer, Writer::Us], FallbackPolicy::Local);
    world.tell(Fact::PrefillAccepted { attempt: A0 });
    let actions = world.tell(Fact::PeerLost { attempt: A0 });
    assert!(armed(&actions).contains(&(DeadlineKind::Quarantine(R0), Timeouts::default().quarantine)));
    assert_eq!(
        deeds(actions),
        [
            Action::Fence { attempt: A0 },
            Action::Quarantine { reservation: R0, attempt: A0 },
            Action::Reserve { reservation: R1 }
        ]
    );
    let actions = world.tell(Fact::Reserved { reservation: R1 });
    assert_eq!(deeds(actions), [Action::StartPrefill { attempt: A1, reservation: R1 }]);
    world.tell(Fact::Landed { attempt: A1 });
    world.tell(Fact::Completed { attempt: A1 });
    // Delivered, but the quarantine is not over yet.
    assert_eq!(deeds(world.tell(Fact::Drained { attempt: A1 })), []);
    assert_eq!(world.handoff.state().as_str(), "cleaning-up");
    assert_eq!(
        deeds(world.fire(DeadlineKind::Quarantine(R0))),
        [
            Action::FreeBlocks { reservation: R0 },
            Action::Finished { outcome: Outcome::Activated { attempt: A1 } }
        ]
    );
    assert_eq!(*world.handoff.state(), State::Done);
}

#[test]
fn a_silent_writer_is_waited_for_then_timed_when_it_goes() {
    let mut world = reserved(&[Writer::Peer], FallbackPolicy::Fail);
    world.tell(Fact::PrefillAccepted { attempt: A0 });
    let actions = world.fire(DeadlineKind::Lease);
    let reason = PlacementReason::PrefillFailed;
    assert_eq!(armed(&actions), [(DeadlineKind::Suspect(R0), Timeouts::default().suspect)]);
    assert_eq!(
        deeds(actions),
        [
            Action::CancelPrefill { attempt: A0 },
            Action::Fence { attempt: A0 },
            Action::Quarantine { reservation: R0, attempt: A0 },
            Action::Fail { reason }
        ]
    );
    let actions = world.tell(Fact::PeerLost { attempt: A0 });
    assert_eq!(armed(&actions), [(DeadlineKind::Quarantine(R0), Timeouts::default().quarantine)]);
    assert_eq!(world.tell(Fact::PeerLost { attempt: A0 }), [], "the time is not begun anew");
    assert_eq!(
        deeds(world.tell(Fact::Drained { attempt: A0 })),
        [Action::FreeBlocks { reservation: R0 }, Action::Finished { outcome: Outcome::Failed { reason } }]
    );
}

#[test]
fn a_writer_that_stays_silent_is_suspect() {
    let mut world = reserved(&[Writer::Peer], FallbackPolicy::Local);
    world.fire(DeadlineKind::Accept);
    assert_eq!(
        deeds(world.fire(DeadlineKind::Suspect(R0))),
        [
            Action::Suspect { reservation: R0, attempt: A0 },
            Action::Finished { outcome: Outcome::Local { reason: PlacementReason::PrefillFailed } }
        ]
    );
}

#[test]
fn a_cancel_frees_at_once_where_we_write() {
    let mut world = reserved(&[Writer::Us], FallbackPolicy::Local);
    world.tell(Fact::Landed { attempt: A0 });
    assert_eq!(
        deeds(world.tell(Fact::Cancelled)),
        [
            Action::CancelPrefill { attempt: A0 },
            Action::Fence { attempt: A0 },
            Action::FreeBlocks { reservation: R0 },
            Action::Finished { outcome: Outcome::Cancelled }
        ]
    );
    assert_eq!(world.tell(Fact::Completed { attempt: A0 }), []);
}

#[test]
fn a_cancel_while_reserving_waits_for_the_answer() {
    let mut world = World::start(plan(&[Writer::Us], FallbackPolicy::Local));
    assert_eq!(world.tell(Fact::Cancelled), []);
    assert_eq!(
        deeds(world.tell(Fact::Reserved { reservation: R0 })),
        [Action::FreeBlocks { reservation: R0 }, Action::Finished { outcome: Outcome::Cancelled }]
    );
}

#[test]
fn an_answer_after_the_deadline_of_the_reservation_is_freed_once() {
    let mut world = World::start(plan(&[Writer::Us], FallbackPolicy::Local));
    let reason = PlacementReason::ReservationRefused;
    assert_eq!(
        deeds(world.fire(DeadlineKind::Reserve)),
        [
            Action::PrefillLocally { reason, reservation: None },
            Action::Finished { outcome: Outcome::Local { reason } }
        ]
    );
    assert_eq!(world.tell(Fact::Reserved { reservation: R0 }), [Action::FreeBlocks { reservation: R0 }]);
    assert_eq!(world.tell(Fact::Reserved { reservation: R0 }), []);
}

#[test]
fn a_stream_that_ends_after_drained_does_not_lose_the_last_blocks() {
    let mut world = reserved(&[Writer::Us], FallbackPolicy::Local);
    world.tell(Fact::Completed { attempt: A0 });
    let actions = world.tell(Fact::Drained { attempt: A0 });
    assert_eq!(armed(&actions), [(DeadlineKind::Transfer, Timeouts::default().lease)], "not for long");
    assert_eq!(world.tell(Fact::Drained { attempt: A0 }), [], "and only once");
    assert_eq!(world.tell(Fact::PeerLost { attempt: A0 }), []);
    let actions = world.tell(Fact::Landed { attempt: A0 });
    assert_eq!(
        deeds(actions),
        [
            Action::Fence { attempt: A0 },
            Action::Activate { attempt: A0, reservation: R0 },
            Action::Finished { outcome: Outcome::Activated { attempt: A0 } }
        ]
    );
}

#[test]
fn a_short_push_fails_the_attempt() {
    let mut world = reserved(&[Writer::Peer], FallbackPolicy::Local);
    world.tell(Fact::Completed { attempt: A0 });
    world.tell(Fact::Drained { attempt: A0 });
    let reason = PlacementReason::PrefillFailed;
    // It has drained, so its blocks need no quarantine.
    assert_eq!(
        deeds(world.fire(DeadlineKind::Transfer)),
        [
            Action::CancelPrefill { attempt: A0 },
            Action::Fence { attempt: A0 },
            Action::PrefillLocally { reason, reservation: Some(R0) },
            Action::Finished { outcome: Outcome::Local { reason } }
        ]
    );
}

#[test]
fn a_peer_that_drains_without_completing_has_given_up() {
    let mut world = reserved(&[Writer::Peer], FallbackPolicy::Local);
    world.tell(Fact::PrefillAccepted { attempt: A0 });
    let actions = world.tell(Fact::Drained { attempt: A0 });
    assert_eq!(armed(&actions), [(DeadlineKind::Lease, Timeouts::default().lease)]);
    // Further signs of life do not prolong that.
    assert_eq!(world.tell(Fact::Progress { attempt: A0 }), []);
    world.fire(DeadlineKind::Lease);
    assert_eq!(world.finished, Some(Outcome::Local { reason: PlacementReason::PrefillFailed }));
}

#[test]
fn a_refusal_after_acceptance_is_a_loss() {
    let mut world = reserved(&[Writer::Peer], FallbackPolicy::Local);
    world.tell(Fact::PrefillAccepted { attempt: A0 });
    let actions = deeds(world.tell(Fact::PrefillRefused { attempt: A0 }));
    assert!(actions.contains(&Action::Quarantine { reservation: R0, attempt: A0 }));
    assert!(world.timers.contains_key(&DeadlineKind::Quarantine(R0)));
}

#[test]
fn the_engine_keeps_what_it_was_given() {
    let mut world = reserved(&[Writer::Peer, Writer::Peer], FallbackPolicy::Local);
    world.tell(Fact::Completed { attempt: A0 });
    world.tell(Fact::Landed { attempt: A0 });
    assert_eq!(world.tell(Fact::Cancelled), []);
    assert_eq!(
        deeds(world.fire(DeadlineKind::Drain)),
        [
            Action::CancelPrefill { attempt: A0 },
            Action::Finished { outcome: Outcome::Activated { attempt: A0 } }
        ]
    );
}

#[test]
fn an_endless_prefill_ends() {
    let mut world = reserved(&[Writer::Us], FallbackPolicy::Fail);
    world.tell(Fact::PrefillAccepted { attempt: A0 });
    assert_eq!(
        deeds(world.fire(DeadlineKind::Prefill)),
        [
            Action::CancelPrefill { attempt: A0 },
            Action::Fence { attempt: A0 },
            Action::FreeBlocks { reservation: R0 },
            Action::Fail { reason: PlacementReason::PrefillFailed },
            Action::Finished { outcome: Outcome::Failed { reason: PlacementReason::PrefillFailed } }
        ]
    );
}

#[test]
fn several_heartbeats_fit_a_lease() {
    let timeouts = Timeouts::default();
    assert!(timeouts.heartbeat_every() * 3 < timeouts.lease);
}
