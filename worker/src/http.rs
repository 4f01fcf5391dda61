//! Plain HTTP for people and Prometheus: `/metrics`, `/health`, `/ready`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::engine_thread::EngineStatus;
use crate::state::WorkerState;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until `stopping`.
pub(crate) async fn serve(listener: TcpListener, state: Arc<WorkerState>, stopping: CancellationToken) {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .with_state(state);
    if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(stopping.cancelled_owned()).await
    {
        tracing::error!(%error, "the metrics listener has failed");
    }
}

async fn metrics(State(worker): State<Arc<WorkerState>>) -> impl IntoResponse {
    let load = *worker.engine.load().borrow();
    match worker.metrics.render(&load) {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Whether the process is worth keeping.
async fn health(State(worker): State<Arc<WorkerState>>) -> impl IntoResponse {
    match &*worker.engine.status().borrow() {
        EngineStatus::Healthy => (StatusCode::OK, "ok".to_owned()),
        EngineStatus::Failed(why) | EngineStatus::Gone(why) => (StatusCode::SERVICE_UNAVAILABLE, why.clone()),
    }
}

/// Whether work is taken.
async fn ready(State(worker): State<Arc<WorkerState>>) -> impl IntoResponse {
    match worker.accepts_work() {
        Ok(()) => (StatusCode::OK, "ready".to_owned()),
        Err(status) => (StatusCode::SERVICE_UNAVAILABLE, status.message().to_owned()),
    }
}
