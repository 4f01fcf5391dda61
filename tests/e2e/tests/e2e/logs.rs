//! Logs that go to no terminal have no colours, from every executable.

use std::process::Command;
use std::time::Duration;

use disagg_e2e::process::{Process, disagg};
use disagg_e2e::wait::eventually;

use crate::tiny;

const LOGGED: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_a_file_has_no_colours() {
    let folder = tempfile::tempdir().expect("a folder for logs");
    let model = tiny().to_str().expect("a path in UTF-8");
    let worker = ["--model", model, "--listen", "127.0.0.1:0", "--threads", "1", "--exit-with-stdin"];
    let router = ["--listen", "127.0.0.1:0", "--worker", "127.0.0.1:1", "--exit-with-stdin"];
    let operator = ["--listen", "127.0.0.1:0", "--router-image", "r", "--worker-image", "w"];
    let under_disagg = |part: &'static str| std::iter::once(part);
    let cases: [(&str, Vec<&str>); 5] = [
        ("disagg-worker", worker.into()),
        ("disagg-router", router.into()),
        ("disagg-operator", operator.into()),
        ("disagg", under_disagg("worker").chain(worker).collect()),
        ("disagg", under_disagg("router").chain(router).collect()),
    ];
    for (index, (executable, arguments)) in cases.into_iter().enumerate() {
        let mut command = Command::new(disagg().with_file_name(executable));
        // No cluster: the operator logs where it listens, and ends.
        command.args(arguments).env("KUBECONFIG", "/nowhere").env_remove("NO_COLOR");
        let process = Process::start(&format!("{index}-{executable}"), folder.path(), command);
        let log = eventually(&format!("a log of {executable}"), LOGGED, async || {
            let log = process.log();
            // A line of tracing: its level comes after the time.
            if log.contains(" INFO ") || log.contains("INFO\u{1b}") { Ok(log) } else { Err(log) }
        })
        .await;
        assert!(!log.contains('\u{1b}'), "{executable}: {log:?}");
    }
}
