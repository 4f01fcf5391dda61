//! What a worker is for.

use std::fmt;
use std::str::FromStr;

/// Role of a worker, fixed for its life.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Prefills for others, never decodes.
    Prefill,
    /// Decodes, and prefills its own requests when the placement is local.
    Decode,
    /// Decodes, and also accepts remote prefills.
    Both,
}

impl Role {
    /// Whether requests can be generated on it.
    pub fn decodes(self) -> bool {
        matches!(self, Self::Decode | Self::Both)
    }

    /// Whether it prefills for other workers.
    pub fn accepts_remote_prefill(self) -> bool {
        matches!(self, Self::Prefill | Self::Both)
    }

    /// The name used in flags, metrics and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Both => "both",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name is none of a role's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("role {0:?} is none of prefill, decode, both")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "prefill" => Ok(Self::Prefill),
            "decode" => Ok(Self::Decode),
            "both" => Ok(Self::Both),
            other => Err(UnknownRole(other.to_owned())),
        }
    }
}
