//! The cluster, as every step of a reconcile reaches it.

use std::time::Duration;

use kube::Client;
use kube::runtime::events::{Recorder, Reporter};

use crate::args::{DefaultImages, OperatorArgs};
use crate::prometheus::Served;
use crate::stores::Stores;

/// How long connecting to a router may take, and how long its answer.
const ROUTER_TIMEOUT: Duration = Duration::from_secs(2);

/// The way to the API server and to the routers, and the operator's own defaults. It holds no state of any resource.
pub(crate) struct Context {
    pub client: Client,
    pub stores: Stores,
    /// Whether the cluster knows PodMonitors.
    pub pod_monitors: Served,
    pub images: DefaultImages,
    pub recorder: Recorder,
    /// To ask routers which settings they apply.
    pub http: reqwest::Client,
}

impl Context {
    pub(crate) fn new(
        client: Client,
        stores: Stores,
        pod_monitors: Served,
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
        })
    }
}
