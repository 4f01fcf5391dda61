//! Where requests go, as workers see it.

use disagg_core::{BlockHasher, ModelFingerprint};
use disagg_proto::v1;
use serde_json::json;

use crate::support::fake::{FakeWorker, Options, Step, says};
use crate::support::{TestRouter, completion};

const LOW_THRESHOLD: [&str; 2] = ["--max-local-prefill-length", "8"];

fn remote_script() -> Vec<Step> {
    vec![Step::StartedRemote, Step::Text("ok"), Step::Stop]
}

/// Events of a cache that has the first `blocks` blocks of `tokens`.
pub fn cached(tokens: &[u32], blocks: usize) -> Vec<v1::KvEventBatch> {
    let wire = |hash: disagg_core::BlockHash| v1::Hash128 { high: (hash.0 >> 64) as u64, low: hash.0 as u64 };
    let hashes = BlockHasher::new(ModelFingerprint(7), 4, "").hash_blocks(tokens);
    let stored = |at: usize| v1::KvEvent {
        event: Some(v1::kv_event::Event::Stored(v1::BlockStored {
            hash: Some(wire(hashes[at])),
            parent: at.checked_sub(1).map(|before| wire(hashes[before])),
        })),
    };
    vec![v1::KvEventBatch {
        epoch: 1,
        last_event: blocks as u64,
        snapshot: true,
        snapshot_end: true,
        events: (0..blocks).map(stored).collect(),
    }]
}

#[tokio::test]
async fn a_long_prompt_is_proposed_to_compatible_prefill_workers() {
    let decode = FakeWorker::decode("d0", vec![remote_script()]);
    let prefill = FakeWorker::prefill("p0");
    let other_layout =
        FakeWorker::start(Options { role: v1::Role::Prefill, kv_compat: 8, ..Options::new("p1", vec![]) });
    let workers = [&decode, &prefill, &other_layout];
    let router = TestRouter::start(&workers, &LOW_THRESHOLD).await;
    router.until_ready(&workers).await;
    let answer = router.complete("a long prompt").await;
    assert_eq!(answer.header("x-disagg-placement"), "remote; reason=above-threshold; prefill=p0; decode=d0");
    assert_eq!(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
    let asked = decode.requests().remove(0);
    let remote = asked.remote.unwrap();
    assert_eq!(asked.placement_reason, "above-threshold");
    assert_eq!((remote.max_local_prefill_length, remote.fail_without_remote), (8, false));
    let candidate = v1::PrefillCandidate {
        worker: Some(v1::WorkerRef { name: "p0".to_owned(), epoch: 1 }),
        address: prefill.address.to_string(),
    };
    assert_eq!(remote.candidates, [candidate]);
    // Prefill workers never generate.
    assert_eq!(prefill.requests().len() + other_layout.requests().len(), 0);
}

#[tokio::test]
async fn a_full_or_missing_prefill_pool_means_local_or_fail() {
    let decode = FakeWorker::decode("d0", vec![says("ok")]);
    let prefill = FakeWorker::prefill("p0");
    let workers = [&decode, &prefill];
    let router = TestRouter::start(&workers, &LOW_THRESHOLD).await;
    let failing =
        TestRouter::start(&workers, &[&LOW_THRESHOLD[..], &["--fallback-policy", "Fail"]].concat()).await;
    prefill.report(|load| load.prefill_queue = 2);
    for router in [&router, &failing] {
        router.until_worker(prefill.address, "full", |w| w["load"]["prefill_queue"] == 2).await;
        router.until_ready(&workers).await;
    }
    router.complete("a long prompt").await;
    assert_eq!(decode.requests()[0].placement_reason, "prefill-queue-full");
    let refused = failing.complete("a long prompt").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"));
    assert_eq!(refused.json()["error"]["code"], "no_prefill_worker");
    let line = r#"disagg_router_placements_total{placement="refused",reason="prefill-queue-full"} 1"#;
    failing.until_metric(line).await;

    prefill.kill();
    router.until_worker(prefill.address, "gone", |worker| worker["state"] == "gone").await;
    router.complete("a long prompt").await;
    assert_eq!(decode.requests()[1].placement_reason, "no-prefill-worker");
}

#[tokio::test]
async fn a_cached_prefix_draws_requests_and_lowers_what_is_net_new() {
    let (cold, warm) =
        (FakeWorker::decode("d0", vec![says("cold")]), FakeWorker::decode("d1", vec![says("warm")]));
    let prefill = FakeWorker::prefill("p0");
    let workers = [&cold, &warm, &prefill];
    let router = TestRouter::start(&workers, &LOW_THRESHOLD).await;
    let prompt: Vec<u32> = (1..=16).collect();
    warm.serve_kv_events(cached(&prompt, 2));
    router.until_ready(&workers).await;
    router.until_metric("disagg_router_prefix_index_blocks 2").await;
    let body = json!({ "model": "tiny", "prompt": prompt });
    let answer = router.post("/v1/completions", &body).await;
    assert_eq!(answer.text(), "warm");
    assert_eq!(warm.requests()[0].placement_reason, "below-threshold", "16 - 2 * 4 is not over 8");

    // A worker that is killed has nothing cached any more.
    warm.kill();
    router.until_metric("disagg_router_prefix_index_blocks 0").await;
    assert_eq!(router.post("/v1/completions", &body).await.text(), "cold");
}

#[tokio::test]
async fn what_this_router_has_sent_counts_at_once() {
    let slow = vec![Step::Started, Step::Text("a"), Step::Gate, Step::Stop];
    let (a, b) = (FakeWorker::decode("d0", vec![slow.clone()]), FakeWorker::decode("d1", vec![slow]));
    let workers = [&a, &b];
    let router = TestRouter::start(&workers, &[]).await;
    router.until_ready(&workers).await;
    let first = router.spawn_complete(completion("some prompt"));
    a.until("asked", |seen| seen.requests.len() == 1).await;
    let load = router.until_worker(a.address, "counted", |worker| worker["in_flight"] == 1).await;
    assert_eq!(load["load"]["running"], 0, "the worker itself has not said so");
    let second = router.spawn_complete(completion("some prompt"));
    b.until("asked", |seen| seen.requests.len() == 1).await;
    a.open_gate();
    b.open_gate();
    for answer in [first, second] {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    router.until_worker(a.address, "free", |worker| worker["in_flight"] == 0).await;
}

#[tokio::test]
async fn a_draining_worker_gets_nothing_new() {
    let (a, b) = (FakeWorker::decode("d0", vec![says("a")]), FakeWorker::decode("d1", vec![says("b")]));
    let workers = [&a, &b];
    let router = TestRouter::start(&workers, &[]).await;
    router.until_ready(&workers).await;
    a.report(|load| load.draining = true);
    router.until_worker(a.address, "draining", |worker| worker["state"] == "draining").await;
    for _ in 0..5 {
        assert_eq!(router.complete("p").await.text(), "b");
    }
}

#[tokio::test]
async fn two_generations_of_a_model_are_kept_apart() {
    let old = FakeWorker::decode("d0", vec![remote_script()]);
    let new = FakeWorker::start(Options {
        fingerprint: 9,
        kv_compat: 9,
        bos: false,
        ..Options::new("d1", vec![remote_script()])
    });
    let old_prefill = FakeWorker::prefill("p0");
    let workers = [&old, &new, &old_prefill];
    let router = TestRouter::start(&workers, &LOW_THRESHOLD).await;
    router.until_ready(&workers).await;
    assert_eq!(router.get("/v1/models").await.json()["data"].as_array().unwrap().len(), 1);
    while old.requests().is_empty() || new.requests().is_empty() {
        assert_eq!(router.complete("a long prompt").await.status, 200);
    }
    for request in old.requests() {
        assert_eq!(request.prompt.unwrap().model_fingerprint.unwrap().low, 7);
        assert_eq!(request.remote.unwrap().candidates.len(), 1);
    }
    for request in new.requests() {
        let prompt = request.prompt.unwrap();
        assert_eq!(
            (prompt.model_fingerprint.unwrap().low, prompt.token_ids.len()),
            (9, 13),
            "its own tokenizer"
        );
        assert_eq!(request.remote, None, "no prefill worker of its generation");
    }
}

#[tokio::test]
async fn an_edit_of_the_settings_file_applies_to_new_requests() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.yaml");
    std::fs::write(&path, "maxLocalPrefillLength: 100\n").unwrap();
    let decode = FakeWorker::decode("d0", vec![says("ok")]);
    let prefill = FakeWorker::prefill("p0");
    let workers = [&decode, &prefill];
    let router = TestRouter::start(&workers, &["--settings", path.to_str().unwrap()]).await;
    router.until_ready(&workers).await;
    router.complete("a long prompt").await;
    std::fs::write(&path, "maxLocalPrefillLength: 5\n").unwrap();
    router.until_metric("disagg_router_settings_valid 1").await;
    while router.admin("/internal/settings").await.json()["settings"]["maxLocalPrefillLength"] != 5 {
        tokio::task::yield_now().await;
    }
    router.complete("a long prompt").await;
    let reasons: Vec<String> =
        decode.requests().into_iter().map(|request| request.placement_reason).collect();
    assert_eq!(reasons, ["below-threshold", "above-threshold"]);
    std::fs::write(&path, "maxLocalPrefillLength: x\n").unwrap();
    router.until_metric("disagg_router_settings_valid 0").await;
    assert_eq!(router.admin("/internal/settings").await.json()["settings"]["maxLocalPrefillLength"], 5);
}
