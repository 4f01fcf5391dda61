//! Two replicas of the operator: one works, and when it vanishes the other takes over and finds nothing to do. Of two
//! releases the second waits, and says so.

use std::time::{Duration, Instant};

use disagg_e2e::cluster::{LEASE, Namespace, Operator};
use disagg_e2e::eventually;
use k8s_openapi::api::coordination::v1::Lease;
use serde_json::json;

use super::converge::{all_children, events, force_reconcile, settled_children, trouble_is_told, versions};
use super::{SOON, cluster, no_workers, no_workers_with};

/// The default. A shorter one is lost, as it should be, when a loaded machine stalls for two thirds of it.
const LEASE_TIME: Duration = Duration::from_secs(15);

/// Beyond the Lease's time, for a loaded machine.
const SLACK: Duration = Duration::from_secs(15);

async fn holder(namespace: &Namespace) -> Option<String> {
    let lease = namespace.api::<Lease>().get_opt(LEASE).await.expect("a Lease, or none");
    lease.and_then(|lease| lease.spec).and_then(|spec| spec.holder_identity)
}

/// Waits until this replica leads, and gives how long it took.
async fn leads(operator: &Operator, within: Duration) -> Duration {
    let start = Instant::now();
    eventually("the replica to lead", within, async || {
        if operator.leads().await { Ok(()) } else { Err("it waits".to_owned()) }
    })
    .await;
    start.elapsed()
}

#[tokio::test]
async fn another_replica_takes_over_and_changes_nothing() {
    let namespace = Namespace::create(cluster(), "operator-election").await;
    let mut first = Operator::elected(cluster(), &namespace, "first", LEASE_TIME);
    leads(&first, SOON).await;
    let second = Operator::elected(cluster(), &namespace, "second", LEASE_TIME);
    namespace.apply("led", &no_workers()).await;
    settled_children(&namespace).await;
    namespace.condition("led", "SettingsValid", "True", SOON).await;
    trouble_is_told(&namespace, "led").await;
    assert_eq!(holder(&namespace).await.as_deref(), Some("first"));
    assert!(first.leads().await && !second.leads().await);
    assert!(second.reconciles().await.is_empty(), "a replica that waits does nothing");
    // Its Events follow the status; one turn more, and the one that wrote it has ended.
    force_reconcile(&namespace, &first, "led", first.reconciles().await["success"]).await;
    let before = (versions(&settled_children(&namespace).await), events(&namespace).await);

    // It vanishes, as with its node: nobody gives the Lease back.
    first.kill();
    let took = leads(&second, LEASE_TIME + SLACK).await;
    eprintln!(
        "a leader was killed; another led after {:.1} s with a Lease of {LEASE_TIME:?}",
        took.as_secs_f64()
    );
    assert_eq!(holder(&namespace).await.as_deref(), Some("second"));
    eventually("the new leader to have looked at the resource", SOON, async || {
        let done = second.reconciles().await;
        if done.contains_key("success") { Ok(()) } else { Err(format!("{done:?}")) }
    })
    .await;
    let after = (versions(&all_children(&namespace, 1).await), events(&namespace).await);
    assert_eq!(before, after, "the new leader changed something, or told of something again");

    // It works; the one that comes back waits, and takes over when the leader has ended in order.
    first.start_again();
    let changed = no_workers_with("/disaggregation/maxLocalPrefillLength", json!(99));
    namespace.apply("led", &changed).await;
    eventually("the change to be written through", SOON, async || {
        let children = all_children(&namespace, 1).await;
        let written = &children["ConfigMap led-router"]["data"]["maxLocalPrefillLength"];
        if written == "99" { Ok(()) } else { Err(written.to_string()) }
    })
    .await;
    assert!(second.leads().await && !first.leads().await && first.reconciles().await.is_empty());
    let mut second = second;
    let start = Instant::now();
    second.end().await;
    leads(&first, LEASE_TIME + SLACK).await;
    eprintln!(
        "a leader ended in order; another led {:.1} s after its SIGTERM",
        start.elapsed().as_secs_f64()
    );
}

#[tokio::test]
async fn a_second_release_does_nothing_and_says_so_until_the_first_is_gone() {
    let namespace = Namespace::create(cluster(), "operator-releases").await;
    let mut first = Operator::of_release(cluster(), &namespace, "system-a/disagg", LEASE_TIME);
    leads(&first, SOON).await;
    assert_eq!(first.readiness().await.0, 200);
    let second = Operator::of_release(cluster(), &namespace, "system-b/disagg", LEASE_TIME);
    let says = eventually("the second release to say that it does nothing", SOON, async || {
        let (status, text) = second.readiness().await;
        if status == 503 { Ok(text) } else { Err(text) }
    })
    .await;
    assert!(
        says.contains("system-a/disagg/operator-pod holds the Lease operator-releases/disagg-operator"),
        "{says}"
    );
    assert!(second.log().contains("another release of the operator"), "{}", second.log());
    eventually("an Event about its pod", SOON, async || {
        let told = namespace.kubectl(&[
            "get",
            "events",
            "--field-selector=reason=AnotherRelease",
            "--output=name",
        ])?;
        if told.lines().count() == 1 { Ok(()) } else { Err(told) }
    })
    .await;
    namespace.apply("shared", &no_workers()).await;
    trouble_is_told(&namespace, "shared").await;
    let before = versions(&settled_children(&namespace).await);
    assert!(second.reconciles().await.is_empty(), "it undoes nothing");
    first.end().await;
    leads(&second, LEASE_TIME + SLACK).await;
    assert_eq!(second.readiness().await.0, 200);
    eventually("the second release to have looked at the resource", SOON, async || {
        let done = second.reconciles().await;
        if done.contains_key("success") { Ok(()) } else { Err(format!("{done:?}")) }
    })
    .await;
    assert_eq!(before, versions(&all_children(&namespace, 1).await));
}
