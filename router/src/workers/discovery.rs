//! Where workers' addresses come from: a list that never changes, or the cluster's EndpointSlices (`kubernetes`).

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::watch;

/// What whoever names a worker's address says of it. The worker's own word, on its connection, counts beside this.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum EndpointState {
    /// Nothing speaks against it.
    Serving,
    /// Its pod is not ready. It is used only where no other can: the worker itself knows better and sooner whether it
    /// can serve, and a probe that times out on a busy machine must not take the last worker away.
    NotServing,
    /// Its pod is being deleted: no new work.
    Terminating,
}

/// Addresses (`host:port`) as they are, and every change from now on.
pub(crate) type Addresses = watch::Receiver<BTreeMap<String, EndpointState>>;

/// Addresses that never change.
pub(crate) fn fixed(addresses: BTreeSet<String>) -> Addresses {
    let all = addresses.into_iter().map(|address| (address, EndpointState::Serving)).collect();
    watch::channel(all).1
}
