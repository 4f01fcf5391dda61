//! Lines of a log that an attacker could cause by the thousand.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lets one line pass in a while, and counts those that it held back.
#[derive(Debug)]
pub struct Seldom {
    every: Duration,
    last: Mutex<(Option<Instant>, u64)>,
}

impl Seldom {
    /// One line in `every`.
    pub const fn new(every: Duration) -> Self {
        Self { every, last: Mutex::new((None, 0)) }
    }

    /// `Some` if the line may be written: with how many there were since the last one, this one included.
    pub fn now(&self) -> Option<u64> {
        let mut last = self.last.lock();
        let (written, held_back) = *last;
        if written.is_some_and(|written| written.elapsed() < self.every) {
            last.1 += 1;
            return None;
        }
        *last = (Some(Instant::now()), 0);
        Some(held_back + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_passes_and_the_next_counts_what_was_held_back() {
        let seldom = Seldom::new(Duration::from_hours(1));
        assert_eq!(seldom.now(), Some(1));
        assert_eq!((seldom.now(), seldom.now()), (None, None));
        seldom.last.lock().0 = None;
        assert_eq!(seldom.now(), Some(3));
    }
}
