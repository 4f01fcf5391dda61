//! `disagg status`: the workers as the router sees them, what it did with prompts, and the settings in force; once or
//! live.

mod counters;

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::time::{MissedTickBehavior, interval};

use crate::console;
use crate::router_client::{ADMIN_URL, RouterClient, Settings, Worker};
use counters::Counters;

/// Between two pictures of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// To the upper left corner, and clear all below.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Show the workers as the router sees them: role, state, load and KV blocks; and how prompts were placed
///
/// The exit code is 0 when the router can serve and 1 when it can not.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// URL of the router's admin port: by default one above the port of its API
    #[arg(long, env = "DISAGG_ADMIN", value_name = "URL", default_value = ADMIN_URL)]
    admin: String,

    /// Show it again every second, until Ctrl-C
    #[arg(long, short)]
    watch: bool,
}

pub(crate) async fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let client = RouterClient::new(&args.admin)?;
    if args.watch {
        watch(&client).await;
        return Ok(ExitCode::SUCCESS);
    }
    let (text, ready) = picture(&client).await?;
    console::print(&text);
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ends with Ctrl-C. A router that is away for a while is shown as that.
async fn watch(client: &RouterClient) {
    let start = if std::io::stdout().is_terminal() { CLEAR } else { "" };
    let mut ticks = interval(WATCH_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let pictures = async {
        loop {
            ticks.tick().await;
            let text = match picture(client).await {
                Ok((text, _)) => text,
                Err(error) => format!("{error:#}\n"),
            };
            console::print(&format!("{start}{text}\n"));
        }
    };
    tokio::select! {
        () = pictures => {}
        // It fails where there are no signals; then there is nothing to wait for.
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// All of it as text, and whether the router can serve.
pub(crate) async fn picture(client: &RouterClient) -> anyhow::Result<(String, bool)> {
    let workers = client.workers().await?.workers;
    let settings = client.settings().await?;
    let counters = Counters::parse(&client.metrics().await?);
    let ready = client.is_ready().await;
    let mut text = table(&workers);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\n{}{}", counters.lines(), settings_line(&settings));
    text += if ready { "\nready: yes\n" } else { "\nready: no\n" };
    Ok((text, ready))
}

fn settings_line(settings: &Settings) -> String {
    let plain = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let values = settings.values.iter().map(|(key, value)| format!("{key} {}", plain(value)));
    let mut line = format!("settings: {}", values.collect::<Vec<_>>().join(", "));
    if let Some(problem) = &settings.problem {
        line += "; the file is not in force: ";
        line += problem;
    }
    line
}

const COLUMNS: [&str; 9] =
    ["NAME", "ROLE", "STATE", "RUNNING", "WAITING", "BLOCKS", "TRANSPORT", "EPOCH", "ADDRESS"];

/// One line for each worker, columns aligned; below it why some are not ready.
fn table(workers: &[Worker]) -> String {
    if workers.is_empty() {
        return "The router knows no workers.\n".to_owned();
    }
    let rows: Vec<[String; COLUMNS.len()]> =
        std::iter::once(COLUMNS.map(str::to_owned)).chain(workers.iter().map(row)).collect();
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    let problems = workers.iter().filter_map(|worker| {
        let problem = worker.problem.as_ref()?;
        Some(format!("{}: {problem}\n", worker.name.as_ref().unwrap_or(&worker.address)))
    });
    text.extend(problems);
    text
}

fn row(worker: &Worker) -> [String; COLUMNS.len()] {
    let load = &worker.load;
    let or_dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let waiting = u64::from(load.waiting) + u64::from(load.awaiting_kv) + u64::from(load.prefill_queue);
    let (used, total, quarantined) = (load.blocks_used, load.blocks_total, load.blocks_quarantined);
    let blocks = match quarantined {
        0 => format!("{used}/{total}"),
        _ => format!("{used}/{total} ({quarantined} quarantined)"),
    };
    [
        or_dash(&worker.name),
        or_dash(&worker.role),
        worker.state.clone(),
        load.running.to_string(),
        waiting.to_string(),
        blocks,
        if worker.transports.is_empty() { "-".to_owned() } else { worker.transports.join(",") },
        or_dash(&worker.epoch),
        worker.address.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router_client::{Load, Workers};

    #[test]
    fn columns_are_aligned_and_problems_follow() {
        let workers = [
            Worker {
                address: "127.0.0.1:20001".to_owned(),
                name: Some("prefill-0".to_owned()),
                role: Some("prefill".to_owned()),
                state: "ready".to_owned(),
                transports: vec!["tcp".to_owned()],
                epoch: Some("00c0ffee00c0ffee".to_owned()),
                load: Load {
                    running: 3,
                    waiting: 1,
                    prefill_queue: 2,
                    blocks_total: 100,
                    blocks_used: 7,
                    blocks_quarantined: 4,
                    ..Load::default()
                },
                ..Worker::default()
            },
            Worker {
                address: "127.0.0.1:20002".to_owned(),
                state: "gone".to_owned(),
                problem: Some("connection refused".to_owned()),
                ..Worker::default()
            },
        ];
        let expected = "\
NAME       ROLE     STATE  RUNNING  WAITING  BLOCKS                 TRANSPORT  EPOCH             ADDRESS
prefill-0  prefill  ready  3        3        7/100 (4 quarantined)  tcp        00c0ffee00c0ffee  127.0.0.1:20001
-          -        gone   0        0        0/0                    -          -                 127.0.0.1:20002
127.0.0.1:20002: connection refused
";
        assert_eq!(table(&workers), expected);
        assert_eq!(table(&[]), "The router knows no workers.\n");
    }

    #[test]
    fn a_bad_settings_file_is_shown() {
        let text =
            r#"{"settings": {"fallbackPolicy": "Local", "maxLocalPrefillLength": 7}, "problem": "no"}"#;
        let settings = serde_json::from_str(text).unwrap();
        let line = "settings: fallbackPolicy Local, maxLocalPrefillLength 7; the file is not in force: no";
        assert_eq!(settings_line(&settings), line);
    }

    #[test]
    fn an_answer_with_unknown_and_missing_fields_is_read() {
        let text = r#"{"workers": [{"address": "a:1", "state": "joining", "news": 1}], "more": true}"#;
        let answer: Workers = serde_json::from_str(text).unwrap();
        assert_eq!((answer.workers[0].address.as_str(), answer.workers[0].name.as_deref()), ("a:1", None));
    }
}
