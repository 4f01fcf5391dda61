//! What reconciles share.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use parking_lot::Mutex;

use crate::args::{DefaultImages, OperatorArgs};
use crate::backoff::Backoff;
use crate::metrics::Metrics;
use crate::prometheus::Served;
use crate::reconcile::{Held, Reports, Sent, Written};
use crate::stores::Stores;

/// How long connecting to a router may take, and how long its answer.
const ROUTER_TIMEOUT: Duration = Duration::from_secs(2);

/// What reconciles share. Everything that is remembered here can be lost: it saves requests, and is made again.
pub(crate) struct Context {
    pub client: Client,
    pub stores: Stores,
    /// Whether the cluster knows PodMonitors.
    pub pod_monitors: Served,
    pub images: DefaultImages,
    pub recorder: Recorder,
    pub metrics: Arc<Metrics>,
    pub backoff: Backoff,
    /// To ask routers what they apply.
    pub http: reqwest::Client,
    /// What was sent last, so that equal objects are not sent again.
    pub sent: Mutex<HashMap<Key, Sent>>,
    /// The settings as they were last seen, for a ConfigMap that is deleted with its annotations.
    pub held: Mutex<HashMap<Key, Held>>,
    /// What routers said last, so that each is asked once for each change.
    pub reports: Mutex<HashMap<Key, Reports>>,
    /// The statuses that were written last, which the watch may not have shown yet.
    pub written: Mutex<HashMap<Key, Written>>,
    /// What was said of resources that cannot be decoded: the generation that it was about, and why.
    pub undecodable: Mutex<HashMap<Key, (Option<i64>, String)>>,
}

/// An object: its kind, namespace and name.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
}

impl Context {
    pub(crate) fn new(
        client: Client,
        stores: Stores,
        pod_monitors: Served,
        metrics: Arc<Metrics>,
        args: &OperatorArgs,
        identity: String,
    ) -> Result<Self, reqwest::Error> {
        let reporter = Reporter { controller: "disagg-operator".to_owned(), instance: Some(identity) };
        Ok(Self {
            recorder: Recorder::new(client.clone(), reporter),
            http: reqwest::Client::builder().no_proxy().timeout(ROUTER_TIMEOUT).build()?,
            client,
            stores,
            pod_monitors,
            images: args.into(),
            metrics,
            backoff: Backoff::default(),
            sent: Mutex::default(),
            held: Mutex::default(),
            reports: Mutex::default(),
            written: Mutex::default(),
            undecodable: Mutex::default(),
        })
    }

    /// Forgets what is remembered of a resource that is gone.
    pub(crate) fn forget(&self, namespace: &str, name: &str) {
        let child_of = |key: &Key| {
            let suffixes = ["", "-prefill", "-decode", "-router", "-worker"];
            key.namespace == namespace
                && key.name.strip_prefix(name).is_some_and(|suffix| suffixes.contains(&suffix))
        };
        self.sent.lock().retain(|key, _| !child_of(key));
        self.held.lock().retain(|key, _| !child_of(key));
        self.reports.lock().retain(|key, _| !child_of(key));
        self.written.lock().retain(|key, _| !child_of(key));
        self.undecodable.lock().retain(|key, _| !child_of(key));
        self.backoff.forget(namespace, name);
    }
}
