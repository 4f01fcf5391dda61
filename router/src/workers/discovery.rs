//! Where workers' addresses come from.

use std::collections::BTreeSet;

use tokio::sync::watch;

/// A source of workers' addresses, each `host:port`.
pub(crate) trait Discovery: Send + 'static {
    /// The addresses as they are, and every change from now on. The channel closes when there can be no more changes.
    fn addresses(self) -> watch::Receiver<BTreeSet<String>>;
}

/// Addresses given once.
pub(crate) struct StaticList(pub BTreeSet<String>);

impl Discovery for StaticList {
    fn addresses(self) -> watch::Receiver<BTreeSet<String>> {
        watch::channel(self.0).1
    }
}
