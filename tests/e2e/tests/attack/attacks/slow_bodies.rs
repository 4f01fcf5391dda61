//! Bodies that are announced and then sent a byte at a time: more of them than requests may be in progress.

use crate::attacker::{Attack, Attackers, FLOOR};

pub(crate) const ATTACK: Attack =
    Attack { name: "slow bodies", floor: FLOOR, run: |attackers| Box::pin(run(attackers)) };

/// The router's default is 1024 requests in progress.
const SLOW: usize = 1100;

async fn run(attackers: Attackers) -> Result<String, String> {
    let (target, scale) = (&attackers.target, attackers.target.scale);
    let beginning = "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
         content-length: 10000\r\n\r\n{\"model\": \"";
    let slow = attackers.keep_open(&target.router, scale.number(SLOW), beginning.as_bytes(), true).await;
    attackers.in_place();
    attackers.stopped().await;
    let said = format!("{} slow bodies, closed {} times", slow.len(), slow.closed());
    if scale.long && slow.closed() < slow.len() {
        return Err(format!("bodies may last as long as they like: {said}"));
    }
    Ok(said)
}
