//! How workers are chosen: strategies, what workers measured, and KV events that break off.

use disagg_proto::v1;
use serde_json::json;

use crate::placement::cached;
use crate::support::fake::{FakeWorker, Options, Step, says};
use crate::support::{TestRouter, completion};

#[tokio::test]
async fn in_turn_every_worker_gets_as_much() {
    let names = ["d0", "d1", "d2"];
    let workers = names.map(|name| FakeWorker::decode(name, vec![says("x")]));
    let workers: Vec<&FakeWorker> = workers.iter().collect();
    let router = TestRouter::start(&workers, &["--routing", "round-robin"]).await;
    router.until_ready(&workers).await;
    for round in 1..=3 {
        for _ in &workers {
            router.complete("p").await;
        }
        assert_eq!(workers.iter().map(|worker| worker.requests().len()).collect::<Vec<_>>(), [round; 3]);
    }
}

#[tokio::test]
async fn at_random_everybody_gets_some() {
    let (a, b) = (FakeWorker::decode("d0", vec![says("a")]), FakeWorker::decode("d1", vec![says("b")]));
    let router = TestRouter::start(&[&a, &b], &["--routing", "random"]).await;
    router.until_ready(&[&a, &b]).await;
    // By load the first would get all of them, since each is over before the next. 40 heads in a row do not happen.
    for _ in 0..40 {
        router.complete("p").await;
    }
    assert!(!a.requests().is_empty() && !b.requests().is_empty());
}

#[tokio::test]
async fn by_load_alone_a_cached_prefix_does_not_count() {
    let (idle, warm) =
        (FakeWorker::decode("d0", vec![says("idle")]), FakeWorker::decode("d1", vec![says("warm")]));
    let workers = [&idle, &warm];
    let prompt: Vec<u32> = (1..=16).collect();
    warm.serve_kv_events(cached(&prompt, 4));
    warm.report(|load| load.blocks_used = 1);
    let body = json!({ "model": "tiny", "prompt": prompt });
    for (routing, chosen) in [("least-loaded", "idle"), ("kv", "warm")] {
        let router = TestRouter::start(&workers, &["--routing", routing]).await;
        router.until_ready(&workers).await;
        router.until_metric("disagg_router_prefix_index_blocks 4").await;
        assert_eq!(router.post("/v1/completions", &body).await.text(), chosen);
    }
}

#[tokio::test]
async fn a_router_waits_for_as_many_workers_as_it_is_told_to() {
    let decode = FakeWorker::decode("d0", vec![says("at last")]);
    let prefill = FakeWorker::prefill("p0");
    let address = prefill.address;
    prefill.kill();
    let addresses = [decode.address.to_string(), address.to_string()];
    let flags = ["--min-workers", "2", "--max-wait-for-worker-seconds"];
    let impatient = TestRouter::start_for(&addresses, &[&flags[..], &["0"]].concat()).await;
    impatient.until_ready(&[&decode]).await;
    let refused = impatient.complete("p").await;
    assert_eq!(refused.status, 503);
    assert!(
        refused.body.contains("1 of the 2 workers that --min-workers asks for are ready"),
        "{}",
        refused.body
    );
    let ready = impatient.get("/ready").await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("1 of the 2 workers"), "{}", ready.body);

    let patient = TestRouter::start_for(&addresses, &[&flags[..], &["30"]].concat()).await;
    let waiting = patient.spawn_complete(completion("p"));
    patient.until_metric("disagg_router_requests_in_flight 1").await;
    assert_eq!(decode.requests().len(), 0);
    let back =
        FakeWorker::start_at(Options { role: v1::Role::Prefill, ..Options::new("p0", vec![]) }, address);
    assert_eq!(waiting.await.unwrap().text(), "at last");
    assert_eq!(patient.get("/ready").await.status, 200);
    // Only the start has to wait.
    back.kill();
    patient.until_worker(address, "gone", |worker| worker["state"] == "gone").await;
    assert_eq!(patient.complete("p").await.status, 200);
}

#[tokio::test]
async fn the_pair_that_transfers_faster_is_asked_first() {
    let script = vec![Step::StartedRemote, Step::Text("ok"), Step::Stop];
    let decode = FakeWorker::decode("d0", vec![script]);
    let (slow, fast) = (FakeWorker::prefill("p0"), FakeWorker::prefill("p1"));
    let workers = [&decode, &slow, &fast];
    let router = TestRouter::start(&workers, &["--max-local-prefill-length", "8"]).await;
    router.until_ready(&workers).await;
    let candidates = |request: &v1::GenerateRequest| -> Vec<String> {
        let remote = request.remote.as_ref().unwrap();
        remote.candidates.iter().map(|candidate| candidate.worker.as_ref().unwrap().name.clone()).collect()
    };
    router.complete("a long prompt").await;
    assert_eq!(candidates(&decode.requests()[0]), ["p0", "p1"], "nothing is measured yet");
    let measured = |bytes_per_second| {
        // What another pair measured does not count here.
        let transfer =
            |worker: &str, bytes_per_second| v1::PeerTransfer { worker: worker.to_owned(), bytes_per_second };
        vec![transfer("d0", bytes_per_second), transfer("d9", 1e15)]
    };
    for (worker, speed) in [(&slow, 1e4), (&fast, 1e9)] {
        worker.report(|load| load.transfers = measured(speed));
        let known = |worker: &serde_json::Value| worker["transfer_bytes_per_second"]["d0"] == speed;
        router.until_worker(worker.address, "measured", known).await;
    }
    router.complete("a long prompt").await;
    assert_eq!(candidates(&decode.requests()[1]), ["p1", "p0"]);
}

#[tokio::test]
async fn the_index_starts_anew_whenever_a_workers_events_break_off() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &["--max-prefix-index-mib", "1"]).await;
    router.until_ready(&[&worker]).await;
    router.until_metric("disagg_router_prefix_index_max_blocks 5461").await;
    let prompt: Vec<u32> = (1..=40).collect();
    let snapshot = |blocks| cached(&prompt, blocks);
    let delta = |last_event, event: v1::kv_event::Event| {
        let events = vec![v1::KvEvent { event: Some(event) }];
        vec![v1::KvEventBatch { epoch: 1, last_event, snapshot: false, snapshot_end: false, events }]
    };
    let stored = |number| {
        let hash = Some(v1::Hash128 { high: 1, low: number });
        v1::kv_event::Event::Stored(v1::BlockStored { hash, parent: None })
    };
    worker.serve_kv_events(snapshot(2));
    router.until_metric("disagg_router_prefix_index_blocks 2").await;
    worker.serve_kv_events(delta(3, stored(1)));
    router.until_metric("disagg_router_prefix_index_blocks 3").await;
    // Event 4 is missing. The new subscription finds a delta, which is no beginning.
    worker.serve_kv_events(delta(5, stored(2)));
    router.until_metric("disagg_router_prefix_index_blocks 0").await;
    worker.serve_kv_events(snapshot(4));
    router.until_metric("disagg_router_prefix_index_blocks 4").await;
    worker.serve_kv_events(delta(5, v1::kv_event::Event::Cleared(v1::AllBlocksCleared {})));
    router.until_metric("disagg_router_prefix_index_blocks 0").await;
    worker.serve_kv_events(snapshot(5));
    router.until_metric("disagg_router_prefix_index_blocks 5").await;
    // From another life of the worker: none of it counts.
    let mut other_epoch = snapshot(7);
    other_epoch[0].epoch = 2;
    worker.serve_kv_events(other_epoch);
    router.until_metric("disagg_router_prefix_index_blocks 0").await;
    worker.serve_kv_events(snapshot(6));
    router.until_metric("disagg_router_prefix_index_blocks 6").await;
}
