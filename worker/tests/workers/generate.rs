//! What a request answers, prefilled here or elsewhere.

use disagg_core::Role;
use disagg_proto::v1::worker_client::WorkerClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::harness::*;

async fn pair() -> (TestWorker, TestWorker) {
    let prefill = TestWorker::start(options("prefill-0", Role::Prefill)).await;
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    (prefill, decode)
}

#[tokio::test]
async fn a_local_prefill_gives_the_models_tokens() {
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let request = request(1, 50, 20);
    let answer = generate(&decode, local("r", &request)).await.unwrap();
    assert_right(&answer, &request);
    assert_eq!(answer.placement(), "local below-threshold");
    decode.idle().await;
}

#[tokio::test]
async fn a_remote_prefill_gives_the_same_tokens() {
    let (prefill, decode) = pair().await;
    // With and without a partial last block, and longer than one step of 16 tokens.
    for (seed, prompt_tokens) in [(1, 9), (2, 12), (3, 16), (4, 50), (5, 203)] {
        let request = request(seed, prompt_tokens, 12);
        let id = format!("r{seed}");
        let answer = generate(&decode, remote(&id, &request, vec![prefill.candidate()])).await.unwrap();
        assert_right(&answer, &request);
        assert_eq!(answer.placement(), "remote above-threshold prefill-0");
    }
    prefill.idle().await;
    decode.idle().await;
    let blocks: u64 =
        [9u32, 12, 16, 50, 203].iter().map(|tokens| u64::from(tokens.div_ceil(BLOCK_SIZE))).sum();
    let bytes = blocks * decode.state.identity.layout.block_bytes() as u64;
    assert_eq!(decode.metric("disagg_worker_kv_landed_bytes_total"), bytes);
    assert_eq!(prefill.metric("disagg_worker_kv_pushed_bytes_total"), bytes);
    assert_eq!(decode.metric(r#"disagg_worker_handoffs_total{outcome="activated"}"#), 5);
    assert_eq!(decode.metric("disagg_worker_decode_tokens_total"), 60);
    assert_eq!(prefill.metric("disagg_worker_prefill_tokens_total"), 290);
}

#[tokio::test]
async fn choices_logprobs_and_stop_tokens_survive_the_handoff() {
    let (prefill, decode) = pair().await;
    let mut request = request(6, 45, 10);
    request.choices = 3;
    request.sampling.temperature = 1.0;
    request.sampling.seed = 11;
    request.sampling.top_logprobs = Some(2);
    let answer = generate(&decode, remote("a", &request, vec![prefill.candidate()])).await.unwrap();
    assert_right(&answer, &request);
    assert_eq!(answer.tokens[&0][0].top_logprobs.len(), 2);
    assert!(answer.ids(0) != answer.ids(1) || answer.ids(1) != answer.ids(2), "choices are drawn apart");

    // Ends at the first token of choice 0, which the prefill worker draws.
    request.stop.stop_token_ids = vec![answer.ids(0)[0]];
    let answer = generate(&decode, remote("b", &request, vec![prefill.candidate()])).await.unwrap();
    assert_right(&answer, &request);
    assert_eq!(answer.ids(0).len(), 1);
    prefill.idle().await;
    decode.idle().await;
}

#[tokio::test]
async fn one_token_transfers_nothing() {
    let (prefill, decode) = pair().await;
    let mut request = request(7, 45, 1);
    request.choices = 2;
    let answer = generate(&decode, remote("r", &request, vec![prefill.candidate()])).await.unwrap();
    assert_right(&answer, &request);
    assert_eq!(answer.placement(), "remote above-threshold prefill-0");
    assert_eq!(decode.metric("disagg_worker_kv_landed_bytes_total"), 0);
    prefill.idle().await;
    decode.idle().await;
}

#[tokio::test]
async fn what_is_cached_is_neither_computed_nor_sent() {
    let (prefill, decode) = pair().await;
    let first = request(8, 100, 4);
    let mut longer = first.clone();
    longer.prompt.extend(request(9, 40, 1).prompt);
    for (id, request) in [("a", &first), ("b", &longer)] {
        let answer = generate(&decode, remote(id, request, vec![prefill.candidate()])).await.unwrap();
        assert_right(&answer, request);
        assert_eq!(answer.placement(), "remote above-threshold prefill-0");
    }
    let landed = decode.metric("disagg_worker_kv_landed_bytes_total");
    assert!(landed < 50 * decode.state.identity.layout.block_bytes() as u64, "{landed} bytes landed");

    // Nothing net-new is left that would be worth a remote prefill.
    let answer = generate(&decode, remote("c", &longer, vec![prefill.candidate()])).await.unwrap();
    assert_right(&answer, &longer);
    assert_eq!(answer.placement(), "local decode-overlap");
    assert_eq!(answer.started.unwrap().overlap_tokens, 136);
    prefill.idle().await;
    decode.idle().await;
}

#[tokio::test]
async fn eight_at_once() {
    let (prefill, decode) = pair().await;
    let requests: Vec<_> = (0..8).map(|seed| request(20 + seed, 40 + 9 * seed, 16)).collect();
    let answers = requests.iter().enumerate().map(|(index, request)| {
        let id = format!("r{index}");
        // Half of them are prefilled here.
        let wire = if index % 2 == 0 {
            remote(&id, request, vec![prefill.candidate()])
        } else {
            local(&id, request)
        };
        generate(&decode, wire)
    });
    for (answer, request) in futures::future::join_all(answers).await.into_iter().zip(&requests) {
        assert_right(&answer.unwrap(), request);
    }
    prefill.idle().await;
    decode.idle().await;
}

#[tokio::test]
async fn two_workers_of_both_roles_prefill_for_each_other() {
    let one = TestWorker::start(options("both-0", Role::Both)).await;
    let other = TestWorker::start(options("both-1", Role::Both)).await;
    let requests: Vec<_> = (0..6).map(|seed| request(40 + seed, 60, 8)).collect();
    let answers = requests.iter().enumerate().map(|(index, request)| {
        let (decode, prefill) = if index % 2 == 0 { (&one, &other) } else { (&other, &one) };
        generate(decode, remote(&format!("r{index}"), request, vec![prefill.candidate()]))
    });
    for (answer, request) in futures::future::join_all(answers).await.into_iter().zip(&requests) {
        assert_right(&answer.unwrap(), request);
    }
    one.idle().await;
    other.idle().await;
}

/// A client whose windows hold few events, as a router's hold few for a client that does not read: whatever it leaves
/// unread stays on the worker.
async fn narrow_client(worker: &TestWorker) -> WorkerClient<Channel> {
    let endpoint = Channel::from_shared(format!("http://{}", worker.address)).unwrap();
    WorkerClient::new(endpoint.initial_stream_window_size(1024).connect().await.unwrap())
}

/// Many tokens, each with much to tell.
fn long(seed: u32) -> disagg_engine::Request {
    let mut long = request(seed, 20, 480);
    long.sampling.top_logprobs = Some(20);
    long
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_its_request_and_holds_up_nobody() {
    let mut one_slot = options("decode-0", Role::Decode);
    one_slot.limits.max_num_seqs = 1;
    let decode = TestWorker::start(one_slot).await;
    let slow = long(50);
    let unread = narrow_client(&decode).await.generate(local("slow", &slow)).await.unwrap();
    decode.load("the request is paused", |load| load.engine.paused == 1).await;
    for index in 0..3 {
        let quick = request(51 + index, 20, 10);
        let answer = generate(&decode, local(&format!("q{index}"), &quick)).await.unwrap();
        assert_right(&answer, &quick);
    }
    // It may have gone on meanwhile, until all that lies between was full.
    let load = decode.load("it is paused again", |load| load.engine.paused == 1).await;
    assert_eq!((load.engine.running, load.engine.waiting), (0, 0));
    let computed = load.engine.blocks_used * BLOCK_SIZE;
    assert!(computed < 300, "of 500 tokens {computed} were computed for nobody");

    assert_right(&collect(unread.into_inner()).await.unwrap(), &slow);
    // One that leaves is no longer paused.
    let unread = narrow_client(&decode).await.generate(local("gone", &long(54))).await.unwrap();
    decode.load("the request is paused", |load| load.engine.paused == 1).await;
    drop(unread);
    decode.load("the request is gone", |load| load.engine.paused == 0).await;
    decode.idle().await;
}

/// The choices of a request share its stream.
#[tokio::test]
async fn choices_that_nobody_reads_are_paused_together() {
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let mut slow = long(55);
    slow.choices = 4;
    slow.sampling.temperature = 1.0;
    let unread = narrow_client(&decode).await.generate(local("slow", &slow)).await.unwrap();
    let load = decode.load("the request is paused", |load| load.engine.paused == 4).await;
    assert_eq!(load.engine.running, 0);
    assert_right(&collect(unread.into_inner()).await.unwrap(), &slow);
    decode.idle().await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_given_up() {
    let mut impatient = options("decode-0", Role::Decode);
    impatient.unread_max = std::time::Duration::from_millis(200);
    let decode = TestWorker::start(impatient).await;
    let unread = narrow_client(&decode).await.generate(local("slow", &long(56))).await.unwrap();
    decode.load("the request is paused", |load| load.engine.paused == 1).await;
    decode.idle().await;
    let status = collect(unread.into_inner()).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
}

/// As in an attack: requests of many long choices, more than there are slots and than may wait.
#[tokio::test]
async fn requests_of_many_choices_leave_others_their_turn() {
    let mut few = options("decode-0", Role::Decode);
    few.limits.max_num_seqs = 4;
    few.limits.max_waiting = 3;
    few.num_blocks = 2048;
    let decode = TestWorker::start(few).await;
    let mut hogs = tokio::task::JoinSet::new();
    for seed in 0..3 {
        let mut hog = request(80 + seed, 20, 400);
        hog.choices = 64;
        hog.sampling.temperature = 1.0;
        let mut client = decode.client().await;
        hogs.spawn(async move {
            let events = client.generate(local(&format!("hog{seed}"), &hog)).await?;
            collect(events.into_inner()).await
        });
    }
    decode.load("all choices are there", |load| load.engine.running + load.engine.waiting == 3 * 64).await;
    for index in 0..5 {
        let quick = request(90 + index, 20, 10);
        let answer = generate(&decode, local(&format!("q{index}"), &quick)).await.unwrap();
        assert_right(&answer, &quick);
    }
    assert_eq!(decode.state.lifecycle.sequences(), 3, "the others are not done");
    hogs.shutdown().await;
    decode.idle().await;
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_with_the_right_status() {
    let (prefill, decode) = pair().await;
    let request = request(60, 20, 4);

    let mut other_model = local("r", &request);
    other_model.prompt.as_mut().unwrap().model_fingerprint = Some(hash(1));
    let status = generate(&decode, other_model).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");

    let status = generate(&prefill, local("r", &request)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");

    let mut hot = local("r", &request);
    hot.prompt.as_mut().unwrap().sampling.as_mut().unwrap().temperature = 3.0;
    let status = generate(&decode, hot).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "prompt.sampling.temperature: 3 given; 0 to 2 is allowed");

    decode.gate.hold_after(0);
    let live = decode.client().await.generate(local("twice", &request)).await.unwrap();
    let status = generate(&decode, local("twice", &request)).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    decode.gate.open();
    assert_right(&collect(live.into_inner()).await.unwrap(), &request);
}

#[tokio::test]
async fn more_than_may_wait_are_refused() {
    let mut few = options("decode-0", Role::Decode);
    few.limits.max_waiting = 1;
    let decode = TestWorker::start(few).await;
    decode.gate.hold_after(0);
    let requests: Vec<_> = (0..8).map(|seed| request(70 + seed, 20, 4)).collect();
    let mut calls = tokio::task::JoinSet::new();
    for (index, request) in requests.into_iter().enumerate() {
        let mut client = decode.client().await;
        calls.spawn(async move {
            let events = client.generate(local(&format!("r{index}"), &request)).await?;
            Ok::<_, tonic::Status>((collect(events.into_inner()).await?, request))
        });
        // The first runs, so that it does not wait when the others come.
        until("the engine is held", || decode.gate.holds()).await;
    }
    until("all requests are under way", || decode.state.lifecycle.sequences() == 8).await;
    decode.gate.open();
    let (mut answered, mut refused) = (0, 0);
    while let Some(call) = calls.join_next().await {
        match call.unwrap() {
            Ok((answer, request)) => {
                assert_right(&answer, &request);
                answered += 1;
            }
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                refused += 1;
            }
        }
    }
    assert!(answered >= 1 && refused >= 1, "{answered} answered, {refused} refused");
    decode.idle().await;
}
