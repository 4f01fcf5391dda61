//! How long a resource whose reconcile failed waits for the next: longer each time, up to a bound, on its own.

use std::time::Duration;

use crate::memory::{Memory, ResourceId};

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_mins(1);

/// Failures in a row of each resource.
#[derive(Debug, Default)]
pub(crate) struct Backoff(Memory<u32>);

impl Backoff {
    /// Counts a failure and says how long to wait.
    pub(crate) fn failed(&self, id: &ResourceId) -> Duration {
        self.0.of(id, |count| {
            let wait = FIRST.saturating_mul(1 << (*count).min(16)).min(LONGEST);
            *count = count.saturating_add(1);
            wait
        })
    }

    /// A success, or the resource is gone.
    pub(crate) fn forget(&self, id: &ResourceId) {
        self.0.forget(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_for_each_resource_alone() {
        let id = |namespace: &str| ResourceId { namespace: namespace.to_owned(), name: "x".to_owned() };
        let backoff = Backoff::default();
        let waits: Vec<u64> = (0..20).map(|_| backoff.failed(&id("a")).as_millis() as u64).collect();
        assert_eq!(waits[..4], [500, 1000, 2000, 4000]);
        assert!(waits.is_sorted());
        assert_eq!(waits[19], 60_000);
        assert_eq!(backoff.failed(&id("b")), FIRST, "another resource has failed for the first time");
        backoff.forget(&id("a"));
        assert_eq!(backoff.failed(&id("a")), FIRST, "after a success the waits begin again");
    }
}
