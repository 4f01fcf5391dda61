//! The two endpoints that generate: admission, body, and the choice between a whole and a streamed answer.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::future::try_join_all;
use http::{HeaderName, HeaderValue, header};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use crate::app::App;
use crate::metrics::{RequestMetrics, Stage, Status};
use crate::openai::{ApiError, Endpoint, Request};
use crate::serving::{self, Call, Part, StreamLimits, placement_header};

/// Time for a request's body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Larger bodies are parsed off the async threads.
const PARSE_INLINE_BYTES_MAX: usize = 64 * 1024;

/// An answer that is ready to be sent.
enum Begun {
    Whole { json: String, placement: Option<HeaderValue> },
    Stream { parts: Vec<Part>, placement: Option<HeaderValue> },
}

/// Serves one request.
pub(super) async fn infer(app: Arc<App>, endpoint: Endpoint, http: axum::extract::Request) -> Response {
    let mut metrics = RequestMetrics::begin(&app.metrics, endpoint);
    let deadline = Instant::now() + app.limits.request_timeout;
    let Ok(mut permit) = Arc::clone(&app.admission).try_acquire_owned() else {
        return refuse(&mut metrics, ApiError::too_many_requests(app.limits.in_flight_max));
    };
    let id = match random() {
        Ok(id) => id,
        Err(error) => return refuse(&mut metrics, error),
    };
    let begun =
        timeout_at(deadline, begin(&app, endpoint, http.into_body(), id, &mut permit, &metrics)).await;
    let timed_out = || ApiError::timeout(app.limits.request_timeout.as_secs());
    let mut response = match begun.unwrap_or_else(|_| Err(timed_out())) {
        Err(error) => refuse(&mut metrics, error),
        Ok(Begun::Whole { json, placement }) => {
            metrics.ends(Status::Http(200));
            with_placement(placement, ([(header::CONTENT_TYPE, "application/json")], json).into_response())
        }
        Ok(Begun::Stream { parts, placement }) => {
            let limits = StreamLimits {
                deadline,
                request_timeout: app.limits.request_timeout,
                reader_timeout: app.limits.reader_timeout,
                cut: app.cut.clone(),
            };
            let (body, task) = serving::stream(parts, metrics, permit, limits);
            app.streams.spawn(task);
            let headers = [
                (header::CONTENT_TYPE, "text/event-stream"),
                (header::CACHE_CONTROL, "no-cache"),
                // nginx and its kin would otherwise hold tokens back until they have a buffer full.
                (HeaderName::from_static("x-accel-buffering"), "no"),
            ];
            with_placement(placement, (headers, body).into_response())
        }
    };
    if let Ok(id) = HeaderValue::try_from(format!("{id:032x}")) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

async fn begin(
    app: &Arc<App>,
    endpoint: Endpoint,
    body: Body,
    id: u128,
    permit: &mut OwnedSemaphorePermit,
    metrics: &RequestMetrics,
) -> Result<Begun, ApiError> {
    let reading = Instant::now();
    let body = timeout(BODY_TIMEOUT, read(body, app.limits.body_bytes_max));
    let body = body.await.map_err(|_| ApiError::body_timeout())??;
    app.metrics.passed(Stage::Read, reading.elapsed());
    let parsing = Instant::now();
    let request = if body.len() <= PARSE_INLINE_BYTES_MAX {
        Request::parse(endpoint, &body)?
    } else {
        app.text_pool.run(move || Request::parse(endpoint, &body)).await??
    };
    app.metrics.passed(Stage::Parse, parsing.elapsed());
    admit_all(app, &request, permit)?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let streamed = request.stream;
    let mut calls = Call::all(app, request, id, created);
    if calls.len() > 1 {
        Call::check_all(&mut calls).await?;
    }
    if streamed {
        // All of them: as long as nothing is sent, whatever fails has an HTTP status, and is tried again.
        let opened = try_join_all(calls.iter_mut().map(Call::open)).await?;
        let placement =
            placement_header(opened.iter().map(|open| (&open.started, open.decode.name.as_str())));
        let parts = calls.iter().zip(opened).map(|(call, open)| Part::new(call, open)).collect();
        return Ok(Begun::Stream { parts, placement });
    }
    let (json, placement) = serving::whole(&mut calls, metrics).await?;
    Ok(Begun::Whole { json, placement })
}

/// Each prompt of a batch counts as a request in progress; the first has its permit already.
fn admit_all(app: &App, request: &Request, permit: &mut OwnedSemaphorePermit) -> Result<(), ApiError> {
    let prompts = request.inputs.len() as u32;
    let max = app.limits.in_flight_max;
    if prompts > max {
        let rule = format!("at most {max} prompts, which is how many may be in progress");
        return Err(ApiError::bad_value("prompt", &format!("{prompts} prompts"), &rule));
    }
    let others = Arc::clone(&app.admission).try_acquire_many_owned(prompts.saturating_sub(1));
    permit.merge(others.map_err(|_| ApiError::too_many_requests(max))?);
    Ok(())
}

fn refuse(metrics: &mut RequestMetrics, error: ApiError) -> Response {
    metrics.ends(Status::Http(error.status.as_u16()));
    error.into_response()
}

fn with_placement(placement: Option<HeaderValue>, mut response: Response) -> Response {
    if let Some(placement) = placement {
        response.headers_mut().insert("x-disagg-placement", placement);
    }
    response
}

/// Reads a body of at most `bytes_max`.
async fn read(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    let mut chunks = body.into_data_stream();
    let mut all = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| ApiError::bad_json(&error))?;
        if all.len() + chunk.len() > bytes_max {
            return Err(ApiError::body_too_large(bytes_max));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

/// Random bits from the operating system.
fn random() -> Result<u128, ApiError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| ApiError::internal(format!("No randomness: {error}")))?;
    Ok(u128::from_le_bytes(bytes))
}
