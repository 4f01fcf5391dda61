//! Namespaces that an operator of all namespaces leaves to others.
//!
//! An operator for one namespace holds a Lease there. One for all namespaces watches the Leases of that name, and does
//! nothing in a namespace whose Lease is held, or was a short while ago: it comes back when nobody has held the Lease for
//! as long as it says, so a leader of that namespace that is just being replaced does not lose its resources meanwhile.
//! The operator of the namespace has the last word, and asks nobody: the two cannot undo each other's work for longer
//! than a reconcile that has begun.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use parking_lot::Mutex;

use super::sighting::{Record, Sighting};
use crate::args::OperatorArgs;

/// How long a Lease holds that does not say so itself: the default of `--lease-seconds`.
const DURATION_DEFAULT: Duration = Duration::from_secs(15);

/// What is known of the Leases of other operators.
#[derive(Debug)]
pub(crate) struct Claims {
    /// The namespace of this operator's own Lease, which is no claim on that namespace. Nothing, without a Lease.
    home: Option<String>,
    /// By namespace.
    sightings: Mutex<HashMap<String, Sighting>>,
}

/// A namespace is another operator's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    /// Who holds the Lease. Nobody does while its operator is being replaced.
    pub holder: Option<String>,
    /// When to look again, since nobody tells of a Lease that is not renewed.
    pub look_again: Duration,
}

impl Claims {
    pub(crate) fn new(args: &OperatorArgs) -> Self {
        let own = (!args.no_leader_election).then(|| args.home().to_owned());
        Self { home: own, sightings: Mutex::default() }
    }

    /// Whether `namespace`, whose Lease is `lease` at `now`, is another operator's.
    pub(crate) fn of(&self, namespace: &str, lease: Option<&Lease>, now: Instant) -> Option<Claim> {
        let lease = lease.filter(|_| self.home.as_deref() != Some(namespace));
        let mut sightings = self.sightings.lock();
        let before = sightings.remove(namespace);
        let sighting = Sighting::new(before, Record::from(lease?), now);
        let left = sighting.left(now, DURATION_DEFAULT);
        let holder = sighting.record.holder.clone();
        sightings.insert(namespace.to_owned(), sighting);
        (!left.is_zero()).then_some(Claim { holder, look_again: left })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::json;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn claims(more: &[&str]) -> Claims {
        let first = ["operator", "--router-image", "r", "--worker-image", "w"];
        Claims::new(&OperatorArgs::parse_from(first.iter().chain(more)))
    }

    fn lease(holder: Option<&str>, renewed: u32) -> Lease {
        let renewed = format!("2026-01-01T00:00:{renewed:02}.000000Z");
        let spec = json!({ "holderIdentity": holder, "leaseDurationSeconds": 10, "renewTime": renewed });
        serde_json::from_value(json!({ "metadata": { "name": "disagg-operator" }, "spec": spec })).unwrap()
    }

    #[test]
    fn a_namespace_is_left_alone_while_its_lease_is_renewed_and_taken_when_its_time_is_over() {
        let (claims, start) = (claims(&[]), Instant::now());
        let look = |lease: &Lease, seconds: u32| claims.of("a", Some(lease), start + SECOND * seconds);
        let held =
            |seconds: u32| Some(Claim { holder: Some("a/op/1".to_owned()), look_again: SECOND * seconds });
        let (first, second) = (lease(Some("a/op/1"), 0), lease(Some("a/op/1"), 9));
        assert_eq!(look(&first, 0), held(10));
        assert_eq!(look(&first, 4), held(6), "counted from when it was seen");
        assert_eq!(look(&second, 10), held(10), "it was renewed");
        assert_eq!(look(&second, 20), None, "it was not");
        let third = lease(Some("a/op/1"), 30);
        assert_eq!(look(&third, 30), held(10), "its operator is back, and has the last word");
    }

    #[test]
    fn a_lease_that_was_given_back_is_not_free_at_once() {
        let (claims, start) = (claims(&[]), Instant::now());
        let look = |lease: &Lease, seconds: u32| claims.of("a", Some(lease), start + SECOND * seconds);
        assert!(look(&lease(Some("a/op/1"), 0), 0).is_some());
        let given_back = lease(None, 0);
        assert_eq!(look(&given_back, 5), Some(Claim { holder: None, look_again: SECOND * 10 }));
        assert!(look(&lease(Some("a/op/2"), 7), 7).is_some(), "the next replica of its release");
        assert!(look(&given_back, 20).is_some());
        assert_eq!(look(&given_back, 30), None);
    }

    #[test]
    fn the_own_lease_claims_nothing_and_no_lease_neither() {
        let (own, elsewhere) = (claims(&[]), claims(&["--lease-namespace", "b"]));
        let alone = claims(&["--no-leader-election"]);
        let held = lease(Some("x"), 0);
        let claimed = |claims: &Claims| claims.of("default", Some(&held), Instant::now()).is_some();
        assert!(!claimed(&own) && claimed(&elsewhere) && claimed(&alone));
        assert_eq!(own.of("a", None, Instant::now()), None);
    }
}
