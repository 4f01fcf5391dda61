//! Prompts of 8 MB of what costs a normalizer most, all of which are too long to be served: they are refused before the
//! work is done.

use std::time::Duration;

use disagg_e2e::deployment::MODEL;
use serde_json::json;

use crate::attacker::{Attack, Attackers, FLOOR_OF_WORK, ask, post, tally};

pub(crate) const ATTACK: Attack =
    Attack { name: "long prompts", floor: FLOOR_OF_WORK, run: |attackers| Box::pin(run(attackers)) };

const AT_ONCE: usize = 12;

/// Below the router's bound on bodies, 8 MiB.
const TEXT_BYTES: usize = 8_000_000;

const REFUSED_WITHIN: Duration = Duration::from_mins(1);

async fn run(attackers: Attackers) -> Result<String, String> {
    // A letter and marks above and below it, in the order that NFC has to change.
    let cluster = "a\u{301}\u{323}\u{308}";
    let text = cluster.repeat(TEXT_BYTES / cluster.len());
    let body = json!({"model": MODEL, "prompt": text, "max_tokens": 1});
    let request: std::sync::Arc<[u8]> = post("/v1/completions", body.to_string().as_bytes()).into();
    let router = attackers.target.router.clone();
    let once = move || {
        let (router, request) = (router.clone(), std::sync::Arc::clone(&request));
        async move { ask(&router, &request, REFUSED_WITHIN).await.status() }
    };
    // Connections are kept alive after an answer, so each is dropped when it has one.
    let statuses = attackers.repeat(AT_ONCE, once).await;
    if statuses.contains(&Some(200)) {
        return Err(format!("served, though it is too long: {}", tally(statuses)));
    }
    Ok(tally(statuses))
}
