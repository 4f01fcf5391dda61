//! The HTTP surface: OpenAI's endpoints, and those for operators.

mod body;
mod inference;
mod info;

pub(crate) use body::Bodies;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use disagg_api::kubernetes::SETTINGS_PATH;

use crate::app::App;
use crate::openai::{ApiError, Endpoint};

/// Every route.
pub(crate) fn routes(app: Arc<App>) -> Router {
    let completions =
        |State(app): State<Arc<App>>, request: Request| infer(app, Endpoint::Completions, request);
    let chat = |State(app): State<Arc<App>>, request: Request| infer(app, Endpoint::Chat, request);
    Router::new()
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(info::models))
        .route("/v1/models/{*name}", get(info::model))
        .route("/health", get(info::health))
        .route("/ready", get(info::ready))
        .route("/metrics", get(info::metrics))
        .route("/internal/workers", get(info::workers))
        .route(SETTINGS_PATH, get(info::settings))
        .fallback(unknown_url)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(&app), close_when_leaving))
        .with_state(app)
}

async fn infer(app: Arc<App>, endpoint: Endpoint, request: Request) -> Response {
    inference::infer(app, endpoint, request).await
}

async fn unknown_url(method: http::Method, uri: http::Uri) -> ApiError {
    ApiError::unknown_url(&method, uri.path())
}

async fn method_not_allowed(method: http::Method, uri: http::Uri) -> ApiError {
    ApiError::method_not_allowed(&method, uri.path())
}

/// A router that leaves says so to clients that keep connections open. HTTP/2 has another way, and no such header.
async fn close_when_leaving(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let one = request.version() <= http::Version::HTTP_11;
    let mut response = next.run(request).await;
    if one && app.is_leaving() {
        response.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
    }
    response
}
