//! How long a resource whose reconcile failed waits for the next: longer each time, up to a bound, on its own.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_mins(1);

/// Failures in a row, by namespace and name.
#[derive(Debug, Default)]
pub(crate) struct Backoff(Mutex<HashMap<(String, String), u32>>);

impl Backoff {
    /// Counts a failure and says how long to wait.
    pub(crate) fn failed(&self, namespace: &str, name: &str) -> Duration {
        let mut failures = self.0.lock();
        let count = failures.entry((namespace.to_owned(), name.to_owned())).or_default();
        let wait = FIRST.saturating_mul(1 << (*count).min(16)).min(LONGEST);
        *count = count.saturating_add(1);
        wait
    }

    /// A success, or the resource is gone.
    pub(crate) fn forget(&self, namespace: &str, name: &str) {
        self.0.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_for_each_resource_alone() {
        let backoff = Backoff::default();
        let waits: Vec<u64> = (0..20).map(|_| backoff.failed("a", "x").as_millis() as u64).collect();
        assert_eq!(waits[..4], [500, 1000, 2000, 4000]);
        assert!(waits.is_sorted());
        assert_eq!(waits[19], 60_000);
        assert_eq!(backoff.failed("b", "x"), FIRST, "another resource has failed for the first time");
        backoff.forget("a", "x");
        assert_eq!(backoff.failed("a", "x"), FIRST, "a success begins anew");
    }
}
