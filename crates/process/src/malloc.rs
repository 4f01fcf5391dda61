//! How the C library's allocator is set up for processes that run for months: routers and workers.
//!
//! By default glibc gives threads arenas of their own, up to eight for each core, and each keeps what was freed in it for
//! itself. It also raises, for good, the size from which memory goes back to the system, with every large block that is
//! freed; a worker frees some at its start. Both let resident memory creep up from one wave of requests to the next, by
//! several percent, without a leak. `make soak` measures it.

// Calls into the C library; each says why it is sound.
#![allow(unsafe_code)]

/// Sets the allocator up. To be called first in `main`, while there is one thread. A variable of the environment that
/// sets the same wins. Does nothing where the C library is not glibc.
pub fn set_up() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    glibc::set_up();
}

/// From now on, whenever this process has worked and then done next to nothing for a second, gives the free pages of its
/// heap back to the system, from a thread of its own. Does nothing where the C library is not glibc.
pub fn give_back_when_idle() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    glibc::give_back_when_idle();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::ffi::c_int;
    use std::time::Duration;

    /// Variable, parameter, value. Small blocks have caches in every thread, so that few arenas cost little.
    const SETTINGS: [(&str, c_int, c_int); 3] = [
        ("MALLOC_ARENA_MAX", libc::M_ARENA_MAX, 1),
        // What is free at the end of the heap goes back to the system when it is more than this.
        ("MALLOC_TRIM_THRESHOLD_", libc::M_TRIM_THRESHOLD, 1 << 20),
        // Larger blocks come from the system and go back to it at once: weights, KV pools. Chunks of KV, at most 1 MiB,
        // are reused.
        ("MALLOC_MMAP_THRESHOLD_", libc::M_MMAP_THRESHOLD, 4 << 20),
    ];

    /// How often the process is looked at.
    const LOOK_EVERY: Duration = Duration::from_secs(1);

    /// CPU time in which it has done next to nothing: reports of load, probes, a scrape.
    const IDLE: Duration = Duration::from_millis(20);

    pub(super) fn set_up() {
        for (variable, parameter, value) in SETTINGS {
            if std::env::var_os(variable).is_none() {
                // SAFETY: sets a number inside the allocator; it is given no memory of ours.
                let done = unsafe { libc::mallopt(parameter, value) };
                debug_assert_eq!(done, 1, "mallopt({parameter}, {value})");
            }
        }
    }

    pub(super) fn give_back_when_idle() {
        // Without the thread memory is kept, which is no reason to end.
        let _ = std::thread::Builder::new().name("malloc".to_owned()).spawn(|| {
            let (mut used, mut worked) = (cpu_time(), true);
            loop {
                std::thread::park_timeout(LOOK_EVERY);
                let now = cpu_time();
                let idle = now.saturating_sub(used) < IDLE;
                used = now;
                if idle && worked {
                    // SAFETY: gives pages back that hold no block; blocks stay where they are.
                    unsafe { libc::malloc_trim(0) };
                }
                worked = !idle;
            }
        });
    }

    /// Of all threads, since the start.
    fn cpu_time() -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes to `time`, which outlives the call. The clock exists, so that it does not fail.
        unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_settings_are_known_to_the_allocator() {
        super::set_up();
    }
}
