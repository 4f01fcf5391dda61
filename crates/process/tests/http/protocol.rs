//! What is spoken, and how ends of connections are understood.

use tokio::io::AsyncWriteExt as _;

use crate::harness::{Server, roomy};

#[tokio::test]
async fn http2_is_not_spoken() {
    let server = Server::start(roomy()).await;
    let mut client = server.connect().await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let answer = client.rest().await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 505 "), "{answer}");
    assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{answer}");

    let mut client = server.connect().await;
    client
        .send(
            "GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n\
             http2-settings: AAMAAABkAAQAAP__\r\n\r\n",
        )
        .await;
    assert!(client.until("well").await.starts_with("HTTP/1.1 200 "), "an offer may be passed over");
}

#[tokio::test]
async fn a_half_closed_client_gets_its_answer() {
    let server = Server::start(roomy()).await;
    let mut client = server.at_work("127.0.0.1").await;
    client.stream.shutdown().await.unwrap();
    // The server has noticed: it asks whether anybody is there.
    client.until("HTTP/1.1 100 Continue\r\n\r\n").await;
    server.shared.gate.add_permits(1);
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("at last"), "{answer}");

    // Closed before the server has read the request, and with a body: many, since it is a race.
    for _ in 0..200 {
        let mut client = server.connect().await;
        client.send("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nback").await;
        client.stream.shutdown().await.unwrap();
        let answer = client.rest().await;
        assert!(answer.ends_with("back"), "{answer:?}");
    }
    // The handler begins to read the body long after its end.
    let mut client = server.connect().await;
    client.send("POST /later HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nback").await;
    client.stream.shutdown().await.unwrap();
    server.until_live(1).await;
    server.shared.gate.add_permits(1);
    let answer = client.rest().await;
    assert!(answer.ends_with("back"), "{answer:?}");
}

#[tokio::test]
async fn a_client_that_is_gone_is_noticed_while_its_answer_is_made() {
    let server = Server::start(roomy()).await;
    let client = server.at_work("127.0.0.1").await;
    drop(client);
    server.until_live(0).await;
    // In the midst of an answer that has more to come, and says nothing for now.
    let mut client = server.connect().await;
    client.send("GET /begun HTTP/1.1\r\nhost: x\r\n\r\n").await;
    client.until("begun").await;
    drop(client);
    server.until_live(0).await;
    // Of HTTP/1.0, which knows no interim answers, the end of the request is the end of the client.
    let mut old = server.connect().await;
    old.send("GET /gated HTTP/1.0\r\n\r\n").await;
    server.until_live(1).await;
    old.stream.shutdown().await.unwrap();
    server.until_live(0).await;
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_half_closed_client() {
    let server = Server::start(roomy()).await;
    let mut client = server.connect().await;
    client.send("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf").await;
    client.stream.shutdown().await.unwrap();
    let answer = client.rest().await;
    assert!(!answer.contains("200 OK"), "{answer}");
}

#[tokio::test]
async fn requests_may_follow_each_other_without_a_wait() {
    let server = Server::start(roomy()).await;
    let mut client = server.connect().await;
    let one = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    client.send(&one.repeat(3)).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.rest().await.matches("HTTP/1.1 200 OK").count(), 3);
}

/// Most clients write all of a body before they read. Without care the unread rest would reset the connection, and they
/// would never learn why.
#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let server = Server::start(roomy()).await;
    let mut client = server.connect().await;
    let megabyte = "x".repeat(1 << 20);
    client.send("POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 8388608\r\n\r\n").await;
    for _ in 0..8 {
        client.send(&megabyte).await;
    }
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // Nothing else can be asked on this connection, and the client is told.
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
}
