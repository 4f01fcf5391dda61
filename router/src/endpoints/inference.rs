//! The two endpoints that generate: body, admission, and the choice between a whole and a streamed answer.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use http::{HeaderName, HeaderValue, header};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::body::check_type;
use crate::app::App;
use crate::budget::Held;
use crate::metrics::{RequestMetrics, Stage, Status};
use crate::openai::{ApiError, Endpoint, Request};
use crate::serving::{self, AnswerLimits, Call, Part, Whole, placement_header};

/// Requests with at most this number of choices may fill the last quarter of what may be in progress.
const FEW_CHOICES: u32 = 8;

/// A request that has been understood and admitted.
struct Admitted {
    calls: Vec<Call>,
    streamed: bool,
    /// One for each choice.
    permit: OwnedSemaphorePermit,
}

/// An answer that is ready to be sent.
enum Begun {
    Whole { whole: Whole, permit: OwnedSemaphorePermit },
    Stream { parts: Vec<Part>, placement: Option<HeaderValue>, permit: OwnedSemaphorePermit },
}

/// Serves one request.
pub(super) async fn infer(app: Arc<App>, endpoint: Endpoint, http: axum::extract::Request) -> Response {
    let mut metrics = RequestMetrics::begin(&app.metrics, endpoint);
    let deadline = Instant::now() + app.limits.request_timeout;
    let id = match random() {
        Ok(id) => id,
        Err(error) => return refuse(&mut metrics, error),
    };
    let begun = timeout_at(deadline, begin(&app, endpoint, http, id, &metrics)).await;
    let timed_out = || ApiError::timeout(app.limits.request_timeout.as_secs());
    let limits = || AnswerLimits {
        budget: Arc::clone(&app.budget),
        deadline,
        request_timeout: app.limits.request_timeout,
        reader_timeout: app.limits.reader_timeout,
        cut: app.cut.clone(),
    };
    let mut response = match begun.unwrap_or_else(|_| Err(timed_out())) {
        Err(error) => refuse(&mut metrics, error),
        Ok(Begun::Whole { mut whole, permit }) => {
            let (placement, length) = (whole.placement.take(), whole.json.len());
            let (body, task) = serving::deliver(whole, metrics, permit, limits());
            app.streams.spawn(task);
            let mut response = ([(header::CONTENT_TYPE, "application/json")], body).into_response();
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            with_placement(placement, response)
        }
        Ok(Begun::Stream { parts, placement, permit }) => {
            let (body, task) = serving::stream(parts, metrics, permit, limits());
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
    http: axum::extract::Request,
    id: u128,
    metrics: &RequestMetrics,
) -> Result<Begun, ApiError> {
    let (head, body) = http.into_parts();
    check_type(&head.headers)?;
    let reading = Instant::now();
    let (body, held) = app.bodies.read(&head, body, app.limits.body_bytes_max, &app.budget).await?;
    app.metrics.passed(Stage::Read, reading.elapsed());
    let (waiting, bytes) = (Instant::now(), body.len());
    let in_turn = {
        let app = Arc::clone(app);
        move || {
            app.metrics.passed(Stage::TextQueue, waiting.elapsed());
            admit(&app, endpoint, body, held, id)
        }
    };
    let Admitted { mut calls, streamed, permit } = app.text_pool.run(bytes, in_turn).await??;
    if calls.len() > 1 {
        Call::check_all(&mut calls).await?;
    }
    if streamed {
        // All of them: as long as nothing is sent, whatever fails has an HTTP status, and is tried again.
        let opened = try_join_all(calls.iter_mut().map(Call::open)).await?;
        let placement =
            placement_header(opened.iter().map(|open| (&open.started, open.decode.name.as_str())));
        let parts = calls.iter().zip(opened).map(|(call, open)| Part::new(call, open)).collect();
        return Ok(Begun::Stream { parts, placement, permit });
    }
    let whole = serving::whole(&mut calls, metrics, &app.budget).await?;
    Ok(Begun::Whole { whole, permit })
}

/// Parses a request, admits it, and prepares its prompts, all in one turn of the text pool: what is made of a body, which
/// may be several times as large, does not wait anywhere but in requests that are in progress.
fn admit(
    app: &Arc<App>,
    endpoint: Endpoint,
    body: Vec<u8>,
    mut held: Held,
    id: u128,
) -> Result<Admitted, ApiError> {
    let parsing = Instant::now();
    held.resize(Request::parse_bytes(endpoint, &body))?;
    let request = Request::parse(endpoint, &body)?;
    drop(body);
    held.shrink(request.bytes());
    app.metrics.passed(Stage::Parse, parsing.elapsed());
    let permit = permit(app, &request)?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let streamed = request.stream;
    let mut calls = Call::all(app, request, held, id, created);
    calls.iter_mut().try_for_each(Call::prepare_in_turn)?;
    Ok(Admitted { calls, streamed, permit })
}

/// Each choice of each prompt counts as one in progress, which is what it is to the workers. Requests with many choices
/// leave a quarter of the whole to those with few, so that a handful of them does not keep everybody else out.
fn permit(app: &App, request: &Request) -> Result<OwnedSemaphorePermit, ApiError> {
    let (prompts, max) = (request.inputs.len() as u32, app.limits.in_flight_max);
    let choices = prompts.saturating_mul(request.n);
    if choices > max {
        let rule =
            format!("such that prompts times 'n' is at most {max}, which is how many may be in progress");
        let (field, value) = match request.n {
            1 => ("prompt", format!("{prompts} prompts")),
            n if prompts == 1 => ("n", n.to_string()),
            n => ("n", format!("{n} for {prompts} prompts")),
        };
        return Err(ApiError::bad_value(field, &value, &rule));
    }
    let free = app.admission.available_permits();
    let left = free.saturating_sub(choices as usize);
    // Whatever may be in progress at all is so when nothing else is.
    let is_alone = free == max as usize;
    if choices > FEW_CHOICES && !is_alone && left < max as usize / 4 {
        return Err(ApiError::too_many_requests(max));
    }
    let permit = Arc::clone(&app.admission).try_acquire_many_owned(choices);
    permit.map_err(|_| ApiError::too_many_requests(max))
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

/// Random bits from the operating system.
fn random() -> Result<u128, ApiError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| ApiError::internal(format!("No randomness: {error}")))?;
    Ok(u128::from_le_bytes(bytes))
}
