//! Whether a child still works: its health URL is asked, with deadlines.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, sleep_until, timeout};

/// Questions in a row without an answer after which a child is taken for silent. Each has its share of the longest
/// silence, so that one that is lost does not count alone, and so that a wait of our own, with this process stopped,
/// is not taken for the child's.
const UNANSWERED_MAX: u32 = 3;

/// A client for the children's ports, all on this machine.
pub(super) fn client() -> anyhow::Result<reqwest::Client> {
    let builder = disagg_worker::https::client_builder("http://127.0.0.1").no_proxy();
    builder.build().context("cannot make an HTTP client")
}

/// Returns when nothing has answered at `url` for `silence_max`. Any answer counts: a child that says it is not well ends
/// by itself.
pub(super) async fn silent(http: &reqwest::Client, url: &str, silence_max: Duration) {
    let every = silence_max / UNANSWERED_MAX;
    let mut unanswered = 0;
    while unanswered < UNANSWERED_MAX {
        let next = Instant::now() + every;
        unanswered = match timeout(every, http.get(url).send()).await {
            Ok(Ok(_)) => 0,
            Ok(Err(_)) | Err(_) => unanswered + 1,
        };
        sleep_until(next).await;
    }
}
