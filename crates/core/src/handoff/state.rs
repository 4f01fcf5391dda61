//! Where D's side of a handoff is.

use super::{Attempt, ReservationNumber};

/// Where a handoff is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The engine was asked for blocks.
    Reserving {
        /// Which.
        reservation: ReservationNumber,
    },
    /// A candidate was called, and has not completed.
    Prefilling(AttemptProgress),
    /// The prefill is completed, and not all blocks have landed.
    Transferring(AttemptProgress),
    /// The engine has the sequence; P has not said that it has drained.
    Activated(AttemptProgress),
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

/// How far the current attempt is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttemptProgress {
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

    /// Name in logs and as a metric label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Reserving { .. } => "reserving",
            Self::Prefilling(_) => "prefilling",
            Self::Transferring(_) => "transferring",
            Self::Activated(_) => "activated",
            Self::Released => "released",
            Self::CleaningUp { .. } => "cleaning-up",
            Self::Done => "done",
        }
    }

    /// The attempt that is under way and can still deliver.
    pub(super) fn under_way(&mut self) -> Option<&mut AttemptProgress> {
        match self {
            Self::Prefilling(current) | Self::Transferring(current) => Some(current),
            Self::Reserving { .. }
            | Self::Activated(_)
            | Self::Released
            | Self::CleaningUp { .. }
            | Self::Done => None,
        }
    }

    /// The reservation that the engine was asked for and has not answered in time yet.
    pub(super) fn awaited_reservation(&self) -> Option<ReservationNumber> {
        match self {
            Self::Reserving { reservation } => Some(*reservation),
            Self::CleaningUp { unanswered } => *unanswered,
            Self::Prefilling(_)
            | Self::Transferring(_)
            | Self::Activated(_)
            | Self::Released
            | Self::Done => None,
        }
    }
}

impl AttemptProgress {
    pub(super) fn new(attempt: Attempt, reservation: ReservationNumber) -> Self {
        Self { attempt, reservation, accepted: false, landed: false, drained: false }
    }
}
