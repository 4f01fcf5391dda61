//! The HTTP surface: OpenAI's endpoints on the clients' port, and those for operators on a port of their own.

mod cors;
mod inference;
mod info;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use disagg_api::kubernetes::{SETTINGS_PATH, WORKERS_PATH};
use http::HeaderValue;

use crate::app::App;
use crate::openai::{ApiError, Endpoint};

/// What clients may ask. `cors_origins` as [`cors::layer`] takes them.
pub(crate) fn api_routes(app: Arc<App>, cors_origins: &[HeaderValue]) -> Router {
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
        .fallback(unknown_url)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(cors::layer(cors_origins))
        .layer(from_fn_with_state(Arc::clone(&app), close_when_leaving))
        .with_state(app)
}

/// What whoever runs the router may ask: names, epochs and addresses of workers, settings, and numbers. None of it is
/// for clients.
pub(crate) fn admin_routes(app: Arc<App>) -> Router {
    Router::new()
        .route("/health", get(info::health))
        .route("/ready", get(info::ready))
        .route("/metrics", get(info::metrics))
        .route(WORKERS_PATH, get(info::workers))
        .route(SETTINGS_PATH, get(info::settings))
        .fallback(unknown_url)
        .method_not_allowed_fallback(method_not_allowed)
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

/// A router that leaves says so to clients that keep connections open.
async fn close_when_leaving(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if app.is_leaving() {
        response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
