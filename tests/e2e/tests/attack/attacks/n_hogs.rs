//! Few requests that ask for as much as one may: 128 choices of 8000 tokens each, read as they come.

use std::sync::Arc;
use std::time::Duration;

use disagg_e2e::deployment::MODEL;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::attacker::{Attack, Attackers, Count, FLOOR, Said, connect, post, tally};

pub(crate) const ATTACK: Attack =
    Attack { name: "n-hogs", floor: FLOOR, run: |attackers| Box::pin(run(attackers)) };

/// Six for each decode worker: more choices than may wait there.
const HOGS: usize = 12;

/// Hogs that nobody else is in the way of have their first tokens by then.
const BEGUN_WITHIN: Duration = Duration::from_secs(3);

async fn run(attackers: Attackers) -> Result<String, String> {
    let body = json!({
        "model": MODEL, "prompt": "Hello", "max_tokens": 8000, "n": 128, "ignore_eos": true, "stream": true,
        "temperature": 1.0,
    });
    let request = post("/v1/completions", body.to_string().as_bytes());
    let begun = Arc::new(Count::default());
    let hogs = (0..attackers.target.scale.number(HOGS)).map(|_| {
        let (attackers, request, begun) = (attackers.clone(), request.clone(), Arc::clone(&begun));
        tokio::spawn(async move { hog(&attackers, &request, &begun).await.unwrap_or_default() })
    });
    let hogs: Vec<_> = hogs.collect();
    // One that has to wait for its first token until others have ended is no more than it should be.
    tokio::select! {
        () = begun.reach(hogs.len() as u32) => {}
        () = tokio::time::sleep(BEGUN_WITHIN) => {}
    }
    attackers.in_place();
    let (mut statuses, mut bytes) = (Vec::new(), 0);
    for hog in hogs {
        let (status, read) = hog.await.map_err(|error| error.to_string())?;
        statuses.push(status);
        bytes += read;
    }
    let said =
        format!("128 choices of 8000 tokens: {}, {} kB read", tally(statuses.iter().copied()), bytes / 1000);
    // What is refused is so with a status of its own.
    if statuses.iter().flatten().any(|status| ![200, 400, 429, 503].contains(status)) {
        return Err(said);
    }
    Ok(said)
}

/// Status and bytes of one answer.
async fn hog(attackers: &Attackers, request: &[u8], begun: &Count) -> std::io::Result<(Option<u16>, usize)> {
    let mut connection = connect(&attackers.target.router).await?;
    connection.write_all(request).await?;
    let mut bytes = vec![0; 64 * 1024];
    let mut said = Said { bytes: Vec::new(), ended: false };
    let mut read = 0;
    loop {
        let more = tokio::select! {
            more = connection.read(&mut bytes) => more?,
            () = attackers.stopped() => break,
        };
        if read == 0 {
            said.bytes = bytes[..more].to_vec();
            begun.add();
        }
        if more == 0 {
            break;
        }
        read += more;
    }
    Ok((said.status(), read))
}
