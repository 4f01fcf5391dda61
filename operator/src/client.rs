//! The client of the API server, with its requests counted.

use std::sync::Arc;
use std::time::Duration;

use kube::client::ClientBuilder;
use kube::{Client, Config};
use tower::util::MapRequestLayer;

use crate::metrics::Metrics;
use crate::requests::Request;

/// A watch is silent for at most this long, since the API server ends each after five minutes.
const READ_TIMEOUT: Duration = Duration::from_secs(330);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The client, configured as kubectl would be, or by the pod's service account.
pub(crate) async fn connect(metrics: &Arc<Metrics>) -> Result<Client, kube::Error> {
    let mut config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    config.read_timeout = Some(READ_TIMEOUT);
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    let metrics = Arc::clone(metrics);
    let count = MapRequestLayer::new(move |request: http::Request<kube::client::Body>| {
        metrics.request(Request::of(request.method(), request.uri()));
        request
    });
    Ok(ClientBuilder::try_from(config)?.with_layer(&count).build())
}

/// Whether the object is there already, or has another version than the request was bound to.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}
