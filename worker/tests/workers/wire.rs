//! What workers say to each other, spoken by hand: what a well-behaved worker never sends.

use std::time::Duration;

use bytes::BufMut;
use disagg_core::{BlockId, HandoffId, Role};
use disagg_proto::codec::BoundedCodec;
use disagg_proto::v1;
use disagg_proto::v1::prefill_client::PrefillClient;
use disagg_proto::v1::prefill_server::{Prefill, PrefillServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Status, Streaming};

use crate::harness::*;
use crate::pushes::{HandPush, token};

/// A start that `prefill` takes, into blocks of `decode` that are open for it.
fn start(prefill: &TestWorker, decode: &TestWorker, request: &disagg_engine::Request) -> v1::PrefillStart {
    let handoff = HandoffId { epoch: decode.state.identity.epoch, number: 1 };
    let blocks = request.prompt.len() as u32 / BLOCK_SIZE;
    decode.state.landing.close(handoff);
    let reserved = (0..blocks).map(BlockId).collect();
    drop(decode.state.landing.open(handoff, token(), prefill.state.this_worker(), reserved));
    v1::PrefillStart {
        handoff: Some(v1::HandoffRef { epoch: handoff.epoch.0, number: 1 }),
        prefill_worker: Some(prefill.worker_ref()),
        decode_worker: Some(decode.worker_ref()),
        kv_compat: Some(hash(prefill.state.identity.kv_compat.0)),
        prompt: Some(prompt("r", request)),
        landing: Some(v1::Landing {
            address: decode.address.to_string(),
            transport: "tcp".into(),
            first_block: 0,
            block_ids: (0..blocks).collect(),
            token: token().to_wire(),
        }),
        lease_ms: 60_000,
    }
}

fn command(command: v1::prefill_command::Command) -> v1::PrefillCommand {
    v1::PrefillCommand { command: Some(command) }
}

struct Lease {
    commands: mpsc::Sender<v1::PrefillCommand>,
    events: Streaming<v1::PrefillEvent>,
}

async fn open(prefill: &TestWorker, start: v1::PrefillStart) -> Result<Lease, Status> {
    let (commands, outgoing) = mpsc::channel(4);
    commands.send(command(v1::prefill_command::Command::Start(start))).await.unwrap();
    let mut client = PrefillClient::new(prefill.channel().await);
    let events = client.prefill(ReceiverStream::new(outgoing)).await?.into_inner();
    Ok(Lease { commands, events })
}

/// The status a stream ends with.
async fn end<T>(mut events: Streaming<T>) -> Status {
    let wait = async {
        loop {
            match events.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok("ended"),
                Err(status) => return status,
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the stream ends")
}

#[tokio::test]
async fn prefills_that_do_not_fit_are_refused() {
    type Break = fn(&mut v1::PrefillStart);
    let prefill = TestWorker::start(options("prefill-0", Role::Prefill)).await;
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let request = request(1, 40, 4);
    let breaks: [(&str, Code, Break); 6] = [
        ("name", Code::FailedPrecondition, |s| s.prefill_worker.as_mut().unwrap().name = "prefill-1".into()),
        ("epoch", Code::FailedPrecondition, |s| s.prefill_worker.as_mut().unwrap().epoch ^= 1),
        ("kv_compat", Code::FailedPrecondition, |s| s.kv_compat.as_mut().unwrap().low ^= 1),
        ("fingerprint", Code::FailedPrecondition, |s| {
            s.prompt.as_mut().unwrap().model_fingerprint.as_mut().unwrap().low ^= 1;
        }),
        ("blocks", Code::InvalidArgument, |s| s.landing.as_mut().unwrap().block_ids.truncate(3)),
        ("lease", Code::InvalidArgument, |s| s.lease_ms = 1),
    ];
    for (what, code, break_it) in breaks {
        let mut broken = start(&prefill, &decode, &request);
        break_it(&mut broken);
        let status = open(&prefill, broken).await.err().expect(what);
        assert_eq!(status.code(), code, "{what}: {status}");
    }
    let status = open(&decode, start(&decode, &decode, &request)).await.err().unwrap();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
}

#[tokio::test]
async fn a_prefill_that_cannot_push_is_given_up() {
    let prefill = TestWorker::start(options("prefill-0", Role::Prefill)).await;
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let mut start = start(&prefill, &decode, &request(2, 40, 4));
    // Nobody listens there.
    start.landing.as_mut().unwrap().address = "127.0.0.1:1".into();
    let lease = open(&prefill, start).await.unwrap();
    let status = end(lease.events).await;
    assert_eq!(status.code(), Code::Aborted, "{status}");
    prefill.idle().await;
}

/// Sends bytes as they are.
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = v1::GenerateEvent;
    type Encoder = Self;
    type Decoder = <BoundedCodec<v1::GenerateRequest, v1::GenerateEvent> as Codec>::Decoder;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedCodec::<v1::GenerateRequest, _>::default().decoder()
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

/// Almost four million empty entries: 8 MB on the wire, some 200 MB once they are decoded.
#[tokio::test]
async fn messages_of_millions_of_empty_entries_are_refused_undecoded() {
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let inner = [0x0a, 0].repeat(3_900_000);
    // Field 2 of a `GenerateRequest`, `remote`, and its length.
    let mut message = vec![0x12];
    prost::encoding::encode_varint(inner.len() as u64, &mut message);
    message.extend(inner);
    let mut client = tonic::client::Grpc::new(decode.channel().await).max_encoding_message_size(16 << 20);
    client.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/disagg.v1.Worker/Generate");
    let status = client.server_streaming(tonic::Request::new(message), path, Raw).await.err().unwrap();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert_eq!(status.message(), "RemotePrefill.candidates: more than 8 entries; 8 are allowed");
}

/// Nobody makes a worker connect to what only its host or its cloud can reach, whoever it is told to be there.
#[tokio::test]
async fn a_worker_does_not_connect_to_link_local_addresses() {
    let prefill = TestWorker::start(options("prefill-0", Role::Prefill)).await;
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let request = request(7, 40, 4);
    let mut start = start(&prefill, &decode, &request);
    start.landing.as_mut().unwrap().address = "169.254.169.254:80".into();
    let status = end(open(&prefill, start).await.unwrap().events).await;
    assert_eq!(status.code(), Code::Aborted, "{status}");
    assert!(status.message().contains("is a link-local address"), "{status}");
    prefill.idle().await;

    // One that has numbered no handoff yet.
    let decode = TestWorker::start(options("decode-1", Role::Decode)).await;
    let candidate = prefill.candidate_at("169.254.169.254:80".parse().unwrap());
    let answer = generate(&decode, remote("r", &request, vec![candidate])).await.unwrap();
    assert_right(&answer, &request);
    assert_eq!(answer.placement(), "local prefill-refused");
    decode.idle().await;
}

/// Lets the engine compute one step every now and then, so that it takes commands and is not soon done.
async fn step_by_step(gate: &Gate) {
    loop {
        gate.hold_after(1);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_lease_without_heartbeats_runs_out() {
    let prefill = TestWorker::start(options("prefill-0", Role::Prefill)).await;
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    prefill.gate.hold_after(1);
    let mut start = start(&prefill, &decode, &request(3, 480, 4));
    start.lease_ms = 100;
    let lease = open(&prefill, start).await.unwrap();
    let status = tokio::select! {
        status = end(lease.events) => status,
        () = step_by_step(&prefill.gate) => unreachable!("it has no end"),
    };
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    prefill.gate.open();
    prefill.idle().await;
    drop(lease.commands);
}

#[tokio::test]
async fn a_cancelled_prefill_is_answered_by_drained() {
    let prefill = TestWorker::start(options("prefill-0", Role::Prefill)).await;
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    prefill.gate.hold_after(1);
    let mut lease = open(&prefill, start(&prefill, &decode, &request(4, 480, 4))).await.unwrap();
    lease.commands.send(command(v1::prefill_command::Command::Cancel(v1::PrefillCancel {}))).await.unwrap();
    let follow = async {
        let mut drained = false;
        while let Ok(Some(event)) = lease.events.message().await {
            assert!(!drained, "nothing follows `drained`");
            drained = matches!(event.event, Some(v1::prefill_event::Event::Drained(_)));
            assert!(!matches!(event.event, Some(v1::prefill_event::Event::Completed(_))));
        }
        drained
    };
    tokio::select! {
        drained = follow => assert!(drained),
        () = step_by_step(&prefill.gate) => unreachable!("it has no end"),
    }
    prefill.gate.open();
    prefill.idle().await;
}

#[tokio::test]
async fn a_handoff_is_taken_once() {
    let prefill = TestWorker::start(options("prefill-0", Role::Prefill)).await;
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let start = start(&prefill, &decode, &request(5, 40, 4));
    prefill.gate.hold_after(1);
    let first = open(&prefill, start.clone()).await.unwrap();
    until("the prefill is held", || prefill.gate.holds()).await;
    let status = end(open(&prefill, start).await.unwrap().events).await;
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    drop(first);
    prefill.gate.open();
    prefill.idle().await;
}

/// A prefill worker that says it has done everything, and leaves the pushing to the test.
struct Hasty {
    start: mpsc::Sender<v1::PrefillStart>,
    /// Who it says it is.
    says: Option<v1::WorkerRef>,
}

#[tonic::async_trait]
impl Prefill for Hasty {
    type PrefillStream = ReceiverStream<Result<v1::PrefillEvent, Status>>;

    async fn prefill(
        &self,
        request: tonic::Request<Streaming<v1::PrefillCommand>>,
    ) -> Result<tonic::Response<Self::PrefillStream>, Status> {
        use v1::prefill_event::Event;

        let first = request.into_inner().message().await?.unwrap();
        let Some(v1::prefill_command::Command::Start(start)) = first.command else { panic!("{first:?}") };
        let (events, stream) = mpsc::channel(4);
        let first_tokens = vec![v1::Token { token_id: 1, logprob: None, top_logprobs: Vec::new() }];
        for event in [
            Event::Accepted(v1::PrefillAccepted { prefill_worker: self.says.clone(), ..Default::default() }),
            Event::Completed(v1::PrefillCompleted { first_tokens, chunks: 1 }),
            Event::Drained(v1::PrefillDrained {}),
        ] {
            events.send(Ok(v1::PrefillEvent { event: Some(event) })).await.unwrap();
        }
        tokio::spawn({
            let start_to = self.start.clone();
            async move {
                drop(events);
                start_to.send(start).await.unwrap();
            }
        });
        Ok(tonic::Response::new(ReceiverStream::new(stream)))
    }
}

#[tokio::test]
async fn a_worker_that_is_not_who_was_asked_counts_as_a_refusal() {
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let request = request(8, 40, 4);
    let asked = v1::WorkerRef { name: "asked".into(), epoch: 5 };
    let others = [
        None,
        Some(v1::WorkerRef { name: "other".into(), epoch: 5 }),
        Some(v1::WorkerRef { epoch: 6, ..asked.clone() }),
    ];
    for (index, says) in others.into_iter().enumerate() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (start, _starts) = mpsc::channel(1);
        let other = tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(PrefillServer::new(Hasty { start, says }))
                .serve_with_incoming(TcpIncoming::from(listener)),
        );
        let candidate = v1::PrefillCandidate { worker: Some(asked.clone()), address };
        let salted = disagg_engine::Request { cache_salt: index.to_string(), ..request.clone() };
        let answer = generate(&decode, remote("r", &salted, vec![candidate])).await.unwrap();
        assert_right(&answer, &salted);
        assert_eq!(answer.placement(), "local prefill-refused");
        decode.idle().await;
        other.abort();
    }
}

#[tokio::test]
async fn blocks_that_land_after_the_lease_has_ended_well_still_count() {
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let identity = decode.state.identity.clone();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (start, mut starts) = mpsc::channel(1);
    let worker = v1::WorkerRef { name: "hasty".into(), epoch: 5 };
    let hasty = tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(PrefillServer::new(Hasty { start, says: Some(worker.clone()) }))
            .serve_with_incoming(TcpIncoming::from(listener)),
    );
    let candidate = v1::PrefillCandidate { worker: Some(worker.clone()), address };
    let call = generate(&decode, remote("r", &request(6, 12, 3), vec![candidate]));
    let push = async {
        let start = starts.recv().await.unwrap();
        let begin = v1::PushBegin {
            handoff: start.handoff,
            prefill_worker: Some(worker),
            kv_compat: Some(hash(identity.kv_compat.0)),
            token: start.landing.unwrap().token,
        };
        // Time for the end of the stream to arrive first; either order has to do.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut push = HandPush::open(&decode, begin).await;
        for layer in 0..identity.layout.layers {
            push.chunk(layer, 0, &vec![1; 3 * identity.layout.layer_block_bytes()]).await;
        }
        push.end(identity.layout.layers.into()).await;
        assert_eq!(push.answer().await, Ok(u64::from(identity.layout.layers)));
    };
    let (answer, ()) = tokio::join!(call, push);
    let answer = answer.unwrap();
    assert_eq!(answer.placement(), "remote above-threshold hasty");
    assert_eq!(answer.ids(0).len(), 3);
    decode.idle().await;
    hasty.abort();
}
