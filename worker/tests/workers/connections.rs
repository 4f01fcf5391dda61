//! Connections that are of no use to anybody, beside requests, handoffs and probes that are.

use std::net::SocketAddr;

use disagg_core::Role;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::harness::*;

/// More than a worker has room for, of each kind.
const MANY: usize = 1100;

/// All from one address, which is that of the honest as well.
const ONE: [&str; 1] = ["127.0.0.1"];
/// From several, so that none is at the bound of one address.
const SEVERAL: [&str; 5] = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5", "127.0.0.6"];

/// Connections that say `first` and no more.
async fn silent(address: SocketAddr, from: &[&str], first: &[u8]) -> Vec<TcpStream> {
    // They and their other ends are files of this process.
    disagg_process::open_files::raise();
    let mut all = Vec::new();
    for at in 0..MANY {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{}:0", from[at % from.len()]).parse().unwrap()).unwrap();
        let mut stream = timeout(PATIENCE, socket.connect(address)).await.unwrap().unwrap();
        // A worker may have closed it already.
        let _ = stream.write_all(first).await;
        all.push(stream);
    }
    all
}

/// A request with a prefill on another worker: gRPC to both, and pushes from one to the other. On a busy machine a
/// prefill worker may not be reached in time at first; every answer has to be right all the same.
async fn hands_over(prefill: &TestWorker, decode: &TestWorker, seed: u32) {
    let until_remote = async {
        for attempt in 0.. {
            let request = request(seed + 10 * attempt, 100, 5);
            let id = format!("r-{seed}-{attempt}");
            let answer = generate(decode, remote(&id, &request, vec![prefill.candidate()])).await.unwrap();
            assert_right(&answer, &request);
            if answer.placement() == "remote above-threshold prefill-0" {
                return;
            }
        }
    };
    timeout(PATIENCE, until_remote).await.expect("a handoff in time");
}

async fn pair() -> (TestWorker, TestWorker) {
    let prefill = TestWorker::start(options("prefill-0", Role::Prefill)).await;
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    (prefill, decode)
}

#[tokio::test]
async fn silent_connections_stop_neither_requests_nor_handoffs() {
    let (prefill, decode) = pair().await;
    let mut held = Vec::new();
    for (seed, from) in [(1, &ONE[..]), (2, &SEVERAL[..])] {
        held.extend(silent(decode.address, from, b"").await);
        held.extend(silent(prefill.address, from, b"").await);
        hands_over(&prefill, &decode, seed).await;
    }
    // The first had to go for the others.
    let end = timeout(PATIENCE, held[0].read(&mut [0])).await.expect("closed");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

/// With the first byte of a push, or of HTTP/2, a connection used to be taken for one.
#[tokio::test]
async fn a_first_byte_alone_is_next_to_silence() {
    let (prefill, decode) = pair().await;
    let mut held = Vec::new();
    for (seed, first) in [(1, &b"\xd1"[..]), (2, b"P"), (3, b"PRI * HTTP/2.0\r\n")] {
        held.extend(silent(decode.address, &ONE, first).await);
        hands_over(&prefill, &decode, seed).await;
    }
}

/// Whoever opens connections of one kind takes no place of the other, and none of another address.
#[tokio::test]
async fn a_kind_that_is_full_leaves_room_for_the_other() {
    let (prefill, decode) = pair().await;
    let mut client = decode.client().await;
    let _pushes = silent(decode.address, &ONE, b"\xd1disagg\x01").await;
    let request = request(1, 30, 4);
    let answer = collect(client.generate(local("local", &request)).await.unwrap().into_inner()).await;
    assert_right(&answer.unwrap(), &request);
    let _grpc = silent(decode.address, &SEVERAL[..1], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let answer = generate(&decode, local("another", &request)).await.unwrap();
    assert_right(&answer, &request);
    drop(prefill);
}

#[tokio::test]
async fn a_full_metrics_port_costs_nobody_but_itself() {
    let mut with_metrics = options("decode-0", Role::Decode);
    with_metrics.metrics = true;
    let decode = TestWorker::start(with_metrics).await;
    let metrics = decode.metrics_address.unwrap();
    let mut held = silent(metrics, &ONE, b"").await;
    held.extend(silent(metrics, &SEVERAL, b"GET /metrics HTTP/1.1\r\nhost:").await);
    let request = request(1, 30, 4);
    let answer = timeout(PATIENCE, generate(&decode, local("r", &request))).await.expect("in time");
    assert_right(&answer.unwrap(), &request);
    let health = timeout(PATIENCE, get(metrics, "/health")).await.expect("in time");
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
}

/// The other bounds hold for gRPC, too: who has passed the first bytes and answers no ping is cut.
#[tokio::test]
async fn a_client_of_http2_that_answers_no_ping_is_cut() {
    let decode = TestWorker::start(options("decode-0", Role::Decode)).await;
    let mut silent = TcpStream::connect(decode.address).await.unwrap();
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut all = Vec::new();
    timeout(PATIENCE, silent.read_to_end(&mut all)).await.expect("cut").ok();
    assert!(!all.is_empty(), "it was served before");
}
