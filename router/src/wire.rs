//! Conversions between the wire contract and this crate's types, for all that makes or reads messages: the model card,
//! what keeps up with a worker, and what sends requests and reads their events.

use disagg_core::{BlockHash, KvCompat, KvEvent, ModelFingerprint, Role};
use disagg_proto::v1;

fn word(hash: v1::Hash128) -> u128 {
    u128::from(hash.high) << 64 | u128::from(hash.low)
}

pub(crate) fn hash128(value: u128) -> v1::Hash128 {
    v1::Hash128 { high: (value >> 64) as u64, low: value as u64 }
}

pub(crate) fn fingerprint(hash: v1::Hash128) -> ModelFingerprint {
    ModelFingerprint(word(hash))
}

pub(crate) fn kv_compat(hash: v1::Hash128) -> KvCompat {
    KvCompat(word(hash))
}

/// `None` for values this build does not know.
pub(crate) fn role(role: i32) -> Option<Role> {
    match v1::Role::try_from(role).ok()? {
        v1::Role::Unspecified => None,
        v1::Role::Prefill => Some(Role::Prefill),
        v1::Role::Decode => Some(Role::Decode),
        v1::Role::Both => Some(Role::Both),
    }
}

/// `None` for events this build does not know, or without their hash.
pub(crate) fn kv_event(event: v1::KvEvent) -> Option<KvEvent> {
    use v1::kv_event::Event;
    let hash = |hash: v1::Hash128| BlockHash(word(hash));
    Some(match event.event? {
        Event::Stored(stored) => {
            KvEvent::BlockStored { hash: hash(stored.hash?), parent: stored.parent.map(hash) }
        }
        Event::Removed(removed) => KvEvent::BlockRemoved { hash: hash(removed.hash?) },
        Event::Cleared(_) => KvEvent::AllBlocksCleared,
    })
}
