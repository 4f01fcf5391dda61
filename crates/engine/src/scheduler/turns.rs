//! Who is scheduled before whom: every sequence that waits, runs or is paused, in order of service.
//!
//! The order is by rank, then by arrival. A choice's rank is the number of older choices of its request that have not
//! ended: the first live choice of every request has rank 0, the second rank 1, and so on. A request of one choice
//! always has rank 0, so among such requests the order is that of arrival.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use disagg_core::SequenceId;

use crate::sequence::SequenceKey;

/// A sequence's place in the order of service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Turn {
    /// Older choices of the same request that have not ended.
    pub(crate) rank: u32,
    /// Orders equal ranks by arrival.
    pub(crate) key: SequenceKey,
}

/// See the module. Holds no sequences itself.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// Of every sequence here.
    ranks: BTreeMap<SequenceKey, u32>,
    waiting: BTreeSet<Turn>,
    running: BTreeSet<Turn>,
    paused: BTreeSet<SequenceKey>,
}

impl Turns {
    /// Adds a sequence that waits. Choices of one request are added in their order.
    pub(crate) fn add(&mut self, key: SequenceKey) {
        let last = self.ranks.range(all_of(key.request)).next_back();
        debug_assert!(last.is_none_or(|(last, _)| *last < key), "{key:?} is added after a later choice");
        let rank = last.map_or(0, |(_, rank)| rank + 1);
        self.ranks.insert(key, rank);
        self.waiting.insert(Turn { rank, key });
    }

    /// Forgets a sequence; later choices of its request move up.
    pub(crate) fn remove(&mut self, key: SequenceKey) {
        let Some(rank) = self.ranks.remove(&key) else { return };
        let turn = Turn { rank, key };
        self.waiting.remove(&turn);
        self.running.remove(&turn);
        self.paused.remove(&key);
        let last = SequenceKey { choice: u32::MAX, ..key };
        for (&key, rank) in self.ranks.range_mut((Bound::Excluded(key), Bound::Included(last))) {
            let before = Turn { rank: *rank, key };
            *rank -= 1;
            let after = Turn { rank: *rank, key };
            if self.waiting.remove(&before) {
                self.waiting.insert(after);
            } else if self.running.remove(&before) {
                self.running.insert(after);
            }
        }
    }

    /// From waiting to running.
    pub(crate) fn start(&mut self, key: SequenceKey) {
        if let Some(turn) = self.turn(key).filter(|turn| self.waiting.remove(turn)) {
            self.running.insert(turn);
        }
    }

    /// From running to waiting.
    pub(crate) fn step_aside(&mut self, key: SequenceKey) {
        if let Some(turn) = self.turn(key).filter(|turn| self.running.remove(turn)) {
            self.waiting.insert(turn);
        }
    }

    /// Out of the order, from waiting or running, until [`Self::resume`]. It keeps its rank.
    pub(crate) fn pause(&mut self, key: SequenceKey) {
        if let Some(turn) = self.turn(key) {
            self.waiting.remove(&turn);
            self.running.remove(&turn);
            self.paused.insert(key);
        }
    }

    /// From paused to waiting.
    pub(crate) fn resume(&mut self, key: SequenceKey) {
        if let Some(turn) = self.turn(key).filter(|turn| self.paused.remove(&turn.key)) {
            self.waiting.insert(turn);
        }
    }

    /// Sequences that wait, in order.
    pub(crate) fn waiting(&self) -> &BTreeSet<Turn> {
        &self.waiting
    }

    /// Sequences that run, in order.
    pub(crate) fn running(&self) -> &BTreeSet<Turn> {
        &self.running
    }

    /// Sequences that are paused, in order of arrival.
    pub(crate) fn paused(&self) -> &BTreeSet<SequenceKey> {
        &self.paused
    }

    /// The sequences of a request, in order of choice.
    pub(crate) fn of_request(&self, request: SequenceId) -> impl Iterator<Item = SequenceKey> + '_ {
        self.ranks.range(all_of(request)).map(|(key, _)| *key)
    }

    /// Every sequence with whether it runs; those of one request follow one another.
    pub(crate) fn by_request(&self) -> impl Iterator<Item = (SequenceKey, bool)> + '_ {
        self.ranks.iter().map(|(&key, &rank)| (key, self.running.contains(&Turn { rank, key })))
    }

    /// The place of a sequence.
    pub(crate) fn turn(&self, key: SequenceKey) -> Option<Turn> {
        self.ranks.get(&key).map(|&rank| Turn { rank, key })
    }
}

fn all_of(request: SequenceId) -> std::ops::RangeInclusive<SequenceKey> {
    SequenceKey { request, choice: 0 }..=SequenceKey { request, choice: u32::MAX }
}
