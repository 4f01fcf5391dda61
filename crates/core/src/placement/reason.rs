//! Why a prompt was placed as it was, and what was wished for.

use std::fmt;
use std::str::FromStr;

/// What becomes of a prompt that is worth a remote prefill when no prefill worker can take it: `Local` prefills it on
/// the decode worker, `Fail` answers 503 with Retry-After. The default is `Local`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum FallbackPolicy {
    /// Prefill it on the decode worker.
    #[default]
    Local,
    /// Refuse it: decode workers are never slowed down by long prompts.
    Fail,
}

impl FallbackPolicy {
    /// The name used in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "Local",
            Self::Fail => "Fail",
        }
    }
}

impl fmt::Display for FallbackPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name is none of a fallback policy's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("fallback policy {0:?} is neither Local nor Fail")]
pub struct UnknownFallbackPolicy(String);

impl FromStr for FallbackPolicy {
    type Err = UnknownFallbackPolicy;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "Local" => Ok(Self::Local),
            "Fail" => Ok(Self::Fail),
            other => Err(UnknownFallbackPolicy(other.to_owned())),
        }
    }
}

/// Why a prompt was placed as it was. The first four are decided by the router, the rest by the decode worker, which
/// has the last word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum PlacementReason {
    /// Remote: more net-new tokens than are prefilled locally.
    AboveThreshold,
    /// Local: no more net-new tokens than the threshold.
    BelowThreshold,
    /// Over the threshold, but there is no ready, compatible prefill worker.
    NoPrefillWorker,
    /// Over the threshold, but every prefill worker's queue is at its bound.
    PrefillQueueFull,
    /// Local: the decode worker has more of the prompt cached than the router knew.
    DecodeOverlap,
    /// The decode worker could not reserve the prompt's blocks for a handoff.
    ReservationRefused,
    /// Every prefill worker that was asked refused.
    PrefillRefused,
    /// A prefill worker took it and then failed, or fell silent.
    PrefillFailed,
}

impl PlacementReason {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 8] = [
        Self::AboveThreshold,
        Self::BelowThreshold,
        Self::NoPrefillWorker,
        Self::PrefillQueueFull,
        Self::DecodeOverlap,
        Self::ReservationRefused,
        Self::PrefillRefused,
        Self::PrefillFailed,
    ];

    /// The name used in the `x-disagg-placement` header, on the wire, and as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AboveThreshold => "above-threshold",
            Self::BelowThreshold => "below-threshold",
            Self::NoPrefillWorker => "no-prefill-worker",
            Self::PrefillQueueFull => "prefill-queue-full",
            Self::DecodeOverlap => "decode-overlap",
            Self::ReservationRefused => "reservation-refused",
            Self::PrefillRefused => "prefill-refused",
            Self::PrefillFailed => "prefill-failed",
        }
    }
}

impl fmt::Display for PlacementReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name is none of a placement reason's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a placement reason")]
pub struct UnknownPlacementReason(String);

impl FromStr for PlacementReason {
    type Err = UnknownPlacementReason;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.as_str() == name)
            .ok_or_else(|| UnknownPlacementReason(name.to_owned()))
    }
}
