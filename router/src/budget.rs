//! The memory that requests and answers may take: one budget in bytes for all that is read, parsed, held and written.
//!
//! Whoever is about to hold bytes takes them from the budget first, as a [`Held`], and gives them back by dropping it.
//! When there are none left the request is refused, so that a router never grows with what clients send or leave unread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

/// A holding up to this size is small. Larger ones leave a quarter of the budget to the small, so that a few clients
/// with huge requests do not keep ordinary ones out.
pub(crate) const SMALL_BYTES_MAX: usize = 256 * 1024;

/// The budget has no room for what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum NoRoom {
    /// Not now: others hold it.
    #[error("the memory for requests and answers is in use")]
    Now,
    /// Never: it is more than the whole.
    #[error("{needed} bytes are needed at once, and one request may hold {max}")]
    Ever {
        /// Bytes that one request would hold.
        needed: usize,
        /// Bytes that one request can hold at most.
        max: usize,
    },
}

/// A number of bytes that is shared by everything that requests and answers make the router hold.
#[derive(Debug)]
pub(crate) struct Budget {
    max: usize,
    used: AtomicUsize,
    /// Something was given back.
    freed: Notify,
}

impl Budget {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, used: AtomicUsize::new(0), freed: Notify::new() })
    }

    /// Bytes in all.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Bytes held now.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The most that one holding can be, if it is a large one.
    pub(crate) fn large_max(&self) -> usize {
        self.max - self.max / 4
    }

    /// Takes `bytes`, if there are so many.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Result<Held, NoRoom> {
        let mut held = Held::none(self);
        held.resize(bytes)?;
        Ok(held)
    }

    /// Takes `bytes`, waiting for them for at most `patience`. For answers that have begun, which are stopped rather
    /// than ended when there is no room.
    pub(crate) async fn hold_within(
        self: &Arc<Self>,
        bytes: usize,
        patience: Duration,
    ) -> Result<Held, NoRoom> {
        match self.hold(bytes) {
            Err(NoRoom::Now) => self.until(patience, || self.hold(bytes)).await,
            at_once => at_once,
        }
    }

    /// Tries again whenever something is given back.
    async fn until<T>(
        &self,
        patience: Duration,
        mut hold: impl FnMut() -> Result<T, NoRoom>,
    ) -> Result<T, NoRoom> {
        let wait = async {
            loop {
                let freed = self.freed.notified();
                tokio::pin!(freed);
                // From here on nothing that is given back goes unnoticed.
                freed.as_mut().enable();
                match hold() {
                    Err(NoRoom::Now) => freed.await,
                    done => return done,
                }
            }
        };
        timeout(patience, wait).await.unwrap_or(Err(NoRoom::Now))
    }

    fn take(&self, bytes: usize, limit: usize) -> Result<(), NoRoom> {
        let take = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Ok(()),
            Err(_) => Err(NoRoom::Now),
        }
    }

    fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            self.freed.notify_waiters();
        }
    }
}

/// Bytes taken from the budget; dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Held {
    /// Nothing yet.
    pub(crate) fn none(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0 }
    }

    /// How much it is.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it so many bytes. Making it smaller cannot fail; when there is no room to make it larger it stays as it is.
    pub(crate) fn resize(&mut self, bytes: usize) -> Result<(), NoRoom> {
        if bytes <= self.bytes {
            self.shrink(bytes);
            return Ok(());
        }
        let limit = if bytes <= SMALL_BYTES_MAX { self.budget.max } else { self.budget.large_max() };
        if bytes > limit {
            return Err(NoRoom::Ever { needed: bytes, max: limit });
        }
        self.budget.take(bytes - self.bytes, limit)?;
        self.bytes = bytes;
        Ok(())
    }

    /// Makes it larger by so many bytes.
    pub(crate) fn grow(&mut self, more: usize) -> Result<(), NoRoom> {
        self.resize(self.bytes.saturating_add(more))
    }

    /// As [`Self::grow`], waiting for others to give something back for at most `patience`. Blocks the thread.
    pub(crate) fn grow_within(&mut self, more: usize, patience: Duration) -> Result<(), NoRoom> {
        match self.grow(more) {
            Err(NoRoom::Now) => {}
            at_once => return at_once,
        }
        let budget = Arc::clone(&self.budget);
        let wait = budget.until(patience, || self.grow(more));
        tokio::runtime::Handle::current().block_on(wait)
    }

    /// Makes it at most so many bytes.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        if bytes < self.bytes {
            self.budget.give_back(self.bytes - bytes);
            self.bytes = bytes;
        }
    }

    /// Adds another holding of the same budget.
    pub(crate) fn merge(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What can be done to some of a few holdings.
    #[derive(Clone, Debug)]
    enum Action {
        Hold(usize),
        Resize(usize, usize),
        Grow(usize, usize),
        Shrink(usize, usize),
        Merge(usize, usize),
        Drop(usize),
    }

    fn action() -> impl Strategy<Value = Action> {
        let bytes = || prop_oneof![0..1000_usize, 0..3 * SMALL_BYTES_MAX, Just(usize::MAX)];
        let at = || 0..4_usize;
        prop_oneof![
            3 => bytes().prop_map(Action::Hold),
            2 => (at(), bytes()).prop_map(|(at, bytes)| Action::Resize(at, bytes)),
            2 => (at(), bytes()).prop_map(|(at, bytes)| Action::Grow(at, bytes)),
            1 => (at(), bytes()).prop_map(|(at, bytes)| Action::Shrink(at, bytes)),
            1 => (at(), at()).prop_map(|(a, b)| Action::Merge(a, b)),
            1 => at().prop_map(Action::Drop),
        ]
    }

    proptest! {
        /// Against a naive model: the budget is the sum of what is held, is never exceeded, leaves its last quarter to
        /// the small, refuses nothing that there is room for, and is whole again in the end.
        #[test]
        fn it_holds_what_is_held(actions in proptest::collection::vec(action(), 0..60)) {
            let max = 2 * SMALL_BYTES_MAX;
            let budget = Budget::new(max);
            let mut held: Vec<Held> = Vec::new();
            let fits = |others: usize, before: usize, wanted: usize| {
                let limit = if wanted <= SMALL_BYTES_MAX { max } else { max - max / 4 };
                wanted <= before || others.checked_add(wanted).is_some_and(|sum| sum <= limit)
            };
            for action in actions {
                let sum: usize = held.iter().map(Held::bytes).sum();
                match action {
                    Action::Hold(bytes) => match budget.hold(bytes) {
                        Ok(new) => {
                            prop_assert!(fits(sum, 0, bytes) && new.bytes() == bytes);
                            held.push(new);
                        }
                        Err(_) => prop_assert!(!fits(sum, 0, bytes)),
                    },
                    Action::Resize(at, bytes) | Action::Grow(at, bytes) => {
                        let Some(one) = held.get_mut(at) else { continue };
                        let (before, grows) = (one.bytes(), matches!(action, Action::Grow(..)));
                        let wanted = if grows { before.saturating_add(bytes) } else { bytes };
                        let done = if grows { one.grow(bytes) } else { one.resize(bytes) };
                        prop_assert_eq!(done.is_ok(), fits(sum - before, before, wanted));
                        prop_assert_eq!(one.bytes(), if done.is_ok() { wanted } else { before });
                    }
                    Action::Shrink(at, bytes) => {
                        let Some(one) = held.get_mut(at) else { continue };
                        let before = one.bytes();
                        one.shrink(bytes);
                        prop_assert_eq!(one.bytes(), before.min(bytes));
                    }
                    Action::Merge(a, b) => {
                        if a.max(b) >= held.len() || a == b {
                            continue;
                        }
                        let other = held.swap_remove(a.max(b));
                        held[a.min(b)].merge(other);
                    }
                    Action::Drop(at) => {
                        if at < held.len() {
                            drop(held.swap_remove(at));
                        }
                    }
                }
                prop_assert_eq!(budget.used(), held.iter().map(Held::bytes).sum::<usize>());
                prop_assert!(budget.used() <= max);
            }
            drop(held);
            prop_assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn what_never_fits_is_told_apart() {
        let budget = Budget::new(4 * SMALL_BYTES_MAX);
        let never = budget.hold(4 * SMALL_BYTES_MAX).unwrap_err();
        assert_eq!(never, NoRoom::Ever { needed: 4 * SMALL_BYTES_MAX, max: 3 * SMALL_BYTES_MAX });
        let _all_for_large = budget.hold(3 * SMALL_BYTES_MAX).unwrap();
        assert_eq!(budget.hold(SMALL_BYTES_MAX + 1).unwrap_err(), NoRoom::Now);
        let _small = budget.hold(SMALL_BYTES_MAX).unwrap();
        assert_eq!(budget.hold(1).unwrap_err(), NoRoom::Now);
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_there_is_room() {
        let budget = Budget::new(1000);
        let all = budget.hold(1000).unwrap();
        let soon = Duration::from_secs(20);
        assert_eq!(budget.hold_within(10, Duration::ZERO).await.unwrap_err(), NoRoom::Now);
        let waiting = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move { budget.hold_within(10, soon).await }
        });
        tokio::task::yield_now().await;
        drop(all);
        let held = timeout(soon, waiting).await.unwrap().unwrap().unwrap();
        assert_eq!((held.bytes(), budget.used()), (10, 10));
        // The same on a thread that may block.
        let waiting = tokio::task::spawn_blocking(move || {
            let mut held = held;
            held.grow_within(10, soon).unwrap();
            let other = held.budget.hold(980).unwrap();
            let more = held.grow_within(1, Duration::ZERO).unwrap_err();
            drop(other);
            (held, more)
        });
        let (held, more) = waiting.await.unwrap();
        assert_eq!((held.bytes(), more), (20, NoRoom::Now));
    }
}
