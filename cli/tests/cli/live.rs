//! What changes while it runs: the settings, and the picture that `status --watch` shows.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use disagg_e2e::eventually;
use disagg_e2e::router::http_client;
use serde_json::Value;

use crate::harness::{DONE, Up, disagg, stdout};

/// What is promised for an edit of the settings.
const IN_FORCE: Duration = Duration::from_secs(1);

async fn settings(up: &Up) -> Value {
    let answer = http_client().get(format!("{}/internal/settings", up.admin)).send().await.unwrap();
    answer.json().await.unwrap()
}

/// Writes the file as an editor does, and waits until `seen`; gives the time that took.
async fn edit(up: &Up, file: &PathBuf, text: &str, seen: impl Fn(&Value) -> bool) -> Duration {
    std::fs::write(file, text).unwrap();
    let begin = Instant::now();
    eventually("the edit to be noticed", DONE, async || {
        let now = settings(up).await;
        if seen(&now) { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    begin.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_of_the_settings_apply_within_a_second_and_bad_ones_do_not() {
    let mut up = Up::start(&["--max-local-prefill-length", "500"]);
    up.ready().await;
    let file = PathBuf::from(settings(&up).await["source"].as_str().unwrap());
    let prompt = "a few words that are surely more than five tokens but less than five hundred";
    assert!(!up.placement(prompt).await.remote);

    let threshold = |wanted: u64| move |now: &Value| now["settings"]["maxLocalPrefillLength"] == wanted;
    let took = edit(&up, &file, "maxLocalPrefillLength: \"5\"\n", threshold(5)).await;
    // The rest is for a machine with more processes than cores.
    assert!(took < IN_FORCE + Duration::from_secs(1), "{took:?}");
    assert!(up.placement(&format!("Now {prompt}")).await.remote, "new requests are placed by it");

    for (bad, why) in [
        ("maxLocalPrefillLength: many\n", "\"many\" is not allowed"),
        ("maxLocalPrefillLength: 9\nmaxPrefillQueue: 1\n", "maxPrefillQueue: unknown key"),
        ("maxLocalPrefillLength: [", "not a YAML mapping"),
    ] {
        let shown = |now: &Value| now["problem"].as_str().is_some_and(|problem| problem.contains(why));
        edit(&up, &file, bad, shown).await;
        assert!(threshold(5)(&settings(&up).await), "the last good values stay in force");
        let get = up.run(&["threshold", "get"]);
        assert_eq!(stdout(&get), "5\n");
        let note = String::from_utf8_lossy(&get.stderr);
        assert!(note.contains("the settings file is not in force") && note.contains(why), "{note}");
        assert!(stdout(&up.run(&["status"])).contains(why));
        let set = up.run(&["threshold", "set", "7"]);
        assert_eq!(set.status.code(), Some(1), "a file that is not understood is not written over: {set:?}");
    }
    assert!(up.placement(&format!("Still {prompt}")).await.remote);

    edit(&up, &file, "maxLocalPrefillLength: 500\n", threshold(500)).await;
    assert_eq!(stdout(&up.run(&["threshold", "set", "6"])), "6\n");
    let status = up.run(&["status"]);
    assert!(stdout(&status).contains("maxLocalPrefillLength 6,"), "{status:?}");
    assert!(up.placement(&format!("Again {prompt}")).await.remote);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settings_file_of_the_users_is_followed_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "# mine\nmaxLocalPrefillLength: 77\n").unwrap();
    let mut up = Up::start(&["--settings", path]);
    up.ready().await;
    assert_eq!(stdout(&up.run(&["threshold", "get"])), "77\n");
    assert!(up.process.stdout().contains("more than 77 tokens"), "{}", up.process.stdout());
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("# mine"), "nobody has written to it");
    assert_eq!(stdout(&up.run(&["threshold", "set", "78"])), "78\n");
    assert!(std::fs::read_to_string(&file).unwrap().contains("maxLocalPrefillLength: 78"));
    drop(up);

    std::fs::write(&file, "maxLocalPrefillLength: lots\n").unwrap();
    let log = Up::start(&["--settings", path]).failure().await;
    assert!(log.contains("mine.yaml: maxLocalPrefillLength: \"lots\" is not allowed"), "{log}");
    assert!(!log.contains("router ready"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_watch_shows_what_happens() {
    let mut up = Up::start(&["--max-local-prefill-length", "10"]);
    up.ready().await;
    let mut command = disagg(up.home.path(), &["status", "--watch", "--admin", &up.admin]);
    let mut watch = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut until = |what: &str| {
        let deadline = Instant::now() + DONE;
        // It writes every second, so reading does not wait for long.
        lines.find(|line| line.as_ref().unwrap().contains(what)).unwrap_or_else(|| panic!("{what}")).unwrap();
        assert!(Instant::now() < deadline, "{what}");
    };
    until("decode-0");
    until("placements: none yet");
    up.placement("Hello").await;
    until("local (below-threshold) 1");
    let prompt = "so many words that this one is prefilled by the prefill worker, as every long prompt is";
    assert!(up.placement(prompt).await.remote);
    until("remote (above-threshold) 1");
    up.process.signal("TERM");
    assert!(up.process.end(DONE).await.success());
    until("no router answers at");
    assert!(
        std::process::Command::new("kill")
            .args(["-INT", &watch.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}
