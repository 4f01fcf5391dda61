//! Plain HTTP for people, probes and Prometheus: `/metrics`, `/health`, `/ready`. It answers from the first moment, so
//! that a worker that loads a large model for minutes is told apart from one that is dead.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use disagg_process::http::HttpOptions;
use disagg_process::open_files;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::engine_thread::EngineStatus;
use crate::server::ServeError;
use crate::state::WorkerState;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Share of the files that the process may open; those of [`crate::accept`] are others.
const FILES_PERCENT: u64 = 10;

/// The worker, once its model is loaded.
type Worker = Arc<OnceLock<Arc<WorkerState>>>;

/// The HTTP server. It ends when this is dropped.
pub struct Probes {
    address: SocketAddr,
    worker: Worker,
    server: AbortHandle,
}

impl Probes {
    /// Serves on `address`, of a worker that still loads.
    pub async fn listen(address: &str) -> Result<Self, ServeError> {
        let bind = async {
            let listener = disagg_process::listen(address).await?;
            let bound = listener.local_addr()?;
            Ok((listener, bound))
        };
        let (listener, bound) = bind.await.map_err(|source| ServeError::Bind {
            flag: "metrics-listen",
            address: address.to_owned(),
            source,
        })?;
        let worker = Worker::default();
        let server = tokio::spawn(serve(listener, Arc::clone(&worker))).abort_handle();
        Ok(Self { address: bound, worker, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The model is loaded: from now on the answers are the worker's.
    pub(crate) fn loaded(&self, state: &Arc<WorkerState>) {
        // A second worker in one process has probes of its own.
        let _ = self.worker.set(Arc::clone(state));
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, worker: Worker) {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .with_state(worker);
    let mut options = HttpOptions::management("metrics");
    options.connections_max = open_files::share(options.connections_max, FILES_PERCENT);
    disagg_process::http::serve(listener, routes, options, CancellationToken::new()).await;
}

async fn metrics(State(worker): State<Worker>) -> Response {
    let Some(worker) = worker.get() else {
        // Nothing is measured yet.
        return ([(header::CONTENT_TYPE, OPENMETRICS)], "# EOF\n").into_response();
    };
    let load = *worker.engine.load().borrow();
    match worker.metrics.render(&load) {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Whether the process is worth keeping. One that loads is: it ends by itself when it cannot.
async fn health(State(worker): State<Worker>) -> (StatusCode, String) {
    let Some(worker) = worker.get() else { return (StatusCode::OK, "loading the model".to_owned()) };
    match &*worker.engine.status().borrow() {
        EngineStatus::Healthy => (StatusCode::OK, "ok".to_owned()),
        EngineStatus::Failed(why) | EngineStatus::Gone(why) => (StatusCode::SERVICE_UNAVAILABLE, why.clone()),
    }
}

/// Whether work is taken.
async fn ready(State(worker): State<Worker>) -> (StatusCode, String) {
    let Some(worker) = worker.get() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "loading the model".to_owned());
    };
    match worker.accepts_work() {
        Ok(()) => (StatusCode::OK, "ready".to_owned()),
        Err(status) => (StatusCode::SERVICE_UNAVAILABLE, status.message().to_owned()),
    }
}
