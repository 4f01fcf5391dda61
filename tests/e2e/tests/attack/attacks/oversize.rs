//! Everything that is too large: heads, URLs, bodies by announcement and by surprise, fields, numbers, nesting. Each is
//! refused, soon, whatever is still to come.

use std::time::Duration;

use disagg_e2e::deployment::MODEL;
use serde_json::json;

use crate::attacker::{Attack, Attackers, FLOOR_OF_WORK, ask, post, tally};

pub(crate) const ATTACK: Attack =
    Attack { name: "oversize", floor: FLOOR_OF_WORK, run: |attackers| Box::pin(run(attackers)) };

/// A refusal does not wait for what was announced.
const REFUSED_WITHIN: Duration = Duration::from_secs(3);

const COMPLETIONS: &str = "/v1/completions";

async fn run(attackers: Attackers) -> Result<String, String> {
    let requests = requests();
    attackers.in_place();
    let (mut statuses, mut problems) = (Vec::new(), Vec::new());
    let mut rounds = 0;
    while rounds == 0 || !attackers.is_stopped() {
        for (what, request) in &requests {
            // The first round is always whole.
            if rounds > 0 && attackers.is_stopped() {
                break;
            }
            let said = ask(&attackers.target.router, request, REFUSED_WITHIN).await;
            let status = said.status();
            statuses.push(status);
            // Closed without a word, in the middle of what nobody wants, is an answer too.
            let refused = status.map_or(said.ended, |status| (400..500).contains(&status));
            if !refused && rounds == 0 {
                problems.push(format!("{what}: {}", tally([status])));
            }
        }
        rounds += 1;
    }
    if problems.is_empty() {
        return Ok(format!("{rounds} rounds of {}: {}", requests.len(), tally(statuses)));
    }
    Err(format!("not refused: {}", problems.join("; ")))
}

fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let long = |length: usize| "a".repeat(length);
    let head = |more: &str| {
        let start = "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\
             content-type: application/json\r\n";
        format!("{start}{more}\r\n").into_bytes()
    };
    let with = |field: &str, value: serde_json::Value| {
        let mut body = json!({"model": MODEL, "prompt": "Hello", "max_tokens": 1});
        body[field] = value;
        post(COMPLETIONS, body.to_string().as_bytes())
    };
    let nested = format!("{{\"model\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let fields: Vec<String> = (0..200_000).map(|number| format!("\"f{number}\": 0")).collect();
    let fields = format!("{{\"model\": \"{MODEL}\", \"prompt\": \"a\", {}}}", fields.join(", "));
    // Two mebibytes in each of eight chunks, and no end.
    let chunk = format!("200000\r\n{}\r\n", long(0x20_0000));
    let unending = [head("transfer-encoding: chunked\r\n"), chunk.repeat(8).into_bytes()].concat();
    vec![
        ("a head of 1 MiB", head(&format!("x-long: {}\r\n", long(1 << 20)))),
        ("10,000 headers", head(&"x-many: a\r\n".repeat(10_000))),
        (
            "a URL of 1 MiB",
            format!("GET /{} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n", long(1 << 20))
                .into_bytes(),
        ),
        ("a body of 1 GiB, announced", head("content-length: 1073741824\r\n")),
        ("a body of 16 MiB, by surprise", unending),
        ("n of a billion", with("n", json!(1_000_000_000))),
        ("max_tokens of 2^63", with("max_tokens", json!(1_u64 << 63))),
        ("top_logprobs of a million", with("logprobs", json!(1_000_000))),
        ("10,000 stop strings", with("stop", json!(vec!["stop"; 10_000]))),
        (
            "a bias for 1,000,000 tokens",
            with(
                "logit_bias",
                json!(
                    (0..1_000_000)
                        .map(|token| (token.to_string(), json!(1)))
                        .collect::<serde_json::Map<_, _>>()
                ),
            ),
        ),
        ("10,000 prompts", with("prompt", json!(vec!["Hello"; 10_000]))),
        ("a model's name of 1 MiB", with("model", json!(long(1 << 20)))),
        ("nested 100,000 deep", post(COMPLETIONS, nested.as_bytes())),
        ("200,000 fields", post(COMPLETIONS, fields.as_bytes())),
    ]
}
