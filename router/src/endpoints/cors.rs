//! Which web pages may use the API from a browser (CORS).

use disagg_process::http::is_loopback_origin;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// How long a browser may remember what it may do, in seconds: two hours, the most that Chromium takes.
const MAX_AGE_SECONDS: u64 = 7200;

/// Headers of ours that a page may read.
const EXPOSED: [HeaderName; 3] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-disagg-placement"),
    header::RETRY_AFTER,
];

/// Lets pages of this machine (`http://localhost:3000`), and those of `origins`, read answers; `*` is every page. Other
/// pages' requests are answered as well, but their browser does not show them the answer.
pub(super) fn layer(origins: &[HeaderValue]) -> CorsLayer {
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        let origins = origins.to_vec();
        AllowOrigin::predicate(move |origin: &HeaderValue, _: &Parts| {
            is_loopback_origin(origin) || origins.contains(origin)
        })
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        // OpenAI's SDKs send many of their own.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED)
        .max_age(std::time::Duration::from_secs(MAX_AGE_SECONDS))
}
