//! Nothing lasts for ever.

use std::time::Duration;

use disagg_process::http::HttpOptions;

use crate::harness::{Server, roomy};

const SHORT: Duration = Duration::from_millis(200);

#[tokio::test]
async fn a_head_that_does_not_come_in_time_is_answered_408() {
    let server = Server::start(HttpOptions { head_timeout: SHORT, ..roomy() }).await;
    let mut slow = server.connect().await;
    slow.send("GET /health HTTP/1.1\r\nhost: x\r\nx-slow: ").await;
    let answer = slow.rest().await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{answer}");
    assert!(server.get("/health").await.ends_with("well"));
}

/// Byte after byte, so that no pause is long.
#[tokio::test]
async fn a_trickle_is_no_reason_to_wait_longer() {
    let server = Server::start(HttpOptions { head_timeout: SHORT, ..roomy() }).await;
    let slow = server.connect().await;
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let trickle = async {
        loop {
            ticks.tick().await;
            slow.stream.writable().await.unwrap();
            if slow.stream.try_write(b"x").is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(crate::harness::SOON, trickle).await.expect("cut while it sends");
}

#[tokio::test]
async fn who_says_nothing_is_closed_without_a_word() {
    let server = Server::start(HttpOptions { head_timeout: SHORT, ..roomy() }).await;
    assert_eq!(server.connect().await.rest().await, "");
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_own_time() {
    let server = Server::start(HttpOptions { idle_timeout: SHORT, ..roomy() }).await;
    let mut client = server.connect().await;
    client.ask("/health", "well").await;
    client.ask("/health", "well").await;
    assert_eq!(client.rest().await, "", "closed without a word: the client may be about to send");

    let patient = Server::start(HttpOptions { head_timeout: SHORT, ..roomy() }).await;
    let mut client = patient.connect().await;
    client.ask("/health", "well").await;
    tokio::time::sleep(2 * SHORT).await;
    client.ask("/health", "well").await;
}

/// What one connection may have taken from an answer that nobody reads; without a bound of ours it is several megabytes.
#[cfg(target_os = "linux")]
const UNREAD_BYTES_MAX: usize = 1536 * 1024;
#[cfg(not(target_os = "linux"))]
const UNREAD_BYTES_MAX: usize = usize::MAX;

#[tokio::test]
async fn who_takes_nothing_of_an_answer_is_cut() {
    let server = Server::start(HttpOptions { write_timeout: SHORT, ..roomy() }).await;
    let mut client = server.connect().await;
    client.send("GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await;
    server.until_live(1).await;
    server.until_live(0).await;
    // Until then the system held little of it for a client that reads nothing.
    let taken = server.shared.taken.load(std::sync::atomic::Ordering::SeqCst);
    assert!(taken <= UNREAD_BYTES_MAX, "{taken} bytes were taken from the answer");
}

/// The time of a request is the application's, not the listener's.
#[tokio::test]
async fn a_request_at_work_has_no_deadline_here() {
    let options = HttpOptions { head_timeout: SHORT, idle_timeout: SHORT, write_timeout: SHORT, ..roomy() };
    let server = Server::start(options).await;
    let mut client = server.at_work("127.0.0.1").await;
    tokio::time::sleep(3 * SHORT).await;
    server.shared.gate.add_permits(1);
    assert!(client.until("at last").await.starts_with("HTTP/1.1 200 OK"));
}
