//! Who this process is.

use std::hash::{BuildHasher, Hasher};

use disagg_core::{Epoch, KvCompat, ModelFingerprint, Role, WorkerId};
use disagg_engine::KvLayout;

/// One life of this worker, as it tells others.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Stable name.
    pub worker: WorkerId,
    /// This process.
    pub epoch: Epoch,
    /// What it does.
    pub role: Role,
    /// Its model.
    pub fingerprint: ModelFingerprint,
    /// Whom it can hand KV to or take it from.
    pub kv_compat: KvCompat,
    /// Shape of its KV pool.
    pub layout: KvLayout,
    /// Prompt and output together, in tokens.
    pub max_model_len: u32,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// What computes, for people.
    pub backend: String,
}

/// Draws the epoch of this process: never 0, so that an unset field on the wire is never a valid one.
pub fn random_epoch() -> Epoch {
    // The standard library seeds its hashers from the operating system, once per thread and then counting up.
    loop {
        let seeded = std::hash::RandomState::new().build_hasher().finish();
        if seeded != 0 {
            return Epoch(seeded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_random_and_not_zero() {
        let epochs: std::collections::HashSet<_> = (0..64).map(|_| random_epoch()).collect();
        assert_eq!(epochs.len(), 64);
        assert!(!epochs.contains(&Epoch(0)));
    }
}
