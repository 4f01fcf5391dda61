//! The header `x-disagg-placement`.

use http::HeaderValue;

use super::call::Open;

/// For example `remote; reason=above-threshold; prefill=prefill-0; decode=decode-0`, or
/// `local; reason=below-threshold; decode=decode-0`.
pub(crate) fn placement_header(open: &Open) -> Option<HeaderValue> {
    let started = &open.upstream.started;
    let decode = open.decode.name.as_str();
    let text = if started.remote {
        format!("remote; reason={}; prefill={}; decode={decode}", started.reason, started.prefill_worker)
    } else {
        format!("local; reason={}; decode={decode}", started.reason)
    };
    // Names come from workers; one that is no header value is left out with the header.
    HeaderValue::try_from(text).ok()
}
