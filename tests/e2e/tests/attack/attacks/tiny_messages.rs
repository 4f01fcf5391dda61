//! Chats of 8 MB that are nothing but empty messages: each byte of them becomes many in a careless parser.

use std::sync::Arc;
use std::time::Duration;

use disagg_e2e::deployment::MODEL;

use crate::attacker::{Attack, Attackers, FLOOR_OF_WORK, ask, post, tally};

pub(crate) const ATTACK: Attack =
    Attack { name: "tiny messages", floor: FLOOR_OF_WORK, run: |attackers| Box::pin(run(attackers)) };

const AT_ONCE: usize = 24;

/// Below the router's bound on bodies, 8 MiB.
const BODY_BYTES: usize = 8_300_000;

const REFUSED_WITHIN: Duration = Duration::from_mins(1);

async fn run(attackers: Attackers) -> Result<String, String> {
    let message = r#"{"role":"user","content":""}"#;
    let messages = vec![message; BODY_BYTES / (message.len() + 1)].join(",");
    let body = format!(r#"{{"model":"{MODEL}","max_tokens":1,"messages":[{messages}]}}"#);
    let request: Arc<[u8]> = post("/v1/chat/completions", body.as_bytes()).into();
    let router = attackers.target.router.clone();
    let once = move || {
        let (router, request) = (router.clone(), Arc::clone(&request));
        async move { ask(&router, &request, REFUSED_WITHIN).await.status() }
    };
    let statuses = attackers.repeat(AT_ONCE, once).await;
    if statuses.contains(&Some(200)) {
        return Err(format!("served, though it is too long: {}", tally(statuses)));
    }
    Ok(tally(statuses))
}
