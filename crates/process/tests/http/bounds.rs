//! Connections beyond every bound, beside someone honest.

use disagg_process::http::{HEAD_BYTES_MAX, HEADERS_MAX, Hosts, HttpOptions};

use crate::harness::{Client, Server, roomy};

const FEW: usize = 8;

fn few() -> HttpOptions {
    HttpOptions { connections_max: FEW, connections_per_peer_max: FEW, ..roomy() }
}

#[tokio::test]
async fn silent_connections_do_not_keep_anybody_out() {
    let server = Server::start(few()).await;
    let mut silent = Vec::new();
    for _ in 0..10 * FEW {
        silent.push(server.connect().await);
        if silent.len() % FEW == 0 {
            assert!(server.get("/health").await.ends_with("well"));
        }
    }
    // Each of them made room for the one that came FEW later.
    for first in &mut silent[..9 * FEW] {
        assert_eq!(first.rest().await, "");
    }
}

#[tokio::test]
async fn half_heads_and_idle_connections_make_room_too() {
    let server = Server::start(few()).await;
    let mut others: Vec<Client> = Vec::new();
    for turn in 0..4 * FEW {
        let mut client = server.connect().await;
        if turn % 2 == 0 {
            client.send("GET /health HTTP/1.1\r\nhost:").await;
        } else {
            client.ask("/health", "well").await;
        }
        others.push(client);
    }
    assert!(server.get("/health").await.ends_with("well"));
}

#[tokio::test]
async fn who_is_at_work_is_not_cut_for_others_and_health_is_answered() {
    let server = Server::start(few()).await;
    let mut at_work = Vec::new();
    for _ in 0..FEW {
        at_work.push(server.at_work("127.0.0.1").await);
    }
    assert!(server.get("/health").await.ends_with("well"));
    let refused = server.get("/gated").await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: 1\r\n"), "{refused}");
    assert!(refused.contains("connection: close\r\n"), "{refused}");
    // Whoever fills the reserve with silence does not keep it either.
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(server.connect().await);
    }
    assert!(server.get("/health").await.ends_with("well"));

    server.shared.gate.add_permits(FEW);
    for client in &mut at_work {
        assert!(client.until("at last").await.starts_with("HTTP/1.1 200 OK"));
    }
    server.shared.gate.add_permits(1);
    assert!(server.get("/gated").await.ends_with("at last"), "there is room again");
}

#[tokio::test]
async fn one_address_does_not_take_the_places_of_all() {
    let options = HttpOptions { connections_per_peer_max: 2, ..few() };
    let server = Server::start(options).await;
    let _at_work = [server.at_work("127.0.0.2").await, server.at_work("127.0.0.2").await];
    let mut third = server.connect_from("127.0.0.2").await;
    third.send("GET /gated HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(third.rest().await.starts_with("HTTP/1.1 503 "));
    let _other = server.at_work("127.0.0.1").await;
}

#[tokio::test]
async fn heads_are_bounded_in_bytes_and_headers() {
    let server = Server::start(roomy()).await;
    let get = async |headers: String| {
        let mut client = server.connect().await;
        client.send(&format!("GET /health HTTP/1.1\r\nconnection: close\r\n{headers}\r\n")).await;
        client.rest().await
    };
    let large = |bytes: usize| format!("x-large: {}\r\n", "x".repeat(bytes));
    assert!(get(large(HEAD_BYTES_MAX - 1024)).await.starts_with("HTTP/1.1 200 "));
    assert!(get(large(HEAD_BYTES_MAX)).await.starts_with("HTTP/1.1 431 "));
    // More than sockets hold: the answer reaches a client that is still sending.
    assert!(get(large(4 << 20)).await.starts_with("HTTP/1.1 431 "));
    let many = |count: usize| "x: y\r\n".repeat(count);
    assert!(get(many(HEADERS_MAX - 1)).await.starts_with("HTTP/1.1 200 "));
    assert!(get(many(HEADERS_MAX)).await.starts_with("HTTP/1.1 431 "));
}

/// Names are tested beside the code.
#[tokio::test]
async fn a_web_page_cannot_use_a_listener_on_loopback() {
    let hosts = Hosts::of("127.0.0.1:1".parse().unwrap(), &[]);
    let server = Server::start(HttpOptions { hosts, ..roomy() }).await;
    for (host, status) in [("evil.example", "403"), ("localhost:8181", "200"), ("127.0.0.1", "200")] {
        let mut client = server.connect().await;
        client.send(&format!("GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")).await;
        let answer = client.rest().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
        assert_eq!(answer.contains("not for \"evil.example\""), status == "403", "{answer}");
    }
}
