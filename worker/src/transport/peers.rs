//! Connections to other workers: for each address one for control and some for bulk data, so that KV never delays a
//! heartbeat and a transfer is not bound by what one connection carries.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

/// Longest time to connect. A worker that is there answers within a round trip.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// A process that dies closes its connections, which is noticed at once. These pings notice a host that vanishes.
pub(crate) const KEEP_ALIVE_EVERY: Duration = Duration::from_millis(250);

/// Silence after a ping that ends a connection.
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_millis(750);

/// Addresses whose connections are kept. More workers than that in one deployment reconnect now and then.
const ADDRESSES_MAX: usize = 256;

/// Connections that one transfer is spread over. One carries 1 to 2 GB/s, since a single task encodes for it and another
/// decodes.
pub const BULK_LANES: u8 = 4;

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lane {
    /// Requests, leases and heartbeats.
    Control,
    /// KV, over one of several connections.
    Bulk(u8),
}

/// The address cannot be connected to.
#[derive(Debug, thiserror::Error)]
#[error("address {address:?} cannot be used: {source}")]
pub struct BadAddress {
    address: String,
    source: tonic::transport::Error,
}

/// Connections by address. They are made when first used and again after they broke.
#[derive(Debug, Default)]
pub struct Peers {
    channels: Mutex<HashMap<(Lane, String), Channel>>,
}

impl Peers {
    /// The connection to `address`, which is host:port.
    pub fn channel(&self, lane: Lane, address: &str) -> Result<Channel, BadAddress> {
        let mut channels = self.channels.lock();
        let key = (lane, address.to_owned());
        if let Some(channel) = channels.get(&key) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|source| BadAddress { address: address.to_owned(), source })?
            .connect_timeout(CONNECT_MAX)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(false);
        if channels.len() >= (1 + BULK_LANES as usize) * ADDRESSES_MAX {
            // Calls under way keep their connection; addresses still in use come back with their next call.
            channels.clear();
        }
        let channel = endpoint.connect_lazy();
        channels.insert(key, channel.clone());
        Ok(channel)
    }
}
