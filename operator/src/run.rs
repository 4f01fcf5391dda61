//! The operator's life: connect, wait to lead, reconcile, and end in order.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::args::OperatorArgs;
use crate::context::Context;
use crate::election::{Claims, ElectionError, Leadership, Readiness};
use crate::metrics::Metrics;
use crate::prometheus::Served;
use crate::reconcile::Reconciler;
use crate::stores::Stores;
use crate::{client, controller, observe};

/// How long turns that have begun may go on after a shutdown.
const FINISH_WITHIN: Duration = Duration::from_secs(20);

/// Why the operator cannot work, or has stopped working.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No API server is configured, or it cannot be spoken to.
    #[error("cannot connect to the Kubernetes API: {0}")]
    Connect(#[source] kube::Error),
    /// The address of health and metrics is not free.
    #[error("cannot listen on {address} (--listen): {source}")]
    Listen {
        /// The address that `--listen` asks for.
        address: std::net::SocketAddr,
        /// Why the system does not give it: most often another process has it.
        source: std::io::Error,
    },
    /// The Lease cannot be read or written.
    #[error("cannot elect a leader: {0}")]
    Election(#[from] ElectionError),
    /// The client for routers cannot be made.
    #[error("cannot make an HTTP client: {0}")]
    Http(#[source] reqwest::Error),
    /// Another replica may lead: to go on would be two operators at once.
    #[error("the Lease is lost; this replica ends, and its container starts again")]
    LeaseLost,
}

/// Runs the operator until `shutdown` resolves.
pub async fn run(args: OperatorArgs, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    let metrics = Arc::new(Metrics::new());
    let identity = args.identity.clone().unwrap_or_else(some_identity);
    let listener = disagg_process::listen(&args.listen.to_string())
        .await
        .map_err(|source| RunError::Listen { address: args.listen, source })?;
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "health and metrics");
    }
    let stop = CancellationToken::new();
    let readiness = Arc::new(Readiness::default());
    let served = observe::Served { metrics: Arc::clone(&metrics), readiness: Arc::clone(&readiness) };
    let observed = tokio::spawn(observe::serve(listener, served, stop.clone()));
    let result = work(&args, identity, &metrics, &readiness, shutdown).await;
    stop.cancel();
    let _ = observed.await;
    result
}

async fn work(
    args: &OperatorArgs,
    identity: String,
    metrics: &Arc<Metrics>,
    readiness: &Readiness,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    tokio::pin!(shutdown);
    let client = client::connect(metrics).await.map_err(RunError::Connect)?;
    let mut leadership = if args.no_leader_election {
        None
    } else {
        tokio::select! {
            won = Leadership::win(client.clone(), args, &identity, readiness) => Some(won?),
            () = &mut shutdown => return Ok(()),
        }
    };
    metrics.leader.set(1);
    let pod_monitors = Served::default();
    let (stores, triggers) = Stores::new(&client, args, &pod_monitors.once());
    let context = Context::new(client, stores, pod_monitors, args, identity).map_err(RunError::Http)?;
    let reconciler = Arc::new(Reconciler::new(context, Arc::clone(metrics), Claims::new(args)));
    let stop = CancellationToken::new();
    let turns = controller::run(reconciler, triggers, args.concurrency, stop.clone());
    tokio::pin!(turns);
    {
        let lost = async {
            match &mut leadership {
                Some(leadership) => leadership.lost().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(lost);
        tokio::select! {
            // Before the turns, which do nothing from that moment on.
            biased;
            () = &mut lost => return Err(RunError::LeaseLost),
            () = &mut shutdown => {
                tracing::info!("shutdown: finishing what has begun");
                stop.cancel();
                tokio::select! {
                    biased;
                    () = &mut lost => return Err(RunError::LeaseLost),
                    finished = timeout(FINISH_WITHIN, &mut turns) => if finished.is_err() {
                        tracing::warn!("some reconciles are cut; the next replica does them again");
                    },
                }
            }
            () = &mut turns => {}
        }
    }
    metrics.leader.set(0);
    if let Some(leadership) = leadership {
        leadership.give_back().await;
    }
    Ok(())
}

/// A name that no other replica has, even if both are process 1 of their container.
fn some_identity() -> String {
    // The keys of each are random.
    let number = RandomState::new().build_hasher().finish();
    format!("disagg-operator-{number:016x}")
}
