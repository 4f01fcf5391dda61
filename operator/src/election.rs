//! One replica works: the one that holds the Lease.

use std::time::Duration;

use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::args::OperatorArgs;

/// How long giving the Lease back may take.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

/// Leadership, once it is held.
pub(crate) struct Leadership {
    state: watch::Receiver<bool>,
    manager: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
}

impl Leadership {
    /// Waits until this replica leads.
    pub(crate) async fn win(
        client: Client,
        args: &OperatorArgs,
        identity: &str,
    ) -> Result<Self, LeaseManagerError> {
        let namespace = args.lease_namespace.as_deref().or(args.namespace.as_deref()).unwrap_or("default");
        let manager = LeaseManagerBuilder::new(client, &args.lease_name)
            .with_namespace(namespace)
            .with_identity(identity)
            .with_field_manager(identity)
            .with_duration(args.lease_seconds.into())
            .with_grace((args.lease_seconds / 3).into())
            .build()
            .await?;
        let (mut state, manager) = manager.watch().await;
        tracing::info!(namespace, lease = args.lease_name, identity, "waiting for the Lease");
        // The manager ends only after we let go of the channel.
        let _ = state.wait_for(|leads| *leads).await;
        tracing::info!("leading");
        Ok(Self { state, manager })
    }

    /// Resolves when another replica may lead.
    pub(crate) async fn lost(&mut self) {
        let _ = self.state.wait_for(|leads| !*leads).await;
    }

    /// Lets another replica take over when it next looks: at the latest when the Lease would have expired.
    pub(crate) async fn give_back(self) {
        drop(self.state);
        if timeout(RELEASE_WITHIN, self.manager).await.is_err() {
            tracing::warn!("the Lease is not given back; another replica takes over when it expires");
        }
    }
}
