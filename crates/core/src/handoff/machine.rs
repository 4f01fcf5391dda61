//! D's machine: states and transitions.

use std::time::Duration;

use super::{
    Action, Attempt, Deadline, DeadlineKind, Fact, Outcome, Plan, ReservationNumber, Timeouts, Writer,
};
use crate::placement::{FallbackPolicy, PlacementReason};

/// Where a handoff is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The engine was asked for blocks.
    Reserving {
        /// Which.
        reservation: ReservationNumber,
    },
    /// A candidate was called, and has not completed.
    Prefilling(Attempting),
    /// The prefill is completed, and not all blocks have landed.
    Transferring(Attempting),
    /// The engine has the sequence; P has not said that it has drained.
    Activated(Attempting),
    /// Final: delivered, and nothing was left to clean up.
    Released,
    /// The outcome is decided; blocks in quarantine, or an answer of the engine, are waited for.
    CleaningUp {
        /// A reservation that was asked for and is not wanted any more.
        unanswered: Option<ReservationNumber>,
    },
    /// Final: any other end.
    Done,
}

impl State {
    /// Whether the handoff is over.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Released | Self::Done => true,
            Self::Reserving { .. }
            | Self::Prefilling(_)
            | Self::Transferring(_)
            | Self::Activated(_)
            | Self::CleaningUp { .. } => false,
        }
    }
}

/// What is known of the current attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attempting {
    /// Which.
    pub attempt: Attempt,
    /// The blocks it lands in.
    pub reservation: ReservationNumber,
    /// P has taken it.
    pub accepted: bool,
    /// All blocks are there.
    pub landed: bool,
    /// P writes no more.
    pub drained: bool,
}

/// How an attempt ended without delivering.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Loss {
    /// P never began.
    Refused,
    /// P is gone.
    Gone,
    /// P is there and does not answer in time, or is not wanted any more.
    Stopped,
}

/// Blocks that a peer may still write.
#[derive(Clone, Copy, Debug)]
struct Quarantined {
    reservation: ReservationNumber,
    attempt: Attempt,
}

/// D's side of one request's handoff. See the [module](super) for the rules.
#[derive(Clone, Debug)]
pub struct Handoff {
    candidates: Vec<Writer>,
    fallback: FallbackPolicy,
    timeouts: Timeouts,
    state: State,
    /// Decided at most once.
    outcome: Option<Outcome>,
    /// Index of the candidate that comes next.
    next_candidate: u32,
    next_reservation: u32,
    /// An attempt was lost after P had it in hand: a better reason than a refusal that came after.
    any_failed: bool,
    /// At most one per candidate.
    quarantined: Vec<Quarantined>,
    /// A reservation given up at its deadline; the engine's answer may still come.
    abandoned: Option<ReservationNumber>,
    armed: Vec<Deadline>,
    next_serial: u64,
    actions: Vec<Action>,
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
            armed: Vec::new(),
            next_serial: 0,
            actions: Vec::new(),
        };
        if handoff.candidates.is_empty() {
            handoff.give_up_remote(PlacementReason::NoPrefillWorker, None);
        } else {
            handoff.reserve();
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

    /// The current attempt, as long as it can still deliver.
    fn current(&self, attempt: Attempt) -> Option<Attempting> {
        match self.state {
            State::Prefilling(current) | State::Transferring(current) if current.attempt == attempt => {
                Some(current)
            }
            State::Prefilling(_)
            | State::Transferring(_)
            | State::Reserving { .. }
            | State::Activated(_)
            | State::Released
            | State::CleaningUp { .. }
            | State::Done => None,
        }
    }

    fn on_reserved(&mut self, answered: ReservationNumber) {
        match self.state {
            State::Reserving { reservation } if reservation == answered => {
                self.disarm(DeadlineKind::Reserve);
                self.start_next(reservation);
            }
            State::CleaningUp { unanswered: Some(reservation) } if reservation == answered => {
                self.disarm(DeadlineKind::Reserve);
                self.actions.push(Action::FreeBlocks { reservation });
                self.clean_up(None);
            }
            State::Reserving { .. }
            | State::CleaningUp { .. }
            | State::Prefilling(_)
            | State::Transferring(_)
            | State::Activated(_)
            | State::Released
            | State::Done => {
                if self.abandoned == Some(answered) {
                    self.abandoned = None;
                    self.actions.push(Action::FreeBlocks { reservation: answered });
                }
            }
        }
    }

    fn on_reserve_refused(&mut self, answered: ReservationNumber) {
        match self.state {
            State::Reserving { reservation } if reservation == answered => {
                self.disarm(DeadlineKind::Reserve);
                self.give_up_remote(PlacementReason::ReservationRefused, None);
            }
            State::CleaningUp { unanswered: Some(reservation) } if reservation == answered => {
                self.disarm(DeadlineKind::Reserve);
                self.clean_up(None);
            }
            State::Reserving { .. }
            | State::CleaningUp { .. }
            | State::Prefilling(_)
            | State::Transferring(_)
            | State::Activated(_)
            | State::Released
            | State::Done => {
                if self.abandoned == Some(answered) {
                    self.abandoned = None;
                }
            }
        }
    }

    /// Accepted, or anything that comes only from a P that has accepted.
    fn on_sign_of_life(&mut self, attempt: Attempt) {
        match &mut self.state {
            State::Prefilling(current) | State::Transferring(current) if current.attempt == attempt => {
                let drained = current.drained;
                current.accepted = true;
                self.disarm(DeadlineKind::Accept);
                // A P that has drained owes no more signs of life.
                if !drained {
                    self.arm(DeadlineKind::Lease, self.timeouts.lease);
                }
            }
            State::Prefilling(_)
            | State::Transferring(_)
            | State::Reserving { .. }
            | State::Activated(_)
            | State::Released
            | State::CleaningUp { .. }
            | State::Done => {}
        }
    }

    fn on_refused(&mut self, attempt: Attempt) {
        match self.current(attempt) {
            // A refusal after a sign that P had begun is no refusal: the stream has ended.
            Some(current) if current.accepted || current.landed => self.lose(current, Loss::Gone),
            Some(current) => self.lose(current, Loss::Refused),
            None => self.on_quarantined_peer_gone(attempt),
        }
    }

    fn on_landed(&mut self, attempt: Attempt) {
        match &mut self.state {
            State::Prefilling(current) if current.attempt == attempt => current.landed = true,
            State::Transferring(current) if current.attempt == attempt => {
                current.landed = true;
                let current = *current;
                self.activate(current);
            }
            State::Prefilling(_)
            | State::Transferring(_)
            | State::Reserving { .. }
            | State::Activated(_)
            | State::Released
            | State::CleaningUp { .. }
            | State::Done => {}
        }
    }

    fn on_completed(&mut self, attempt: Attempt) {
        match self.state {
            State::Prefilling(current) if current.attempt == attempt => {
                let current = Attempting { accepted: true, ..current };
                if current.landed {
                    self.activate(current);
                    return;
                }
                self.disarm(DeadlineKind::Accept);
                self.disarm(DeadlineKind::Prefill);
                self.state = State::Transferring(current);
                if current.drained {
                    self.arm(DeadlineKind::Transfer, self.timeouts.lease);
                } else {
                    self.arm(DeadlineKind::Transfer, self.timeouts.transfer);
                    self.arm(DeadlineKind::Lease, self.timeouts.lease);
                }
            }
            State::Prefilling(_)
            | State::Transferring(_)
            | State::Reserving { .. }
            | State::Activated(_)
            | State::Released
            | State::CleaningUp { .. }
            | State::Done => {}
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
                // All that P sent is here or nearly so: what has not landed soon was never sent.
                if !current.drained {
                    current.drained = true;
                    self.disarm(DeadlineKind::Lease);
                    self.arm(DeadlineKind::Transfer, self.timeouts.lease);
                }
            }
            State::Activated(current) if current.attempt == attempt => {
                self.disarm(DeadlineKind::Drain);
                self.release();
            }
            State::Prefilling(_)
            | State::Transferring(_)
            | State::Activated(_)
            | State::Reserving { .. }
            | State::Released
            | State::CleaningUp { .. }
            | State::Done => {
                if let Some(quarantined) = self.take_quarantined(|q| q.attempt == attempt) {
                    self.end_quarantine(quarantined);
                }
            }
        }
    }

    fn on_peer_lost(&mut self, attempt: Attempt) {
        match self.state {
            // P has done its part and said so; the stream may end while the last blocks land.
            State::Transferring(current) if current.attempt == attempt && current.drained => {}
            State::Prefilling(current) | State::Transferring(current) if current.attempt == attempt => {
                self.lose(current, Loss::Gone);
            }
            State::Activated(current) if current.attempt == attempt => {
                self.disarm(DeadlineKind::Drain);
                self.release();
            }
            State::Prefilling(_)
            | State::Transferring(_)
            | State::Activated(_)
            | State::Reserving { .. }
            | State::Released
            | State::CleaningUp { .. }
            | State::Done => self.on_quarantined_peer_gone(attempt),
        }
    }

    fn on_cancelled(&mut self) {
        match self.state {
            State::Reserving { reservation } => {
                self.outcome = Some(Outcome::Cancelled);
                // The deadline of the reservation stays armed.
                self.state = State::CleaningUp { unanswered: Some(reservation) };
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
        let Some(index) = self.armed.iter().position(|armed| *armed == deadline) else {
            return;
        };
        self.armed.swap_remove(index);
        match deadline.kind {
            DeadlineKind::Reserve => match self.state {
                State::Reserving { reservation } => {
                    self.abandoned = Some(reservation);
                    self.give_up_remote(PlacementReason::ReservationRefused, None);
                }
                State::CleaningUp { unanswered } => {
                    self.abandoned = unanswered;
                    self.clean_up(None);
                }
                State::Prefilling(_)
                | State::Transferring(_)
                | State::Activated(_)
                | State::Released
                | State::Done => {}
            },
            DeadlineKind::Accept | DeadlineKind::Lease | DeadlineKind::Prefill | DeadlineKind::Transfer => {
                match self.state {
                    State::Prefilling(current) | State::Transferring(current) => {
                        self.lose(current, Loss::Stopped);
                    }
                    State::Reserving { .. }
                    | State::Activated(_)
                    | State::Released
                    | State::CleaningUp { .. }
                    | State::Done => {}
                }
            }
            DeadlineKind::Drain => match self.state {
                State::Activated(current) => {
                    self.actions.push(Action::CancelPrefill { attempt: current.attempt });
                    self.release();
                }
                State::Reserving { .. }
                | State::Prefilling(_)
                | State::Transferring(_)
                | State::Released
                | State::CleaningUp { .. }
                | State::Done => {}
            },
            DeadlineKind::Quarantine(reservation) => {
                if let Some(quarantined) = self.take_quarantined(|q| q.reservation == reservation) {
                    self.end_quarantine(quarantined);
                }
            }
            DeadlineKind::Suspect(reservation) => {
                if let Some(Quarantined { reservation, attempt }) =
                    self.take_quarantined(|q| q.reservation == reservation)
                {
                    self.actions.push(Action::Suspect { reservation, attempt });
                    self.finish_if_clean();
                }
            }
        }
    }

    fn reserve(&mut self) {
        let reservation = ReservationNumber(self.next_reservation);
        self.next_reservation += 1;
        self.state = State::Reserving { reservation };
        self.actions.push(Action::Reserve { reservation });
        self.arm(DeadlineKind::Reserve, self.timeouts.reserve);
    }

    /// Calls the next candidate. There is one: whoever makes or keeps a reservation has looked.
    fn start_next(&mut self, reservation: ReservationNumber) {
        let attempt = Attempt(self.next_candidate);
        self.next_candidate += 1;
        self.state = State::Prefilling(Attempting {
            attempt,
            reservation,
            accepted: false,
            landed: false,
            drained: false,
        });
        self.actions.push(Action::StartPrefill { attempt, reservation });
        self.arm(DeadlineKind::Accept, self.timeouts.accept);
        self.arm(DeadlineKind::Prefill, self.timeouts.prefill);
    }

    /// The attempt will not deliver: on to the next candidate, or home.
    fn lose(&mut self, current: Attempting, loss: Loss) {
        self.any_failed |= loss != Loss::Refused;
        let kept = self.end_attempt(current, loss);
        let more = (self.next_candidate as usize) < self.candidates.len();
        match kept {
            Some(reservation) if more => self.start_next(reservation),
            None if more => self.reserve(),
            kept => self.give_up_remote(PlacementReason::PrefillRefused, kept),
        }
    }

    /// Fences an attempt that has not delivered. Returns its blocks if nobody can write them any more; otherwise
    /// they are in quarantine.
    fn end_attempt(&mut self, current: Attempting, loss: Loss) -> Option<ReservationNumber> {
        let Attempting { attempt, reservation, landed, drained, accepted: _ } = current;
        self.disarm_attempt();
        if loss == Loss::Stopped {
            self.actions.push(Action::CancelPrefill { attempt });
        }
        self.actions.push(Action::Fence { attempt });
        let writer = self.candidates.get(attempt.0 as usize).copied().unwrap_or(Writer::Peer);
        let fenced = match writer {
            Writer::Us => true,
            Writer::Peer => landed || drained || loss == Loss::Refused,
        };
        if fenced {
            return Some(reservation);
        }
        self.actions.push(Action::Quarantine { reservation, attempt });
        self.quarantined.push(Quarantined { reservation, attempt });
        if loss == Loss::Gone {
            self.arm(DeadlineKind::Quarantine(reservation), self.timeouts.quarantine);
        } else {
            self.arm(DeadlineKind::Suspect(reservation), self.timeouts.suspect);
        }
        None
    }

    /// Landed and completed: the blocks and the first tokens are the engine's.
    fn activate(&mut self, current: Attempting) {
        let Attempting { attempt, reservation, .. } = current;
        self.disarm_attempt();
        self.actions.push(Action::Fence { attempt });
        self.actions.push(Action::Activate { attempt, reservation });
        self.outcome = Some(Outcome::Activated { attempt });
        if current.drained {
            self.release();
        } else {
            self.state = State::Activated(current);
            self.arm(DeadlineKind::Drain, self.timeouts.drain);
        }
    }

    /// No candidate delivers. `kept` are blocks that nobody else can write.
    fn give_up_remote(&mut self, reason: PlacementReason, kept: Option<ReservationNumber>) {
        let reason = if self.any_failed { PlacementReason::PrefillFailed } else { reason };
        match self.fallback {
            FallbackPolicy::Local => {
                self.actions.push(Action::PrefillLocally { reason, reservation: kept });
                self.outcome = Some(Outcome::Local { reason });
            }
            FallbackPolicy::Fail => {
                if let Some(reservation) = kept {
                    self.actions.push(Action::FreeBlocks { reservation });
                }
                self.actions.push(Action::Fail { reason });
                self.outcome = Some(Outcome::Failed { reason });
            }
        }
        self.clean_up(None);
    }

    /// The current attempt is over on both sides.
    fn release(&mut self) {
        if self.quarantined.is_empty() {
            self.state = State::Released;
            self.push_finished();
        } else {
            self.clean_up(None);
        }
    }

    fn clean_up(&mut self, unanswered: Option<ReservationNumber>) {
        self.state = State::CleaningUp { unanswered };
        self.finish_if_clean();
    }

    fn finish_if_clean(&mut self) {
        if matches!(self.state, State::CleaningUp { unanswered: None }) && self.quarantined.is_empty() {
            self.state = State::Done;
            self.push_finished();
        }
    }

    fn push_finished(&mut self) {
        if let Some(outcome) = self.outcome {
            self.actions.push(Action::Finished { outcome });
        }
    }

    fn take_quarantined(&mut self, which: impl Fn(&Quarantined) -> bool) -> Option<Quarantined> {
        let index = self.quarantined.iter().position(which)?;
        Some(self.quarantined.swap_remove(index))
    }

    /// The writer of quarantined blocks is known to be gone; what it had under way ends within the quarantine.
    fn on_quarantined_peer_gone(&mut self, attempt: Attempt) {
        let Some(&Quarantined { reservation, .. }) = self.quarantined.iter().find(|q| q.attempt == attempt)
        else {
            return;
        };
        let timed = DeadlineKind::Quarantine(reservation);
        if !self.armed.iter().any(|deadline| deadline.kind == timed) {
            self.disarm(DeadlineKind::Suspect(reservation));
            self.arm(timed, self.timeouts.quarantine);
        }
    }

    fn end_quarantine(&mut self, quarantined: Quarantined) {
        let Quarantined { reservation, attempt: _ } = quarantined;
        self.disarm(DeadlineKind::Quarantine(reservation));
        self.disarm(DeadlineKind::Suspect(reservation));
        self.actions.push(Action::FreeBlocks { reservation });
        self.finish_if_clean();
    }

    fn arm(&mut self, kind: DeadlineKind, after: Duration) {
        let deadline = Deadline { kind, serial: self.next_serial };
        self.next_serial += 1;
        self.armed.retain(|armed| armed.kind != kind);
        self.armed.push(deadline);
        self.actions.push(Action::ArmDeadline { deadline, after });
    }

    fn disarm(&mut self, kind: DeadlineKind) {
        let before = self.armed.len();
        self.armed.retain(|armed| armed.kind != kind);
        if self.armed.len() < before {
            self.actions.push(Action::DisarmDeadline { kind });
        }
    }

    /// The deadlines that belong to the current attempt.
    fn disarm_attempt(&mut self) {
        for kind in [DeadlineKind::Accept, DeadlineKind::Lease, DeadlineKind::Prefill, DeadlineKind::Transfer]
        {
            self.disarm(kind);
        }
    }
}
