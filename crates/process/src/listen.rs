//! Listening on an address of either family.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;

/// Listens on HOST:PORT. `[::]` is every address, those of IPv4 as well; on a machine without IPv6, those alone.
pub async fn listen(address: &str) -> io::Result<TcpListener> {
    match address.strip_prefix("[::]:").and_then(|port| port.parse::<u16>().ok()) {
        Some(port) => {
            let every: [SocketAddr; 2] =
                [(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()];
            // The first that works.
            TcpListener::bind(&every[..]).await
        }
        None => TcpListener::bind(address).await,
    }
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
}
