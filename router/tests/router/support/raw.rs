//! A client that does what no good client does: it sends half a request, or does not read the answer.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::SOON;

/// A connection with nothing of HTTP but what is written to it.
pub struct RawClient(TcpStream);

impl RawClient {
    /// Connects, with so small a buffer that what is not read stays with the server.
    pub async fn connect(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        Self(socket.connect(address).await.expect("a connection"))
    }

    /// Connects and sends the head of a POST with these header lines.
    pub async fn post(address: SocketAddr, path: &str, headers: &[&str]) -> Self {
        let mut client = Self::connect(address).await;
        let headers = headers.join("\r\n");
        client.send(format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n\r\n").as_bytes()).await;
        client
    }

    /// Connects and sends the head of a completion whose body has `length` bytes.
    pub async fn completion(address: SocketAddr, length: usize) -> Self {
        Self::json(address, "/v1/completions", length).await
    }

    /// Connects and sends the head of a request whose body has `length` bytes.
    pub async fn json(address: SocketAddr, path: &str, length: usize) -> Self {
        let length = format!("content-length: {length}");
        Self::post(address, path, &["content-type: application/json", &length]).await
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        timeout(SOON, self.0.write_all(bytes)).await.expect("in time").expect("sent");
    }

    /// Reads until the answer so far has `wanted` or the connection ends.
    pub async fn read_until(&mut self, wanted: &str) -> String {
        let mut seen = Vec::new();
        let read = async {
            let mut chunk = [0; 4096];
            while !String::from_utf8_lossy(&seen).contains(wanted) {
                match self.0.read(&mut chunk).await {
                    Ok(0) | Err(_) => break,
                    Ok(length) => seen.extend_from_slice(&chunk[..length]),
                }
            }
        };
        timeout(SOON, read).await.expect("in time");
        String::from_utf8_lossy(&seen).into_owned()
    }
}
