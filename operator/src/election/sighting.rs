//! A Lease as somebody sees it who does not hold it. Pure: time is an argument.
//!
//! Nobody compares clocks of machines: how long a Lease still holds is counted from the moment at which its last renewal
//! was first *seen*, never from the time that is written in it.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;

/// What the Lease says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Record {
    /// Nothing, if it was given back or has never been held.
    pub holder: Option<String>,
    /// When the holder renewed it, by the holder's clock: only told apart, never compared.
    pub renewed: Option<String>,
    /// How long others have to wait after a renewal.
    pub duration: Option<Duration>,
    /// Times that the holder has changed.
    pub transitions: i32,
    /// The version that a write is bound to.
    pub version: String,
}

impl From<&Lease> for Record {
    fn from(lease: &Lease) -> Self {
        let spec = lease.spec.as_ref();
        let seconds =
            spec.and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
        Self {
            holder: spec.and_then(|spec| spec.holder_identity.clone()).filter(|holder| !holder.is_empty()),
            renewed: spec.and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0.to_string()),
            duration: seconds.map(Duration::from_secs),
            transitions: spec.and_then(|spec| spec.lease_transitions).unwrap_or_default(),
            version: lease.metadata.resource_version.clone().unwrap_or_default(),
        }
    }
}

/// A record, and when it was first seen with this holder and renewal.
#[derive(Clone, Debug)]
pub(super) struct Sighting {
    pub record: Record,
    since: Instant,
}

impl Sighting {
    /// `record` is seen at `now`; `before` is what was seen last.
    pub(super) fn new(before: Option<Self>, record: Record, now: Instant) -> Self {
        let renewal = |of: &Record| (of.holder.clone(), of.renewed.clone(), of.duration);
        let same = before.filter(|before| renewal(&before.record) == renewal(&record));
        Self { since: same.map_or(now, |same| same.since), record }
    }

    /// How long from `now` the Lease counts as held, if it is not renewed. `default` is its duration where it names none.
    pub(super) fn left(&self, now: Instant, default: Duration) -> Duration {
        let duration = self.record.duration.unwrap_or(default);
        duration.saturating_sub(now.duration_since(self.since))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_empty_lease_has_no_holder() {
        let empty: Lease = serde_json::from_value(json!({
            "metadata": { "name": "x", "resourceVersion": "7" },
            "spec": { "holderIdentity": "" },
        }))
        .unwrap();
        let nobody =
            Record { holder: None, renewed: None, duration: None, transitions: 0, version: "7".to_owned() };
        assert_eq!(Record::from(&empty), nobody);
    }
}
