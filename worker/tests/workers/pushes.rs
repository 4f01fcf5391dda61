//! Pushes of KV: spoken by hand, as no well-behaved worker speaks; and a large one, as workers do it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use disagg_core::{BlockId, Epoch, HandoffId, KvCompat, Role, WorkerId};
use disagg_engine::{Backend, KvPush, KvTransport};
use disagg_proto::v1;
use disagg_proto::v1::push_request::Message;
use disagg_worker::backend::sim::{SimBackend, Speed};
use disagg_worker::convert::Peer;
use disagg_worker::metrics::Metrics;
use disagg_worker::transport::landing::{Landed, LandingRegistry};
use disagg_worker::transport::queue::{PushQueues, QueueingTransport};
use disagg_worker::transport::reach::Reach;
use disagg_worker::transport::stages::Stages;
use disagg_worker::transport::tcp::{MAGIC, PushError, PushReceiver, PushTarget, Pusher, STAGES};
use disagg_worker::transport::token::LandingToken;
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::harness::*;
use crate::shape;

/// A push connection, written byte by byte.
pub struct HandPush {
    stream: TcpStream,
}

impl HandPush {
    pub async fn open(decode: &TestWorker, begin: v1::PushBegin) -> Self {
        let mut stream = TcpStream::connect(decode.address).await.unwrap();
        stream.write_all(&MAGIC).await.unwrap();
        let mut push = Self { stream };
        push.message(Message::Begin(begin)).await;
        push
    }

    /// A receiver that has refused may have closed the connection.
    async fn message(&mut self, message: Message) {
        let bytes = v1::PushRequest { message: Some(message) }.encode_to_vec();
        let _ = self.stream.write_all(&(bytes.len() as u32).to_le_bytes()).await;
        let _ = self.stream.write_all(&bytes).await;
    }

    pub async fn chunk(&mut self, layer: u32, first_block: u32, payload: &[u8]) {
        let payload_bytes = payload.len() as u32;
        self.announce(layer, first_block, payload_bytes / block_bytes(), payload_bytes).await;
        let _ = self.stream.write_all(payload).await;
    }

    async fn announce(&mut self, layer: u32, first_block: u32, block_count: u32, payload_bytes: u32) {
        let chunk = v1::KvChunk { layer, first_block, block_count, payload_bytes, checksum: None };
        self.message(Message::Chunk(chunk)).await;
    }

    pub async fn end(&mut self, chunks: u64) {
        self.message(Message::End(v1::PushEnd { chunks })).await;
    }

    /// Chunks that the receiver confirms, or its reason. `Err("")` when it only closes.
    pub async fn answer(&mut self) -> Result<u64, String> {
        let read = async {
            let mut bytes = Vec::new();
            // Broken by a reset, what came before is there.
            let _ = self.stream.read_to_end(&mut bytes).await;
            bytes
        };
        let bytes = tokio::time::timeout(PATIENCE, read).await.expect("the receiver ends the connection");
        let answer = v1::PushResponse::decode(bytes.get(4..).unwrap_or_default()).unwrap();
        match answer.message {
            Some(v1::push_response::Message::Done(done)) => Ok(done.chunks),
            Some(v1::push_response::Message::Refused(refused)) => Err(refused.reason),
            None => Err(String::new()),
        }
    }
}

fn block_bytes() -> u32 {
    use disagg_engine::fake::FakeBackend;
    FakeBackend::new(MODEL, 1, BLOCK_SIZE, 1).layout().layer_block_bytes() as u32
}

fn begin(epoch: u64, compat: u128, number: u64) -> v1::PushBegin {
    v1::PushBegin {
        handoff: Some(v1::HandoffRef { epoch, number }),
        prefill_worker: Some(v1::WorkerRef { name: "p".into(), epoch: 5 }),
        kv_compat: Some(hash(compat)),
        token: token().to_wire(),
    }
}

/// Of every zone that tests open by hand.
pub fn token() -> LandingToken {
    LandingToken::from_wire(&[7; LandingToken::BYTES]).unwrap()
}

fn peer() -> Peer {
    Peer { worker: WorkerId::new("p"), epoch: Epoch(5) }
}

fn refused(decode: &TestWorker, reason: &str) -> u64 {
    decode.metric(&format!(r#"disagg_worker_chunks_refused_total{{reason="{reason}"}}"#))
}

#[tokio::test]
async fn pushes_that_nobody_asked_for_are_refused_and_counted() {
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let (epoch, compat) = (decode.state.identity.epoch.0, decode.state.identity.kv_compat.0);
    for (reason, text, begin) in [
        ("unknown-handoff", "is unknown or over", begin(epoch, compat, 1)),
        ("wrong-epoch", "is of another epoch", begin(epoch ^ 1, compat, 1)),
        ("wrong-compat", "does not fit", begin(epoch, compat ^ 1, 1)),
    ] {
        let answer = HandPush::open(&decode, begin).await.answer().await.unwrap_err();
        assert!(answer.contains(text), "{reason}: {answer}");
        assert_eq!(refused(&decode, reason), 1, "{reason}");
    }
    let mut headless = HandPush { stream: TcpStream::connect(decode.address).await.unwrap() };
    headless.stream.write_all(&MAGIC).await.unwrap();
    headless.end(0).await;
    assert_eq!(headless.answer().await.unwrap_err(), "message: `begin` has to be the first");
    assert_eq!(refused(&decode, "invalid"), 1);
}

/// Whoever guesses the number of a handoff, the epoch and the names cannot write into its blocks.
#[tokio::test]
async fn a_push_without_the_landings_token_is_refused_and_counted() {
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let (epoch, compat) = (decode.state.identity.epoch, decode.state.identity.kv_compat.0);
    let handoff = HandoffId { epoch, number: 1 };
    let secret = LandingToken::random().unwrap();
    let landed = decode.state.landing.open(handoff, secret.clone(), peer(), vec![BlockId(3)]);
    let block = vec![1; block_bytes() as usize];

    let mut other = secret.to_wire().to_vec();
    other[15] ^= 1;
    for (tries, forged) in [vec![0; 16], other].into_iter().enumerate() {
        let begin = v1::PushBegin { token: forged.into(), ..begin(epoch.0, compat, 1) };
        let mut push = HandPush::open(&decode, begin).await;
        push.chunk(0, 0, &block).await;
        let answer = push.answer().await.unwrap_err();
        assert!(answer.contains("was opened with another token"), "{answer}");
        assert_eq!(refused(&decode, "wrong-token"), 1 + tries as u64);
    }
    let none = v1::PushBegin { token: Vec::new().into(), ..begin(epoch.0, compat, 1) };
    let answer = HandPush::open(&decode, none).await.answer().await.unwrap_err();
    assert_eq!(answer, "begin.token: 0 bytes given; a token has 16 bytes");
    assert_eq!(refused(&decode, "invalid"), 1);
    assert_eq!(landed.borrow().units, 0, "nothing was written");

    let begin = v1::PushBegin { token: secret.to_wire(), ..begin(epoch.0, compat, 1) };
    let mut push = HandPush::open(&decode, begin).await;
    push.chunk(0, 0, &block).await;
    push.end(1).await;
    assert_eq!(push.answer().await, Ok(1));
}

#[tokio::test]
async fn another_version_and_messages_that_are_too_long_are_not_answered() {
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let mut other = MAGIC.to_vec();
    *other.last_mut().unwrap() += 1;
    for bytes in [other, [&MAGIC[..], &[0xff; 8]].concat()] {
        let mut push = HandPush { stream: TcpStream::connect(decode.address).await.unwrap() };
        push.stream.write_all(&bytes).await.unwrap();
        // Of this version, it would be refused with a reason.
        push.message(Message::Begin(begin(1, 1, 1))).await;
        assert_eq!(push.answer().await.unwrap_err(), "");
    }
}

#[tokio::test]
async fn chunks_of_an_open_handoff_land_once_and_only_until_the_fence() {
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let identity = &decode.state.identity;
    let (epoch, compat, layers) = (identity.epoch.0, identity.kv_compat.0, identity.layout.layers);
    let handoff = |number| HandoffId { epoch: identity.epoch, number };
    let block = vec![1; identity.layout.layer_block_bytes()];
    let open = async || HandPush::open(&decode, begin(epoch, compat, 1)).await;

    let landed = decode.state.landing.open(handoff(1), token(), peer(), vec![BlockId(3)]);
    let mut twice = open().await;
    twice.chunk(0, 0, &block).await;
    twice.chunk(0, 0, &block).await;
    assert!(twice.answer().await.unwrap_err().contains("has landed before"));
    let mut outside = open().await;
    outside.chunk(1, 1, &block).await;
    assert!(outside.answer().await.unwrap_err().contains("outside"));
    let mut wrong_size = open().await;
    wrong_size.announce(1, 0, 1, block_bytes() - 1).await;
    assert!(wrong_size.answer().await.unwrap_err().starts_with("chunk.payload_bytes"));
    let mut short = open().await;
    short.end(1).await;
    assert!(short.answer().await.unwrap_err().contains("1 chunks were announced and 0 came"));
    assert_eq!(landed.borrow().units, 1);
    // Another connection may bring the rest.
    let mut rest = open().await;
    for layer in 1..layers {
        rest.chunk(layer, 0, &block).await;
    }
    rest.end(u64::from(layers) - 1).await;
    assert_eq!(rest.answer().await, Ok(u64::from(layers) - 1));
    assert!(landed.borrow().complete());
    for reason in ["duplicate", "out-of-range", "wrong-size", "short"] {
        assert_eq!(refused(&decode, reason), 1, "{reason}");
    }
    decode.state.landing.close(handoff(1));
    assert!(open().await.answer().await.unwrap_err().contains("is unknown or over"));
}

#[tokio::test]
async fn the_fence_ends_connections_that_wait_and_chunks_that_are_half_there() {
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let identity = &decode.state.identity;
    let (epoch, compat) = (identity.epoch.0, identity.kv_compat.0);
    for number in [1, 2] {
        let handoff = HandoffId { epoch: identity.epoch, number };
        let landed = decode.state.landing.open(handoff, token(), peer(), vec![BlockId(3), BlockId(4)]);
        let mut push = HandPush::open(&decode, begin(epoch, compat, number)).await;
        push.chunk(0, 0, &vec![1; block_bytes() as usize]).await;
        if number == 2 {
            push.announce(0, 1, 1, block_bytes()).await;
            push.stream.write_all(&[7]).await.unwrap();
        }
        until("a block has landed", || landed.borrow().units == 1).await;
        decode.state.landing.close(handoff);
        assert_eq!(push.answer().await.unwrap_err(), "the handoff has ended");
        assert_eq!(refused(&decode, "fenced"), number);
        assert_eq!(landed.borrow().units, 1);
    }
}

#[tokio::test]
async fn connections_whose_handoff_was_activated_may_still_end_well() {
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let identity = &decode.state.identity;
    let handoff = HandoffId { epoch: identity.epoch, number: 1 };
    let mut landed = decode.state.landing.open(handoff, token(), peer(), vec![BlockId(3)]);
    let mut push = HandPush::open(&decode, begin(identity.epoch.0, identity.kv_compat.0, 1)).await;
    for layer in 0..identity.layout.layers {
        push.chunk(layer, 0, &vec![1; block_bytes() as usize]).await;
    }
    landed.wait_for(Landed::complete).await.unwrap();
    decode.state.landing.close(handoff);
    push.end(identity.layout.layers.into()).await;
    assert_eq!(push.answer().await, Ok(u64::from(identity.layout.layers)));
}

/// 16 layers, 128 KiB a token over all of them: numbers have 4 bytes here.
fn large() -> SimBackend {
    SimBackend::new(&shape::llama_8b(16, &serde_json::json!({})), Speed::default(), 64, BLOCKS).unwrap()
}

/// 134 MB.
const BLOCKS: u32 = 16;

/// At the speed that is wanted (1.5 GB/s) it takes 0.1 s; a machine under load gets a hundred times that.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_large_push_brings_every_block_in_time() {
    const COMPAT: KvCompat = KvCompat(3);
    const EPOCH: Epoch = Epoch(8);
    let (source, target) = (large(), large());
    let (from, to, layout) = (source.memory(), target.memory(), source.layout());
    let block = |layer: u32, position: u32| -> Vec<u8> {
        let words = 0..layout.layer_block_bytes() as u32 / 4;
        words
            .flat_map(|i| (i ^ layer << 20 ^ position << 26).wrapping_mul(0x9e37_79b9).to_le_bytes())
            .collect()
    };
    let sources: Vec<BlockId> = (0..BLOCKS).map(BlockId).collect();
    let reserved: Vec<BlockId> = (0..BLOCKS).rev().map(BlockId).collect();
    for layer in 0..layout.layers {
        for &id in &sources {
            from.write(layer, id, &block(layer, id.0)).unwrap();
        }
    }

    let metrics = Arc::new(Metrics::new());
    let landing = Arc::new(LandingRegistry::new(Arc::clone(&to), EPOCH, COMPAT));
    let stages = Stages::new(Arc::clone(&to), STAGES);
    let receiver = PushReceiver::new(Arc::clone(&landing), stages, Arc::clone(&metrics));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let receiver = receiver.clone();
            tokio::spawn(async move { receiver.serve(stream).await });
        }
    });
    let handoff = HandoffId { epoch: EPOCH, number: 1 };
    let landed = landing.open(handoff, token(), peer(), reserved.clone());
    let queues = Arc::new(PushQueues::new(&layout));
    let ready = queues.open(handoff, BLOCKS).unwrap();
    let mut transport = QueueingTransport(Arc::clone(&queues));
    let pushes = [KvPush { handoff, first: 0, blocks: sources.clone() }];
    (0..layout.layers).for_each(|layer| transport.push_layer(layer, &pushes));
    let queued = queues.finish(handoff);
    let pusher = Pusher {
        stages: Stages::new(Arc::clone(&from), STAGES),
        this_worker: peer(),
        kv_compat: COMPAT,
        reach: Reach::of(address.parse().unwrap(), &address),
        metrics,
        speeds: Arc::default(),
    };
    let target = PushTarget { handoff, peer: WorkerId::new("d"), address, token: token() };
    let push =
        |target: &PushTarget, ready| pusher.clone().push(target.clone(), ready, CancellationToken::new());
    let pushed = tokio::time::timeout(Duration::from_secs(10), push(&target, ready));
    assert_eq!(pushed.await.expect("the push takes 10 s").unwrap().unwrap(), queued);
    assert!(landed.borrow().complete());
    let mut got = vec![0; layout.layer_block_bytes()];
    for layer in 0..layout.layers {
        for (&id, position) in reserved.iter().zip(0..) {
            to.read(layer, id, &mut got).unwrap();
            assert!(got == block(layer, position), "layer {layer}, block {position}");
        }
    }
    assert_eq!(pusher.speeds.snapshot().len(), 1);

    // No connection without something to send: it could come when the others have ended the handoff.
    let before = connections.load(Ordering::SeqCst);
    let small = HandoffId { number: 2, ..handoff };
    let _landed = landing.open(small, token(), peer(), vec![BlockId(0)]);
    let ready = queues.open(small, 1).unwrap();
    transport.push_layer(0, &[KvPush { handoff: small, first: 0, blocks: vec![BlockId(1)] }]);
    queues.finish(small);
    push(&PushTarget { handoff: small, ..target.clone() }, ready).await.unwrap().unwrap();
    assert_eq!(connections.load(Ordering::SeqCst), before + 1);

    // What the receiver says is what whoever drives the handoff gets to hear.
    landing.close(handoff);
    let ready = queues.open(handoff, BLOCKS).unwrap();
    transport.push_layer(0, &pushes);
    queues.finish(handoff);
    let error = push(&target, ready).await.unwrap().unwrap_err();
    assert!(matches!(&error, PushError::Refused(reason) if reason.contains("is unknown or over")), "{error}");

    // Stopped, it ends without an error, also while it waits for blocks.
    let waiting = HandoffId { number: 3, ..handoff };
    let ready = queues.open(waiting, BLOCKS).unwrap();
    let stop = CancellationToken::new();
    let pushing =
        tokio::spawn(pusher.clone().push(PushTarget { handoff: waiting, ..target }, ready, stop.clone()));
    stop.cancel();
    let ended = tokio::time::timeout(PATIENCE, pushing).await.expect("it stops").unwrap();
    assert!(ended.is_none(), "{ended:?}");
}
