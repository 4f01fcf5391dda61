//! Ports for servers under test.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range that Linux gives to outgoing connections, so that no client socket takes one of ours between the
/// choice and the bind, or between a kill and a restart on the same port.
const FIRST: u16 = 18_000;
const COUNT: u16 = 12_000;

/// A port of the loopback interface that nobody listens on. Different at every call in this process; other processes
/// begin elsewhere in the range.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (start + offset) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}

/// `127.0.0.1:` and a free port.
pub fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}
