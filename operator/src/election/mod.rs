//! One replica works: the one that holds the Lease. There is one Lease for each scope, all namespaces or one of them,
//! whatever the operators are called that look after it: a second release waits, says so and is not ready. An operator of
//! all namespaces leaves those alone that have an operator of their own ([`claims`]).
//!
//! [`candidate`] decides; this reads and writes the Lease as it says, and tells until when this replica leads. The
//! controller is only polled before that time, so a replica that is cut off or was suspended stops before another one
//! begins, and not when it notices.

mod candidate;
mod claims;
mod rival;
mod sighting;

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::args::OperatorArgs;
use crate::client::is_conflict;
use candidate::{Candidate, Next};
pub(crate) use claims::{Claim, Claims};
pub(crate) use rival::Readiness;
use rival::Rivals;
use sighting::Record;

/// How long giving the Lease back may take.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

/// The Lease cannot be read or written, and time will not change that.
#[derive(Debug, thiserror::Error)]
pub enum ElectionError {
    /// Most often a right is missing, or the namespace.
    #[error("Lease {namespace}/{name}: {source}")]
    Refused {
        /// Namespace of the Lease.
        namespace: String,
        /// Name of the Lease (`--lease-name`).
        name: String,
        /// What the API server answered.
        source: kube::Error,
    },
}

/// Leadership, once it is held.
pub(crate) struct Leadership {
    /// Until when this replica leads; its sender ends with the keeper.
    until: watch::Receiver<Option<Instant>>,
    release: CancellationToken,
    keeper: JoinHandle<()>,
}

impl Leadership {
    /// Waits until this replica leads. As long as another release does, `readiness` has it.
    pub(crate) async fn win(
        client: Client,
        args: &OperatorArgs,
        identity: &str,
        readiness: &Readiness,
    ) -> Result<Self, ElectionError> {
        let namespace = args.home();
        let duration = Duration::from_secs(args.lease_seconds.into());
        let name = args.lease_name.clone();
        let mut rivals = Rivals::new(client.clone(), args, identity, format!("{namespace}/{name}"));
        let identity = rivals.holder_identity();
        tracing::info!(namespace, lease = name, identity, "waiting for the Lease");
        let mut keeper = Keeper {
            api: Api::namespaced(client, namespace),
            candidate: Candidate::new(identity.clone(), duration),
            identity,
            duration,
            name: name.clone(),
        };
        loop {
            match keeper.turn().await {
                Ok(()) => {}
                Err(error) if is_final(&error) => {
                    return Err(ElectionError::Refused {
                        namespace: namespace.to_owned(),
                        name,
                        source: error,
                    });
                }
                Err(error) => tracing::warn!(%error, "the Lease cannot be read or written; trying again"),
            }
            if keeper.candidate.leads_until().is_some_and(|until| Instant::now() < until) {
                break;
            }
            rivals.seen(keeper.candidate.holder(), readiness).await;
            sleep(keeper.candidate.pause()).await;
        }
        readiness.set(None);
        tracing::info!("leading");
        let (sender, until) = watch::channel(keeper.candidate.leads_until());
        let release = CancellationToken::new();
        let keeper = tokio::spawn(keeper.keep(sender, release.clone()));
        Ok(Self { until, release, keeper })
    }

    /// Resolves when another replica may lead. It looks at the clock whenever it is polled, so what is polled after it
    /// in a biased `select!` does nothing from that moment on.
    pub(crate) async fn lost(&mut self) {
        loop {
            let Some(until) = *self.until.borrow_and_update() else { return };
            let over = async {
                let timer = sleep_until(until.into());
                tokio::pin!(timer);
                std::future::poll_fn(|context| {
                    if Instant::now() >= until {
                        return std::task::Poll::Ready(());
                    }
                    timer.as_mut().poll(context)
                })
                .await;
            };
            tokio::select! {
                biased;
                () = over => return,
                changed = self.until.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Lets another replica take over at once.
    pub(crate) async fn give_back(self) {
        self.release.cancel();
        if timeout(RELEASE_WITHIN, self.keeper).await.is_err() {
            tracing::warn!("the Lease is not given back; another replica takes over when it expires");
        }
    }
}

/// Reads and writes the Lease.
struct Keeper {
    api: Api<Lease>,
    candidate: Candidate,
    identity: String,
    duration: Duration,
    name: String,
}

impl Keeper {
    /// Renews the Lease until it is lost or to be given back.
    async fn keep(mut self, until: watch::Sender<Option<Instant>>, release: CancellationToken) {
        loop {
            tokio::select! {
                () = release.cancelled() => return self.give_back().await,
                () = sleep(self.candidate.pause()) => {}
            }
            if let Err(error) = self.turn().await {
                tracing::warn!(%error, "the Lease is not renewed; trying again");
            }
            let now_until = self.candidate.leads_until();
            until.send_replace(now_until);
            if now_until.is_none_or(|until| Instant::now() >= until) {
                return;
            }
        }
    }

    /// One renewal, or one look with what follows from it.
    async fn turn(&mut self) -> Result<(), kube::Error> {
        // A request that hangs must not take the time of the next.
        let patience = self.candidate.pause() * 2;
        match timeout(patience, self.exchange()).await {
            Ok(result) => result,
            Err(_) => Err(kube::Error::Service("the API server does not answer".into())),
        }
    }

    async fn exchange(&mut self) -> Result<(), kube::Error> {
        if let Some(version) = self.candidate.to_renew() {
            let body = json!({
                "metadata": { "resourceVersion": version },
                "spec": { "renewTime": MicroTime(Timestamp::now()) },
            });
            if self.write(&body).await? {
                return Ok(());
            }
        }
        let Some(record) = self.read().await? else { return Ok(()) };
        match self.candidate.read(record, Instant::now()) {
            Next::Wait => Ok(()),
            Next::Take { version, transitions } => {
                let mut spec = self.spec();
                spec["leaseTransitions"] = json!(transitions);
                self.write(&json!({ "metadata": { "resourceVersion": version }, "spec": spec })).await?;
                Ok(())
            }
        }
    }

    /// The Lease as it is. Makes it, held by this replica, if there is none.
    async fn read(&mut self) -> Result<Option<Record>, kube::Error> {
        if let Some(lease) = self.api.get_opt(&self.name).await? {
            return Ok(Some(Record::from(&lease)));
        }
        let sent = Instant::now();
        let new = json!({ "metadata": { "name": self.name }, "spec": self.spec() });
        let new = serde_json::from_value(new).map_err(kube::Error::SerdeError)?;
        match self.api.create(&PostParams::default(), &new).await {
            Ok(made) => {
                self.candidate.wrote(Record::from(&made).version, sent);
                Ok(None)
            }
            // Somebody else made it meanwhile.
            Err(error) if is_conflict(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Patches the Lease in the version that `body` is bound to; false if it has another.
    async fn write(&mut self, body: &Value) -> Result<bool, kube::Error> {
        let sent = Instant::now();
        let params =
            PatchParams { field_manager: Some("disagg-operator".to_owned()), ..PatchParams::default() };
        match self.api.patch(&self.name, &params, &Patch::Merge(body)).await {
            Ok(now) => {
                self.candidate.wrote(Record::from(&now).version, sent);
                Ok(true)
            }
            Err(error) if is_conflict(&error) => {
                self.candidate.conflicted();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn spec(&self) -> Value {
        let now = MicroTime(Timestamp::now());
        json!({
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self.duration.as_secs(),
            "acquireTime": now,
            "renewTime": now,
        })
    }

    async fn give_back(mut self) {
        let Some(version) = self.candidate.to_renew() else { return };
        let nobody = json!({ "holderIdentity": null, "renewTime": null, "acquireTime": null });
        let body = json!({ "metadata": { "resourceVersion": version }, "spec": nobody });
        match self.write(&body).await {
            Ok(true) => tracing::info!("the Lease is given back"),
            Ok(false) => tracing::info!("the Lease is another replica's already"),
            Err(error) => {
                tracing::warn!(%error, "the Lease is not given back; another replica takes over when it expires");
            }
        }
    }
}

/// Time will not change it: this replica may not, or the namespace is not there.
fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if [401, 403, 404].contains(&status.code))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leadership until `until`, as a keeper would have it that renews no more.
    fn leading(until: Instant) -> (watch::Sender<Option<Instant>>, Leadership) {
        let (sender, receiver) = watch::channel(Some(until));
        let keeper = tokio::spawn(std::future::pending());
        (sender, Leadership { until: receiver, release: CancellationToken::new(), keeper })
    }

    #[tokio::test]
    async fn nothing_is_done_after_the_time_is_over() {
        let (_sender, mut leadership) = leading(Instant::now());
        let work = async { panic!("it was polled") };
        tokio::select! {
            biased;
            () = leadership.lost() => {}
            () = work => {}
        }
    }

    #[tokio::test]
    async fn it_is_lost_when_its_time_is_over_and_not_before() {
        let until = Instant::now() + Duration::from_millis(50);
        let (_sender, mut leadership) = leading(until);
        leadership.lost().await;
        assert!(Instant::now() >= until);
    }

    #[tokio::test]
    async fn a_renewal_prolongs_it_and_the_end_of_the_keeper_ends_it() {
        let (sender, mut leadership) = leading(Instant::now() + Duration::from_hours(1));
        sender.send_replace(Some(Instant::now() + Duration::from_hours(2)));
        assert!(timeout(Duration::from_millis(20), leadership.lost()).await.is_err());
        sender.send_replace(None);
        leadership.lost().await;
        let (sender, mut leadership) = leading(Instant::now() + Duration::from_hours(1));
        drop(sender);
        leadership.lost().await;
    }
}
