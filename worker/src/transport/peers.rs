//! gRPC connections to other workers, one for each address: requests, leases and heartbeats. KV has connections of its
//! own (`tcp`), so that it never delays a heartbeat.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::reach::Reach;

/// Longest time to connect, for KV too. A worker that is there answers within a round trip.
pub(crate) const CONNECT_MAX: Duration = Duration::from_secs(1);

/// A process that dies closes its connections, which is noticed at once. These pings notice a host that vanishes.
pub(crate) const KEEP_ALIVE_EVERY: Duration = Duration::from_millis(250);

/// Silence after a ping that ends a connection.
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_millis(750);

/// Addresses whose connections are kept. More workers than that in one deployment reconnect now and then.
const ADDRESSES_MAX: usize = 256;

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
    reach: Reach,
    channels: Mutex<HashMap<String, Channel>>,
}

impl Peers {
    /// No connections yet; later ones only to where `reach` allows.
    pub fn new(reach: Reach) -> Self {
        Self { reach, channels: Mutex::default() }
    }

    /// The connection to `address`, which is host:port.
    pub fn channel(&self, address: &str) -> Result<Channel, BadAddress> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|source| BadAddress { address: address.to_owned(), source })?
            .connect_timeout(CONNECT_MAX)
            .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(false);
        if channels.len() >= ADDRESSES_MAX {
            // Calls under way keep their connection; addresses still in use come back with their next call.
            channels.clear();
        }
        let reach = self.reach;
        let channel = endpoint.connect_with_connector_lazy(service_fn(move |uri: Uri| async move {
            let Some(authority) = uri.authority() else { return Err(io::ErrorKind::InvalidInput.into()) };
            let stream = reach.connect(authority.as_str()).await?;
            stream.set_nodelay(true)?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }));
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}
