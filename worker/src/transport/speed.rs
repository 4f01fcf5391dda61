//! How fast this worker's pushes reach others. Routers weigh prefill workers by it, each pair as it measured itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use disagg_core::WorkerId;
use parking_lot::Mutex;

/// Weight of the newest push in a pair's running mean.
const WEIGHT: f64 = 0.3;

/// Peers remembered: as many as a load report holds. The one pushed to longest ago is forgotten first.
const PEERS_MAX: usize = disagg_proto::limits::TRANSFERS_MAX as usize;

/// A running mean for each peer.
#[derive(Debug, Default)]
pub struct TransferSpeeds {
    peers: Mutex<BTreeMap<WorkerId, Speed>>,
}

#[derive(Debug)]
struct Speed {
    bytes_per_second: f64,
    measured_at: Instant,
}

impl TransferSpeeds {
    /// A push of `bytes` kept the connection to `peer` busy for so long. Waiting for blocks to be computed is not part
    /// of that.
    pub fn record(&self, peer: &WorkerId, bytes: u64, busy: Duration) {
        if bytes == 0 || busy.is_zero() {
            return;
        }
        let now = bytes as f64 / busy.as_secs_f64();
        let mut peers = self.peers.lock();
        let speed =
            peers.entry(peer.clone()).or_insert(Speed { bytes_per_second: now, measured_at: Instant::now() });
        speed.bytes_per_second += WEIGHT * (now - speed.bytes_per_second);
        speed.measured_at = Instant::now();
        if peers.len() > PEERS_MAX {
            let oldest =
                peers.iter().min_by_key(|(_, speed)| speed.measured_at).map(|(peer, _)| peer.clone());
            oldest.and_then(|oldest| peers.remove(&oldest));
        }
    }

    /// Bytes per second to each peer, by name.
    pub fn snapshot(&self) -> Vec<(WorkerId, f64)> {
        self.peers.lock().iter().map(|(peer, speed)| (peer.clone(), speed.bytes_per_second)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_peer_has_a_mean_of_its_own() {
        let speeds = TransferSpeeds::default();
        let (a, b) = (WorkerId::new("a"), WorkerId::new("b"));
        speeds.record(&a, 1000, SECOND);
        speeds.record(&b, 500, SECOND / 2);
        speeds.record(&a, 2000, SECOND);
        // Nothing was sent, or nothing was measured.
        speeds.record(&a, 0, SECOND);
        speeds.record(&a, 10, Duration::ZERO);
        assert_eq!(speeds.snapshot(), [(a, 1300.0), (b, 1000.0)]);
    }

    #[test]
    fn the_peer_pushed_to_longest_ago_is_forgotten() {
        let speeds = TransferSpeeds::default();
        let name = |number: usize| WorkerId::new(format!("worker-{number}"));
        for number in 0..PEERS_MAX {
            speeds.record(&name(number), 1, SECOND);
        }
        speeds.record(&name(0), 1, SECOND);
        speeds.record(&name(PEERS_MAX), 1, SECOND);
        let left = speeds.snapshot();
        assert_eq!(left.len(), PEERS_MAX);
        assert!(left.iter().any(|(peer, _)| *peer == name(0)));
        assert!(!left.iter().any(|(peer, _)| *peer == name(1)));
    }
}
