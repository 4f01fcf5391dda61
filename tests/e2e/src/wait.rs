//! Waiting on conditions, never on time.

use std::time::Duration;

use tokio::time::Instant;

/// Between two looks at a condition. Short enough to catch a transfer of some tens of milliseconds under way.
const POLL: Duration = Duration::from_millis(3);

/// Looks at `probe` until it is `Ok`, and panics when it still is not after `within`, with what it saw last.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let start = Instant::now();
    let mut last = "nothing; the first look did not end".to_owned();
    loop {
        let left = within.saturating_sub(start.elapsed());
        let Ok(seen) = tokio::time::timeout(left, probe()).await else {
            panic!("waited {within:?} for: {what}; last seen: {last}");
        };
        match seen {
            Ok(value) => return value,
            Err(seen) => last = seen,
        }
        // The timeout above never fires on a look that does not wait itself, such as a command that is run.
        assert!(start.elapsed() < within, "waited {within:?} for: {what}; last seen: {last}");
        tokio::time::sleep(POLL).await;
    }
}

/// Panics when `future` is not done after `within`.
pub async fn within<T>(what: &str, within: Duration, future: impl Future<Output = T>) -> T {
    let Ok(value) = tokio::time::timeout(within, future).await else {
        panic!("waited {within:?} for: {what}");
    };
    value
}
