//! Chats for which the model's template loops for minutes, because the client says how often.

use std::sync::Arc;
use std::time::Duration;

use disagg_e2e::deployment::MODEL;
use serde_json::json;

use crate::attacker::{Attack, Attackers, FLOOR_OF_WORK, ask, post, tally};

pub(crate) const ATTACK: Attack =
    Attack { name: "templates", floor: FLOOR_OF_WORK, run: |attackers| Box::pin(run(attackers)) };

/// More than there are threads for text.
const AT_ONCE: usize = 8;

const REFUSED_WITHIN: Duration = Duration::from_mins(1);

async fn run(attackers: Attackers) -> Result<String, String> {
    // Squared; each range alone is one that minijinja allows.
    let body = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1,
        "chat_template_kwargs": {"burn": 90_000},
    });
    let request: Arc<[u8]> = post("/v1/chat/completions", body.to_string().as_bytes()).into();
    let router = attackers.target.router.clone();
    let once = move || {
        let (router, request) = (router.clone(), Arc::clone(&request));
        async move { ask(&router, &request, REFUSED_WITHIN).await.status() }
    };
    let statuses = attackers.repeat(AT_ONCE, once).await;
    if statuses.contains(&Some(200)) {
        return Err(format!("eight billion steps of a template were done: {}", tally(statuses)));
    }
    Ok(tally(statuses))
}
