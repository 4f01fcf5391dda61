//! Another release of the operator that looks after the same namespaces.
//!
//! Two that worked would undo each other's work for ever. Whose replica holds the Lease is part of the holder's name, so
//! a replica that waits knows whether it waits for one of its own, which is as it should be, or for another release's,
//! which somebody should know of.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::args::OperatorArgs;
use crate::text::short;

/// How long writing an Event may take, for which nothing waits.
const EVENT_WITHIN: Duration = Duration::from_secs(2);

/// Why this replica does not work and will not before somebody does something. Nothing, while all is well.
#[derive(Debug, Default)]
pub(crate) struct Readiness(Mutex<Option<String>>);

impl Readiness {
    pub(super) fn set(&self, why: Option<String>) {
        *self.0.lock() = why;
    }

    /// Why it does not work.
    pub(crate) fn why_not_ready(&self) -> Option<String> {
        self.0.lock().clone()
    }
}

/// Looks at who holds the Lease.
pub(super) struct Rivals {
    recorder: Recorder,
    /// This replica's pod; nothing, outside a cluster.
    pod: Option<ObjectReference>,
    release: Option<String>,
    identity: String,
    /// Namespace and name.
    lease: String,
    /// The release that was told of last.
    told: Option<String>,
}

impl Rivals {
    pub(super) fn new(client: Client, args: &OperatorArgs, identity: &str, lease: String) -> Self {
        let reporter =
            Reporter { controller: "disagg-operator".to_owned(), instance: Some(identity.to_owned()) };
        let pod = args.pod_namespace.as_ref().map(|namespace| ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(identity.to_owned()),
            namespace: Some(namespace.clone()),
            uid: args.pod_uid.clone(),
            ..ObjectReference::default()
        });
        Self {
            recorder: Recorder::new(client, reporter),
            pod,
            release: args.release.clone(),
            identity: identity.to_owned(),
            lease,
            told: None,
        }
    }

    /// How this replica is called in the Lease: its release, then its own name.
    pub(super) fn holder_identity(&self) -> String {
        match &self.release {
            Some(release) => format!("{release}/{}", self.identity),
            None => self.identity.clone(),
        }
    }

    /// The Lease has this holder: notes in `readiness` whether it is of another release, and tells of it once.
    pub(super) async fn seen(&mut self, holder: Option<&str>, readiness: &Readiness) {
        let rival = holder.filter(|holder| release_of(holder) != self.release.as_deref());
        let why = rival.map(|rival| {
            format!(
                "another release of the operator looks after these namespaces: {rival} holds the Lease {}. This one does \
                 nothing until that one is uninstalled; uninstall one of the two, or give them namespaces of their own \
                 (--namespace)",
                self.lease
            )
        });
        readiness.set(why.clone());
        let rival = rival.map(|rival| release_of(rival).unwrap_or(rival).to_owned());
        if let Some(why) = why.filter(|_| rival != self.told) {
            tracing::error!("{why}");
            self.tell(&why).await;
        }
        self.told = rival;
    }

    async fn tell(&self, why: &str) {
        let Some(pod) = &self.pod else { return };
        let event = Event {
            type_: EventType::Warning,
            reason: "AnotherRelease".to_owned(),
            note: Some(why.to_owned()),
            action: "Elect".to_owned(),
            secondary: None,
        };
        let failed = match timeout(EVENT_WITHIN, self.recorder.publish(&event, pod)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => short(&error.to_string()),
            Err(_) => format!("no answer within {} s", EVENT_WITHIN.as_secs()),
        };
        tracing::debug!(failed, "an Event about this pod cannot be written");
    }
}

/// The release in a holder's name.
fn release_of(holder: &str) -> Option<&str> {
    holder.rsplit_once('/').map(|(release, _)| release)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn rivals(release: Option<&str>) -> Rivals {
        let arguments = ["operator", "--router-image", "r", "--worker-image", "w"].map(str::to_owned);
        let release = release.map(|release| format!("--release={release}"));
        let args = OperatorArgs::parse_from(arguments.into_iter().chain(release));
        let _ = rustls::crypto::ring::default_provider().install_default();
        let nowhere = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(kube::Error::Service("nowhere".into()))
        });
        Rivals::new(Client::new(nowhere, "ns"), &args, "pod-1", "default/disagg-operator".to_owned())
    }

    #[tokio::test]
    async fn a_replica_that_waits_for_another_release_says_so_and_for_its_own_does_not() {
        let mut rivals = rivals(Some("a/disagg"));
        let readiness = Readiness::default();
        assert_eq!(rivals.holder_identity(), "a/disagg/pod-1");
        for own in [None, Some("a/disagg/pod-1"), Some("a/disagg/pod-2")] {
            rivals.seen(own, &readiness).await;
            assert_eq!(readiness.why_not_ready(), None, "{own:?}");
        }
        for other in ["b/disagg/pod-1", "a/disagg-2/pod-1", "pod-1"] {
            rivals.seen(Some(other), &readiness).await;
            let why = readiness.why_not_ready().unwrap();
            assert!(why.contains(&format!("{other} holds the Lease default/disagg-operator")), "{why}");
        }
        rivals.seen(None, &readiness).await;
        assert_eq!(readiness.why_not_ready(), None, "it is free");
    }

    #[tokio::test]
    async fn without_a_release_all_replicas_are_of_one() {
        let mut rivals = rivals(None);
        let readiness = Readiness::default();
        assert_eq!(rivals.holder_identity(), "pod-1");
        rivals.seen(Some("pod-2"), &readiness).await;
        assert_eq!(readiness.why_not_ready(), None);
        rivals.seen(Some("b/disagg/pod-1"), &readiness).await;
        assert!(readiness.why_not_ready().is_some());
    }
}
