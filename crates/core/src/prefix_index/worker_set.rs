//! A set of small numbers, one per worker. Up to 64 workers need no allocation.

/// Set of workers' slots.
#[derive(Clone, Default, Debug)]
pub(super) struct WorkerSet {
    /// Slots 0 to 63.
    low: u64,
    /// Slots from 64 on, 64 a word. May end in zeros.
    high: Vec<u64>,
}

impl WorkerSet {
    pub(super) fn insert(&mut self, slot: u32) {
        *self.word_mut(slot) |= bit(slot);
    }

    pub(super) fn remove(&mut self, slot: u32) {
        if (slot / 64) as usize <= self.high.len() {
            *self.word_mut(slot) &= !bit(slot);
        }
    }

    pub(super) fn contains(&self, slot: u32) -> bool {
        self.word((slot / 64) as usize) & bit(slot) != 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.low == 0 && self.high.iter().all(|word| *word == 0)
    }

    pub(super) fn intersection(&self, other: &Self) -> Self {
        Self {
            low: self.low & other.low,
            high: self.high.iter().zip(&other.high).map(|(a, b)| a & b).collect(),
        }
    }

    /// What is in `self` and not in `other`.
    pub(super) fn difference(&self, other: &Self) -> Self {
        Self {
            low: self.low & !other.low,
            high: self.high.iter().enumerate().map(|(i, word)| word & !other.word(i + 1)).collect(),
        }
    }

    /// In ascending order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        std::iter::once(&self.low).chain(&self.high).zip(0_u32..).flat_map(|(word, index)| {
            (0..64).filter(move |offset| word & (1 << offset) != 0).map(move |offset| index * 64 + offset)
        })
    }

    /// The lowest slot that is not in the set.
    pub(super) fn first_missing(&self) -> u32 {
        let full_words = std::iter::once(&self.low).chain(&self.high).take_while(|word| **word == u64::MAX);
        let index = full_words.count();
        index as u32 * 64 + self.word(index).trailing_ones()
    }

    fn word(&self, index: usize) -> u64 {
        match index.checked_sub(1) {
            None => self.low,
            Some(high) => self.high.get(high).copied().unwrap_or(0),
        }
    }

    fn word_mut(&mut self, slot: u32) -> &mut u64 {
        match (slot / 64).checked_sub(1) {
            None => &mut self.low,
            Some(high) => {
                let high = high as usize;
                if self.high.len() <= high {
                    self.high.resize(high + 1, 0);
                }
                &mut self.high[high]
            }
        }
    }
}

fn bit(slot: u32) -> u64 {
    1 << (slot % 64)
}

impl FromIterator<u32> for WorkerSet {
    fn from_iter<I: IntoIterator<Item = u32>>(slots: I) -> Self {
        let mut set = Self::default();
        for slot in slots {
            set.insert(slot);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::btree_set;
    use proptest::prelude::*;

    use super::*;

    fn to_model(set: &WorkerSet) -> BTreeSet<u32> {
        set.iter().collect()
    }

    proptest! {
        #[test]
        fn behaves_as_a_set(a in btree_set(0_u32..200, 0..80), b in btree_set(0_u32..200, 0..80)) {
            let (set_a, set_b): (WorkerSet, WorkerSet) = (a.iter().copied().collect(), b.iter().copied().collect());
            prop_assert_eq!(&to_model(&set_a), &a);
            prop_assert_eq!(to_model(&set_a.intersection(&set_b)), &a & &b);
            prop_assert_eq!(to_model(&set_a.difference(&set_b)), &a - &b);
            prop_assert_eq!(set_a.intersection(&set_b).is_empty(), a.is_disjoint(&b));
            for slot in 0..260 {
                prop_assert_eq!(set_a.contains(slot), a.contains(&slot));
            }
            let mut rest = set_a;
            for slot in &b {
                rest.remove(*slot);
            }
            prop_assert_eq!(to_model(&rest), &a - &b);
        }

        #[test]
        fn the_first_missing_is_the_lowest(full in 0_u32..200, more in btree_set(0_u32..200, 0..20)) {
            let set: WorkerSet = (0..full).chain(more.iter().copied()).collect();
            let expected = (0..300).find(|slot| *slot >= full && !more.contains(slot));
            prop_assert_eq!(Some(set.first_missing()), expected);
        }
    }
}
