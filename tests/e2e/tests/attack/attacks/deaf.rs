//! Clients that ask and do not read: streams, and whole answers that are long.

use std::time::{Duration, Instant};

use disagg_e2e::deployment::MODEL;
use disagg_proto::v1::{self, worker_client::WorkerClient};
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

/// The buffers of streams that nobody reads are full within this time, and nothing is computed for them any more.
const FULL_WITHIN: Duration = Duration::from_secs(20);

/// Between two looks at whether they are.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The kernel keeps at least twice so much.
const RECEIVE_BUFFER: u32 = 4096;

async fn streams(attackers: Attackers) -> Result<String, String> {
    // So much for a token that the buffers of a connection are soon full.
    let body = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8000, "ignore_eos": true,
        "stream": true, "logprobs": true, "top_logprobs": 20,
    });
    let open = ask_all(&attackers, STREAM_COUNT, "/v1/chat/completions", &body).await;
    let begun = Instant::now();
    // Until then they are requests like others, and more than there are slots for.
    let paused = async {
        while running_on(&attackers.target.decode).await? > 0 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok::<(), tonic::Status>(())
    };
    let paused = tokio::time::timeout(FULL_WITHIN, paused).await;
    paused.map_err(|_| "unread streams run on".to_owned())?.map_err(|status| status.to_string())?;
    let full = begun.elapsed();
    attackers.in_place();
    attackers.stopped().await;
    Ok(format!("{} streams that nobody reads, paused after {full:.1?}", open.len()))
}

/// Sequences that hold a slot of one of these workers.
async fn running_on(workers: &[String]) -> Result<u32, tonic::Status> {
    let mut running = 0;
    for worker in workers {
        let client = WorkerClient::connect(format!("http://{worker}")).await;
        let mut client = client.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let mut reports = client.watch_load(v1::WatchLoadRequest {}).await?.into_inner();
        running += reports.message().await?.map_or(0, |report| report.running);
    }
    Ok(running)
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
