//! D's machine: what each fact means in each state. What is then done is in `steps`.

use super::deadlines::Deadlines;
use super::{
    Action, Attempt, Deadline, DeadlineKind, Fact, Outcome, Plan, ReservationNumber, State, Timeouts, Writer,
};
use crate::placement::{FallbackPolicy, PlacementReason};

/// D's side of one request's handoff. See the [module](super) for the rules.
#[derive(Clone, Debug)]
pub struct Handoff {
    pub(super) candidates: Vec<Writer>,
    pub(super) fallback: FallbackPolicy,
    pub(super) timeouts: Timeouts,
    pub(super) state: State,
    /// Decided at most once.
    pub(super) outcome: Option<Outcome>,
    /// Index of the candidate that comes next.
    pub(super) next_candidate: u32,
    pub(super) next_reservation: u32,
    /// An attempt was lost after P had it in hand: a better reason than a refusal that came after.
    pub(super) any_failed: bool,
    /// At most one per candidate.
    pub(super) quarantined: Vec<Quarantined>,
    /// A reservation given up at its deadline; the engine's answer may still come.
    pub(super) abandoned: Option<ReservationNumber>,
    pub(super) deadlines: Deadlines,
    /// Collected while a fact is taken in.
    pub(super) actions: Vec<Action>,
}

/// Blocks that a peer may still write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quarantined {
    pub(super) reservation: ReservationNumber,
    pub(super) attempt: Attempt,
}

/// How an attempt ended without delivering.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Loss {
    /// P never began.
    Refused,
    /// P is gone.
    Gone,
    /// P is there and does not answer in time, or is not wanted any more.
    Stopped,
}

impl Handoff {
    /// Begins a handoff. Without candidates it ends at once, as the policy says.
    pub fn start(plan: Plan) -> (Self, Vec<Action>) {
        let Plan { candidates, fallback, timeouts } = plan;
        let mut handoff = Self {
            candidates,
            fallback,
            timeouts,
            state: State::CleaningUp { unanswered: None },
            outcome: None,
            next_candidate: 0,
            next_reservation: 0,
            any_failed: false,
            quarantined: Vec::new(),
            abandoned: None,
            deadlines: Deadlines::default(),
            actions: Vec::new(),
        };
        if handoff.has_next_candidate() {
            handoff.reserve();
        } else {
            handoff.give_up_remote(PlacementReason::NoPrefillWorker, None);
        }
        let actions = std::mem::take(&mut handoff.actions);
        (handoff, actions)
    }

    /// Takes in a fact and returns what to do about it, in order.
    pub fn on(&mut self, fact: Fact) -> Vec<Action> {
        match fact {
            Fact::Reserved { reservation } => self.on_reserved(reservation),
            Fact::ReserveRefused { reservation } => self.on_reserve_refused(reservation),
            Fact::PrefillAccepted { attempt } | Fact::Progress { attempt } => self.on_sign_of_life(attempt),
            Fact::PrefillRefused { attempt } => self.on_refused(attempt),
            Fact::Landed { attempt } => self.on_landed(attempt),
            Fact::Completed { attempt } => self.on_completed(attempt),
            Fact::Drained { attempt } => self.on_drained(attempt),
            Fact::PeerLost { attempt } => self.on_peer_lost(attempt),
            Fact::DeadlinePassed(deadline) => self.on_deadline(deadline),
            Fact::Cancelled => self.on_cancelled(),
        }
        std::mem::take(&mut self.actions)
    }

    /// Where it is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What became of the request, once that is decided.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome
    }

    fn on_reserved(&mut self, answered: ReservationNumber) {
        if self.state.awaited_reservation() == Some(answered) {
            self.disarm(DeadlineKind::Reserve);
            if self.outcome.is_none() {
                self.start_next(answered);
            } else {
                self.actions.push(Action::FreeBlocks { reservation: answered });
                self.clean_up(None);
            }
        } else if self.abandoned == Some(answered) {
            self.abandoned = None;
            self.actions.push(Action::FreeBlocks { reservation: answered });
        }
    }

    fn on_reserve_refused(&mut self, answered: ReservationNumber) {
        if self.state.awaited_reservation() == Some(answered) {
            self.disarm(DeadlineKind::Reserve);
            if self.outcome.is_none() {
                self.give_up_remote(PlacementReason::ReservationRefused, None);
            } else {
                self.clean_up(None);
            }
        } else if self.abandoned == Some(answered) {
            self.abandoned = None;
        }
    }

    /// Accepted, or anything that comes only from a P that has accepted.
    fn on_sign_of_life(&mut self, attempt: Attempt) {
        let Some(current) = self.state.under_way().filter(|current| current.attempt == attempt) else {
            return;
        };
        current.accepted = true;
        // A P that has drained owes no more signs of life.
        let owes_more = !current.drained;
        self.disarm(DeadlineKind::Accept);
        if owes_more {
            self.arm(DeadlineKind::Lease, self.timeouts.lease);
        }
    }

    fn on_refused(&mut self, attempt: Attempt) {
        match self.state.under_way().filter(|current| current.attempt == attempt).copied() {
            // A refusal after a sign that P had begun is no refusal: the stream has ended.
            Some(current) if current.accepted || current.landed => self.lose(current, Loss::Gone),
            Some(current) => self.lose(current, Loss::Refused),
            None => self.time_quarantine(attempt),
        }
    }

    fn on_landed(&mut self, attempt: Attempt) {
        let Some(current) = self.state.under_way().filter(|current| current.attempt == attempt) else {
            return;
        };
        current.landed = true;
        if let State::Transferring(current) = self.state {
            self.activate(current);
        }
    }

    fn on_completed(&mut self, attempt: Attempt) {
        let State::Prefilling(mut current) = self.state else {
            return;
        };
        if current.attempt != attempt {
            return;
        }
        current.accepted = true;
        if current.landed {
            self.activate(current);
            return;
        }
        self.state = State::Transferring(current);
        self.disarm(DeadlineKind::Accept);
        self.disarm(DeadlineKind::Prefill);
        if current.drained {
            self.await_last_blocks();
        } else {
            self.arm(DeadlineKind::Lease, self.timeouts.lease);
            self.arm(DeadlineKind::Transfer, self.timeouts.transfer);
        }
    }

    fn on_drained(&mut self, attempt: Attempt) {
        match &mut self.state {
            State::Prefilling(current) if current.attempt == attempt => {
                // A P that drains before it has completed has given up, or its completion is right behind.
                if !current.drained {
                    current.drained = true;
                    self.arm(DeadlineKind::Lease, self.timeouts.lease);
                }
            }
            State::Transferring(current) if current.attempt == attempt => {
                if !current.drained {
                    current.drained = true;
                    self.await_last_blocks();
                }
            }
            State::Activated(current) if current.attempt == attempt => self.release(),
            State::Prefilling(_)
            | State::Transferring(_)
            | State::Activated(_)
            | State::Reserving { .. }
            | State::Released
            | State::CleaningUp { .. }
            | State::Done => self.end_quarantine(|quarantined| quarantined.attempt == attempt),
        }
    }

    fn on_peer_lost(&mut self, attempt: Attempt) {
        match self.state {
            // P has done its part and said so; the stream may end while the last blocks land.
            State::Transferring(current) if current.attempt == attempt && current.drained => {}
            State::Prefilling(current) | State::Transferring(current) if current.attempt == attempt => {
                self.lose(current, Loss::Gone);
            }
            State::Activated(current) if current.attempt == attempt => self.release(),
            State::Prefilling(_)
            | State::Transferring(_)
            | State::Activated(_)
            | State::Reserving { .. }
            | State::Released
            | State::CleaningUp { .. }
            | State::Done => self.time_quarantine(attempt),
        }
    }

    fn on_cancelled(&mut self) {
        match self.state {
            State::Reserving { reservation } => {
                self.outcome = Some(Outcome::Cancelled);
                // The engine's answer is still waited for, under the same deadline.
                self.clean_up(Some(reservation));
            }
            State::Prefilling(current) | State::Transferring(current) => {
                self.outcome = Some(Outcome::Cancelled);
                if let Some(reservation) = self.end_attempt(current, Loss::Stopped) {
                    self.actions.push(Action::FreeBlocks { reservation });
                }
                self.clean_up(None);
            }
            // The engine has the sequence: the driver cancels it there.
            State::Activated(_) | State::Released | State::CleaningUp { .. } | State::Done => {}
        }
    }

    fn on_deadline(&mut self, deadline: Deadline) {
        if !self.deadlines.take(deadline) {
            return;
        }
        match deadline.kind {
            DeadlineKind::Reserve => {
                self.abandoned = self.state.awaited_reservation();
                if self.outcome.is_none() {
                    self.give_up_remote(PlacementReason::ReservationRefused, None);
                } else {
                    self.clean_up(None);
                }
            }
            DeadlineKind::Accept | DeadlineKind::Lease | DeadlineKind::Prefill | DeadlineKind::Transfer => {
                if let Some(&mut current) = self.state.under_way() {
                    self.lose(current, Loss::Stopped);
                }
            }
            DeadlineKind::Drain => {
                if let State::Activated(current) = self.state {
                    self.actions.push(Action::CancelPrefill { attempt: current.attempt });
                    self.release();
                }
            }
            DeadlineKind::Quarantine(reservation) => {
                self.end_quarantine(|quarantined| quarantined.reservation == reservation);
            }
            DeadlineKind::Suspect(reservation) => self.hand_over_quarantined(reservation),
        }
    }
}
