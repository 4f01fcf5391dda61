//! Which addresses a worker connects to when somebody names another worker.
//!
//! Routers name prefill workers and decode workers name landing zones, and without mutual TLS a worker cannot tell who
//! they are. So that nobody makes a worker speak to what only its own host or its cloud can reach, such addresses are
//! refused here, after names are resolved and for every connection anew. Who answers has to be the worker that was
//! named, by its name and epoch, but could lie. That any worker of another deployment is refused, too, takes the
//! identities that come with mutual TLS.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpStream;

/// Metadata services of clouds that are not at a link-local address: Amazon's by IPv6, Azure's wire server, Alibaba's.
const METADATA: [IpAddr; 3] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
];

/// Addresses of one name that are tried.
const RESOLVED_MAX: usize = 8;

/// Where a worker connects to. The default is what a worker on a network of its own may.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Reach {
    /// This worker is on a loopback address itself, and so are its peers.
    loopback: bool,
}

impl Reach {
    /// For a worker that listens on `listen` and tells others `advertise`, which is host:port.
    pub fn of(listen: SocketAddr, advertise: &str) -> Self {
        let host = advertise.rsplit_once(':').map_or(advertise, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let advertised =
            host.parse::<IpAddr>().map_or_else(|_| host == "localhost", |ip| ip.to_canonical().is_loopback());
        Self { loopback: advertised || listen.ip().to_canonical().is_loopback() }
    }

    /// Why an address is not connected to; `None` if it is.
    pub fn objection(self, ip: IpAddr) -> Option<&'static str> {
        // An IPv4 address in the clothes of an IPv6 one leads to the same place.
        let ip = ip.to_canonical();
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        if ip.is_loopback() && !self.loopback {
            Some("is a loopback address, and this worker is not on one")
        } else if link_local {
            Some("is a link-local address")
        } else if ip.is_unspecified() || ip.is_multicast() {
            Some("is no address of a host")
        } else if METADATA.contains(&ip) {
            Some("is that of a cloud's metadata service")
        } else {
            None
        }
    }

    /// Connects to `address`, which is host:port, at the first of its addresses that is allowed and answers.
    pub async fn connect(self, address: &str) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in tokio::net::lookup_host(address).await?.take(RESOLVED_MAX) {
            if let Some(why) = self.objection(address.ip()) {
                last = io::Error::new(io::ErrorKind::PermissionDenied, format!("{} {why}", address.ip()));
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_only_this_host_or_its_cloud_can_reach_is_refused() {
        let network = Reach::default();
        let loopback = Reach { loopback: true };
        for allowed in ["10.0.0.7", "192.168.1.1", "8.8.8.8", "fd12::7", "2001:db8::1"] {
            assert_eq!(network.objection(ip(allowed)), None, "{allowed}");
            assert_eq!(loopback.objection(ip(allowed)), None, "{allowed}");
        }
        for local in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(network.objection(ip(local)).is_some(), "{local}");
            assert_eq!(loopback.objection(ip(local)), None, "{local}");
        }
        let never = [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "168.63.129.16",
            "100.100.100.200",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
        ];
        for never in never {
            assert!(network.objection(ip(never)).is_some(), "{never}");
            assert!(loopback.objection(ip(never)).is_some(), "{never}");
        }
    }

    #[test]
    fn a_worker_is_on_loopback_if_it_listens_or_is_told_of_there() {
        let listen = |text: &str| text.parse().unwrap();
        for (address, advertise, on_loopback) in [
            ("127.0.0.1:9000", "127.0.0.1:9000", true),
            ("[::1]:9000", "[::1]:9000", true),
            ("0.0.0.0:9000", "127.0.0.1:9000", true),
            ("0.0.0.0:9000", "localhost:9000", true),
            ("[::]:9000", "[::1]:9000", true),
            ("0.0.0.0:9000", "prefill-0.prefill:9000", false),
            ("0.0.0.0:9000", "10.0.0.7:9000", false),
            ("10.0.0.7:9000", "10.0.0.7:9000", false),
        ] {
            assert_eq!(Reach::of(listen(address), advertise).loopback, on_loopback, "{address} {advertise}");
        }
    }

    /// Names are looked at after they are resolved: a name is no way around.
    #[tokio::test]
    async fn a_name_that_leads_to_this_host_is_refused() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        let refused = Reach::default().connect(&address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{refused}");
        assert!(refused.to_string().contains("is a loopback address"), "{refused}");
        Reach { loopback: true }.connect(&address).await.unwrap();
    }
}
