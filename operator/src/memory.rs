//! What is remembered of a resource from one reconcile to the next.
//!
//! All of it may be lost at any time: it saves requests and keeps the same thing from being told twice, and is made again
//! from the cluster.

use std::collections::HashMap;

use parking_lot::Mutex;

/// A resource by its place in the cluster.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct ResourceId {
    pub namespace: String,
    pub name: String,
}

/// A value for each resource; the default for one of which nothing is remembered.
#[derive(Debug, Default)]
pub(crate) struct Memory<T>(Mutex<HashMap<ResourceId, T>>);

impl<T: Default> Memory<T> {
    /// Reads or changes what is remembered of a resource. Others wait meanwhile, so `access` must be short.
    pub(crate) fn of<R>(&self, id: &ResourceId, access: impl FnOnce(&mut T) -> R) -> R {
        access(self.0.lock().entry(id.clone()).or_default())
    }

    /// The resource is gone.
    pub(crate) fn forget(&self, id: &ResourceId) {
        self.0.lock().remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_that_is_forgotten_takes_nothing_of_another_with_it() {
        let id = |name: &str| ResourceId { namespace: "ns".to_owned(), name: name.to_owned() };
        let memory = Memory::<u32>::default();
        for name in ["demo", "demo-router"] {
            memory.of(&id(name), |number| *number += 1);
        }
        memory.forget(&id("demo"));
        assert_eq!(memory.of(&id("demo"), |number| *number), 0);
        assert_eq!(memory.of(&id("demo-router"), |number| *number), 1);
    }
}
