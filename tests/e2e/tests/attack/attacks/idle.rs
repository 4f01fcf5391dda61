//! Connections that say nothing, and connections that are kept after an answer.

use crate::attacker::{Attack, Attackers, FLOOR};

pub(crate) const ATTACK: Attack =
    Attack { name: "idle", floor: FLOOR, run: |attackers| Box::pin(run(attackers)) };

const SILENT: usize = 1200;
const KEPT: usize = 300;

async fn run(attackers: Attackers) -> Result<String, String> {
    let (target, scale) = (&attackers.target, attackers.target.scale);
    let request = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n";
    let kept = attackers.keep_open(&target.router, scale.number(KEPT), request, false).await;
    let silent = attackers.keep_open(&target.router, scale.number(SILENT), b"", false).await;
    attackers.in_place();
    attackers.stopped().await;
    let said = format!(
        "{} silent connections, closed {} times; {} kept ones, closed {} times",
        silent.len(),
        silent.closed(),
        kept.len(),
        kept.closed()
    );
    if scale.long && silent.closed() < silent.len() {
        return Err(format!("connections may be silent as long as they like: {said}"));
    }
    Ok(said)
}
