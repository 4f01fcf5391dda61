//! Names of things. Newtypes, so that a block can never be mistaken for a sequence.

use std::fmt;
use std::sync::Arc;

/// Index of one KV block in one worker's pool. A block holds the keys and values of `block_size` tokens of one
/// sequence, for every layer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BlockId(pub u32);

/// Content identity of one full block: the tokens in it and all before it. See [`crate::hash`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(pub u128);

/// One sequence inside one engine. Never reused within a process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SequenceId(pub u64);

/// One life of one worker process: random, never zero. A restarted worker has the same [`WorkerId`] and another
/// epoch; messages that carry an old one are refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// One transfer of one prefilled sequence. Never reused: `epoch` is the decode worker's, `number` counts up in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandoffId {
    /// Epoch of the decode worker, which owns the handoff's state.
    pub epoch: Epoch,
    /// Counts up from 1 within the epoch.
    pub number: u64,
}

/// Stable name of a worker, for example its pod's.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(Arc<str>);

/// Hash of everything that makes two workers' models the same: config, tokenizer and template files, safetensors
/// headers with samples of every tensor, and the seed of dummy weights.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelFingerprint(pub u128);

/// Two workers hand KV to each other only if this is equal: model fingerprint, KV dtype, layout version, block size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KvCompat(pub u128);

impl WorkerId {
    /// `name` is taken as it is; callers that read it from outside check its length first.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorkerId({})", self.0)
    }
}

impl fmt::Display for HandoffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.number)
    }
}

impl fmt::Debug for HandoffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandoffId({self})")
    }
}

/// Prints as hexadecimal of fixed width, which is how logs and status show it.
macro_rules! hex_display {
    ($($name:ident: $format:literal),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    )*};
}

hex_display!(BlockHash: "{:032x}", Epoch: "{:016x}", ModelFingerprint: "{:032x}", KvCompat: "{:032x}");
