//! KV events, numbered and kept for a while, so that any number of subscribers can read them at their own pace.

use std::collections::VecDeque;

use disagg_core::KvEvent;
use parking_lot::Mutex;
use tokio::sync::watch;

/// Events kept for the smallest pools: those of many steps.
const KEPT_MIN: usize = 1024;

/// Events kept for the largest: 4 MiB.
const KEPT_MAX: usize = 65_536;

/// The subscriber has fallen behind what is kept; it has to begin with a snapshot again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("event {wanted} is no longer kept; the oldest kept is {oldest}: subscribe anew")]
pub struct Lagged {
    /// The next event the subscriber needs.
    pub wanted: u64,
    /// The oldest there is.
    pub oldest: u64,
}

/// A bounded log. Event numbers begin at 1 and have no gaps.
#[derive(Debug)]
pub struct KvEventLog {
    kept: Mutex<Kept>,
    capacity: usize,
    last: watch::Sender<u64>,
}

#[derive(Debug)]
struct Kept {
    events: VecDeque<KvEvent>,
    last: u64,
}

impl KvEventLog {
    /// Keeps the last `capacity` events.
    pub fn new(capacity: usize) -> Self {
        let kept = Kept { events: VecDeque::with_capacity(capacity), last: 0 };
        Self { kept: Mutex::new(kept), capacity, last: watch::Sender::new(0) }
    }

    /// For a pool of `num_blocks` blocks. A subscriber that is behind by more events than the pool has blocks is served
    /// faster by a snapshot, so there is no use in keeping many more than that.
    pub fn for_pool(num_blocks: u32) -> Self {
        Self::new((num_blocks as usize).saturating_mul(2).clamp(KEPT_MIN, KEPT_MAX))
    }

    /// Number of the last event.
    pub fn last(&self) -> u64 {
        self.kept.lock().last
    }

    /// Adds events and wakes subscribers.
    pub fn append(&self, events: Vec<KvEvent>) {
        if events.is_empty() {
            return;
        }
        let last = {
            let mut kept = self.kept.lock();
            kept.last += events.len() as u64;
            // Room is made first, so that the log never grows beyond what it took at its start.
            let skip = events.len().saturating_sub(self.capacity);
            let surplus = (kept.events.len() + events.len() - skip).saturating_sub(self.capacity);
            kept.events.drain(..surplus);
            kept.events.extend(events.into_iter().skip(skip));
            kept.last
        };
        self.last.send_replace(last);
    }

    /// At most `limit` events that follow number `after`; empty if there are none yet.
    pub fn read_after(&self, after: u64, limit: usize) -> Result<Vec<KvEvent>, Lagged> {
        let kept = self.kept.lock();
        let oldest = kept.last + 1 - kept.events.len() as u64;
        let Some(skip) = (after + 1).checked_sub(oldest) else {
            return Err(Lagged { wanted: after + 1, oldest });
        };
        Ok(kept.events.iter().skip(skip as usize).take(limit).copied().collect())
    }

    /// Changes with the number of the last event.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use disagg_core::BlockHash;
    use proptest::prelude::*;

    use super::*;

    fn event(number: u64) -> KvEvent {
        KvEvent::BlockRemoved { hash: BlockHash(number.into()) }
    }

    proptest! {
        /// Against a log that keeps everything: a reader gets exactly what follows, or is told that it is gone.
        #[test]
        fn reads_what_follows(
            appends in prop::collection::vec(0u64..5, 0..30),
            capacity in 1usize..12,
            limit in 1usize..6,
        ) {
            let log = KvEventLog::new(capacity);
            let room = log.kept.lock().events.capacity();
            let mut all = Vec::new();
            for count in appends {
                let events: Vec<_> = (0..count).map(|i| event(all.len() as u64 + i)).collect();
                all.extend(events.clone());
                log.append(events);
                prop_assert_eq!(log.kept.lock().events.capacity(), room, "it has grown");
                prop_assert_eq!(log.last(), all.len() as u64);
                prop_assert_eq!(*log.subscribe().borrow(), all.len() as u64);
                for after in 0..=all.len() {
                    let expected: Vec<_> = all[after..].iter().take(limit).copied().collect();
                    match log.read_after(after as u64, limit) {
                        Ok(events) => prop_assert_eq!(events, expected),
                        Err(Lagged { oldest, wanted }) => {
                            prop_assert_eq!(wanted, after as u64 + 1);
                            prop_assert_eq!(oldest, (all.len() - capacity) as u64 + 1);
                            prop_assert!(after + capacity < all.len());
                        }
                    }
                }
            }
        }
    }
}
