//! Handoffs that do not go as proposed: refusals, lost workers, lost clients.

use std::time::Duration;

use disagg_core::Role;
use disagg_proto::v1;
use tonic::Code;

use crate::harness::*;

/// A prefill worker that is held in the middle of a prompt of 480 tokens, after some of it was pushed, and the
/// decode worker and call that wait for it.
struct Midway {
    prefill: TestWorker,
    decode: TestWorker,
    request: disagg_engine::Request,
    call: tokio::task::JoinHandle<Result<Answer, tonic::Status>>,
}

async fn midway(more: Vec<v1::PrefillCandidate>, through: Option<&Relay>, prefill: TestWorker) -> Midway {
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let request = request(1, 480, 10);
    prefill.gate.hold_after(4);
    let mut candidates =
        vec![through.map_or_else(|| prefill.candidate(), |relay| prefill.candidate_at(relay.address))];
    candidates.extend(more);
    let wire = remote("r", &request, candidates);
    let mut client = decode.client().await;
    let call = tokio::spawn(async move { collect(client.generate(wire).await?.into_inner()).await });
    until("the prefill is held", || prefill.gate.holds()).await;
    until("a part has landed", || decode.metric("disagg_worker_kv_landed_bytes_total") > 0).await;
    Midway { prefill, decode, request, call }
}

async fn prefill_worker(name: &'static str) -> TestWorker {
    TestWorker::start(options(name, Role::Prefill)).await
}

#[tokio::test]
async fn a_prefill_worker_killed_while_it_pushes_costs_only_time() {
    let mut midway = midway(Vec::new(), None, prefill_worker("prefill-0").await).await;
    let begun = std::time::Instant::now();
    midway.prefill.kill();
    let answer = midway.call.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "noticed and redone in {:?}", begun.elapsed());
    assert_right(&answer, &midway.request);
    assert_eq!(answer.placement(), "local prefill-failed");
    midway.decode.idle().await;
    assert_eq!(midway.decode.metric(r#"disagg_worker_handoffs_total{outcome="lost"}"#), 1);
}

#[tokio::test]
async fn after_a_killed_prefill_worker_the_next_candidate_is_asked() {
    let next = prefill_worker("prefill-1").await;
    let mut midway = midway(vec![next.candidate()], None, prefill_worker("prefill-0").await).await;
    midway.prefill.kill();
    let answer = midway.call.await.unwrap().unwrap();
    assert_right(&answer, &midway.request);
    assert_eq!(answer.placement(), "remote above-threshold prefill-1");
    midway.decode.idle().await;
    next.idle().await;
}

#[tokio::test]
async fn a_cut_connection_frees_blocks_on_both_sides() {
    let prefill = prefill_worker("prefill-0").await;
    let relay = Relay::to(prefill.address).await;
    let midway = midway(Vec::new(), Some(&relay), prefill).await;
    relay.cut();
    let answer = midway.call.await.unwrap().unwrap();
    assert_right(&answer, &midway.request);
    assert_eq!(answer.placement(), "local prefill-failed");
    midway.prefill.gate.open();
    midway.decode.idle().await;
    midway.prefill.idle().await;
    // Counted just after the blocks are free.
    until("the lease is counted", || {
        midway.prefill.metric(r#"disagg_worker_prefill_leases_total{outcome="given-up"}"#) == 1
    })
    .await;
}

#[tokio::test]
async fn a_decode_worker_killed_while_it_receives_frees_the_prefill_workers_blocks() {
    let mut midway = midway(Vec::new(), None, prefill_worker("prefill-0").await).await;
    midway.decode.kill();
    assert!(midway.call.await.unwrap().is_err());
    midway.prefill.gate.open();
    midway.prefill.idle().await;
}

#[tokio::test]
async fn a_client_that_leaves_mid_prefill_frees_blocks_on_both_sides() {
    let midway = midway(Vec::new(), None, prefill_worker("prefill-0").await).await;
    midway.call.abort();
    midway.decode.idle().await;
    midway.prefill.gate.open();
    midway.prefill.idle().await;
    until("the handoff is counted", || {
        midway.decode.metric(r#"disagg_worker_handoffs_total{outcome="cancelled"}"#) == 1
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_while_decoding_frees_blocks() {
    let prefill = prefill_worker("prefill-0").await;
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    decode.gate.hold_after(3);
    let request = request(2, 60, 100);
    let wire = remote("r", &request, vec![prefill.candidate()]);
    let events = decode.client().await.generate(wire).await.unwrap();
    until("decoding is held", || decode.gate.holds()).await;
    drop(events);
    decode.gate.open();
    decode.idle().await;
    prefill.idle().await;
}

#[tokio::test]
async fn a_full_queue_sends_the_request_to_the_next_candidate_and_then_home() {
    let mut small = options("prefill-0", Role::Prefill);
    small.limits.max_prefill_queue = 1;
    let full = TestWorker::start(small).await;
    let next = prefill_worker("prefill-1").await;
    let mut midway = midway(Vec::new(), None, full).await;

    // The engine of prefill-0 is held with one prefill, and answers when it is let go for one step more.
    let request = request(3, 60, 6);
    let calls = [
        ("next", vec![midway.prefill.candidate(), next.candidate()], "remote above-threshold prefill-1"),
        ("home", vec![midway.prefill.candidate()], "local prefill-refused"),
    ];
    for (id, candidates, placement) in calls {
        let call = generate(&midway.decode, remote(id, &request_for(id, &request), candidates));
        tokio::pin!(call);
        let answer = loop {
            tokio::select! {
                answer = &mut call => break answer.unwrap(),
                () = tokio::time::sleep(Duration::from_millis(100)) => {
                    // Commands are answered between steps; the prefill must not end meanwhile.
                    midway.prefill.gate.hold_after(u32::from(midway.steps_left()));
                }
            }
        };
        assert_right(&answer, &request_for(id, &request));
        assert_eq!(answer.placement(), placement);
    }
    midway.prefill.gate.open();
    let answer = (&mut midway.call).await.unwrap().unwrap();
    assert_right(&answer, &midway.request);
    midway.decode.idle().await;
    midway.prefill.idle().await;
}

impl Midway {
    /// Whether the held prefill still has several steps of 16 tokens to go.
    fn steps_left(&self) -> bool {
        self.prefill.state.engine.load().borrow().engine.prefill_queue_tokens > 32
    }
}

/// Requests that share no prefix.
fn request_for(id: &str, like: &disagg_engine::Request) -> disagg_engine::Request {
    disagg_engine::Request { cache_salt: id.to_owned(), ..like.clone() }
}

#[tokio::test]
async fn a_worker_that_is_not_there_or_not_meant_counts_as_a_refusal() {
    let prefill = prefill_worker("prefill-0").await;
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let other = TestWorker::start(options("decode-1", Role::Decode)).await;

    // Nobody listens there.
    let mut gone = prefill_worker("gone").await;
    let nowhere = gone.candidate();
    gone.kill();
    // A restarted worker has another epoch.
    let mut restarted = prefill.candidate();
    restarted.worker.as_mut().unwrap().epoch += 1;

    let request = request(4, 60, 6);
    let candidates = vec![nowhere, restarted, other.candidate(), prefill.candidate()];
    let answer = generate(&decode, remote("r", &request, candidates.clone())).await.unwrap();
    assert_right(&answer, &request);
    assert_eq!(answer.placement(), "remote above-threshold prefill-0");
    assert_eq!(decode.metric(r#"disagg_worker_handoffs_total{outcome="refused"}"#), 3);

    // Without the last one: home, or nothing if home is not allowed.
    let request = request_for("salt", &request);
    let mut wire = remote("s", &request, candidates[..3].to_vec());
    let answer = generate(&decode, wire.clone()).await.unwrap();
    assert_right(&answer, &request);
    assert_eq!(answer.placement(), "local prefill-refused");
    let request = request_for("other salt", &request);
    wire.prompt.as_mut().unwrap().cache_salt = request.cache_salt;
    wire.remote.as_mut().unwrap().fail_without_remote = true;
    let status = generate(&decode, wire).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    decode.idle().await;
    prefill.idle().await;
}

#[tokio::test]
async fn without_memory_for_a_handoff_the_prefill_is_local() {
    let prefill = prefill_worker("prefill-0").await;
    let mut small = options("decode-0", Role::Decode);
    small.num_blocks = 64;
    let decode = TestWorker::start(small).await;
    // 50 of 64 blocks: more than the half that may await KV.
    let request = request(5, 200, 6);
    let answer = generate(&decode, remote("r", &request, vec![prefill.candidate()])).await.unwrap();
    assert_right(&answer, &request);
    assert_eq!(answer.placement(), "local reservation-refused");
    decode.idle().await;
}

#[tokio::test]
async fn a_silent_prefill_worker_is_given_up_after_the_lease() {
    // Connections stay open and nothing answers: not a crash, so only the clock can tell.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let prefill = prefill_worker("prefill-0").await;
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let request = request(6, 60, 6);
    let candidates = vec![prefill.candidate_at(silent.local_addr().unwrap())];
    let begun = std::time::Instant::now();
    let answer = generate(&decode, remote("r", &request, candidates)).await.unwrap();
    assert_right(&answer, &request);
    assert!(answer.placement().starts_with("local prefill-"), "{}", answer.placement());
    assert!(begun.elapsed() < Duration::from_secs(12));
    decode.idle().await;
}
