//! Clients that ask and do not read: streams, and whole answers that are long.

use std::time::Duration;

use disagg_e2e::deployment::MODEL;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::attacker::{Attack, Attackers, FLOOR, FLOOR_OF_WORK, connect_with, post};

pub(crate) const STREAMS: Attack =
    Attack { name: "deaf streams", floor: FLOOR, run: |attackers| Box::pin(streams(attackers)) };

pub(crate) const ANSWERS: Attack =
    Attack { name: "deaf answers", floor: FLOOR_OF_WORK, run: |attackers| Box::pin(answers(attackers)) };

/// More streams than both decode workers have slots, which are 64 each.
const STREAM_COUNT: usize = 160;

const ANSWER_COUNT: usize = 12;

/// Time for the buffers of streams to fill.
const FILLING: Duration = Duration::from_secs(3);

/// The kernel keeps at least twice so much.
const RECEIVE_BUFFER: u32 = 4096;

async fn streams(attackers: Attackers) -> Result<String, String> {
    // So much for a token that the buffers of a connection are soon full.
    let body = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8000, "ignore_eos": true,
        "stream": true, "logprobs": true, "top_logprobs": 20,
    });
    let open = ask_all(&attackers, STREAM_COUNT, "/v1/chat/completions", &body).await;
    tokio::time::sleep(FILLING).await;
    attackers.in_place();
    attackers.stopped().await;
    Ok(format!("{} streams that nobody reads", open.len()))
}

async fn answers(attackers: Attackers) -> Result<String, String> {
    // Some ten megabytes each.
    let body = json!({
        "model": MODEL, "prompt": "Hello", "max_tokens": 250, "n": 64, "ignore_eos": true, "logprobs": 5,
        "temperature": 1.0,
    });
    let open = ask_all(&attackers, ANSWER_COUNT, "/v1/completions", &body).await;
    attackers.in_place();
    attackers.stopped().await;
    Ok(format!("{} answers of 64 choices that nobody reads", open.len()))
}

async fn ask_all(attackers: &Attackers, count: usize, path: &str, body: &Value) -> Vec<TcpStream> {
    let request = post(path, body.to_string().as_bytes());
    let mut open = Vec::new();
    for _ in 0..attackers.target.scale.number(count) {
        let Ok(mut connection) = connect_with(&attackers.target.router, Some(RECEIVE_BUFFER)).await else {
            continue;
        };
        if connection.write_all(&request).await.is_ok() {
            open.push(connection);
        }
    }
    open
}
