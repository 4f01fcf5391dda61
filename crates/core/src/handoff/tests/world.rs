//! A world around D's machine that knows the rules: it carries out every action, and panics on one that is unsafe.
//!
//! It shares no bookkeeping with the machine: what it knows, it has learned from the facts it delivered and the
//! actions it was given.

use std::collections::{BTreeMap, BTreeSet};

use crate::handoff::*;

/// Where a set of blocks is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Blocks {
    /// The engine was asked for them.
    Asked,
    /// Reserved, and the machine's to dispose of.
    Reserved,
    /// Somebody may still write them.
    Quarantined(Attempt),
    /// Freed, given to the engine, or left to the worker's book; never again the machine's.
    Gone,
    /// The engine had none.
    Refused,
}

/// What was done with and reported about an attempt.
#[derive(Clone, Debug)]
struct Tried {
    reservation: ReservationNumber,
    marks: BTreeSet<Mark>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Mark {
    Fenced,
    Cancelled,
    SignOfLife,
    Landed,
    Completed,
    Drained,
    RefusedBeforeBegun,
    Gone,
    QuarantineOver,
}

impl Tried {
    fn has(&self, mark: Mark) -> bool {
        self.marks.contains(&mark)
    }

    fn has_any(&self, marks: &[Mark]) -> bool {
        marks.iter().any(|mark| self.has(*mark))
    }
}

pub(super) struct World {
    pub(super) handoff: Handoff,
    plan: Plan,
    blocks: BTreeMap<ReservationNumber, Blocks>,
    tried: BTreeMap<Attempt, Tried>,
    /// Armed deadlines.
    pub(super) timers: BTreeMap<DeadlineKind, Deadline>,
    /// Deadlines that were disarmed or replaced; their timers may fire late.
    pub(super) stale_timers: Vec<Deadline>,
    /// The action that decided the request.
    decided: Option<Outcome>,
    cancelled_first: bool,
    pub(super) finished: Option<Outcome>,
    pub(super) all_actions: Vec<Action>,
}

impl World {
    pub(super) fn start(plan: Plan) -> Self {
        let (handoff, actions) = Handoff::start(plan.clone());
        let mut world = Self {
            handoff,
            plan,
            blocks: BTreeMap::new(),
            tried: BTreeMap::new(),
            timers: BTreeMap::new(),
            stale_timers: Vec::new(),
            decided: None,
            cancelled_first: false,
            finished: None,
            all_actions: Vec::new(),
        };
        world.carry_out(&actions);
        world.check_settled();
        world
    }

    /// Delivers a fact, carries out what follows, and returns it.
    pub(super) fn tell(&mut self, fact: Fact) -> Vec<Action> {
        self.note(fact);
        let actions = self.handoff.on(fact);
        self.carry_out(&actions);
        self.check_settled();
        actions
    }

    /// Lets one armed timer fire.
    pub(super) fn fire(&mut self, kind: DeadlineKind) -> Vec<Action> {
        let deadline = self.timers.remove(&kind).unwrap_or_else(|| panic!("{kind:?} is not armed"));
        if let DeadlineKind::Quarantine(reservation) = kind {
            for tried in self.tried.values_mut() {
                if tried.reservation == reservation && tried.has(Mark::Gone) {
                    tried.marks.insert(Mark::QuarantineOver);
                }
            }
        }
        self.tell(Fact::DeadlinePassed(deadline))
    }

    fn note(&mut self, fact: Fact) {
        match fact {
            Fact::Reserved { reservation } => {
                if let Some(blocks @ Blocks::Asked) = self.blocks.get_mut(&reservation) {
                    *blocks = Blocks::Reserved;
                }
            }
            Fact::ReserveRefused { reservation } => {
                if let Some(blocks @ Blocks::Asked) = self.blocks.get_mut(&reservation) {
                    *blocks = Blocks::Refused;
                }
            }
            Fact::PrefillAccepted { attempt } | Fact::Progress { attempt } => {
                self.mark(attempt, Mark::SignOfLife);
            }
            Fact::PrefillRefused { attempt } => {
                let begun = [Mark::SignOfLife, Mark::Completed, Mark::Landed];
                if self.tried.get(&attempt).is_some_and(|tried| !tried.has_any(&begun)) {
                    self.mark(attempt, Mark::RefusedBeforeBegun);
                }
                self.mark(attempt, Mark::Gone);
            }
            Fact::Landed { attempt } => self.mark(attempt, Mark::Landed),
            Fact::Completed { attempt } => self.mark(attempt, Mark::Completed),
            Fact::Drained { attempt } => self.mark(attempt, Mark::Drained),
            Fact::PeerLost { attempt } => self.mark(attempt, Mark::Gone),
            Fact::DeadlinePassed(_) => {}
            Fact::Cancelled => self.cancelled_first |= self.decided.is_none(),
        }
    }

    /// Facts of attempts that were never started come from nowhere and prove nothing.
    fn mark(&mut self, attempt: Attempt, mark: Mark) {
        if let Some(tried) = self.tried.get_mut(&attempt) {
            tried.marks.insert(mark);
        }
    }

    fn carry_out(&mut self, actions: &[Action]) {
        for action in actions {
            self.carry_out_one(*action);
            self.all_actions.push(*action);
        }
    }

    fn carry_out_one(&mut self, action: Action) {
        if self.finished.is_some() {
            // The engine's answer to a reservation may come after the end, and nothing else is left to do.
            assert!(matches!(action, Action::FreeBlocks { .. }), "{action:?} after the end");
        }
        match action {
            Action::Reserve { reservation } => {
                self.must_be_undecided(action);
                let live = |blocks: &Blocks| matches!(blocks, Blocks::Asked | Blocks::Reserved);
                assert!(!self.blocks.values().any(live), "reserves with a reservation in hand");
                assert_eq!(self.blocks.insert(reservation, Blocks::Asked), None, "numbers are new");
            }
            Action::StartPrefill { attempt, reservation } => {
                self.must_be_undecided(action);
                assert_eq!(attempt.0 as usize, self.tried.len(), "candidates are tried in order");
                assert!(self.tried.len() < self.plan.candidates.len(), "there is such a candidate");
                assert_eq!(self.blocks[&reservation], Blocks::Reserved);
                self.nobody_else_may_write(reservation);
                let tried = Tried { reservation, marks: BTreeSet::new() };
                self.tried.insert(attempt, tried);
            }
            Action::CancelPrefill { attempt } => {
                let tried = self.tried.get_mut(&attempt).expect("only what was started is cancelled");
                assert!(tried.marks.insert(Mark::Cancelled), "cancelled twice");
            }
            Action::Fence { attempt } => {
                let latest = *self.tried.keys().next_back().expect("started");
                assert_eq!(attempt, latest, "only the current attempt is fenced");
                let tried = self.tried.get_mut(&attempt).expect("started");
                assert!(tried.marks.insert(Mark::Fenced), "fenced twice");
            }
            Action::Quarantine { reservation, attempt } => {
                assert_eq!(self.blocks[&reservation], Blocks::Reserved);
                let tried = &self.tried[&attempt];
                assert!(tried.has(Mark::Fenced) && tried.reservation == reservation);
                assert_eq!(self.plan.candidates[attempt.0 as usize], Writer::Peer, "needless quarantine");
                self.blocks.insert(reservation, Blocks::Quarantined(attempt));
            }
            Action::Activate { attempt, reservation } => {
                let latest = *self.tried.keys().next_back().expect("started");
                let tried = &self.tried[&attempt];
                assert_eq!(
                    (attempt, reservation),
                    (latest, tried.reservation),
                    "an old attempt is activated"
                );
                assert!(tried.has(Mark::Landed) && tried.has(Mark::Completed), "activated without {tried:?}");
                assert!(!tried.has(Mark::Cancelled), "activated after its cancel");
                assert!(
                    matches!(self.all_actions.last(), Some(Action::Fence { attempt: fenced }) if *fenced == attempt),
                    "the fence comes right before, and not earlier"
                );
                self.decide(Outcome::Activated { attempt }, action);
                self.dispose(reservation);
            }
            Action::PrefillLocally { reason, reservation } => {
                assert_eq!(self.plan.fallback, FallbackPolicy::Local);
                self.decide(Outcome::Local { reason }, action);
                if let Some(reservation) = reservation {
                    assert_eq!(self.blocks[&reservation], Blocks::Reserved);
                    self.dispose(reservation);
                }
            }
            Action::Fail { reason } => {
                assert_eq!(self.plan.fallback, FallbackPolicy::Fail);
                self.decide(Outcome::Failed { reason }, action);
            }
            Action::FreeBlocks { reservation } => self.dispose(reservation),
            Action::Suspect { reservation, attempt } => {
                assert_eq!(self.blocks[&reservation], Blocks::Quarantined(attempt));
                assert!(!self.tried[&attempt].has(Mark::Gone), "a peer that is gone is not suspect");
                self.blocks.insert(reservation, Blocks::Gone);
            }
            Action::ArmDeadline { deadline, after } => {
                assert!(after > std::time::Duration::ZERO);
                self.stale_timers.extend(self.timers.insert(deadline.kind, deadline));
            }
            Action::DisarmDeadline { kind } => {
                let deadline = self.timers.remove(&kind).expect("only what is armed is disarmed");
                self.stale_timers.push(deadline);
            }
            Action::Finished { outcome } => {
                assert!(self.finished.is_none(), "finished twice");
                let expected = if self.cancelled_first { Some(Outcome::Cancelled) } else { self.decided };
                assert_eq!(Some(outcome), expected);
                assert!(
                    self.tried.values().all(|tried| tried.has(Mark::Fenced)),
                    "an attempt was left unfenced"
                );
                for (reservation, blocks) in &self.blocks {
                    assert!(
                        matches!(blocks, Blocks::Gone | Blocks::Refused | Blocks::Asked),
                        "{reservation:?} is left {blocks:?}"
                    );
                }
                self.finished = Some(outcome);
            }
        }
    }

    fn must_be_undecided(&self, action: Action) {
        assert!(!self.cancelled_first, "{action:?} after the request was cancelled");
        assert_eq!(self.decided, None, "{action:?} after the request was decided");
    }

    fn decide(&mut self, outcome: Outcome, action: Action) {
        self.must_be_undecided(action);
        self.decided = Some(outcome);
    }

    /// The blocks leave the machine's hands for good.
    fn dispose(&mut self, reservation: ReservationNumber) {
        let blocks = self.blocks[&reservation];
        assert!(matches!(blocks, Blocks::Reserved | Blocks::Quarantined(_)), "{reservation:?} is {blocks:?}");
        self.nobody_else_may_write(reservation);
        self.blocks.insert(reservation, Blocks::Gone);
    }

    /// The rule of memory safety.
    fn nobody_else_may_write(&self, reservation: ReservationNumber) {
        for (attempt, tried) in self.tried.iter().filter(|(_, tried)| tried.reservation == reservation) {
            assert!(tried.has(Mark::Fenced), "{attempt:?} is not fenced");
            let proofs = [Mark::Landed, Mark::Drained, Mark::RefusedBeforeBegun, Mark::QuarantineOver];
            match self.plan.candidates[attempt.0 as usize] {
                Writer::Us => {}
                Writer::Peer => assert!(tried.has_any(&proofs), "{attempt:?} may still write: {tried:?}"),
            }
        }
    }

    fn check_settled(&self) {
        let state = self.handoff.state();
        assert_eq!(state.is_final(), self.finished.is_some(), "{state:?}");
        if state.is_final() {
            assert!(self.timers.is_empty(), "{:?} still run in {state:?}", self.timers);
        } else {
            assert!(!self.timers.is_empty(), "nothing ends {state:?}");
        }
        let expected = if self.cancelled_first { Some(Outcome::Cancelled) } else { self.decided };
        assert_eq!(self.handoff.outcome(), expected);
    }

    /// Attempts started so far.
    pub(super) fn attempts(&self) -> usize {
        self.tried.len()
    }

    /// Reservations asked for so far.
    pub(super) fn reservations(&self) -> usize {
        self.blocks.len()
    }

    /// Reservations whose blocks leave through one of the ways out.
    pub(super) fn all_blocks_placed(&self) -> bool {
        self.blocks.values().all(|blocks| matches!(blocks, Blocks::Gone | Blocks::Refused))
    }
}
