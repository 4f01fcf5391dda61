//! The router's life: start, serve, drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::response::IntoResponse as _;
use disagg_process::http::{self, Hosts, HttpOptions};
use disagg_process::open_files;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::RouterArgs;
use crate::app::App;
use crate::config::{Config, ConnectionLimits, Source};
use crate::endpoints::{admin_routes, api_routes};
use crate::kubernetes::{Cluster, Health};
use crate::openai::ApiError;
use crate::settings::LiveSettings;
use crate::workers::{self, Addresses, Registry};

/// After open answers were cut, time for their last words to be sent.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Shares of the files that the process may open. What is left is for connections to workers and for files.
const API_FILES_PERCENT: u64 = 70;
const ADMIN_FILES_PERCENT: u64 = 10;

/// Where a router listens.
#[derive(Debug)]
pub struct Listeners {
    /// For clients: the API, `/health` and `/ready`.
    pub api: TcpListener,
    /// For whoever runs it: `/metrics`, `/internal/*`, `/health` and `/ready`.
    pub admin: TcpListener,
}

impl Listeners {
    /// As `--listen` and `--admin-listen` say.
    pub async fn bind(args: &RouterArgs) -> anyhow::Result<Self> {
        let listen = async |address: &str, flag: &str| {
            let bound = disagg_process::listen(address).await;
            bound.with_context(|| format!("cannot listen on {address} ({flag})"))
        };
        let api = listen(&args.listen, "--listen").await?;
        let admin = if let Some(address) = &args.admin_listen {
            listen(address, "--admin-listen").await?
        } else {
            // Above the last port there is none: any.
            let port = api.local_addr()?.port().checked_add(1).unwrap_or(0);
            listen(&format!("127.0.0.1:{port}"), "--admin-listen, by default the port after --listen's")
                .await?
        };
        Ok(Self { api, admin })
    }
}

/// Runs the router until `shutdown` resolves (or standard input ends, with `--exit-with-stdin`), then finishes the
/// answers that are open, within `--drain-timeout-seconds`.
pub async fn run(args: RouterArgs, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
    let listeners = Listeners::bind(&args).await?;
    serve(args, listeners, shutdown).await
}

/// As [`run`], on listeners of the caller's.
pub async fn serve(
    args: RouterArgs,
    listeners: Listeners,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let config = Config::try_from(args)?;
    let Sources { addresses, settings, cluster, keep_up } = Sources::open(config.source).await?;
    let registry = Registry::new(config.limits.in_flight_max, config.routing.index_blocks_max);
    let follow_workers = Arc::clone(&registry).follow(addresses);
    let (shutdown_delay, drain_timeout) = (config.limits.shutdown_delay, config.limits.drain_timeout);
    let app = Arc::new(App::new(registry, settings, cluster, config.limits, config.routing));
    let Listeners { api, admin } = listeners;
    let (address, admin_address) = (api.local_addr()?, admin.local_addr()?);
    let stop = CancellationToken::new();
    let options = api_options(&config.connections, &config.allowed_hosts, address);
    let server = http::serve(api, api_routes(Arc::clone(&app), &config.cors_origins), options, stop.clone());
    // It answers to the very end.
    let admin_options = admin_options(&config.allowed_hosts, admin_address);
    let admin = http::serve(admin, admin_routes(Arc::clone(&app)), admin_options, CancellationToken::new());
    tracing::info!(%address, admin = %admin_address, "router listening");

    let serving = async {
        tokio::pin!(server);
        tokio::select! {
            // It ends only when it is told to.
            () = &mut server => return Ok(()),
            () = shutdown => tracing::info!(delay = ?shutdown_delay, "shutdown"),
            () = stdin_ended(config.exit_with_stdin) => tracing::info!("standard input ended"),
        }
        // Whoever sends requests here may not have learned yet that this router leaves.
        app.leave();
        if timeout(shutdown_delay, &mut server).await.is_ok() {
            return Ok(());
        }
        tracing::info!("finishing open answers");
        stop.cancel();
        if timeout(drain_timeout, &mut server).await.is_ok() {
            return Ok(());
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
        () = admin => Ok(()),
    }
}

fn api_options(limits: &ConnectionLimits, allowed_hosts: &[String], address: SocketAddr) -> HttpOptions {
    let connections_max = open_files::share(limits.connections_max, API_FILES_PERCENT);
    if connections_max < limits.connections_max {
        tracing::warn!(
            connections_max,
            "fewer connections than --max-connections, for want of files that this process may open (ulimit -Hn)"
        );
    }
    HttpOptions {
        name: "api",
        connections_max,
        connections_per_peer_max: limits.per_client_max.min(connections_max),
        head_timeout: limits.head_timeout,
        idle_timeout: limits.idle_timeout,
        write_timeout: limits.write_timeout,
        hosts: Hosts::of(address, allowed_hosts),
        always: &["/health", "/ready"],
        refusal: |status, message| ApiError::of_connection(status, message).into_response(),
    }
}

fn admin_options(allowed_hosts: &[String], address: SocketAddr) -> HttpOptions {
    let mut options = HttpOptions::management("admin");
    options.connections_max = open_files::share(options.connections_max, ADMIN_FILES_PERCENT);
    options.hosts = Hosts::of(address, allowed_hosts);
    options
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
