//! Two generations of a model at once, as during a change of the model: each request is made for one of them, and
//! old works with old, new with new.

use std::collections::BTreeSet;

use disagg_proto::v1;

use crate::support::TestRouter;
use crate::support::fake::{FakeWorker, Options, Step, says};
use crate::support::tokenizer::BOS;

/// The two differ in their tokenizers: only the new one puts a begin-of-text token first.
fn worker(name: &'static str, role: v1::Role, new: bool, script: Vec<Step>) -> FakeWorker {
    let fingerprint = if new { 2 } else { 1 };
    FakeWorker::start(Options {
        role,
        fingerprint,
        kv_compat: fingerprint,
        bos: new,
        ..Options::new(name, vec![script])
    })
}

fn remote() -> Vec<Step> {
    vec![Step::StartedRemote, Step::Text("x"), Step::Stop]
}

#[tokio::test]
async fn the_generation_is_chosen_first_and_then_the_text_is_tokenized() {
    let old = worker("d-old", v1::Role::Decode, false, says("old"));
    let new = worker("d-new", v1::Role::Decode, true, says("new"));
    let workers = [&old, &new];
    let router = TestRouter::start(&workers, &[]).await;
    router.until_ready(&workers).await;
    let mut answers = BTreeSet::new();
    // Drawn at random for each request: both are met in so many, but for one time in 2^39.
    for _ in 0..40 {
        answers.insert(router.complete("text").await.text());
    }
    assert_eq!(answers, BTreeSet::from(["new".to_owned(), "old".to_owned()]));
    for (worker, fingerprint, begins) in [(&old, 1, false), (&new, 2, true)] {
        for request in worker.requests() {
            let prompt = request.prompt.unwrap();
            assert_eq!(prompt.model_fingerprint, Some(v1::Hash128 { high: 0, low: fingerprint }));
            assert_eq!(prompt.token_ids.first() == Some(&BOS), begins, "{:?}", prompt.token_ids);
        }
    }
}

#[tokio::test]
async fn old_pairs_with_old_and_new_with_new() {
    let decode = [
        worker("d-old", v1::Role::Decode, false, remote()),
        worker("d-new", v1::Role::Decode, true, remote()),
    ];
    let prefill =
        [worker("p-old", v1::Role::Prefill, false, vec![]), worker("p-new", v1::Role::Prefill, true, vec![])];
    let all: Vec<&FakeWorker> = decode.iter().chain(&prefill).collect();
    let router = TestRouter::start(&all, &["--max-local-prefill-length", "8"]).await;
    router.until_ready(&all).await;
    for number in 0..30 {
        let answer = router.complete(&format!("a prompt of its own that is long enough, {number}")).await;
        assert_eq!(answer.status, 200);
    }
    for (worker, partner) in [(&decode[0], "p-old"), (&decode[1], "p-new")] {
        let requests = worker.requests();
        assert!(!requests.is_empty(), "{partner}");
        for request in requests {
            let candidates = request.remote.expect("a remote prefill").candidates;
            let names: Vec<_> = candidates.into_iter().map(|it| it.worker.unwrap().name).collect();
            assert_eq!(names, [partner]);
        }
    }
}

#[tokio::test]
async fn requests_go_to_the_generation_that_can_decode() {
    // Of the new generation only the prefill worker is there yet.
    let old = worker("d-old", v1::Role::Decode, false, says("old"));
    let prefill = worker("p-new", v1::Role::Prefill, true, vec![]);
    let new = worker("d-new", v1::Role::Decode, true, says("new"));
    let address = new.address;
    new.kill();
    let addresses = [old.address.to_string(), prefill.address.to_string(), address.to_string()];
    let router = TestRouter::start_for(&addresses, &["--max-local-prefill-length", "0"]).await;
    router.until_ready(&[&old, &prefill]).await;
    for _ in 0..10 {
        let answer = router.complete("text").await;
        assert_eq!(
            (answer.text().as_str(), answer.header("x-disagg-placement")),
            ("old", "local; reason=below-threshold; decode=d-old")
        );
    }
    for request in old.requests() {
        assert!(request.remote.is_none(), "nobody of its generation prefills for others");
        assert_eq!(request.placement_reason, "no-prefill-worker");
    }
    // The new one comes, and the old one drains: every request is the new one's.
    let new = FakeWorker::start_at(
        Options { fingerprint: 2, kv_compat: 2, ..Options::new("d-new", vec![says("new")]) },
        address,
    );
    router.until_ready(&[&new]).await;
    old.report(|load| load.draining = true);
    router.until_worker(old.address, "draining", |worker| worker["state"] == "draining").await;
    for _ in 0..10 {
        assert_eq!(router.complete("text").await.text(), "new");
    }
}
