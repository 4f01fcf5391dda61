//! Health and metrics over HTTP.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use disagg_process::http::HttpOptions;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::election::Readiness;
use crate::metrics::Metrics;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is told.
#[derive(Clone)]
pub(crate) struct Served {
    pub metrics: Arc<Metrics>,
    pub readiness: Arc<Readiness>,
}

/// Serves `/healthz`, `/readyz` and `/metrics` until `stop`. A replica that waits for the Lease is ready: it can take
/// over. One that waits for another release is not: it may never come to work.
pub(crate) async fn serve(listener: TcpListener, served: Served, stop: CancellationToken) {
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(render))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n") })
        .with_state(served);
    disagg_process::http::serve(listener, routes, HttpOptions::management("health and metrics"), stop).await;
}

async fn ready(State(served): State<Served>) -> (StatusCode, String) {
    match served.readiness.why_not_ready() {
        None => (StatusCode::OK, "ok".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn render(State(served): State<Served>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, OPENMETRICS)], served.metrics.render())
}
