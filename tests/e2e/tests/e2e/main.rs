//! End-to-end tests: real `disagg` processes, real sockets, clients as users have them. `make e2e` builds the
//! executables first and runs this.

mod bundled;
mod decode_death;
mod disconnect;
mod drain;
mod errors;
mod harness;
mod ipv6;
mod kill_under_load;
mod logs;
mod openai;
mod parity;
mod prefill_death;
mod up;
mod waves;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use disagg_e2e::deployment::MODEL;
use disagg_e2e::worker::LANDED_BYTES;
use disagg_e2e::{Plan, Worker, eventually};
use serde_json::{Value, json};

/// Time in which blocks must be free again after a peer or a client is gone. The lease is 2 s, a closed connection is
/// noticed at once; the rest is for a machine with more processes than cores.
const RELEASE: Duration = Duration::from_secs(5);

/// A prompt whose prefill takes many steps, each with a push of every layer.
const LONG: usize = 6000;

/// A number that `make soak` sets.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, which is no whole number"))
    })
}

/// A small random model, made once a run.
fn tiny() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiny");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).expect("remove the model of the last run");
        }
        std::fs::create_dir_all(&folder).expect("folder for a model");
        disagg_worker::model::tiny::write(&folder, 7).expect("a small model");
        folder
    })
}

/// Workers of the small model with room for several long prompts, and steps that are short beside them.
fn tiny_plan() -> Plan {
    Plan::of(tiny()).worker_flags(["--max-num-batched-tokens", "256", "--num-blocks", "512"])
}

/// A prompt of `length` tokens that all models here know; another `seed`, another prompt.
fn prompt(length: usize, seed: u32) -> Vec<u32> {
    // A linear congruential generator: any fixed noise will do.
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        3 + (state >> 16) % 250
    };
    (0..length).map(|_| next()).collect()
}

/// A completions request of such a prompt: greedy, exactly `max_tokens` tokens. A `salt` keeps its cache apart.
fn completion_request(length: usize, seed: u32, salt: &str, max_tokens: u32) -> Value {
    let mut request = json!({
        "model": MODEL, "prompt": prompt(length, seed), "max_tokens": max_tokens, "ignore_eos": true,
        "temperature": 0,
    });
    if !salt.is_empty() {
        request["cache_salt"] = json!(salt);
    }
    request
}

/// Waits until KV begins to land on one of these, on top of what had landed before (in the same order).
async fn kv_lands(decode: &[Worker], before: &[f64]) -> usize {
    eventually("KV to land", Duration::from_secs(30), async || {
        for (i, worker) in decode.iter().enumerate() {
            if worker.metric(LANDED_BYTES, &[]).await > before[i] {
                return Ok(i);
            }
        }
        Err("nothing landed".to_owned())
    })
    .await
}

/// Bytes landed on each of these so far.
async fn landed_bytes(decode: &[Worker]) -> Vec<f64> {
    let mut bytes = Vec::new();
    for worker in decode {
        bytes.push(worker.metric(LANDED_BYTES, &[]).await);
    }
    bytes
}
