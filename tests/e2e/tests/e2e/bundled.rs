//! The demo model answers questions about the product, by our own tokenizer, chat template and engine: short prompts,
//! prefilled locally, and the same questions after a long story, prefilled remotely.
//!
//! The questions are those of `models/disagg-tiny/heldout.json`, in phrasings that the model was not trained on.

use std::path::Path;

use disagg_e2e::deployment::MODEL;
use disagg_e2e::{Plan, Router, openai};
use disagg_worker::model::BuiltIn;
use futures::StreamExt;
use serde::Deserialize;
use serde_json::json;

use crate::RELEASE;

/// Tokens of the longest answer and a few more.
const TOKENS: u32 = 80;

/// Requests at the same time: so few that a prefill worker's queue is never at its bound.
const IN_FLIGHT: usize = 2;

#[derive(Deserialize)]
struct HeldOut {
    story: String,
    fixed: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    must: Vec<String>,
    phrasings: Vec<String>,
}

fn held_out() -> HeldOut {
    serde_json::from_str(include_str!("../../../../models/disagg-tiny/heldout.json")).expect("heldout.json")
}

/// What is wrong with the answer to `prompt`, if anything. Another `salt`, another cache: or the story would be found in
/// the prefix cache and need no remote prefill.
async fn wrong(router: &Router, salt: usize, prompt: &str, must: &[String], remote: bool) -> Option<String> {
    let request = json!({
        "model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS, "temperature": 0,
        "cache_salt": salt.to_string(),
    });
    let answer = openai::chat(router.post("/v1/chat/completions", &request).await).await;
    assert_eq!(answer.placement.remote, remote, "{prompt}: {:?}", answer.placement);
    let said = answer.text.to_lowercase();
    let holds = must.iter().all(|phrase| said.contains(&phrase.to_lowercase()));
    (!holds || answer.finish_reason != "stop")
        .then(|| format!("{prompt}\n  {} ({})", answer.text, answer.finish_reason))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_held_out_questions_short_and_after_a_long_story() {
    let folder = BuiltIn::Demo.write(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("the demo model").path;
    let deployment = Plan::of(&folder).router(["--max-local-prefill-length", "128"]).start().await;
    let router = deployment.router();
    let HeldOut { story, fixed } = held_out();
    let asked = fixed.iter().flat_map(|question| {
        question.phrasings.iter().flat_map(|phrasing| {
            let long = format!("{story}\n\n{phrasing}");
            [(phrasing.clone(), &question.must, false), (long, &question.must, true)]
        })
    });
    let asked: Vec<_> = asked.collect();
    assert_eq!(asked.len(), 80, "ten questions in four phrasings, short and long");
    let wrong: Vec<String> = futures::stream::iter(asked.into_iter().enumerate())
        .map(|(salt, (prompt, must, remote))| async move { wrong(router, salt, &prompt, must, remote).await })
        .buffer_unordered(IN_FLIGHT)
        .filter_map(std::future::ready)
        .collect()
        .await;
    // The model answers all of them with `eval.py`, so a wrong answer means that tokenizer, template or engine are not
    // what it was trained for.
    assert!(wrong.is_empty(), "{} wrong answers:\n{}", wrong.len(), wrong.join("\n"));
    deployment.idle(RELEASE).await;
}
