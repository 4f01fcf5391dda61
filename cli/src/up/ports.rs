//! Free ports on this machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;

/// Where ports for workers are looked for.
///
/// Not where the kernel takes ports for outgoing connections from (32768 and up on Linux): a client that keeps
/// connecting to a dead worker's port from that range can, by chance, get this very port as its own and connect to
/// itself, and the restarted worker then finds its port taken.
const WORKER_PORTS: Range<u16> = 20_000..30_000;

const PLACES: u32 = (WORKER_PORTS.end - WORKER_PORTS.start) as u32;

/// The router's ports are looked for where its workers' are not: none of them listens while all are chosen.
const AWAY_FROM_WORKERS: u32 = PLACES / 2;

/// Ports that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum PortError {
    #[error(
        "port {} is already in use on {}: stop what listens there, or choose another with --port (0 takes a free one)",
        .0.port(), .0.ip()
    )]
    InUse(SocketAddr),
    #[error("cannot listen on {0}: {1}; choose another with --host and --port")]
    Unusable(SocketAddr, std::io::Error),
    #[error(
        "port {} is already in use on {}: choose another with --admin-port (0 takes a free one)", .0.port(), .0.ip()
    )]
    AdminInUse(SocketAddr),
    #[error("no {0} free ports between {start} and {end}", start = WORKER_PORTS.start, end = WORKER_PORTS.end)]
    NoneFree(usize),
}

/// Checks that the router will be able to listen on `address`. Port 0 becomes a free one.
pub(super) fn router_address(address: SocketAddr) -> Result<SocketAddr, PortError> {
    if address.port() == 0 {
        let port = search(address.ip(), 1, first_place() + AWAY_FROM_WORKERS)?[0];
        return Ok(SocketAddr::new(address.ip(), port));
    }
    match TcpListener::bind(address) {
        Ok(_) => Ok(address),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(PortError::InUse(address)),
        Err(error) => Err(PortError::Unusable(address, error)),
    }
}

/// Where a worker listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WorkerPorts {
    /// For the router and for other workers.
    pub(super) grpc: SocketAddr,
    /// Its health and its metrics, for us.
    pub(super) probes: SocketAddr,
}

/// Free loopback ports for this many workers, which keep them over restarts unless somebody else takes them meanwhile.
pub(super) fn worker_ports(count: usize) -> Result<Vec<WorkerPorts>, PortError> {
    let at = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let ports = free_ports(IpAddr::V4(Ipv4Addr::LOCALHOST), 2 * count)?;
    let (grpc, probes) = ports.split_at(count);
    Ok(grpc
        .iter()
        .zip(probes)
        .map(|(&grpc, &probes)| WorkerPorts { grpc: at(grpc), probes: at(probes) })
        .collect())
}

/// The router's address for whoever runs it, on loopback: the port after that of its API if nobody has it, unless
/// another is `wanted`.
pub(super) fn admin_address(api: SocketAddr, wanted: Option<u16>) -> Result<SocketAddr, PortError> {
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    // Nobody listens on the API's own port yet: of two that are free, at least one is another.
    let free = || {
        let ports = search(ip, 2, first_place() + AWAY_FROM_WORKERS)?;
        let port = ports.into_iter().find(|port| *port != api.port());
        Ok(SocketAddr::new(ip, port.ok_or(PortError::NoneFree(2))?))
    };
    let is_free = |address: SocketAddr| address != api && TcpListener::bind(address).is_ok();
    match wanted {
        Some(0) => free(),
        Some(port) => {
            let address = SocketAddr::new(ip, port);
            // The API may be on another address of the same port; one of all addresses takes loopback, too.
            if port != api.port() && is_free(address) {
                Ok(address)
            } else {
                Err(PortError::AdminInUse(address))
            }
        }
        None => match api.port().checked_add(1).map(|port| SocketAddr::new(ip, port)) {
            Some(next) if is_free(next) => Ok(next),
            _ => free(),
        },
    }
}

fn free_ports(ip: IpAddr, count: usize) -> Result<Vec<u16>, PortError> {
    search(ip, count, first_place())
}

/// The search begins at a place of this process's own, so that deployments started at the same time do not choose
/// the same ports before any of them listens.
fn first_place() -> u32 {
    std::process::id().wrapping_mul(67) % PLACES
}

/// Free ports of [`WORKER_PORTS`], from its port at `first` on.
fn search(ip: IpAddr, count: usize, first: u32) -> Result<Vec<u16>, PortError> {
    let mut held = Vec::with_capacity(count);
    for place in 0..PLACES {
        if held.len() == count {
            break;
        }
        let port = WORKER_PORTS.start + ((first + place) % PLACES) as u16;
        // Held until all are found, so that none is found twice.
        if let Ok(listener) = TcpListener::bind((ip, port)) {
            held.push((port, listener));
        }
    }
    if held.len() < count {
        return Err(PortError::NoneFree(count));
    }
    Ok(held.into_iter().map(|(port, _)| port).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_distinct_and_below_the_ephemeral_range() {
        let all = |count| -> Vec<SocketAddr> {
            worker_ports(count).unwrap().into_iter().flat_map(|ports| [ports.grpc, ports.probes]).collect()
        };
        let addresses = all(5);
        let listeners: Vec<TcpListener> =
            addresses.iter().map(|address| TcpListener::bind(address).unwrap()).collect();
        assert_eq!(listeners.len(), 10);
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() < 32_768));
        assert!(all(5).iter().all(|address| !addresses.contains(address)), "taken ones are passed over");
    }

    #[test]
    fn a_taken_port_names_the_flag() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap();
        let error = router_address(taken).unwrap_err().to_string();
        assert!(error.contains(&format!("port {} is already in use on 127.0.0.1", taken.port())), "{error}");
        assert!(error.contains("--port"), "{error}");
    }

    #[test]
    fn port_0_becomes_a_real_one() {
        let router = router_address("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_ne!(router.port(), 0);
        let admin = [admin_address(router, None).unwrap(), admin_address(router, Some(0)).unwrap()];
        let workers = worker_ports(32).unwrap();
        let mut workers = workers.iter().flat_map(|ports| [ports.grpc, ports.probes]);
        assert!(!admin.contains(&router), "{router}");
        assert!(!workers.any(|worker| worker == router || admin.contains(&worker)), "nobody listens yet");
    }

    #[test]
    fn the_admin_port_is_the_next_one_that_is_free() {
        let api: SocketAddr = worker_ports(1).unwrap()[0].grpc;
        let next = SocketAddr::new(api.ip(), api.port() + 1);
        assert_eq!(admin_address(api, None).unwrap(), next);
        let _taken = TcpListener::bind(next).unwrap();
        assert!(![api, next].contains(&admin_address(api, None).unwrap()), "it takes another");
        let error = admin_address(api, Some(next.port())).unwrap_err().to_string();
        assert!(error.contains("--admin-port"), "{error}");
        admin_address(api, Some(api.port())).unwrap_err();
        assert_ne!(admin_address(api, Some(0)).unwrap().port(), 0);
        let everywhere = "0.0.0.0:65535".parse().unwrap();
        assert!(admin_address(everywhere, None).unwrap().ip().is_loopback());
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        let error = router_address("192.0.2.1:8181".parse().unwrap()).unwrap_err();
        assert!(matches!(error, PortError::Unusable(..)), "{error}");
    }
}
