//! The handoff: moving a prefilled sequence from a prefill worker (P) to its decode worker (D).
//!
//! [`Handoff`] is D's side, [`PrefillLease`] is P's. Both are pure: a driver feeds them facts and carries out the
//! actions they return, **in the order returned**. The live worker and the simulator drive the same code.
//!
//! # D's side
//!
//! ```text
//! Reserving → Prefilling → Transferring → Activated → Released
//!      └───────────┴────────────┴─────────────┴──→ CleaningUp → Done
//! ```
//!
//! The candidates are tried in the order given, each at most once: [`Attempt`] `i` is with candidate `i`, and the
//! driver gives every attempt a new [`HandoffId`](crate::HandoffId). When an attempt is refused or lost, the next
//! candidate is tried; after the last one the prompt is prefilled locally, or fails if the policy says so.
//!
//! # The rule of memory safety
//!
//! Reserved blocks are activated, given to another attempt, or freed only when nobody can write them any more:
//!
//! - [`Writer::Us`]: D itself writes what arrives (`local`, `grpc`). Carrying out [`Action::Fence`] ends all writes.
//! - [`Writer::Peer`]: P writes D's memory (`nvlink`, `nixl`). Only P's own word ends its writes: that all blocks have
//!   landed ([`Fact::Landed`], which such a transport sees as a completion word set after the last write), that it
//!   has drained ([`Fact::Drained`]), or that it never began ([`Fact::PrefillRefused`]). Without it the blocks go to
//!   quarantine, and the request carries on with **other** blocks, so it never waits for a sick peer. The quarantine
//!   ends when P drains, or a while after P is known to be gone, or by [`Action::Suspect`].
//!
//! # What a driver has to do
//!
//! - Report every fact of an attempt with that attempt's number. Duplicates, late facts and facts in another order
//!   are harmless.
//! - After [`Action::StartPrefill`] send heartbeats every [`Timeouts::heartbeat_every`] until the stream ends or
//!   [`Action::CancelPrefill`]. After a cancel of a [`Writer::Peer`] attempt keep listening for `Drained` or the end.
//! - Keep one timer for each [`DeadlineKind`]; arming one again replaces it. [`Action::DisarmDeadline`] may be
//!   ignored, since a deadline that is not armed any more does nothing when it comes in.
//! - Feed facts until [`Action::Finished`]. The answer to [`Action::Reserve`] goes in even if it comes later.

mod deadlines;
mod machine;
mod source;
mod state;
mod steps;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::placement::{FallbackPolicy, PlacementReason};

pub use machine::Handoff;
pub use source::{PrefillLease, PrefillLeaseState, SourceAction, SourceDeadline, SourceFact};
pub use state::{AttemptProgress, State};

/// One try with one candidate; also the candidate's index in [`Plan::candidates`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Attempt(pub u32);

/// One set of reserved blocks. A handoff makes another only after it had to put the one before into quarantine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ReservationNumber(pub u32);

/// Who writes D's blocks; a property of the transport agreed with the candidate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Writer {
    /// D does, from what it receives: closing the landing zone is the fence.
    Us,
    /// The prefill worker does, from outside: only its word, or time after its death, is a fence.
    Peer,
}

/// What a handoff is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The candidates, best first, by who would write.
    pub candidates: Vec<Writer>,
    /// What to do when none of them delivers.
    pub fallback: FallbackPolicy,
    /// How long to wait for what.
    pub timeouts: Timeouts,
}

/// How long a handoff waits. All bounds are over zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// For the engine to answer a reservation; it answers between two steps.
    pub reserve: Duration,
    /// For P to accept or refuse; its engine too answers between two steps.
    pub accept: Duration,
    /// Silence of a P that has accepted. Any message of the stream and any arriving block breaks the silence.
    pub lease: Duration,
    /// From the start of an attempt until its prefill is completed, however lively P is.
    pub prefill: Duration,
    /// From completion until the last block has landed.
    pub transfer: Duration,
    /// For P to say that it has drained, after activation.
    pub drain: Duration,
    /// How long blocks rest after their writer is known to be gone: a multiple of the longest push.
    pub quarantine: Duration,
    /// How long a writer that is connected but silent is waited for before it is reported.
    pub suspect: Duration,
}

impl Timeouts {
    /// How often each side sends a sign of life: several times in a lease, so that one lost moment ends nothing.
    pub fn heartbeat_every(&self) -> Duration {
        self.lease / 4
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            reserve: Duration::from_secs(30),
            accept: Duration::from_secs(30),
            lease: Duration::from_secs(2),
            prefill: Duration::from_mins(5),
            transfer: Duration::from_secs(30),
            drain: Duration::from_secs(5),
            quarantine: Duration::from_secs(2),
            suspect: Duration::from_secs(10),
        }
    }
}

/// What a deadline is for. At most one of each kind runs at a time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum DeadlineKind {
    /// The engine's answer to a reservation.
    Reserve,
    /// P's answer to the start of an attempt.
    Accept,
    /// P's next sign of life.
    Lease,
    /// Completion of the current attempt's prefill.
    Prefill,
    /// Landing of its last block.
    Transfer,
    /// P's word that it has drained, after activation.
    Drain,
    /// End of the quarantine of blocks whose writer is gone.
    Quarantine(ReservationNumber),
    /// End of patience with the silent writer of quarantined blocks.
    Suspect(ReservationNumber),
}

/// One armed deadline. `serial` is new for each arming, so that a timer that fired just before it was replaced is
/// told from the one that replaced it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Deadline {
    /// What for.
    pub kind: DeadlineKind,
    /// Which arming.
    pub serial: u64,
}

/// What a driver tells D's machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fact {
    /// The engine has reserved the prompt's blocks.
    Reserved {
        /// As in [`Action::Reserve`].
        reservation: ReservationNumber,
    },
    /// The engine cannot reserve them now.
    ReserveRefused {
        /// As in [`Action::Reserve`].
        reservation: ReservationNumber,
    },
    /// P has taken the prefill.
    PrefillAccepted {
        /// Which.
        attempt: Attempt,
    },
    /// P has not taken it, and will write nothing. An RPC that ends before `accepted` with a status of P's own
    /// (queue bound, fingerprint, draining) or that never reached P (no connection) is a refusal.
    PrefillRefused {
        /// Which.
        attempt: Attempt,
    },
    /// A sign of life of P: a heartbeat, progress, or a block of this attempt that landed.
    Progress {
        /// Which.
        attempt: Attempt,
    },
    /// Every block of the attempt has landed, and no further one of it will be written. A handoff that transfers no
    /// blocks has landed from its start.
    Landed {
        /// Which.
        attempt: Attempt,
    },
    /// P has computed the whole prompt; the driver has the first tokens.
    Completed {
        /// Which.
        attempt: Attempt,
    },
    /// P says that no write of this attempt is under way or will begin.
    Drained {
        /// Which.
        attempt: Attempt,
    },
    /// P's process or the connection to it is gone, or it failed the prefill it had accepted.
    PeerLost {
        /// Which.
        attempt: Attempt,
    },
    /// A timer fired.
    DeadlinePassed(Deadline),
    /// The client is gone or the worker stops: the request is not wanted any more.
    Cancelled,
}

/// What a driver has to do. Actions of one list are carried out in order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Ask the engine to reserve blocks for the whole prompt; answered by [`Fact::Reserved`] or
    /// [`Fact::ReserveRefused`].
    Reserve {
        /// Name of the reservation.
        reservation: ReservationNumber,
    },
    /// Number a new handoff, open its landing zone over the reserved blocks, and call the candidate.
    StartPrefill {
        /// The attempt, which is also the candidate's index.
        attempt: Attempt,
        /// The blocks to land in.
        reservation: ReservationNumber,
    },
    /// Tell P to stop; it may be gone already.
    CancelPrefill {
        /// Which.
        attempt: Attempt,
    },
    /// Close the attempt's landing zone. Where D writes, no write happens after this is done.
    /// Every started attempt is fenced exactly once, before its blocks go anywhere else.
    Fence {
        /// Which.
        attempt: Attempt,
    },
    /// Take the blocks out of use without freeing them: a peer may still write them. The request goes on elsewhere.
    Quarantine {
        /// The blocks.
        reservation: ReservationNumber,
        /// Who may still write them.
        attempt: Attempt,
    },
    /// Give the blocks and the first tokens to the engine: the sequence decodes from the next step on.
    Activate {
        /// The attempt that delivered.
        attempt: Attempt,
        /// The blocks, now the engine's.
        reservation: ReservationNumber,
    },
    /// Prefill here.
    PrefillLocally {
        /// Why.
        reason: PlacementReason,
        /// The reserved blocks, now the engine's. `None`: there are none, submit the request anew.
        reservation: Option<ReservationNumber>,
    },
    /// Answer the request with an error.
    Fail {
        /// Why.
        reason: PlacementReason,
    },
    /// Give the blocks back to the pool.
    FreeBlocks {
        /// The blocks.
        reservation: ReservationNumber,
    },
    /// The writer of quarantined blocks is connected and silent. The blocks are left to the worker's own book of
    /// quarantine: no new handoffs with that peer, and they come free when its process is proven gone.
    Suspect {
        /// The blocks.
        reservation: ReservationNumber,
        /// Who may still write them.
        attempt: Attempt,
    },
    /// Report [`Fact::DeadlinePassed`] after this time. Replaces a deadline of the same kind.
    ArmDeadline {
        /// What to report.
        deadline: Deadline,
        /// From now.
        after: Duration,
    },
    /// The deadline is not needed any more.
    DisarmDeadline {
        /// Which.
        kind: DeadlineKind,
    },
    /// Nothing is left to do, and every reserved block has found its place. Comes once, last.
    Finished {
        /// What became of the request.
        outcome: Outcome,
    },
}

/// What became of the request; decided once. Unless it is [`Outcome::Cancelled`], an action has said so already.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// [`Action::Activate`].
    Activated {
        /// The attempt that delivered.
        attempt: Attempt,
    },
    /// [`Action::PrefillLocally`].
    Local {
        /// Why.
        reason: PlacementReason,
    },
    /// [`Action::Fail`].
    Failed {
        /// Why.
        reason: PlacementReason,
    },
    /// [`Fact::Cancelled`] came before any of these.
    Cancelled,
}
