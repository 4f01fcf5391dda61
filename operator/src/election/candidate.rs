//! Who leads, decided from what the Lease says and from this replica's own clock. Pure: time is an argument.
//!
//! Nobody compares clocks of machines. A leader counts from the moment at which it *sent* the renewal that succeeded
//! last, and gives up after two thirds of the Lease's time; everybody else counts from the moment at which they *saw*
//! that renewal, and takes over after all of it. So the old leader has stopped a third of that time before the new one
//! begins, however long messages take and whoever is suspended meanwhile. Every write is bound to the version that was
//! read, so of several that take over one succeeds.

use std::time::{Duration, Instant};

use super::sighting::{Record, Sighting};

/// What to do after looking at the Lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// Write ourselves into this version, as its holder number `transitions`.
    Take { version: String, transitions: i32 },
    /// Another replica leads, or may lead.
    Wait,
}

/// One replica's view of the Lease.
#[derive(Debug)]
pub(super) struct Candidate {
    identity: String,
    duration: Duration,
    /// The Lease as it was read last.
    seen: Option<Sighting>,
    /// While this replica leads: until when.
    until: Option<Instant>,
    /// While this replica leads: the version that it wrote last, unless somebody has written another.
    version: Option<String>,
}

impl Candidate {
    pub(super) fn new(identity: String, duration: Duration) -> Self {
        Self { identity, duration, seen: None, until: None, version: None }
    }

    /// Pause between two looks at the Lease, or two renewals.
    pub(super) fn pause(&self) -> Duration {
        self.duration / 5
    }

    /// Until when this replica leads.
    pub(super) fn leads_until(&self) -> Option<Instant> {
        self.until
    }

    /// Who held it when it was read last.
    pub(super) fn holder(&self) -> Option<&str> {
        self.seen.as_ref()?.record.holder.as_deref()
    }

    /// The version to renew, while this replica leads and nobody else has written.
    pub(super) fn to_renew(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The Lease was read; the answer came at `now`.
    pub(super) fn read(&mut self, record: Record, now: Instant) -> Next {
        let seen = Sighting::new(self.seen.take(), record, now);
        let record = &seen.record;
        let free = match &record.holder {
            None => true,
            // A process of this name has written it: this one, or one that has ended in this pod.
            Some(holder) if *holder == self.identity => true,
            Some(_) => seen.left(now, self.duration).is_zero(),
        };
        let next = if free {
            let ours = record.holder.as_ref() == Some(&self.identity);
            let transitions = record.transitions.saturating_add(i32::from(!ours));
            Next::Take { version: record.version.clone(), transitions }
        } else {
            // Whatever this replica believed, another one has written since.
            (self.until, self.version) = (None, None);
            Next::Wait
        };
        self.seen = Some(seen);
        next
    }

    /// A write that names this replica as the holder has succeeded; it was sent at `sent`.
    pub(super) fn wrote(&mut self, version: String, sent: Instant) {
        (self.until, self.version) = (Some(sent + self.duration * 2 / 3), Some(version));
    }

    /// A write was refused, since the Lease has another version: it has to be read.
    pub(super) fn conflicted(&mut self) {
        self.version = None;
    }
}

#[cfg(test)]
mod tests;
