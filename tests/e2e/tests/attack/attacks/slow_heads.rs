//! Slowloris: request heads that never end, sent a byte at a time; and heads that are large and unfinished.

use crate::attacker::{Attack, Attackers, FLOOR};

pub(crate) const ATTACK: Attack =
    Attack { name: "slow heads", floor: FLOOR, run: |attackers| Box::pin(run(attackers)) };

const SLOW: usize = 400;
const LARGE: usize = 100;
/// Of an unfinished head: more than any real one.
const LARGE_BYTES: usize = 400 * 1024;

async fn run(attackers: Attackers) -> Result<String, String> {
    let (target, scale) = (&attackers.target, attackers.target.scale);
    let beginning = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nx-slow: ";
    let slow = attackers.keep_open(&target.router, scale.number(SLOW), beginning, true).await;
    let large = [beginning.as_slice(), &vec![b'a'; LARGE_BYTES]].concat();
    let large = attackers.keep_open(&target.router, scale.number(LARGE), &large, true).await;
    attackers.in_place();
    attackers.stopped().await;
    let said = format!(
        "{} slow heads, closed {} times; {} large ones, closed {} times",
        slow.len(),
        slow.closed(),
        large.len(),
        large.closed()
    );
    if large.closed() < large.len() {
        return Err(format!("heads of {} KiB are taken: {said}", LARGE_BYTES / 1024));
    }
    if scale.long && slow.closed() < slow.len() {
        return Err(format!("heads may last as long as they like: {said}"));
    }
    Ok(said)
}
