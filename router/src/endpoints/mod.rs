//! The HTTP surface: OpenAI's endpoints, and those for operators.

mod inference;
mod info;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{get, post};

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
        .route("/internal/settings", get(info::settings))
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
