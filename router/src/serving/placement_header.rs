//! The header `x-disagg-placement`.

use http::HeaderValue;

use crate::generation::Started;

/// Prompts of a batch that the header tells of, so that it stays within what proxies take.
const SHOWN_MAX: usize = 16;

/// For example `remote; reason=above-threshold; prefill=prefill-0; decode=decode-0`, or
/// `local; reason=below-threshold; decode=decode-0`; for a batch of prompts one after the other, separated by commas.
/// Each prompt comes as it was placed, with the name of its decode worker.
pub(crate) fn placement_header<'a>(
    prompts: impl IntoIterator<Item = (&'a Started, &'a str)>,
) -> Option<HeaderValue> {
    let one = |(started, decode): (&Started, &str)| {
        if started.remote {
            let (reason, prefill) = (started.reason, &started.prefill_worker);
            format!("remote; reason={reason}; prefill={prefill}; decode={decode}")
        } else {
            format!("local; reason={}; decode={decode}", started.reason)
        }
    };
    let text = prompts.into_iter().take(SHOWN_MAX).map(one).collect::<Vec<_>>().join(", ");
    // Names come from workers; one that is no header value is left out with the header.
    HeaderValue::try_from(text).ok()
}
