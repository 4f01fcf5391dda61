//! The router's life: start, serve, drain.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::serve::ListenerExt;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::RouterArgs;
use crate::app::App;
use crate::config::{Config, Source};
use crate::endpoints::routes;
use crate::kubernetes::{Cluster, Health};
use crate::settings::LiveSettings;
use crate::workers::{self, Addresses, Registry};

/// After open answers were cut, time for their last words to be sent.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs the router until `shutdown` resolves (or standard input ends, with `--exit-with-stdin`), then finishes the
/// answers that are open, within `--drain-timeout-seconds`.
pub async fn run(args: RouterArgs, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
    let listener = disagg_process::listen(&args.listen)
        .await
        .with_context(|| format!("cannot listen on {} (--listen)", args.listen))?;
    serve(args, listener, shutdown).await
}

/// As [`run`], on a listener of the caller's.
pub async fn serve(
    args: RouterArgs,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let config = Config::try_from(args)?;
    let Sources { addresses, settings, cluster, keep_up } = Sources::open(config.source).await?;
    let registry = Registry::new(config.limits.in_flight_max, config.routing.index_blocks_max);
    let follow_workers = Arc::clone(&registry).follow(addresses);
    let (shutdown_delay, drain_timeout) = (config.limits.shutdown_delay, config.limits.drain_timeout);
    let app = Arc::new(App::new(registry, settings, cluster, config.limits, config.routing));
    let address = listener.local_addr()?;
    let stop = CancellationToken::new();

    // Small writes, each of which someone waits for.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    });
    let server = axum::serve(listener, routes(Arc::clone(&app)))
        .with_graceful_shutdown(stop.clone().cancelled_owned())
        .into_future();
    tracing::info!(%address, "router listening");

    let serving = async {
        tokio::pin!(server);
        tokio::select! {
            ended = &mut server => return ended.context("the HTTP server ended"),
            () = shutdown => tracing::info!(delay = ?shutdown_delay, "shutdown"),
            () = stdin_ended(config.exit_with_stdin) => tracing::info!("standard input ended"),
        }
        // Whoever sends requests here may not have learned yet that this router leaves.
        app.leave();
        if let Ok(ended) = timeout(shutdown_delay, &mut server).await {
            return ended.context("the HTTP server ended");
        }
        tracing::info!("finishing open answers");
        stop.cancel();
        if let Ok(ended) = timeout(drain_timeout, &mut server).await {
            return ended.context("the HTTP server ended");
        }
        tracing::warn!(open = app.streams.len(), "cutting the answers that are still open");
        app.cut.cancel();
        // What is not gone after this is closed with the process.
        let _ = timeout(LAST_WORDS, &mut server).await;
        Ok(())
    };
    tokio::select! {
        ended = serving => ended,
        () = follow_workers => Ok(()),
        () = keep_up => Ok(()),
    }
}

/// Where workers and settings come from, opened.
struct Sources {
    addresses: Addresses,
    settings: LiveSettings,
    /// Of a router in a cluster.
    cluster: Option<Arc<Health>>,
    /// Keeps all this up to date; never ends.
    keep_up: BoxFuture<'static, ()>,
}

impl Sources {
    async fn open(source: Source) -> anyhow::Result<Self> {
        match source {
            Source::Flags { workers, settings } => {
                let (settings, keep_up) = LiveSettings::start(settings).await?;
                let addresses = workers::fixed(workers);
                Ok(Self { addresses, settings, cluster: None, keep_up: keep_up.boxed() })
            }
            Source::Kubernetes(target) => {
                let cluster = Cluster::new(target).await?;
                let (addresses, keep_addresses) = cluster.workers();
                let (settings, keep_settings) = cluster.settings();
                let keep_up = async move {
                    tokio::join!(keep_addresses, keep_settings);
                };
                Ok(Self { addresses, settings, cluster: Some(cluster.health()), keep_up: keep_up.boxed() })
            }
        }
    }
}

/// Resolves when standard input ends; never if that is not `wanted`. The thread that reads is left behind at the end
/// of the process: tokio's own reader would keep the runtime from ending.
async fn stdin_ended(wanted: bool) {
    if !wanted {
        return std::future::pending().await;
    }
    let (ended, wait) = oneshot::channel();
    let reader = std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        // An error is an end, too.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = ended.send(());
    });
    if let Err(error) = reader {
        tracing::error!(%error, "cannot watch standard input");
        return std::future::pending().await;
    }
    let _ = wait.await;
}
