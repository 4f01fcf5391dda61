//! Random facts: nonsense, duplicates, old and future attempts, late timers. The world checks the rules.

use proptest::collection::vec;
use proptest::prelude::*;

use super::world::World;
use crate::handoff::*;

/// One thing that happens, relative to where the handoff is.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The engine's answer to a reservation, counted back from the newest; true: reserved.
    Reserve {
        back: u32,
        granted: bool,
    },
    /// A message about an attempt, counted back from the newest.
    Peer {
        back: u32,
        message: Message,
    },
    /// The n-th of the armed timers fires.
    Timer {
        nth: usize,
    },
    /// The n-th of the timers that are not wanted any more fires all the same.
    StaleTimer {
        nth: usize,
    },
    Cancel,
}

#[derive(Clone, Copy, Debug)]
enum Message {
    Accepted,
    Refused,
    Progress,
    Landed,
    Completed,
    Drained,
    Lost,
}

impl Message {
    fn about(self, attempt: Attempt) -> Fact {
        match self {
            Self::Accepted => Fact::PrefillAccepted { attempt },
            Self::Refused => Fact::PrefillRefused { attempt },
            Self::Progress => Fact::Progress { attempt },
            Self::Landed => Fact::Landed { attempt },
            Self::Completed => Fact::Completed { attempt },
            Self::Drained => Fact::Drained { attempt },
            Self::Lost => Fact::PeerLost { attempt },
        }
    }
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        3 => Just(Message::Accepted),
        1 => Just(Message::Refused),
        2 => Just(Message::Progress),
        4 => Just(Message::Landed),
        4 => Just(Message::Completed),
        2 => Just(Message::Drained),
        1 => Just(Message::Lost),
    ]
}

/// Mostly about the newest, sometimes about older ones, now and then about one that does not exist yet.
fn back() -> impl Strategy<Value = u32> {
    prop_oneof![8 => Just(1_u32), 3 => 2_u32..5, 1 => Just(0)]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        10 => (back(), prop::bool::weighted(0.9)).prop_map(|(back, granted)| Event::Reserve { back, granted }),
        20 => (back(), message()).prop_map(|(back, message)| Event::Peer { back, message }),
        3 => (0_usize..6).prop_map(|nth| Event::Timer { nth }),
        2 => (0_usize..20).prop_map(|nth| Event::StaleTimer { nth }),
        1 => Just(Event::Cancel),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let writer = prop_oneof![Just(Writer::Us), Just(Writer::Peer)];
    let fallback = prop_oneof![Just(FallbackPolicy::Local), Just(FallbackPolicy::Fail)];
    (vec(writer, 0..5), fallback).prop_map(|(candidates, fallback)| Plan {
        candidates,
        fallback,
        timeouts: Timeouts::default(),
    })
}

fn happen(world: &mut World, event: Event) {
    match event {
        Event::Reserve { back, granted } => {
            let reservation = ReservationNumber((world.reservations() as u32).saturating_sub(back));
            world.tell(if granted {
                Fact::Reserved { reservation }
            } else {
                Fact::ReserveRefused { reservation }
            });
        }
        Event::Peer { back, message } => {
            world.tell(message.about(Attempt((world.attempts() as u32).saturating_sub(back))));
        }
        Event::Timer { nth } => {
            let count = world.timers.len().max(1);
            if let Some(kind) = world.timers.keys().copied().nth(nth % count) {
                world.fire(kind);
            }
        }
        Event::StaleTimer { nth } => {
            let count = world.stale_timers.len().max(1);
            if let Some(deadline) = world.stale_timers.get(nth % count).copied() {
                let actions = world.tell(Fact::DeadlinePassed(deadline));
                assert_eq!(actions, [], "a timer that was replaced or disarmed does nothing");
            }
        }
        Event::Cancel => {
            world.tell(Fact::Cancelled);
        }
    }
}

/// Lets the armed timers fire, in an order of `picks`, until the handoff is over.
fn run_out(world: &mut World, picks: &[usize]) {
    for round in 0..100 {
        if world.finished.is_some() {
            return;
        }
        let pick = picks[round % picks.len()] % world.timers.len();
        let kind = world.timers.keys().copied().nth(pick).expect("picked in range");
        world.fire(kind);
    }
    panic!("timers alone do not end it: {:?}", world.handoff);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn any_facts_in_any_order_are_safe(
        plan in plan(),
        events in vec(event(), 0..60),
        picks in vec(0_usize..8, 1..8),
    ) {
        let mut world = World::start(plan);
        for event in events {
            happen(&mut world, event);
        }
        run_out(&mut world, &picks);
        // Whatever still comes after the end: the engine's answer is taken care of, the rest does nothing.
        for _ in 0..2 {
            for attempt in (0..5).map(Attempt) {
                for message in [
                    Message::Accepted, Message::Refused, Message::Progress, Message::Landed,
                    Message::Completed, Message::Drained, Message::Lost,
                ] {
                    prop_assert_eq!(world.tell(message.about(attempt)), []);
                }
            }
            prop_assert_eq!(world.tell(Fact::Cancelled), []);
            for reservation in (0..6).map(ReservationNumber) {
                world.tell(Fact::Reserved { reservation });
            }
        }
        prop_assert!(world.all_blocks_placed());
    }

    /// A candidate that does all that it should delivers, in whatever order its messages come, however often, and
    /// whatever became of the candidates before it.
    #[test]
    fn a_good_candidate_delivers(
        writers in vec(prop_oneof![Just(Writer::Us), Just(Writer::Peer)], 1..5),
        losses in vec(prop_oneof![
            Just(Message::Refused),
            Just(Message::Lost),
            Just(Message::Accepted),
        ], 4),
        messages in Just([
            Message::Accepted, Message::Progress, Message::Landed, Message::Completed, Message::Drained,
            Message::Accepted, Message::Progress, Message::Landed, Message::Completed, Message::Drained,
        ]).prop_shuffle(),
    ) {
        let good = writers.len() - 1;
        let mut world = World::start(Plan {
            candidates: writers,
            fallback: FallbackPolicy::Fail,
            timeouts: Timeouts::default(),
        });
        let answer_reservation = |world: &mut World| {
            if let State::Reserving { reservation } = *world.handoff.state() {
                world.tell(Fact::Reserved { reservation });
            }
        };
        for (bad, loss) in losses.iter().take(good).enumerate() {
            answer_reservation(&mut world);
            world.tell(loss.about(Attempt(bad as u32)));
            if matches!(loss, Message::Accepted) {
                world.fire(DeadlineKind::Lease);
            }
        }
        answer_reservation(&mut world);
        for message in messages {
            world.tell(message.about(Attempt(good as u32)));
        }
        prop_assert_eq!(world.handoff.outcome(), Some(Outcome::Activated { attempt: Attempt(good as u32) }));
        run_out(&mut world, &[0]);
        prop_assert!(world.all_blocks_placed());
    }
}
