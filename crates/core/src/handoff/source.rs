//! P's side of a handoff: how long it works and holds its blocks for D.

use std::time::Duration;

use super::Timeouts;

/// Where P's side is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrefillLeaseState {
    /// The engine prefills and blocks are pushed as they are ready.
    Prefilling,
    /// Everything is computed; pushes are under way.
    Draining,
    /// Given up; pushes that were under way come to their end.
    Stopping,
    /// Final: no push is under way, the source blocks are the pool's again.
    Done,
    /// Final: a push did not come to its end in time. Its source blocks are never reused.
    Stuck,
}

/// What P's machine waits for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SourceDeadline {
    /// D's next sign of life.
    Lease,
    /// The end of pushes that were told to stop.
    Drain,
}

/// What a driver tells P's machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SourceFact {
    /// A message of D.
    Heartbeat,
    /// The engine has computed the prompt and handed all pushes to the transport.
    Computed,
    /// The engine cannot finish the prefill.
    PrefillFailed,
    /// No push is under way, and **none will begin**: the engine has queued its last and all were acknowledged, or
    /// they were stopped. A transport that has merely caught up with the engine does not say this.
    PushDrained,
    /// D does not want it any more.
    Cancelled,
    /// D or the connection to it is gone, or a push was refused.
    PeerLost,
    /// A timer fired. `serial` as it was armed.
    DeadlinePassed {
        /// What for.
        deadline: SourceDeadline,
        /// Which arming.
        serial: u64,
    },
}

/// What a driver of P's side has to do, in order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SourceAction {
    /// Report the deadline after this time. Replaces whichever deadline was armed before.
    ArmDeadline {
        /// What for.
        deadline: SourceDeadline,
        /// Which arming.
        serial: u64,
        /// From now.
        after: Duration,
    },
    /// Send `completed` with the first tokens.
    SendCompleted,
    /// Take the prefill from the engine if it is still there, and let the transport stop its pushes.
    /// [`SourceFact::PushDrained`] must follow.
    StopPushes,
    /// Tell the engine that the source blocks may be reused.
    FreeSource,
    /// Send `drained`, if the stream is still there, and end it.
    SendDrained,
    /// A push is stuck: count it, say so, and turn unready, since memory is lost to this process.
    ReportStuck,
}

/// P's side of one handoff, from the moment its engine took the prefill.
///
/// Source blocks are freed exactly once, and only when no push reads them any more.
#[derive(Clone, Debug)]
pub struct PrefillLease {
    state: PrefillLeaseState,
    lease: Duration,
    drain: Duration,
    /// [`SourceFact::PushDrained`] came before the engine's word that it has computed everything.
    drained_early: bool,
    /// The one deadline that counts.
    armed: (SourceDeadline, u64),
}

impl PrefillLease {
    /// Begins P's side. `lease` is what D asked for; `timeouts` are this worker's own.
    pub fn start(lease: Duration, timeouts: &Timeouts) -> (Self, Vec<SourceAction>) {
        let mut this = Self {
            state: PrefillLeaseState::Prefilling,
            lease,
            drain: timeouts.drain,
            drained_early: false,
            armed: (SourceDeadline::Lease, 0),
        };
        let arm = this.arm(SourceDeadline::Lease);
        (this, vec![arm])
    }

    /// Where it is.
    pub fn state(&self) -> PrefillLeaseState {
        self.state
    }

    /// Takes in a fact and returns what to do about it, in order.
    pub fn on(&mut self, fact: SourceFact) -> Vec<SourceAction> {
        match self.state {
            PrefillLeaseState::Prefilling => match fact {
                SourceFact::Heartbeat => vec![self.arm(SourceDeadline::Lease)],
                SourceFact::Computed if self.drained_early => {
                    let mut actions = vec![SourceAction::SendCompleted];
                    actions.extend(self.finish());
                    actions
                }
                SourceFact::Computed => {
                    self.state = PrefillLeaseState::Draining;
                    vec![SourceAction::SendCompleted]
                }
                SourceFact::PushDrained => {
                    self.drained_early = true;
                    Vec::new()
                }
                SourceFact::PrefillFailed | SourceFact::Cancelled | SourceFact::PeerLost => self.stop(),
                SourceFact::DeadlinePassed { deadline, serial } => self.on_deadline(deadline, serial),
            },
            PrefillLeaseState::Draining => match fact {
                SourceFact::Heartbeat => vec![self.arm(SourceDeadline::Lease)],
                SourceFact::PushDrained => self.finish(),
                SourceFact::PrefillFailed | SourceFact::Cancelled | SourceFact::PeerLost => self.stop(),
                SourceFact::DeadlinePassed { deadline, serial } => self.on_deadline(deadline, serial),
                SourceFact::Computed => Vec::new(),
            },
            PrefillLeaseState::Stopping => match fact {
                SourceFact::PushDrained => self.finish(),
                SourceFact::DeadlinePassed { deadline, serial } => self.on_deadline(deadline, serial),
                SourceFact::Heartbeat
                | SourceFact::Computed
                | SourceFact::PrefillFailed
                | SourceFact::Cancelled
                | SourceFact::PeerLost => Vec::new(),
            },
            PrefillLeaseState::Done | PrefillLeaseState::Stuck => Vec::new(),
        }
    }

    fn on_deadline(&mut self, deadline: SourceDeadline, serial: u64) -> Vec<SourceAction> {
        if self.armed != (deadline, serial) {
            return Vec::new();
        }
        match deadline {
            SourceDeadline::Lease => self.stop(),
            SourceDeadline::Drain => {
                self.state = PrefillLeaseState::Stuck;
                vec![SourceAction::ReportStuck]
            }
        }
    }

    fn stop(&mut self) -> Vec<SourceAction> {
        let mut actions = vec![SourceAction::StopPushes];
        if self.drained_early {
            actions.extend(self.finish());
        } else {
            self.state = PrefillLeaseState::Stopping;
            actions.push(self.arm(SourceDeadline::Drain));
        }
        actions
    }

    fn finish(&mut self) -> Vec<SourceAction> {
        self.state = PrefillLeaseState::Done;
        vec![SourceAction::FreeSource, SourceAction::SendDrained]
    }

    fn arm(&mut self, deadline: SourceDeadline) -> SourceAction {
        let serial = self.armed.1 + 1;
        self.armed = (deadline, serial);
        let after = match deadline {
            SourceDeadline::Lease => self.lease,
            SourceDeadline::Drain => self.drain,
        };
        SourceAction::ArmDeadline { deadline, serial, after }
    }
}
