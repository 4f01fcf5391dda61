//! The bound of open files, which is also that of connections.

use std::sync::atomic::{AtomicU64, Ordering};

/// [`raise`]'s result; 0 before.
static LIMIT: AtomicU64 = AtomicU64::new(0);

/// Raises the soft limit of open files to the hard one, and gives it. To be called early in `main`.
///
/// The soft limit is often 1024, for the sake of programs that use `select`; ours do not.
pub fn raise() -> u64 {
    let limit = system::raise();
    LIMIT.store(limit, Ordering::Relaxed);
    limit
}

/// As many of `wanted` connections as `percent` of the files allow that this process may open. What is left out
/// serves other listeners, connections that the process itself opens, and files.
pub fn share(wanted: usize, percent: u64) -> usize {
    let limit = match LIMIT.load(Ordering::Relaxed) {
        0 => system::limit(),
        limit => limit,
    };
    let share = usize::try_from(limit.saturating_mul(percent) / 100).unwrap_or(usize::MAX);
    wanted.min(share).max(1)
}

#[cfg(unix)]
mod system {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    pub(super) fn limit() -> u64 {
        getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
    }

    pub(super) fn raise() -> u64 {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        if current == maximum {
            return limit();
        }
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
            tracing::warn!(%error, "the limit of open files stays at {current:?}, though {maximum:?} are allowed");
        }
        limit()
    }
}

#[cfg(not(unix))]
mod system {
    pub(super) fn limit() -> u64 {
        u64::MAX
    }

    pub(super) fn raise() -> u64 {
        limit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        use rustix::process::{Resource, getrlimit};
        raise();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }

    #[test]
    fn a_share_is_at_most_what_is_wanted_and_never_nothing() {
        assert_eq!(share(10, 50), 10);
        let half = usize::try_from(system::limit() / 2).unwrap();
        assert_eq!(share(usize::MAX, 50), half);
        assert_eq!(share(usize::MAX, 0), 1);
    }
}
