//! `disagg bench`, against a server whose delays are known and against `disagg up`.

use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::fake_server::{Behaviour, start, start_tls};
use crate::harness::{Up, disagg, stdout};

/// Runs it with `--json -`.
async fn bench(url: &str, arguments: &[&str]) -> (Output, Value) {
    let home = tempfile::tempdir().unwrap();
    let mut command = disagg(home.path(), &["bench", "--url", url, "--json", "-"]);
    command.args(arguments).env_remove("OPENAI_API_KEY");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let json = serde_json::from_str(stdout(&output)).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output, json)
}

/// A measured time: never below the true one, and above it by what a busy machine adds.
#[track_caller]
fn about(measured: &Value, wanted_ms: f64) {
    let measured = measured.as_f64().unwrap();
    assert!((wanted_ms - 2.0..wanted_ms + 150.0).contains(&measured), "{measured}, not {wanted_ms}");
}

#[tokio::test(flavor = "multi_thread")]
async fn known_delays_are_what_is_reported() {
    let ms = Duration::from_millis;
    let behaviour = Behaviour { first: ms(200), step: ms(30), gap: ms(40), ..Behaviour::default() };
    for endpoint in ["chat", "completions"] {
        let url = start(behaviour).await;
        let load = ["--isl", "200", "--osl", "5", "--requests", "20", "--warmup", "0", "--concurrency", "5"];
        let slo = ["--slo-ttft-ms", "100", "--endpoint", endpoint];
        let (output, json) = bench(&url, &[&load[..], &slo].concat()).await;
        assert!(output.status.success(), "{output:?}");
        let summary = &json["summary"];
        assert_eq!((summary["completed"].as_u64(), summary["failed"].as_u64()), (Some(20), Some(0)));
        // First tokens after 200, 230, ... 770 ms: ranks 10, 18 and 20 of 20.
        about(&summary["ttft_ms"]["mean"], 485.0);
        about(&summary["ttft_ms"]["p50"], 470.0);
        about(&summary["ttft_ms"]["p90"], 710.0);
        about(&summary["ttft_ms"]["p99"], 770.0);
        about(&summary["e2e_ms"]["p90"], 870.0);
        about(&summary["tpot_ms"]["p50"], 40.0);
        about(&summary["itl_ms"]["p50"], 40.0);
        assert_eq!(summary["itl_ms"]["count"], 80);
        // Exact, although most of its words are several tokens.
        assert_eq!(
            (&summary["input_tokens"]["min"], &summary["input_tokens"]["max"]),
            (&200.0.into(), &200.0.into())
        );
        assert_eq!(summary["output_tokens"]["mean"], 5.0);
        assert_eq!(
            (&summary["goodput"]["good_requests"], &json["notes"]),
            (&0.into(), &Value::Array(vec![]))
        );
        let table = String::from_utf8_lossy(&output.stderr);
        assert!(table.contains("TTFT (ms)") && table.contains("measured: 20 of 20 done"), "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn https_is_measured_and_strange_certificates_are_refused() {
    let (url, certificate) = start_tls(Behaviour::default()).await;
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("certificate.pem");
    std::fs::write(&file, certificate).unwrap();
    let load = ["--isl", "50", "--osl", "3", "--requests", "4", "--warmup", "0", "--concurrency", "2"];
    let run = async |trusted: bool| {
        let mut command = disagg(home.path(), &["bench", "--url", &url, "--json", "-"]);
        command.args(load).env_remove("OPENAI_API_KEY");
        if trusted {
            command.env("SSL_CERT_FILE", &file);
        }
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    };
    let trusted = run(true).await;
    assert!(trusted.status.success(), "{trusted:?}");
    let json: Value = serde_json::from_str(stdout(&trusted)).unwrap();
    assert_eq!(json["summary"]["completed"], 4);
    let unknown = run(false).await;
    assert_eq!(unknown.status.code(), Some(1));
    let log = String::from_utf8_lossy(&unknown.stderr);
    assert!(log.contains(&format!("no server answers at {url}")) && log.contains("certificate"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_counted_by_kind_and_fail_the_run() {
    let url = start(Behaviour { faulty: true, ..Behaviour::default() }).await;
    let load = ["--isl", "50", "--osl", "3", "--requests", "9", "--warmup", "0", "--rate", "100"];
    let (output, json) = bench(&url, &load).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let (summary, errors) = (&json["summary"], &json["summary"]["errors"]);
    assert_eq!((&summary["completed"], &summary["failed"]), (&3.into(), &6.into()), "{json}");
    assert_eq!(errors["HTTP 429"]["count"], 3, "{json}");
    assert_eq!(errors["HTTP 429"]["example"], "too many");
    assert_eq!(errors["incomplete answer"]["count"], 3, "{json}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_less_is_measured_and_it_is_said() {
    let url = start(Behaviour { plain: true, ..Behaviour::default() }).await;
    let load = ["--isl", "64", "--osl", "4", "--requests", "3", "--warmup", "1", "--concurrency", "1"];
    let (output, json) = bench(&url, &load).await;
    assert!(output.status.success(), "{output:?}");
    let notes = json["notes"].to_string();
    for name in ["ignore_eos", "min_tokens", "does not count tokens in streams"] {
        assert!(notes.contains(name), "{notes}");
    }
    assert_eq!(json["summary"]["output_tokens_counted_by"], "chunks");
    assert_eq!(json["summary"]["output_tokens"]["mean"], 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_it_says_so() {
    let home = tempfile::tempdir().unwrap();
    let output = disagg(home.path(), &["bench", "--url", "http://127.0.0.1:9"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("no server answers at http://127.0.0.1:9"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn disagg_up_is_measured() {
    let mut up = Up::start(&["--max-local-prefill-length", "40"]);
    up.ready().await;
    let load = ["--isl", "64", "--osl", "8", "--requests", "20", "--warmup", "4", "--concurrency", "4"];
    let (output, json) = bench(&up.url, &load).await;
    assert!(output.status.success(), "{output:?}");
    let summary = &json["summary"];
    assert_eq!(summary["completed"], 20);
    for (tokens, wanted) in [("input_tokens", 64.0), ("output_tokens", 8.0)] {
        assert_eq!(
            (&summary[tokens]["min"], &summary[tokens]["max"]),
            (&wanted.into(), &wanted.into()),
            "{json}"
        );
    }
    let placements = summary["placements"].as_object().unwrap();
    assert_eq!(placements.values().map(|placed| placed["count"].as_u64().unwrap()).sum::<u64>(), 20);
    assert!(placements.contains_key("remote, above-threshold"), "{json}");

    // A shared prefix of a block and more is found in the cache from the second prompt of its group on.
    let shared = [
        "--isl",
        "200",
        "--shared-prefix-tokens",
        "150",
        "--prefix-groups",
        "2",
        "--endpoint",
        "completions",
    ];
    let (output, json) = bench(&up.url, &[&load[2..], &shared].concat()).await;
    assert!(output.status.success(), "{output:?}");
    assert!(json["summary"]["cached_input_tokens"].as_u64().unwrap() >= 18 * 64, "{json}");
    let too_long = disagg(up.home.path(), &["bench", "--url", &up.url, "--isl", "9000"]).output().unwrap();
    assert!(String::from_utf8_lossy(&too_long.stderr).contains("has room for 8192"), "{too_long:?}");
}
