//! A router in a cluster: workers from EndpointSlices, settings from a ConfigMap, and an API server that is not always
//! there.

use std::time::Instant;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::{interval, timeout};

use crate::support::api_server::{ApiServer, EDIT};
use crate::support::fake::{FakeWorker, Step, says};
use crate::support::{SOON, TestRouter, streamed};

const LAST_GOOD: &str =
    r#"{"maxLocalPrefillLength":"64","maxPrefillQueueDepth":"3","fallbackPolicy":"Local"}"#;

fn serving() -> Value {
    json!({ "ready": true, "serving": true, "terminating": false })
}

fn not_serving() -> Value {
    // As a Service that publishes addresses that are not ready has it.
    json!({ "ready": true, "serving": false, "terminating": false })
}

fn terminating() -> Value {
    json!({ "ready": false, "serving": true, "terminating": true })
}

async fn router(api: &ApiServer) -> TestRouter {
    TestRouter::start_with(&api.flags()).await
}

/// Waits until a JSON endpoint of the admin port answers as wanted.
async fn until(router: &TestRouter, path: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut ticks = interval(std::time::Duration::from_millis(5));
    let mut last = Value::Null;
    let wait = async {
        loop {
            ticks.tick().await;
            last = router.admin(path).await.json();
            if wanted(&last) {
                return;
            }
        }
    };
    assert!(timeout(SOON, wait).await.is_ok(), "never {what}: {last}");
    last
}

async fn settings(router: &TestRouter, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    until(router, "/internal/settings", what, wanted).await
}

fn problem(settings: &Value) -> &str {
    settings["problem"].as_str().unwrap_or_default()
}

async fn until_workers(router: &TestRouter, expected: &[(std::net::SocketAddr, &str)]) {
    let mut expected: Vec<(String, String)> =
        expected.iter().map(|(address, state)| (address.to_string(), (*state).to_owned())).collect();
    expected.sort();
    let states = |answer: &Value| {
        let text = |worker: &Value, key: &str| worker[key].as_str().expect("text").to_owned();
        let all = answer["workers"].as_array().expect("a list");
        let mut states: Vec<_> =
            all.iter().map(|worker| (text(worker, "address"), text(worker, "state"))).collect();
        states.sort();
        states
    };
    until(router, "/internal/workers", &format!("{expected:?}"), |answer| states(answer) == expected).await;
}

#[tokio::test]
async fn workers_come_and_go_with_their_endpoints() {
    let (first, second) =
        (FakeWorker::decode("d0", vec![says("first")]), FakeWorker::decode("d1", vec![says("second")]));
    let prefill = FakeWorker::prefill("p0");
    let api = ApiServer::start();
    api.put_settings(&json!({ "maxLocalPrefillLength": "100" }), "");
    api.put_workers("prefill", &[(prefill.address, serving())]);
    let router = router(&api).await;
    until_workers(&router, &[(prefill.address, "ready")]).await;
    let waiting = router.get("/ready").await;
    assert_eq!(waiting.status, 503);
    let reason = waiting.json()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("no decode worker") && reason.contains("p0 (ready): prefills only"), "{reason}");

    api.put_workers("decode", &[(first.address, serving())]);
    until_workers(&router, &[(prefill.address, "ready"), (first.address, "ready")]).await;
    assert_eq!(router.get("/ready").await.status, 200);
    assert_eq!(router.complete("p").await.text(), "first");

    api.put_workers("decode", &[(first.address, terminating()), (second.address, serving())]);
    let expected = [(prefill.address, "ready"), (first.address, "draining"), (second.address, "ready")];
    until_workers(&router, &expected).await;
    let served = first.requests().len();
    for _ in 0..4 {
        assert_eq!(router.complete("p").await.text(), "second");
    }
    assert_eq!(first.requests().len(), served, "a worker that terminates gets nothing new");
    api.delete_slice("decode-0");
    until_workers(&router, &[(prefill.address, "ready"), (second.address, "ready")]).await;

    // Only what is needed was asked for.
    for (path, query) in api.asked() {
        if path.ends_with("endpointslices") {
            let selector = "disagg.dev/deployment=demo,disagg.dev/role in (decode,prefill)";
            assert_eq!(query["labelSelector"], selector);
        } else {
            assert_eq!(query["fieldSelector"], "metadata.name=demo-router", "{path}");
        }
    }
}

#[tokio::test]
async fn a_stream_outlives_the_endpoint_of_its_worker() {
    let script = vec![Step::Started, Step::Text("begun"), Step::Gate, Step::Text(" and ended"), Step::Stop];
    let worker = FakeWorker::decode("d0", vec![script]);
    let api = ApiServer::start();
    api.put_settings(&json!({ "maxLocalPrefillLength": "100" }), "");
    api.put_workers("decode", &[(worker.address, serving())]);
    let router = router(&api).await;
    until_workers(&router, &[(worker.address, "ready")]).await;
    let open = router.send("/v1/completions", &streamed("p")).await;
    api.put_workers("decode", &[(worker.address, terminating())]);
    until_workers(&router, &[(worker.address, "draining")]).await;
    api.delete_slice("decode-0");
    until_workers(&router, &[]).await;
    worker.open_gate();
    let text = timeout(SOON, open.text()).await.expect("in time").expect("a whole answer");
    assert!(text.contains(" and ended") && text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn a_pod_that_is_not_ready_is_used_only_where_no_other_can_be() {
    let (slow, well) =
        (FakeWorker::decode("d0", vec![says("slow")]), FakeWorker::decode("d1", vec![says("well")]));
    let api = ApiServer::start();
    api.put_settings(&json!({ "maxLocalPrefillLength": "100" }), "");
    api.put_workers("decode", &[(slow.address, not_serving())]);
    let router = router(&api).await;
    until_workers(&router, &[(slow.address, "ready")]).await;
    assert_eq!(router.complete("p").await.text(), "slow", "it says itself that it can");
    api.put_workers("decode", &[(slow.address, not_serving()), (well.address, serving())]);
    until_workers(&router, &[(slow.address, "ready"), (well.address, "ready")]).await;
    for _ in 0..4 {
        assert_eq!(router.complete("p").await.text(), "well");
    }
    let problem = router.worker(slow.address).await["problem"].to_string();
    assert!(problem.contains("its pod is not ready"), "{problem}");
}

#[tokio::test]
async fn an_edit_is_in_force_within_a_second_and_a_bad_one_changes_nothing() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let api = ApiServer::start();
    api.put_settings(&json!({ "maxLocalPrefillLength": "100" }), LAST_GOOD);
    api.put_workers("decode", &[(worker.address, serving())]);
    let router = router(&api).await;
    let length = |settings: &Value| settings["settings"]["maxLocalPrefillLength"].as_u64().unwrap();
    settings(&router, "read", |now| length(now) == 100).await;

    let version = api.put_settings(&json!({ "maxLocalPrefillLength": "7" }), LAST_GOOD);
    let edited = Instant::now();
    let now = settings(&router, "edited", |now| length(now) == 7).await;
    assert!(edited.elapsed() < EDIT, "took {:?}", edited.elapsed());
    // A key that is absent has its last good value.
    let expected = json!({ "maxLocalPrefillLength": 7, "maxPrefillQueueDepth": 3, "fallbackPolicy": "Local", "overlapWeightPercent": 100 });
    assert_eq!(now["settings"], expected);
    assert_eq!(
        (&now["source"], &now["resourceVersion"]),
        (&json!("ConfigMap llm/demo-router"), &json!(version))
    );
    router.until_metric("disagg_router_settings_valid 1").await;

    let version =
        api.put_settings(&json!({ "maxLocalPrefillLength": "many", "maxPrefillQueueDepth": "9" }), LAST_GOOD);
    let now = settings(&router, "refused", |now| problem(now).contains("\"many\" is not allowed")).await;
    assert_eq!((now["settings"].clone(), &now["resourceVersion"]), (expected.clone(), &json!(version)));
    router.until_metric("disagg_router_settings_valid 0").await;

    api.put_settings(&json!({ "speed": "1" }), LAST_GOOD);
    let now = settings(&router, "unknown", |now| problem(now).contains("speed: unknown key")).await;
    assert_eq!(now["settings"], expected);
    api.delete_settings();
    let now = settings(&router, "deleted", |now| problem(now).contains("there is no ConfigMap")).await;
    assert_eq!(now["settings"], expected);

    api.put_settings(&json!({ "maxLocalPrefillLength": "8" }), LAST_GOOD);
    settings(&router, "mended", |now| length(now) == 8 && now["problem"].is_null()).await;
    router.until_metric("disagg_router_settings_valid 1").await;
}

#[tokio::test]
async fn a_router_that_starts_while_the_settings_are_bad_serves_by_the_last_good() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let api = ApiServer::start();
    api.put_settings(&json!({ "maxLocalPrefillLength": "many" }), LAST_GOOD);
    api.put_workers("decode", &[(worker.address, serving())]);
    let router = router(&api).await;
    let now = settings(&router, "read", |now| problem(now).contains("last-good")).await;
    let expected = json!({ "maxLocalPrefillLength": 64, "maxPrefillQueueDepth": 3, "fallbackPolicy": "Local", "overlapWeightPercent": 100 });
    assert_eq!(now["settings"], expected);
    until_workers(&router, &[(worker.address, "ready")]).await;
    assert_eq!(router.get("/ready").await.status, 200);
}

#[tokio::test]
async fn an_object_that_cannot_be_read_holds_nothing_up() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let api = ApiServer::start();
    api.put_settings(&json!({ "maxLocalPrefillLength": "100" }), "");
    api.put_broken_slice("broken");
    api.put_workers("decode", &[(worker.address, serving())]);
    let router = router(&api).await;
    until_workers(&router, &[(worker.address, "ready")]).await;
    // What becomes unreadable is as it was; others go on.
    let other = FakeWorker::decode("d1", vec![says("x")]);
    api.put_broken_slice("decode-0");
    api.put_workers("more", &[(other.address, serving())]);
    until_workers(&router, &[(worker.address, "ready"), (other.address, "ready")]).await;
    api.forget();
    api.delete_slice("more-0");
    until_workers(&router, &[(worker.address, "ready")]).await;
}

#[tokio::test]
async fn the_api_server_may_be_away() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let mut api = ApiServer::start();
    api.put_settings(&json!({ "maxLocalPrefillLength": "100" }), "");
    api.put_workers("decode", &[(worker.address, serving())]);
    api.go_away();
    let router = router(&api).await;
    assert_eq!(router.get("/health").await.status, 200);
    until(&router, "/ready", "told", |answer| {
        answer["reason"].as_str().is_some_and(|reason| reason.contains("cannot read endpointslices"))
    })
    .await;
    assert_eq!(router.get("/ready").await.status, 503);

    api.come_back();
    until_workers(&router, &[(worker.address, "ready")]).await;
    until(&router, "/ready", "ready", |answer| answer["status"] == "ready").await;
    router.until_metric("disagg_router_kubernetes_watch_up{feed=\"configmap\"} 1").await;

    // What is known stays in force; what has changed meanwhile is learned at its return.
    api.go_away();
    router.until_metric("disagg_router_kubernetes_watch_up{feed=\"endpointslices\"} 0").await;
    assert_eq!(router.complete("p").await.text(), "x");
    assert_eq!(router.get("/ready").await.status, 200);
    api.put_settings(&json!({ "maxLocalPrefillLength": "5" }), "");
    api.come_back();
    settings(&router, "caught up", |now| now["settings"]["maxLocalPrefillLength"] == 5).await;
    router.until_metric("disagg_router_kubernetes_watch_up{feed=\"endpointslices\"} 1").await;
}

#[tokio::test]
async fn a_router_without_rights_says_so_and_waits() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let api = ApiServer::start();
    let message = "endpointslices.discovery.k8s.io is forbidden: User \"system:serviceaccount:llm:demo-router\" \
                   cannot list resource";
    api.refuse(Some((StatusCode::FORBIDDEN, message)));
    api.put_workers("decode", &[(worker.address, serving())]);
    api.put_settings(&json!({ "maxLocalPrefillLength": "100" }), "");
    let router = router(&api).await;
    until(&router, "/ready", "told", |answer| {
        answer["reason"].as_str().is_some_and(|reason| reason.ends_with(message))
    })
    .await;
    api.refuse(None);
    until(&router, "/ready", "ready", |answer| answer["status"] == "ready").await;
}
