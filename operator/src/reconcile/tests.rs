//! What a reconcile does in a namespace that has an operator of its own: nothing, and it says so.

use clap::Parser as _;
use http::{Request, Response};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::client::Body;
use kube::core::DeserializeGuard;
use kube::runtime::{reflector, watcher};
use parking_lot::Mutex;
use serde_json::json;

use super::*;
use crate::args::OperatorArgs;
use crate::prometheus::Served;
use crate::stores::Stores;

/// Requests as "METHOD plural", in order.
type Requests = Arc<Mutex<Vec<String>>>;

/// What a watch of Leases would write.
type Leases = reflector::store::Writer<DeserializeGuard<Lease>>;

/// A reconciler whose requests are noted down and answered with what was sent, and the writer of its Leases.
fn reconciler() -> (Requests, Arc<Reconciler>, Leases) {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&requests);
    let service = tower::service_fn(move |request: Request<Body>| {
        let noted = Arc::clone(&noted);
        async move {
            let plural = request.uri().path().rsplit('/').find(|part| !part.contains("demo"));
            noted.lock().push(format!("{} {}", request.method(), plural.unwrap_or_default()));
            let body = request.into_body().collect_bytes().await?;
            Ok::<_, kube::Error>(Response::new(Body::from(body)))
        }
    });
    let client = Client::new(service, "ns");
    // A test before this one may have been the first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = OperatorArgs::parse_from(["operator", "--router-image", "r", "--worker-image", "w"]);
    let served = Served::default();
    let (mut stores, _triggers) = Stores::new(&client, &args, &served.once());
    let (leases, writer) = reflector::store();
    stores.leases = Some(leases);
    let context = Context::new(client, stores, served, &args, "me".to_owned()).unwrap();
    let reconciler = Reconciler::new(context, Arc::new(Metrics::new()), Claims::new(&args));
    (requests, Arc::new(reconciler), writer)
}

fn resource() -> Arc<Guarded> {
    let resource = json!({
        "apiVersion": "disagg.dev/v1alpha1", "kind": "DisaggDeployment",
        "metadata": { "name": "demo", "namespace": "ns", "uid": "u" },
        "spec": { "model": { "source": { "random": {} } } },
    });
    Arc::new(serde_json::from_value(resource).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_resource_is_left_to_the_operator_of_its_namespace_until_that_one_is_gone() {
    let (requests, reconciler, mut leases) = reconciler();
    let lease = json!({
        "metadata": { "name": "disagg-operator", "namespace": "ns" },
        "spec": { "holderIdentity": "ns/disagg/0", "leaseDurationSeconds": 10, "renewTime": "2026-01-01T00:00:00.000000Z" },
    });
    leases.apply_watcher_event(&watcher::Event::Init);
    leases.apply_watcher_event(&watcher::Event::InitApply(serde_json::from_value(lease).unwrap()));
    leases.apply_watcher_event(&watcher::Event::InitDone);
    let turn = async || Box::pin(reconcile(resource(), Arc::clone(&reconciler))).await;

    assert_eq!(turn().await.unwrap(), Action::requeue(Duration::from_secs(10)));
    assert_eq!(*requests.lock(), ["POST events"], "an Event, and nothing else");
    tokio::time::advance(Duration::from_secs(4)).await;
    assert_eq!(turn().await.unwrap(), Action::requeue(Duration::from_secs(6)));
    assert_eq!(*requests.lock(), ["POST events"], "which is told once");

    tokio::time::advance(Duration::from_secs(6)).await;
    // The answers are no good, but it has begun to apply.
    let _ = turn().await;
    let requests = requests.lock();
    for kind in ["statefulsets", "deployments", "configmaps", "services"] {
        assert!(requests.contains(&format!("PATCH {kind}")), "{requests:?}");
    }
}
