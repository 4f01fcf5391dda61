//! Who holds the connections of a listener, and who has to go when there are as many as it takes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::Seldom;

/// Between two lines of the log about a listener that is full.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Of a slot whose connection is at work.
const AT_WORK: u64 = u64::MAX;

/// Bounds of the connections of one listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotLimits {
    /// All together.
    pub total: usize,
    /// From one address (of IPv6: from one /64 network, which is what one host has).
    pub per_peer: usize,
    /// Beyond that, for connections that may ask for little, such as whether the process lives.
    pub reserve: usize,
}

/// The connections of one listener, each holding a [`Slot`].
///
/// A connection is quiet while nothing is owed to it: nothing was asked on it, or all has been answered. When there is
/// no room for a new one, the one that has been quiet longest is told to go, of the peer that holds most; or, when a
/// single peer is at its bound, of that peer. So whoever asks is served, however many others are silent.
#[derive(Debug)]
pub struct Slots {
    name: &'static str,
    limits: SlotLimits,
    /// What [`Shared::quiet_since`] counts from.
    start: Instant,
    table: Mutex<Table>,
    full: Seldom,
}

#[derive(Default, Debug)]
struct Table {
    next: u64,
    held: HashMap<u64, Held>,
    /// Slots of each peer that are not of the reserve.
    per_peer: HashMap<Peer, usize>,
    in_reserve: usize,
}

#[derive(Debug)]
struct Held {
    peer: Peer,
    is_reserve: bool,
    shared: Arc<Shared>,
}

/// What the table and the connection tell each other.
#[derive(Debug)]
struct Shared {
    /// Milliseconds after [`Slots::start`], or [`AT_WORK`].
    quiet_since: AtomicU64,
    evicted: CancellationToken,
}

/// Whom a connection comes from: an IPv4 address, however it is written, or the /64 network of an IPv6 address, which
/// is what one host has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Peer(IpAddr);

/// The right to one connection, until it is dropped. Quiet at first.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    id: u64,
    peer: Peer,
    is_reserve: bool,
    shared: Arc<Shared>,
}

/// No room, and nobody who could make some: all are at work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Full {
    /// As many connections as the listener takes.
    #[error("{0} connections, which is the bound, and all are at work")]
    Total(usize),
    /// As many as one address may have.
    #[error("this address has {0} connections, which is the bound, and all are at work")]
    PerPeer(usize),
}

impl Slots {
    /// No connections yet. `name` is what the log calls the listener.
    pub fn new(name: &'static str, limits: SlotLimits) -> Arc<Self> {
        let (table, full) = (Mutex::default(), Seldom::new(SAY_EVERY));
        Arc::new(Self { name, limits, start: Instant::now(), table, full })
    }

    /// A slot for a new connection of `peer`; one of the reserve if there is no other.
    pub fn take(self: &Arc<Self>, peer: IpAddr) -> Result<Slot, Full> {
        let peer = Peer::from(peer);
        let mut table = self.table.lock();
        let of_peer = table.per_peer.get(&peer).copied().unwrap_or(0);
        let full = if of_peer >= self.limits.per_peer {
            Full::PerPeer(self.limits.per_peer)
        } else if table.held.len() - table.in_reserve >= self.limits.total {
            Full::Total(self.limits.total)
        } else {
            return Ok(self.hold(&mut table, peer, false));
        };
        let of = matches!(full, Full::PerPeer(_)).then_some(peer);
        let victim = table.longest_quiet(|held| !held.is_reserve && of.is_none_or(|of| held.peer == of));
        let evicts = victim.is_some();
        let slot = if let Some(victim) = victim {
            table.evict(victim);
            Ok(self.hold(&mut table, peer, false))
        } else {
            if table.in_reserve >= self.limits.reserve
                && let Some(victim) = table.longest_quiet(|held| held.is_reserve)
            {
                table.evict(victim);
            }
            if table.in_reserve < self.limits.reserve {
                Ok(self.hold(&mut table, peer, true))
            } else {
                Err(full)
            }
        };
        drop(table);
        if let Some(times) = self.full.now() {
            let (listener, then) =
                (self.name, if evicts { "the longest quiet one is closed" } else { "new ones are refused" });
            tracing::warn!(listener, peer = %peer.0, times, total = self.limits.total, per_peer = self.limits.per_peer,
                "as many connections as there may be: {then}");
        }
        slot
    }

    /// Tells the connection to go that has been quiet longest, to give its file descriptor back.
    pub fn evict_one(&self) {
        let mut table = self.table.lock();
        if let Some(victim) = table.longest_quiet(|_| true) {
            table.evict(victim);
        }
    }

    /// Connections that hold a slot now.
    pub fn len(&self) -> usize {
        self.table.lock().held.len()
    }

    /// No connection holds one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn hold(self: &Arc<Self>, table: &mut Table, peer: Peer, is_reserve: bool) -> Slot {
        let shared = Arc::new(Shared { quiet_since: self.now().into(), evicted: CancellationToken::new() });
        let id = table.next;
        table.next += 1;
        table.held.insert(id, Held { peer, is_reserve, shared: Arc::clone(&shared) });
        if is_reserve {
            table.in_reserve += 1;
        } else {
            *table.per_peer.entry(peer).or_default() += 1;
        }
        Slot { slots: Arc::clone(self), id, peer, is_reserve, shared }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(AT_WORK - 1)
    }
}

impl Table {
    /// Among those that `wanted` names: of the peer with most connections, the one that has been quiet longest. Looks
    /// at all of them, which is done only when the listener is full, and takes some ten microseconds for thousands.
    fn longest_quiet(&self, wanted: impl Fn(&Held) -> bool) -> Option<u64> {
        let of_peer = |held: &Held| self.per_peer.get(&held.peer).copied().unwrap_or(0);
        self.held
            .iter()
            .filter(|(_, held)| wanted(held))
            .map(|(&id, held)| (held.shared.quiet_since.load(Ordering::Relaxed), id, held))
            .filter(|&(since, ..)| since != AT_WORK)
            .max_by_key(|&(since, id, held)| (of_peer(held), std::cmp::Reverse((since, id))))
            .map(|(_, id, _)| id)
    }

    /// Its slot is free at once; its connection goes as soon as it is told.
    fn evict(&mut self, id: u64) {
        if let Some(held) = self.remove(id) {
            held.shared.evicted.cancel();
        }
    }

    fn remove(&mut self, id: u64) -> Option<Held> {
        let held = self.held.remove(&id)?;
        if held.is_reserve {
            self.in_reserve -= 1;
        } else if let Some(count) = self.per_peer.get_mut(&held.peer) {
            *count -= 1;
            if *count == 0 {
                self.per_peer.remove(&held.peer);
            }
        }
        Some(held)
    }
}

impl Slot {
    /// Something is owed to the connection: it is not told to go.
    pub fn works(&self) {
        self.shared.quiet_since.store(AT_WORK, Ordering::Relaxed);
    }

    /// From now on, nothing is owed to it.
    pub fn is_quiet(&self) {
        self.shared.quiet_since.store(self.slots.now(), Ordering::Relaxed);
    }

    /// Whose connection it is.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Whether it is one of the reserve.
    pub fn is_reserve(&self) -> bool {
        self.is_reserve
    }

    /// Resolves when another connection needs the slot: this one is to be closed.
    pub async fn evicted(&self) {
        self.shared.evicted.cancelled().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.table.lock().remove(self.id);
    }
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::from([a, b, c, d, 0, 0, 0, 0])
            }
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn is_evicted(slot: &Slot) -> bool {
        slot.shared.evicted.is_cancelled()
    }

    fn slots(total: usize, per_peer: usize, reserve: usize) -> Arc<Slots> {
        Slots::new("test", SlotLimits { total, per_peer, reserve })
    }

    /// Quiet since a time that tests choose.
    fn quiet_at(slot: &Slot, milliseconds: u64) {
        slot.shared.quiet_since.store(milliseconds, Ordering::Relaxed);
    }

    #[test]
    fn the_longest_quiet_one_makes_room() {
        let slots = slots(3, 3, 0);
        let held: Vec<Slot> = (0..3).map(|_| slots.take(A).unwrap()).collect();
        for (slot, since) in held.iter().zip([5, 3, 4]) {
            quiet_at(slot, since);
        }
        let _new = slots.take(A).unwrap();
        assert_eq!(held.iter().map(is_evicted).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(slots.len(), 3);
    }

    #[test]
    fn who_is_at_work_stays_and_new_ones_are_refused() {
        let slots = slots(2, 2, 0);
        let held: Vec<Slot> = (0..2).map(|_| slots.take(A).unwrap()).collect();
        held.iter().for_each(Slot::works);
        assert_eq!(slots.take(B).unwrap_err(), Full::Total(2));
        assert_eq!(slots.take(A).unwrap_err(), Full::PerPeer(2));
        held[1].is_quiet();
        slots.take(B).unwrap();
        assert_eq!(held.iter().map(is_evicted).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn a_peer_at_its_bound_costs_nobody_else() {
        let slots = slots(10, 2, 0);
        let other = slots.take(B).unwrap();
        quiet_at(&other, 0);
        let held: Vec<Slot> = (0..2).map(|_| slots.take(A).unwrap()).collect();
        let _third = slots.take(A).unwrap();
        assert!(!is_evicted(&other));
        assert_eq!(held.iter().filter(|slot| is_evicted(slot)).count(), 1);
    }

    #[test]
    fn the_peer_with_most_gives_first() {
        let slots = slots(4, 4, 0);
        let lonely = slots.take(B).unwrap();
        quiet_at(&lonely, 0);
        let many: Vec<Slot> = (0..3).map(|_| slots.take(A).unwrap()).collect();
        for slot in &many {
            quiet_at(slot, 7);
        }
        let _new = slots.take(B).unwrap();
        assert!(!is_evicted(&lonely), "though it has been quiet longest");
        assert_eq!(many.iter().filter(|slot| is_evicted(slot)).count(), 1);
    }

    #[test]
    fn the_reserve_is_for_when_all_are_at_work() {
        let slots = slots(1, 1, 1);
        let worker = slots.take(A).unwrap();
        worker.works();
        let first = slots.take(A).unwrap();
        assert!(!worker.is_reserve() && first.is_reserve());
        let second = slots.take(A).unwrap();
        assert!(second.is_reserve() && is_evicted(&first) && !is_evicted(&worker));
        second.works();
        assert_eq!(slots.take(A).unwrap_err(), Full::PerPeer(1));
        drop(worker);
        assert!(!slots.take(A).unwrap().is_reserve());
    }

    #[test]
    fn a_host_of_ipv6_is_its_network_and_ipv4_is_one_however_written() {
        let parse = |text: &str| Peer::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(parse("2001:db8:1:2::1"), parse("2001:db8:1:2:ffff::9"));
        assert_ne!(parse("2001:db8:1:2::1"), parse("2001:db8:1:3::1"));
        assert_eq!(parse("::ffff:10.0.0.1"), Peer(A));
        assert_ne!(A, B);
    }

    proptest! {
        /// Whatever comes and goes: bounds hold, a connection at work is never told to go, and counts are those of
        /// the slots that live.
        #[test]
        fn bounds_hold(steps in proptest::collection::vec((0u8..4, 0u8..6, 0usize..12), 1..200)) {
            let limits = SlotLimits { total: 5, per_peer: 3, reserve: 2 };
            let slots = Slots::new("test", limits);
            let mut held: Vec<(IpAddr, bool, Slot)> = Vec::new();
            for (what, peer, which) in steps {
                let peer = IpAddr::from([10, 0, 0, peer]);
                match what {
                    0 | 1 => {
                        if let Ok(slot) = slots.take(peer) {
                            held.push((peer, false, slot));
                        }
                    }
                    2 if which < held.len() => drop(held.swap_remove(which)),
                    3 if which < held.len() && !is_evicted(&held[which].2) => {
                        held[which].1 = !held[which].1;
                        if held[which].1 { held[which].2.works() } else { held[which].2.is_quiet() }
                    }
                    _ => {}
                }
                let live = || held.iter().filter(|(.., slot)| !is_evicted(slot));
                prop_assert!(held.iter().all(|(_, works, slot)| !(*works && is_evicted(slot))));
                prop_assert_eq!(slots.len(), live().count());
                prop_assert!(live().filter(|(.., slot)| !slot.is_reserve()).count() <= limits.total);
                prop_assert!(live().filter(|(.., slot)| slot.is_reserve()).count() <= limits.reserve);
                for of in live().map(|(peer, ..)| *peer) {
                    let count = live().filter(|(peer, _, slot)| *peer == of && !slot.is_reserve()).count();
                    prop_assert!(count <= limits.per_peer);
                }
            }
            drop(held);
            prop_assert!(slots.is_empty() && slots.table.lock().per_peer.is_empty());
        }
    }
}
