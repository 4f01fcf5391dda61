//! Clients that close their side after the request, as `nc -N` and some proxies do. They are honest, and get whole answers.

use std::time::Duration;

use disagg_e2e::deployment::MODEL;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::attacker::{Attack, Attackers, FLOOR, connect, post, tally};

pub(crate) const ATTACK: Attack =
    Attack { name: "half closed", floor: FLOOR, run: |attackers| Box::pin(run(attackers)) };

const AT_ONCE: usize = 4;

/// Longest time of an answer.
const ANSWER_MAX: Duration = Duration::from_secs(20);

async fn run(attackers: Attackers) -> Result<String, String> {
    let body = json!({
        "model": MODEL, "prompt": "Hello", "max_tokens": 8, "ignore_eos": true, "temperature": 0,
    });
    let request = post("/v1/completions", body.to_string().as_bytes());
    let router = attackers.target.router.clone();
    let once = move || {
        let (router, request) = (router.clone(), request.clone());
        async move { tokio::time::timeout(ANSWER_MAX, half_closed(&router, &request)).await.ok().flatten() }
    };
    let answers = attackers.repeat(AT_ONCE, once).await;
    let whole = answers.iter().filter(|answer| **answer == Some(200)).count();
    let said = tally(answers.iter().copied());
    // One may have been cut off by the end of the attack itself.
    if whole == 0 || whole < answers.len() {
        return Err(format!("half-closed clients get no whole answer: {said}"));
    }
    Ok(said)
}

/// The status of a whole answer.
async fn half_closed(router: &str, request: &[u8]) -> Option<u16> {
    let mut connection = connect(router).await.ok()?;
    connection.write_all(request).await.ok()?;
    connection.shutdown().await.ok()?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.ok()?;
    let text = String::from_utf8(answer).ok()?;
    // It may have been asked whether it is still there.
    let text = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&text);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    serde_json::from_str::<serde_json::Value>(body).ok()?;
    Some(status)
}
