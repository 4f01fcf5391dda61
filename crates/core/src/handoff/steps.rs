//! D's machine: what is done when a fact calls for it.

use std::time::Duration;

use super::machine::{Handoff, Loss, Quarantined};
use super::{Action, Attempt, AttemptProgress, DeadlineKind, Outcome, ReservationNumber, State, Writer};
use crate::placement::{FallbackPolicy, PlacementReason};

impl Handoff {
    pub(super) fn reserve(&mut self) {
        let reservation = ReservationNumber(self.next_reservation);
        self.next_reservation += 1;
        self.state = State::Reserving { reservation };
        self.actions.push(Action::Reserve { reservation });
        self.arm(DeadlineKind::Reserve, self.timeouts.reserve);
    }

    pub(super) fn has_next_candidate(&self) -> bool {
        (self.next_candidate as usize) < self.candidates.len()
    }

    /// Calls the next candidate. There is one: whoever makes or keeps a reservation has looked.
    pub(super) fn start_next(&mut self, reservation: ReservationNumber) {
        let attempt = Attempt(self.next_candidate);
        self.next_candidate += 1;
        self.state = State::Prefilling(AttemptProgress::new(attempt, reservation));
        self.actions.push(Action::StartPrefill { attempt, reservation });
        self.arm(DeadlineKind::Accept, self.timeouts.accept);
        self.arm(DeadlineKind::Prefill, self.timeouts.prefill);
    }

    /// The attempt will not deliver: on to the next candidate, or home.
    pub(super) fn lose(&mut self, current: AttemptProgress, loss: Loss) {
        self.any_failed |= loss != Loss::Refused;
        let kept = self.end_attempt(current, loss);
        match kept {
            Some(reservation) if self.has_next_candidate() => self.start_next(reservation),
            None if self.has_next_candidate() => self.reserve(),
            Some(_) | None => self.give_up_remote(PlacementReason::PrefillRefused, kept),
        }
    }

    /// Fences an attempt that has not delivered. Returns its blocks if nobody can write them any more; otherwise
    /// they are in quarantine.
    pub(super) fn end_attempt(&mut self, current: AttemptProgress, loss: Loss) -> Option<ReservationNumber> {
        let AttemptProgress { attempt, reservation, landed, drained, accepted: _ } = current;
        self.disarm_attempt();
        if loss == Loss::Stopped {
            self.actions.push(Action::CancelPrefill { attempt });
        }
        self.actions.push(Action::Fence { attempt });
        let nobody_writes = match self.candidates[attempt.0 as usize] {
            Writer::Us => true,
            Writer::Peer => landed || drained || loss == Loss::Refused,
        };
        if nobody_writes {
            return Some(reservation);
        }
        self.actions.push(Action::Quarantine { reservation, attempt });
        self.quarantined.push(Quarantined { reservation, attempt });
        match loss {
            Loss::Gone | Loss::Refused => {
                self.arm(DeadlineKind::Quarantine(reservation), self.timeouts.quarantine);
            }
            Loss::Stopped => self.arm(DeadlineKind::Suspect(reservation), self.timeouts.suspect),
        }
        None
    }

    /// P has drained: all that it sent is here or nearly so, and what does not land soon was never sent.
    pub(super) fn await_last_blocks(&mut self) {
        self.disarm(DeadlineKind::Lease);
        self.arm(DeadlineKind::Transfer, self.timeouts.lease);
    }

    /// Landed and completed: the blocks and the first tokens are the engine's.
    pub(super) fn activate(&mut self, current: AttemptProgress) {
        let AttemptProgress { attempt, reservation, .. } = current;
        self.disarm_attempt();
        self.actions.push(Action::Fence { attempt });
        self.actions.push(Action::Activate { attempt, reservation });
        self.outcome = Some(Outcome::Activated { attempt });
        self.state = State::Activated(current);
        if current.drained {
            self.release();
        } else {
            self.arm(DeadlineKind::Drain, self.timeouts.drain);
        }
    }

    /// No candidate delivers. `kept` are blocks that nobody else can write.
    pub(super) fn give_up_remote(&mut self, reason: PlacementReason, kept: Option<ReservationNumber>) {
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

    /// The attempt that delivered is over on both sides.
    pub(super) fn release(&mut self) {
        self.disarm(DeadlineKind::Drain);
        if self.quarantined.is_empty() {
            self.state = State::Released;
            self.push_finished();
        } else {
            self.clean_up(None);
        }
    }

    pub(super) fn clean_up(&mut self, unanswered: Option<ReservationNumber>) {
        self.state = State::CleaningUp { unanswered };
        self.finish_if_clean();
    }

    fn finish_if_clean(&mut self) {
        if self.state == (State::CleaningUp { unanswered: None }) && self.quarantined.is_empty() {
            self.state = State::Done;
            self.push_finished();
        }
    }

    fn push_finished(&mut self) {
        if let Some(outcome) = self.outcome {
            self.actions.push(Action::Finished { outcome });
        }
    }

    /// The writer of quarantined blocks is known to be gone; what it had under way ends within the quarantine.
    pub(super) fn time_quarantine(&mut self, attempt: Attempt) {
        let Some(&Quarantined { reservation, .. }) = self.quarantined.iter().find(|q| q.attempt == attempt)
        else {
            return;
        };
        let timed = DeadlineKind::Quarantine(reservation);
        if !self.deadlines.is_armed(timed) {
            self.disarm(DeadlineKind::Suspect(reservation));
            self.arm(timed, self.timeouts.quarantine);
        }
    }

    /// Nobody can write these quarantined blocks any more.
    pub(super) fn end_quarantine(&mut self, which: impl Fn(&Quarantined) -> bool) {
        if let Some(Quarantined { reservation, attempt: _ }) = self.take_quarantined(which) {
            self.actions.push(Action::FreeBlocks { reservation });
            self.finish_if_clean();
        }
    }

    /// Patience with a silent writer is over.
    pub(super) fn hand_over_quarantined(&mut self, reservation: ReservationNumber) {
        if let Some(Quarantined { reservation, attempt }) =
            self.take_quarantined(|quarantined| quarantined.reservation == reservation)
        {
            self.actions.push(Action::Suspect { reservation, attempt });
            self.finish_if_clean();
        }
    }

    fn take_quarantined(&mut self, which: impl Fn(&Quarantined) -> bool) -> Option<Quarantined> {
        let index = self.quarantined.iter().position(which)?;
        let quarantined = self.quarantined.swap_remove(index);
        self.disarm(DeadlineKind::Quarantine(quarantined.reservation));
        self.disarm(DeadlineKind::Suspect(quarantined.reservation));
        Some(quarantined)
    }

    pub(super) fn arm(&mut self, kind: DeadlineKind, after: Duration) {
        let deadline = self.deadlines.arm(kind);
        self.actions.push(Action::ArmDeadline { deadline, after });
    }

    pub(super) fn disarm(&mut self, kind: DeadlineKind) {
        if self.deadlines.disarm(kind) {
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
