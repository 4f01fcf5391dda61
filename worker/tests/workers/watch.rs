//! What routers learn of a worker: card, load, KV events, metrics.

use std::collections::HashSet;

use disagg_core::Role;
use disagg_proto::v1;
use disagg_worker::http::Probes;
use tonic::Streaming;

use crate::harness::*;

async fn next<T>(stream: &mut Streaming<T>) -> T {
    let next = tokio::time::timeout(PATIENCE, stream.message()).await.expect("the stream goes on");
    next.unwrap().expect("the stream has not ended")
}

#[tokio::test]
async fn hello_and_the_model_card_describe_the_worker() {
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let mut client = decode.client().await;
    let hello = client.hello(v1::HelloRequest {}).await.unwrap().into_inner();
    assert_eq!(hello.worker, Some(decode.worker_ref()));
    assert_eq!(hello.role(), v1::Role::Decode);
    assert_eq!(hello.model_fingerprint, Some(hash(FINGERPRINT.0)));
    assert_eq!((hello.block_size, hello.max_model_len), (BLOCK_SIZE, MAX_MODEL_LEN));
    assert_eq!(hello.transports, ["tcp"]);

    let mut parts = client.get_model_card(v1::GetModelCardRequest {}).await.unwrap().into_inner();
    let header = parts.message().await.unwrap().unwrap().header.unwrap();
    assert_eq!(header.kv_compat, hello.kv_compat);
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        assert!(part.header.is_none() && part.payload.len() <= disagg_proto::limits::CHUNK_BYTES_MAX);
        match files.last_mut() {
            Some((name, contents)) if *name == part.file => contents.extend_from_slice(&part.payload),
            _ => files.push((part.file, part.payload.to_vec())),
        }
    }
    let expected = card().files;
    assert_eq!(files.len(), expected.len());
    for ((file, announced), (name, contents)) in expected.iter().zip(&header.files).zip(&files) {
        assert_eq!((file.name, announced.name.as_str()), (name.as_str(), name.as_str()));
        assert_eq!(announced.size, contents.len() as u64);
        assert_eq!(file.bytes, contents);
    }
}

/// What a router's index would hold.
#[derive(Default)]
struct Index {
    hashes: HashSet<(u64, u64)>,
    last_event: u64,
}

impl Index {
    fn apply(&mut self, batch: &v1::KvEventBatch) {
        if !batch.snapshot {
            assert_eq!(batch.last_event, self.last_event + batch.events.len() as u64, "no gap");
        }
        self.last_event = batch.last_event;
        for event in &batch.events {
            let key = |hash: &Option<v1::Hash128>| hash.map(|hash| (hash.high, hash.low)).unwrap();
            match event.event.as_ref().unwrap() {
                v1::kv_event::Event::Stored(stored) => {
                    assert!(stored.parent.is_none() || self.hashes.contains(&key(&stored.parent)));
                    assert!(self.hashes.insert(key(&stored.hash)), "stored twice");
                }
                v1::kv_event::Event::Removed(removed) => {
                    assert!(self.hashes.remove(&key(&removed.hash)), "removed without being stored");
                }
                v1::kv_event::Event::Cleared(_) => self.hashes.clear(),
            }
        }
    }
}

#[tokio::test]
async fn kv_events_are_a_snapshot_and_deltas_without_gaps() {
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let mut client = decode.client().await;
    let mut early = client.watch_kv_events(v1::WatchKvEventsRequest {}).await.unwrap().into_inner();
    let empty = next(&mut early).await;
    assert!(empty.snapshot && empty.snapshot_end && empty.events.is_empty());
    assert_eq!(empty.epoch, decode.state.identity.epoch.0);

    let mut early_index = Index::default();
    early_index.apply(&empty);
    for seed in 0..3 {
        let request = request(seed, 60, 6);
        generate(&decode, local(&format!("r{seed}"), &request)).await.unwrap();
    }
    decode.idle().await;

    // A late subscriber finds all that the early one was told.
    let mut late = client.watch_kv_events(v1::WatchKvEventsRequest {}).await.unwrap().into_inner();
    let mut late_index = Index::default();
    loop {
        let batch = next(&mut late).await;
        assert!(batch.snapshot);
        late_index.apply(&batch);
        if batch.snapshot_end {
            break;
        }
    }
    assert!(late_index.hashes.len() >= 45, "{} blocks are cached", late_index.hashes.len());
    while early_index.last_event < late_index.last_event {
        early_index.apply(&next(&mut early).await);
    }
    assert_eq!(early_index.hashes, late_index.hashes);

    // Both follow what comes then.
    generate(&decode, local("more", &request(9, 60, 6))).await.unwrap();
    decode.idle().await;
    let last = decode.state.engine.kv_log().last();
    for (index, stream) in [(&mut early_index, &mut early), (&mut late_index, &mut late)] {
        while index.last_event < last {
            index.apply(&next(stream).await);
        }
    }
    assert_eq!(early_index.hashes, late_index.hashes);
}

#[tokio::test]
async fn blocks_that_arrive_by_handoff_are_told_too() {
    let prefill = TestWorker::start(options("prefill-0", Role::Prefill)).await;
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let request = request(1, 60, 4);
    generate(&decode, remote("r", &request, vec![prefill.candidate()])).await.unwrap();
    for worker in [&prefill, &decode] {
        worker.idle().await;
        assert!(worker.state.engine.kv_log().last() >= 15, "{} says what it has cached", worker.name);
    }
}

#[tokio::test]
async fn load_is_told_at_once_and_on_change() {
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let mut load = decode.client().await.watch_load(v1::WatchLoadRequest {}).await.unwrap().into_inner();
    let idle = next(&mut load).await;
    assert_eq!((idle.blocks_total, idle.blocks_used, idle.draining), (512, 0, false));
    decode.gate.hold_after(1);
    let live = decode.client().await.generate(local("r", &request(1, 40, 4))).await.unwrap();
    until("the engine is held", || decode.gate.holds()).await;
    while next(&mut load).await.blocks_used == 0 {}
    decode.gate.open();
    collect(live.into_inner()).await.unwrap();
    while next(&mut load).await.blocks_used > 0 {}
}

#[tokio::test]
async fn metrics_health_and_readiness_are_served_over_http() {
    let mut with_metrics = options("decode-0", Role::Decode);
    with_metrics.metrics = true;
    let decode = TestWorker::start(with_metrics).await;
    let address = decode.metrics_address.unwrap();
    generate(&decode, local("r", &request(1, 40, 5))).await.unwrap();
    let metrics = get(address, "/metrics").await;
    for line in [
        "HTTP/1.1 200",
        "disagg_worker_decode_tokens_total 5",
        "disagg_worker_prefill_tokens_total 40",
        "disagg_worker_kv_blocks 512",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(get(address, "/health").await.starts_with("HTTP/1.1 200"));
    assert!(get(address, "/ready").await.starts_with("HTTP/1.1 200"));
    decode.state.lifecycle.drain(std::time::Duration::ZERO).await;
    assert!(get(address, "/ready").await.starts_with("HTTP/1.1 503"));
    assert!(get(address, "/health").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_worker_that_loads_is_alive_and_not_ready() {
    let probes = Probes::listen("127.0.0.1:0").await.unwrap();
    let health = get(probes.address(), "/health").await;
    assert!(health.starts_with("HTTP/1.1 200") && health.ends_with("loading the model"), "{health}");
    let ready = get(probes.address(), "/ready").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.ends_with("loading the model"), "{ready}");
    assert!(get(probes.address(), "/metrics").await.ends_with("# EOF\n"));
}
