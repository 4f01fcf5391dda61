//! What is there and how it is: models, health, metrics, workers, settings.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use disagg_api::kubernetes::SettingsReport;
use http::{StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::model::Model;
use crate::openai::ApiError;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A model, in OpenAI's shape.
#[derive(Serialize)]
pub(super) struct ModelInfo {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    max_model_len: u32,
}

impl From<&Model> for ModelInfo {
    fn from(model: &Model) -> Self {
        Self {
            id: model.name.clone(),
            object: "model",
            created: model.created,
            owned_by: "disagg",
            max_model_len: model.max_model_len,
        }
    }
}

/// One entry a name: of two generations the newer.
fn listed(app: &App) -> BTreeMap<String, ModelInfo> {
    let mut models = app.registry.models();
    models.sort_by_key(|model| model.created);
    models.iter().map(|model| (model.name.clone(), ModelInfo::from(model.as_ref()))).collect()
}

pub(super) async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({ "object": "list", "data": listed(&app).into_values().collect::<Vec<_>>() }))
}

pub(super) async fn model(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<ModelInfo>, ApiError> {
    listed(&app).remove(&name).map(Json).ok_or_else(|| ApiError::model_not_found(&name))
}

/// The process answers.
pub(super) async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// Requests can be sent here.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    if app.ready() {
        Json(json!({ "status": "ready" })).into_response()
    } else {
        let body = json!({ "status": "waiting", "reason": app.not_ready_because() });
        (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
    }
}

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    app.metrics.holds(&app.budget, app.choices_in_flight(), app.bodies.open());
    let settings_valid = app.settings.in_force().problem.is_none();
    let text = app.metrics.render(&app.registry, settings_valid, app.cluster.as_deref());
    ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response()
}

/// Every worker as this router sees it; what `disagg status` shows.
pub(super) async fn workers(State(app): State<Arc<App>>) -> Json<Value> {
    let workers: Vec<Value> = app
        .registry
        .status()
        .into_iter()
        .map(|worker| {
            let transfers: BTreeMap<&str, f64> =
                worker.transfers.iter().map(|(peer, speed)| (peer.as_str(), *speed)).collect();
            let mut entry = json!({
                "address": worker.address,
                "state": worker.state.as_str(),
                "problem": worker.problem,
                "in_flight": worker.in_flight,
                "load": worker.load,
                "sent_since_report": worker.unreported,
                "transfer_bytes_per_second": transfers,
            });
            if let Some(identity) = worker.identity {
                entry["name"] = identity.name.as_str().into();
                entry["epoch"] = identity.epoch.to_string().into();
                entry["role"] = identity.role.as_str().into();
                entry["model"] =
                    app.registry.model(identity.fingerprint).map(|model| model.name.clone()).into();
                entry["model_fingerprint"] = identity.fingerprint.to_string().into();
                entry["kv_compat"] = identity.kv_compat.to_string().into();
                entry["block_size"] = identity.block_size.into();
                entry["max_model_len"] = identity.max_model_len.into();
                entry["transports"] = identity.transports.clone().into();
                entry["version"] = identity.version.clone().into();
                entry["backend"] = identity.backend.clone().into();
            }
            entry
        })
        .collect();
    let usage = app.registry.index_usage();
    Json(json!({
        "workers": workers,
        "prefix_index": { "blocks": usage.blocks, "max_blocks": usage.max_blocks, "evicted": usage.evicted },
    }))
}

/// The settings that new requests are placed by.
pub(super) async fn settings(State(app): State<Arc<App>>) -> Json<SettingsReport> {
    let now = app.settings.in_force();
    Json(SettingsReport {
        settings: (&now.settings).into(),
        source: app.settings.source.to_string(),
        resource_version: now.resource_version.clone(),
        problem: now.problem.clone(),
    })
}
