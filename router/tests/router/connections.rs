//! Who may connect, how many, and what each port answers. The listener itself is tested in `crates/process`.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::fake::{FakeWorker, Step, says};
use crate::support::{SOON, TestRouter, completion, streamed};

/// A request as it is written; `headers` end in a line break each.
fn written(line: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{line} HTTP/1.1\r\n{headers}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// All that a server answers until it closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset is an end, too.
    let _ = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("closed in time");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn ask(router: &TestRouter, line: &str, headers: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(router.address).await.unwrap();
    let headers = format!("connection: close\r\n{headers}");
    stream.write_all(written(line, &headers, body).as_bytes()).await.unwrap();
    rest(&mut stream).await
}

#[tokio::test]
async fn what_is_for_operators_is_not_on_the_port_of_clients() {
    let worker = FakeWorker::decode("d0", vec![says("x")]);
    let router = TestRouter::start(&[&worker], &[]).await;
    router.until_ready(&[&worker]).await;
    for path in ["/metrics", "/internal/workers", "/internal/settings"] {
        assert_eq!(router.admin(path).await.status, 200, "{path}");
        let answer = router.get(path).await;
        assert_eq!(
            (answer.status, answer.json()["error"]["code"].as_str()),
            (404, Some("unknown_url")),
            "{path}"
        );
    }
    for path in ["/health", "/ready"] {
        assert_eq!((router.get(path).await.status, router.admin(path).await.status), (200, 200), "{path}");
    }
    assert_eq!(router.admin("/v1/models").await.status, 404);
}

#[tokio::test]
async fn admin_answers_to_the_very_end() {
    let worker = FakeWorker::decode("d0", vec![vec![Step::Started, Step::Text("a"), Step::Gate, Step::Stop]]);
    let mut router = TestRouter::start(&[&worker], &[]).await;
    let open = router.send("/v1/completions", &streamed("p")).await;
    router.shut_down();
    let refused = async {
        while TcpStream::connect(router.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, refused).await.expect("clients are not taken any more");
    assert_eq!(
        router.admin("/health").await.status,
        200,
        "or a kubelet would kill what finishes its answers"
    );
    worker.open_gate();
    open.text().await.unwrap();
    timeout(SOON, &mut router.task).await.expect("ended").unwrap().unwrap();
}

#[tokio::test]
async fn a_half_closed_client_gets_its_answer_and_one_that_is_gone_costs_nothing() {
    let script = || vec![Step::Started, Step::Gate, Step::Text("here"), Step::Stop];
    let worker = FakeWorker::decode("d0", vec![script(), script()]);
    let router = TestRouter::start(&[&worker], &[]).await;
    router.until_ready(&[&worker]).await;
    let request = written("POST /v1/completions", "host: localhost\r\n", &completion("p").to_string());

    let mut gone = TcpStream::connect(router.address).await.unwrap();
    gone.write_all(request.as_bytes()).await.unwrap();
    worker.until("asked", |seen| seen.requests.len() == 1).await;
    drop(gone);
    worker.until("cancelled", |seen| seen.cancelled == 1).await;

    let mut half = TcpStream::connect(router.address).await.unwrap();
    half.write_all(request.as_bytes()).await.unwrap();
    half.shutdown().await.unwrap();
    worker.until("asked", |seen| seen.requests.len() == 2).await;
    worker.open_gate();
    let answer = rest(&mut half).await;
    assert!(answer.contains("HTTP/1.1 200 OK") && answer.contains("\"text\":\"here\""), "{answer}");
}

#[tokio::test]
async fn connections_beyond_the_bound_keep_nobody_out() {
    let worker = FakeWorker::decode("d0", vec![says("x"); 3]);
    let router = TestRouter::start(&[&worker], &["--max-connections", "16"]).await;
    router.until_ready(&[&worker]).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(router.address).await.unwrap());
    }
    for _ in 0..3 {
        let answer =
            ask(&router, "POST /v1/completions", "host: localhost\r\n", &completion("p").to_string()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    // Half of 16 from one address.
    assert_eq!(rest(&mut silent[0]).await, "");
}

#[tokio::test]
async fn heads_and_idle_connections_have_deadlines_of_their_own() {
    let flags = ["--head-timeout-seconds", "1", "--idle-timeout-seconds", "1"];
    let router = TestRouter::start_for(&["127.0.0.1:1".to_owned()], &flags).await;
    let mut slow = TcpStream::connect(router.address).await.unwrap();
    slow.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n").await.unwrap();
    let mut idle = TcpStream::connect(router.address).await.unwrap();
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(rest(&mut slow).await.starts_with("HTTP/1.1 408 "));
    assert!(rest(&mut idle).await.ends_with("{\"status\":\"ok\"}"));
}

#[tokio::test]
async fn other_names_than_loopback_are_refused_on_both_ports() {
    let router = TestRouter::start_for(&["127.0.0.1:1".to_owned()], &["--allowed-host", "llm.example"]).await;
    for (host, status) in [
        ("localhost", 200),
        ("localhost:8181", 200),
        ("127.0.0.1", 200),
        ("[::1]:1", 200),
        ("llm.example", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
    ] {
        let answer = ask(&router, "GET /health", &format!("host: {host}\r\n"), "").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
        let refused = answer.contains("\"code\":\"host_not_allowed\"") && answer.contains("--allowed-host");
        assert_eq!(refused, status == 403, "{answer}");
        let mut admin = TcpStream::connect(router.admin).await.unwrap();
        let request = format!("GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        admin.write_all(request.as_bytes()).await.unwrap();
        let answer = rest(&mut admin).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
    }
}

#[tokio::test]
async fn pages_of_this_machine_and_those_named_may_use_the_api() {
    let worker = FakeWorker::decode("d0", vec![says("x"); 4]);
    let allowed = async |router: &TestRouter, origin: &str| {
        let headers = format!(
            "host: localhost\r\norigin: {origin}\r\naccess-control-request-method: POST\r\n\
             access-control-request-headers: authorization,content-type,x-stainless-os\r\n"
        );
        let preflight = ask(router, "OPTIONS /v1/chat/completions", &headers, "").await.to_lowercase();
        let headers = format!("host: localhost\r\norigin: {origin}\r\n");
        let answer = ask(router, "GET /v1/models", &headers, "").await.to_lowercase();
        assert!(answer.starts_with("http/1.1 200 "), "{answer}");
        let allows = |answer: &str| {
            ["*", origin]
                .iter()
                .any(|who| answer.contains(&format!("access-control-allow-origin: {who}\r\n")))
        };
        assert_eq!(allows(&preflight), allows(&answer), "{preflight}\n{answer}");
        if allows(&preflight) {
            assert!(
                preflight.starts_with("http/1.1 200 ") && preflight.contains("x-stainless-os"),
                "{preflight}"
            );
            assert!(
                answer.contains("access-control-expose-headers: ") && answer.contains("x-request-id"),
                "{answer}"
            );
        }
        allows(&answer)
    };
    let closed = TestRouter::start(&[&worker], &[]).await;
    assert!(allowed(&closed, "http://localhost:3000").await);
    assert!(allowed(&closed, "http://127.0.0.1:5173").await);
    assert!(!allowed(&closed, "https://chat.example.com").await);
    assert!(!allowed(&closed, "null").await);
    let named = TestRouter::start(&[&worker], &["--cors-origin", "https://chat.example.com"]).await;
    assert!(allowed(&named, "https://chat.example.com").await);
    assert!(!allowed(&named, "https://chat.example.org").await);
    let open = TestRouter::start(&[&worker], &["--cors-origin", "*"]).await;
    assert!(allowed(&open, "https://chat.example.org").await);
}

#[tokio::test]
async fn proxies_are_asked_not_to_hold_tokens_back() {
    let worker = FakeWorker::decode("d0", vec![says("x"); 2]);
    let router = TestRouter::start(&[&worker], &[]).await;
    let stream = router.post("/v1/completions", &streamed("p")).await;
    assert_eq!(stream.header("x-accel-buffering"), "no");
    let whole = router.post("/v1/completions", &json!({ "model": "tiny", "prompt": "p" })).await;
    assert_eq!((whole.status, whole.header("x-accel-buffering")), (200, ""));
}

#[tokio::test]
async fn http2_is_a_decision() {
    let router = TestRouter::start_for(&["127.0.0.1:1".to_owned()], &[]).await;
    let mut stream = TcpStream::connect(router.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 505 "));
}
