//! Which deadlines are armed.

use super::{Deadline, DeadlineKind};

/// At most one deadline of each kind.
#[derive(Clone, Default, Debug)]
pub(super) struct Deadlines {
    armed: Vec<Deadline>,
    next_serial: u64,
}

impl Deadlines {
    /// Arms a deadline in place of one of the same kind.
    pub(super) fn arm(&mut self, kind: DeadlineKind) -> Deadline {
        let deadline = Deadline { kind, serial: self.next_serial };
        self.next_serial += 1;
        self.disarm(kind);
        self.armed.push(deadline);
        deadline
    }

    /// False if none of this kind was armed.
    pub(super) fn disarm(&mut self, kind: DeadlineKind) -> bool {
        let before = self.armed.len();
        self.armed.retain(|armed| armed.kind != kind);
        self.armed.len() < before
    }

    pub(super) fn is_armed(&self, kind: DeadlineKind) -> bool {
        self.armed.iter().any(|armed| armed.kind == kind)
    }

    /// Takes out a deadline that has passed. False if it had been disarmed or replaced meanwhile.
    pub(super) fn take(&mut self, passed: Deadline) -> bool {
        let before = self.armed.len();
        self.armed.retain(|armed| *armed != passed);
        self.armed.len() < before
    }
}
