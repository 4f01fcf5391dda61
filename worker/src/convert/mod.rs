//! The edge: wire messages are checked here and become types that the rest of the crate can trust.
//!
//! Every limit that a comment in the `.proto` files states is a rule here. A value outside it is refused with
//! INVALID_ARGUMENT that names field, value and what is allowed.

mod prefill;
mod request;
mod wire;

use std::fmt;

use disagg_core::{Epoch, HandoffId, KvCompat, ModelFingerprint, WorkerId};
use disagg_proto::limits::{ADDRESS_BYTES_MAX, WORKER_NAME_BYTES_MAX};
use disagg_proto::v1;
use tonic::Status;

pub(crate) use prefill::TCP_TRANSPORT;
pub use prefill::{
    FirstTokens, Peer, PushStart, StartPrefill, chunk_bytes, first_tokens, push_begin, start_prefill,
};
pub use request::{Generate, PromptLimits, Remote, RemoteCandidate, ValidPrompt, generate, prompt};
pub use wire::{
    card_header, handoff_to_wire, hash, kv_event, load_report, prompt_to_wire, role, sequence_event,
    token_to_wire, worker_ref_to_wire,
};

/// A field of a message is outside its limits.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {value} given; {allowed}")]
pub struct InvalidField {
    /// Path of the field within the message.
    pub field: &'static str,
    /// What was given, shortened.
    pub value: String,
    /// What is allowed.
    pub allowed: String,
}

impl InvalidField {
    pub(crate) fn new(field: &'static str, value: impl fmt::Display, allowed: impl Into<String>) -> Self {
        Self { field, value: value.to_string(), allowed: allowed.into() }
    }
}

impl From<InvalidField> for Status {
    fn from(error: InvalidField) -> Self {
        Status::invalid_argument(error.to_string())
    }
}

/// The field, which proto3 makes optional and the contract does not.
fn required<T>(field: &'static str, value: Option<T>) -> Result<T, InvalidField> {
    value.ok_or_else(|| InvalidField::new(field, "nothing", "it must be set"))
}

/// `low..=high`, which no NaN is in.
fn within<T: Copy + PartialOrd + fmt::Display>(
    field: &'static str,
    value: T,
    low: T,
    high: T,
) -> Result<T, InvalidField> {
    if value >= low && value <= high {
        return Ok(value);
    }
    Err(InvalidField::new(field, value, format!("{low} to {high} is allowed")))
}

fn bytes_within(field: &'static str, value: &str, low: usize, high: usize) -> Result<(), InvalidField> {
    if (low..=high).contains(&value.len()) {
        return Ok(());
    }
    let given = format!("{} bytes", value.len());
    Err(InvalidField::new(field, given, format!("{low} to {high} bytes are allowed")))
}

fn count_within(field: &'static str, count: usize, low: usize, high: usize) -> Result<(), InvalidField> {
    if (low..=high).contains(&count) {
        return Ok(());
    }
    Err(InvalidField::new(field, format!("{count} entries"), format!("{low} to {high} are allowed")))
}

fn hash128(value: v1::Hash128) -> u128 {
    (u128::from(value.high) << 64) | u128::from(value.low)
}

fn fingerprint(field: &'static str, value: Option<v1::Hash128>) -> Result<ModelFingerprint, InvalidField> {
    Ok(ModelFingerprint(hash128(required(field, value)?)))
}

fn kv_compat(field: &'static str, value: Option<v1::Hash128>) -> Result<KvCompat, InvalidField> {
    Ok(KvCompat(hash128(required(field, value)?)))
}

fn epoch(field: &'static str, value: u64) -> Result<Epoch, InvalidField> {
    if value == 0 {
        return Err(InvalidField::new(field, 0, "an epoch is never 0"));
    }
    Ok(Epoch(value))
}

fn worker_ref(field: &'static str, value: Option<v1::WorkerRef>) -> Result<Peer, InvalidField> {
    let value = required(field, value)?;
    bytes_within(field, &value.name, 1, WORKER_NAME_BYTES_MAX)?;
    Ok(Peer { epoch: epoch(field, value.epoch)?, worker: WorkerId::new(value.name) })
}

fn handoff_ref(field: &'static str, value: Option<v1::HandoffRef>) -> Result<HandoffId, InvalidField> {
    let value = required(field, value)?;
    if value.number == 0 {
        return Err(InvalidField::new(field, "number 0", "handoffs are numbered from 1"));
    }
    Ok(HandoffId { epoch: epoch(field, value.epoch)?, number: value.number })
}

fn address(field: &'static str, value: String) -> Result<String, InvalidField> {
    bytes_within(field, &value, 1, ADDRESS_BYTES_MAX)?;
    let port = value
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']))
        .and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(port) if port > 0 => Ok(value),
        _ => Err(InvalidField::new(field, format!("{value:?}"), "host:port is allowed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_field_value_and_what_is_allowed() {
        let status = Status::from(within("lease_ms", 60_001, 100, 60_000).unwrap_err());
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert_eq!(status.message(), "lease_ms: 60001 given; 100 to 60000 is allowed");
    }

    #[test]
    fn worker_refs_have_a_name_and_an_epoch() {
        let good = v1::WorkerRef { name: "a".repeat(253), epoch: 7 };
        assert!(worker_ref("w", Some(good.clone())).is_ok());
        for bad in [
            None,
            Some(v1::WorkerRef { name: String::new(), ..good.clone() }),
            Some(v1::WorkerRef { name: "a".repeat(254), ..good.clone() }),
            Some(v1::WorkerRef { epoch: 0, ..good }),
        ] {
            assert_eq!(worker_ref("w", bad).unwrap_err().field, "w");
        }
    }

    #[test]
    fn handoffs_have_an_epoch_and_are_numbered_from_1() {
        assert!(handoff_ref("h", Some(v1::HandoffRef { epoch: 1, number: 1 })).is_ok());
        for bad in
            [None, Some(v1::HandoffRef { epoch: 0, number: 1 }), Some(v1::HandoffRef { epoch: 1, number: 0 })]
        {
            assert_eq!(handoff_ref("h", bad).unwrap_err().field, "h");
        }
    }

    #[test]
    fn addresses_are_host_and_port() {
        for good in ["127.0.0.1:80", "prefill-0.prefill:9000", "[::1]:9000"] {
            assert!(address("a", good.into()).is_ok(), "{good}");
        }
        for bad in ["", ":80", "host", "host:", "host:0", "host:65536", "http://host:80", "u@host:80"] {
            assert_eq!(address("a", bad.into()).unwrap_err().field, "a", "{bad}");
        }
        assert!(address("a", format!("{}:80", "a".repeat(257))).is_err());
    }

    #[test]
    fn nan_is_in_no_range() {
        assert!(within("f", f32::NAN, 0.0, 2.0).is_err());
        assert!(within("f", 2.0, 0.0, 2.0).is_ok());
    }
}
