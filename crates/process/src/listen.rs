//! Listening on an address of either family.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket, lookup_host};

/// Connections that the system holds until they are accepted. The system lowers it to its own bound
/// (`net.core.somaxconn`, 4096 on Linux by default). With less, connections of a burst wait a second for their
/// handshake to be sent again.
const BACKLOG: u32 = 4096;

/// Listens on HOST:PORT. `[::]` is every address, those of IPv4 as well; on a machine without IPv6, those alone.
pub async fn listen(address: &str) -> io::Result<TcpListener> {
    match address.strip_prefix("[::]:").and_then(|port| port.parse::<u16>().ok()) {
        Some(port) => {
            let every = [(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()];
            first(every)
        }
        None => first(lookup_host(address).await?),
    }
}

/// The first address that can be listened on.
fn first(addresses: impl IntoIterator<Item = SocketAddr>) -> io::Result<TcpListener> {
    let mut failed = None;
    for address in addresses {
        match bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the name has no address")))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart must not wait for connections of the last life.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn every_address_is_one_of_ipv4_too() {
        let listener = listen("[::]:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        // Where the machine has no IPv6, there is nothing more to be seen.
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
        }
    }

    /// With std's backlog of 128, those beyond it would have to send their handshake again, which takes a second.
    #[tokio::test]
    async fn a_burst_waits_in_the_system() {
        let listener = listen("localhost:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let burst = async {
            let mut held = Vec::new();
            for _ in 0..300 {
                held.push(TcpStream::connect(address).await.unwrap());
            }
            held.len()
        };
        let held = tokio::time::timeout(std::time::Duration::from_secs(20), burst).await;
        assert_eq!(held.expect("nobody accepts, and yet they are connected"), 300);
    }
}
