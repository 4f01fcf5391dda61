//! Health and metrics over HTTP.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves `/healthz`, `/readyz` and `/metrics` until `stop`. A replica that waits for the Lease is ready: it can take
/// over.
pub(crate) async fn serve(listener: TcpListener, metrics: Arc<Metrics>, stop: CancellationToken) {
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(|| async { "ok" }))
        .route("/metrics", get(render))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n") })
        .with_state(metrics);
    let server = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = server.await {
        tracing::error!(%error, "health and metrics are not served any more");
    }
}

/// Listens on `address`. `[::]` is every address, those of IPv4 as well; on a machine without IPv6, those alone.
pub(crate) async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        // The first that works.
        let every = [address, (Ipv4Addr::UNSPECIFIED, address.port()).into()];
        return TcpListener::bind(&every[..]).await;
    }
    TcpListener::bind(address).await
}

async fn render(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, OPENMETRICS)], metrics.render())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_address_is_one_of_ipv4_too() {
        let listener = listen((Ipv6Addr::UNSPECIFIED, 0).into()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        // Where the machine has no IPv6, there is nothing more to be seen.
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
            tokio::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
        }
    }
}
