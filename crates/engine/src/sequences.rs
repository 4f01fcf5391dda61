//! The sequences of an engine, and the one way to look up a key that the engine itself holds.
//!
//! Queue, steps under way, handoffs and the set that awaits KV hold keys, not sequences. A key that is held has its
//! sequence; anything else is a bug of this crate. Where debug assertions are on, so in all tests and simulations, such a
//! bug panics at once. Elsewhere it must not end the worker, and with it every other request: the key is noted, the
//! lookup gives nothing, and the engine ends that one sequence with an error before its next step.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeBounds;

use crate::sequence::{Sequence, SequenceKey};

/// Every sequence of an engine, in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Sequences {
    by_key: BTreeMap<SequenceKey, Sequence>,
    /// Keys that were held and had no sequence. In a cell, since looking up changes nothing else.
    lost: RefCell<BTreeSet<SequenceKey>>,
}

impl Sequences {
    /// The sequence of a key that the engine holds. `None` only where debug assertions are off; then the sequence will
    /// be ended with an error, and the caller goes on without it.
    pub(crate) fn held(&self, key: SequenceKey) -> Option<&Sequence> {
        let found = self.by_key.get(&key);
        if found.is_none() {
            self.note_lost(key);
        }
        found
    }

    /// As [`Self::held`].
    pub(crate) fn held_mut(&mut self, key: SequenceKey) -> Option<&mut Sequence> {
        if !self.by_key.contains_key(&key) {
            self.note_lost(key);
        }
        self.by_key.get_mut(&key)
    }

    /// The sequence of a key that a caller of the engine named. It may have ended long ago.
    pub(crate) fn get_mut(&mut self, key: SequenceKey) -> Option<&mut Sequence> {
        self.by_key.get_mut(&key)
    }

    /// The keys within `range`, with their sequences.
    pub(crate) fn range(
        &self,
        range: impl RangeBounds<SequenceKey>,
    ) -> impl Iterator<Item = (&SequenceKey, &Sequence)> {
        self.by_key.range(range)
    }

    /// Every key with its sequence.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&SequenceKey, &Sequence)> {
        self.by_key.iter()
    }

    /// Adds a sequence under its key.
    pub(crate) fn insert(&mut self, sequence: Sequence) -> &mut Sequence {
        self.by_key.entry(sequence.key).insert_entry(sequence).into_mut()
    }

    /// Takes a sequence out. From here on nothing may hold its key.
    pub(crate) fn remove(&mut self, key: SequenceKey) -> Option<Sequence> {
        self.by_key.remove(&key)
    }

    /// Whether a key has been found without its sequence since the last [`Self::take_lost`].
    pub(crate) fn has_lost(&self) -> bool {
        !self.lost.borrow().is_empty()
    }

    /// The keys that were found without their sequences.
    pub(crate) fn take_lost(&mut self) -> BTreeSet<SequenceKey> {
        std::mem::take(self.lost.get_mut())
    }

    fn note_lost(&self, key: SequenceKey) {
        impossible(|| format!("{key:?} is held and has no sequence"));
        self.lost.borrow_mut().insert(key);
    }
}

/// Says that something is so that cannot be: panics where debug assertions are on. The caller goes on as its own
/// documentation says.
#[track_caller]
pub(crate) fn impossible(what: impl FnOnce() -> String) {
    #[cfg(test)]
    if tolerance::is_on() {
        return;
    }
    debug_assert!(false, "impossible: {}", what());
}

/// Lets a test see what happens after an impossible state where debug assertions are off.
#[cfg(test)]
pub(crate) mod tolerance {
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn is_on() -> bool {
        ON.get()
    }

    /// Until the end of the test, which has a thread of its own, impossible states do not panic.
    pub(crate) fn turn_on() {
        ON.set(true);
    }
}
