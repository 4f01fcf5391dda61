//! The workers' ports, which take gRPC and KV: silent connections, random bytes, other protocols, halves of the right one.

use disagg_e2e::load::Random;

use crate::attacker::{Attack, Attackers, FLOOR};

pub(crate) const ATTACK: Attack =
    Attack { name: "worker noise", floor: FLOOR, run: |attackers| Box::pin(run(attackers)) };

/// At each decode worker, to which KV comes.
const SILENT: usize = 1100;

/// At each worker.
const NOISY: usize = 60;

const NOISE_BYTES: usize = 4096;

async fn run(attackers: Attackers) -> Result<String, String> {
    let (target, scale) = (&attackers.target, attackers.target.scale);
    let mut random = attackers.random();
    let mut kept = Vec::new();
    for worker in &target.workers {
        for number in 0..scale.number(NOISY) {
            kept.push(attackers.keep_open(worker, 1, &noise(number, &mut random), false).await);
        }
    }
    for worker in &target.decode {
        kept.push(attackers.keep_open(worker, scale.number(SILENT), b"", false).await);
    }
    attackers.in_place();
    attackers.stopped().await;
    let (open, closed): (usize, usize) =
        kept.iter().fold((0, 0), |(open, closed), kept| (open + kept.len(), closed + kept.closed()));
    Ok(format!("{open} connections, closed {closed} times"))
}

/// What a connection begins with.
fn noise(number: usize, random: &mut Random) -> Vec<u8> {
    let bytes: Vec<u8> = (0..NOISE_BYTES / 8).flat_map(|_| random.number().to_le_bytes()).collect();
    let with = |beginning: &[u8]| [beginning, &bytes].concat();
    match number % 6 {
        0 => bytes,
        1 => b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        // A TLS record that says it is longer than it is.
        2 => with(b"\x16\x03\x01\xff\xff"),
        3 => with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        4 => b"PRI * HTTP/2.0\r\n\r\nSM".to_vec(),
        _ => with(&disagg_worker::transport::tcp::MAGIC),
    }
}
