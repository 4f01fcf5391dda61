//! The end of a listener.

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{SOON, Server, roomy};

#[tokio::test]
async fn a_stop_closes_idle_connections_and_waits_for_answers() {
    let mut server = Server::start(roomy()).await;
    let mut idle = server.connect().await;
    idle.ask("/health", "well").await;
    let mut silent = server.connect().await;
    let mut at_work = server.at_work("127.0.0.1").await;
    server.stop.cancel();
    assert_eq!(idle.rest().await, "");
    assert_eq!(silent.rest().await, "");
    let refused = async {
        while TcpStream::connect(server.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, refused).await.expect("no new connections");
    assert!(!server.task.is_finished() && at_work.is_open(), "an answer is owed");
    server.shared.gate.add_permits(1);
    let answer = at_work.rest().await;
    assert!(answer.contains("connection: close\r\n") && answer.ends_with("at last"), "{answer}");
    timeout(SOON, &mut server.task).await.expect("ended").unwrap();
}

#[tokio::test]
async fn dropped_it_closes_everything() {
    let server = Server::start(roomy()).await;
    let mut at_work = server.at_work("127.0.0.1").await;
    server.task.abort();
    assert_eq!(at_work.rest().await, "");
    server.until_live(0).await;
}
