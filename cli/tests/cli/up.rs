//! `disagg up`, `status` and `threshold`: what goes wrong, what is said about it, and what is left behind.

use std::process::Command;
use std::time::{Duration, Instant};

use disagg_e2e::ports::free_port;
use disagg_e2e::router::http_client;
use disagg_e2e::{eventually, procfs};
use futures::StreamExt as _;
use serde_json::json;

use crate::harness::{DONE, READY, Up, disagg, stdout};

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_told_before_anything_starts() {
    let listener = std::net::TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let home = tempfile::tempdir().unwrap();
    let cache = home.path().join(".cache");
    let mut up = Up::start_in(home, &port, &[]);
    assert_eq!(up.process.end(DONE).await.code(), Some(1));
    let log = up.process.log();
    assert!(log.contains(&format!("port {port} is already in use")) && log.contains("--port"), "{log}");
    assert!(!log.contains("starting") && !cache.exists(), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_is_refused_with_every_problem() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.yaml");
    let demo = include_str!("../../../deploy/samples/demo.yaml");
    let refused = async |text: &str| {
        std::fs::write(&file, text).unwrap();
        let log = Up::start(&["-f", file.to_str().unwrap()]).failure().await;
        assert!(log.contains("bad.yaml"), "{log}");
        log
    };
    let log = refused(&demo.replace("replicas: 1", "replicas: -1")).await;
    assert!(log.contains("spec.prefill.replicas: must be from 0 to 1024, not -1"), "{log}");
    assert!(log.contains("spec.decode.replicas: must be from 0 to 1024, not -1"), "{log}");
    let log = refused(&demo.replace("prefill:", "prefil:")).await;
    assert!(log.contains("spec.prefil: no such field"), "{log}");
    let log = refused("kind: [").await;
    assert!(log.contains("not a YAML document"), "{log}");
    let log = refused(&demo.replace("bundled: {}", "hubId: a")).await;
    assert!(log.contains("spec.model.source.hubId: must"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_without_a_model_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let log = Up::start(&["--model", folder.path().to_str().unwrap()]).failure().await;
    assert!(log.contains("has no config.json") && !log.contains("starting"), "{log}");
    let log = Up::start(&["--model", "/nonexistent/model"]).failure().await;
    assert!(log.contains("/nonexistent/model does not exist"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_worker_would_refuse_is_told_once_and_not_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().to_str().unwrap();
    std::fs::write(folder.path().join("config.json"), "{\"model_type\": \"abacus\"}").unwrap();
    let log = Up::start(&["--model", model]).failure().await;
    assert!(log.contains("config.json: ") && !log.contains("starting"), "{log}");

    // What only the workers look at.
    disagg_worker::model::tiny::write(folder.path(), 1).unwrap();
    let weights = std::fs::File::options().write(true).open(folder.path().join("model.safetensors")).unwrap();
    weights.set_len(weights.metadata().unwrap().len() - 1).unwrap();
    let mut up = Up::start(&["--model", model, "--decode", "2"]);
    up.says("starting").await;
    let children = procfs::children(up.process.pid());
    let status = up.process.end(DONE).await;
    let log = up.process.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(log.matches("was it cut short?").count(), 1, "three workers, one message: {log}");
    let error = log.lines().last().unwrap();
    assert!(error.starts_with("error: ") && error.contains("model.safetensors: "), "{log}");
    assert!(!log.contains("starting it again"), "{log}");
    assert!(!children.iter().any(procfs::ProcessInfo::runs), "{children:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_is_refused_by_name_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let fifo = fifo.to_str().unwrap();
    for flags in [&["-f", fifo][..], &["--settings", fifo]] {
        let log = Up::start(flags).failure().await;
        assert!(log.contains(&format!("{}: {fifo}: is a pipe", flags[0])), "{flags:?}: {log}");
    }
    let model = folder.path().join("model");
    disagg_worker::model::tiny::write(&model, 1).unwrap();
    for file in ["chat_template.jinja", "tokenizer.json", "model.safetensors", "config.json"] {
        let path = model.join(file);
        let kept = std::fs::read(&path).ok();
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let log = Up::start(&["--model", model.to_str().unwrap()]).failure().await;
        assert!(log.contains(&format!("{file}: is a device; a regular file is needed")), "{log}");
        std::fs::remove_file(&path).unwrap();
        if let Some(bytes) = kept {
            std::fs::write(&path, bytes).unwrap();
        }
    }
}

/// The child with this argument.
async fn child(up: &Up, argument: &str) -> procfs::ProcessInfo {
    eventually(argument, READY, async || {
        let children = procfs::children(up.process.pid());
        children.into_iter().find(|child| child.has_argument(argument)).ok_or_else(|| up.process.log())
    })
    .await
}

fn stop(process: &procfs::ProcessInfo) {
    assert!(Command::new("kill").args(["-STOP", &process.pid.to_string()]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_hangs_is_killed_and_comes_back() {
    let mut up = Up::start(&["--max-silence-seconds", "6"]);
    up.ready().await;
    for name in ["decode-0", "router"] {
        let hung = child(&up, name).await;
        stop(&hung);
        up.says(&format!("{name} has not answered for 6 s and was killed; starting it again in 0.2 s")).await;
        up.says(&format!("{name} ready again")).await;
        assert!(!hung.runs());
    }
    eventually("requests to be served again", READY, async || {
        let ready = http_client().get(format!("{}/ready", up.url)).send().await;
        ready.ok().filter(|answer| answer.status() == 200).map(|_| ()).ok_or_else(|| up.process.log())
    })
    .await;
    up.placement("Hello").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_port_is_taken_meanwhile_takes_another() {
    let mut up = Up::start(&[]);
    up.ready().await;
    let decode = child(&up, "decode-0").await;
    let address =
        decode.arguments.iter().find_map(|argument| argument.strip_prefix("--listen=")).unwrap().to_owned();
    procfs::kill_9(decode.pid);
    // Before it is started again.
    let _taken = eventually("the port to be free", DONE, async || {
        std::net::TcpListener::bind(&address).map_err(|error| error.to_string())
    })
    .await;
    up.says("another process has taken a port of decode-0; starting it again on port ").await;
    up.says("decode-0 ready again").await;
    up.says("router ready again").await;
    let moved = child(&up, "decode-0").await;
    assert!(!moved.has_argument(&address), "{moved:?}");
    eventually("requests to be served again", READY, async || {
        let ready = http_client().get(format!("{}/ready", up.url)).send().await;
        ready.ok().filter(|answer| answer.status() == 200).map(|_| ()).ok_or_else(|| up.process.log())
    })
    .await;
    up.placement("Hello").await;
    assert!(!up.process.log().contains("Address already in use"), "told once: {}", up.process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn children_get_no_token() {
    let port = free_port().to_string();
    let env = [("HF_TOKEN", "hf_secret"), ("OPENAI_API_KEY", "sk-secret"), ("RUST_BACKTRACE", "1")];
    let up = Up::start_with(tempfile::tempdir().unwrap(), &port, &[], &env);
    for name in ["router", "prefill-0", "decode-0"] {
        let pid = child(&up, name).await.pid;
        let environment = eventually("its environment", DONE, async || {
            let bytes = std::fs::read(format!("/proc/{pid}/environ")).map_err(|error| error.to_string())?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if text.contains("RUST_BACKTRACE=1") { Ok(text) } else { Err(text) }
        })
        .await;
        assert!(environment.contains("HOME=") && environment.contains("PATH="), "{name}: {environment}");
        assert!(!environment.contains("secret"), "{name}: {environment}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_startup_that_takes_too_long_tells_what_is_missing() {
    let mut up = Up::start(&["--startup-timeout-seconds", "5", "--drain-seconds", "0"]);
    let prefill = eventually("the prefill worker", READY, async || {
        let children = procfs::children(up.process.pid());
        children.into_iter().find(|child| child.has_argument("prefill-0")).ok_or_else(|| up.process.log())
    })
    .await;
    // It neither serves nor dies.
    assert!(Command::new("kill").args(["-STOP", &prefill.pid.to_string()]).status().unwrap().success());
    let children = procfs::children(up.process.pid());
    let status = up.process.end(DONE).await;
    let log = up.process.log();
    assert_eq!(status.code(), Some(1), "{log}");
    let error = log.split("error: ").last().unwrap();
    assert!(error.starts_with("not ready after 5 s; still missing: prefill-0"), "{log}");
    assert!(!error.contains("decode-0"), "{log}");
    assert!(!children.iter().any(procfs::ProcessInfo::runs), "{children:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_threshold_show_and_change_what_runs() {
    let mut up = Up::start(&["--max-local-prefill-length", "200"]);
    up.ready().await;

    let status = up.run(&["status"]);
    let table = stdout(&status);
    assert!(status.status.success(), "{table}");
    for (name, role) in [("prefill-0", "prefill"), ("decode-0", "decode")] {
        let line = table.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{table}"));
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[1..3], [role, "ready"], "{table}");
    }
    assert!(table.ends_with("ready: yes\n"), "{table}");

    let prompt = "some words that are no more than two hundred tokens";
    assert!(!up.placement(prompt).await.remote);
    assert_eq!(stdout(&up.run(&["threshold", "get"])), "200\n");
    let set = up.run(&["threshold", "set", "3"]);
    assert_eq!(stdout(&set), "3\n", "{set:?}");
    // Nothing of it was cached: another beginning.
    assert!(up.placement(&format!("Today {prompt}")).await.remote, "in force without a restart");
    let bad = up.run(&["threshold", "set", "4000000000"]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("must be a whole number of tokens"), "{bad:?}");
    assert_eq!(stdout(&up.run(&["threshold", "get"])), "3\n");

    // The router is restarted too, on the same port and with the settings of now.
    let router =
        procfs::children(up.process.pid()).into_iter().find(|child| child.has_argument("router")).unwrap();
    procfs::kill_9(router.pid);
    up.says("router was killed (SIGKILL); starting it again").await;
    up.says("router ready again").await;
    eventually("the new router to serve", READY, async || {
        let ready = http_client().get(format!("{}/ready", up.url)).send().await;
        ready.ok().filter(|answer| answer.status() == 200).map(|_| ()).ok_or_else(|| "not ready".to_owned())
    })
    .await;
    assert_eq!(stdout(&up.run(&["threshold", "get"])), "3\n");

    up.process.signal("TERM");
    assert_eq!(up.process.end(DONE).await.code(), Some(0), "{}", up.process.log());
    let status = up.run(&["status"]);
    assert_eq!(status.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&status.stderr).contains("no router answers at"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_lets_answers_end_and_a_second_one_does_not() {
    let mut up = Up::start(&["--drain-seconds", "600"]);
    up.ready().await;
    let children = procfs::children(up.process.pid());
    // Long enough to be still running at the end.
    let body = json!({
        "model": "demo", "prompt": "Hello", "max_tokens": 8000, "ignore_eos": true, "temperature": 0, "stream": true,
    });
    let response = http_client().post(format!("{}/v1/completions", up.url)).json(&body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let mut stream = response.bytes_stream();
    stream.next().await.unwrap().unwrap();
    up.process.signal("INT");
    up.says("finishing open answers").await;
    for _ in 0..20 {
        stream.next().await.expect("the answer goes on").expect("the answer goes on");
    }
    assert!(up.process.ended().is_none(), "it waits for the answer");
    let begin = Instant::now();
    up.process.signal("INT");
    assert_eq!(up.process.end(DONE).await.code(), Some(130), "{}", up.process.log());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(!children.iter().any(procfs::ProcessInfo::runs), "{children:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_while_it_starts_is_obeyed() {
    let mut up = Up::start(&[]);
    up.says("starting").await;
    up.process.signal("INT");
    assert_eq!(up.process.end(DONE).await.code(), Some(0), "{}", up.process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_for_all_is_warned_about_and_the_admin_port_is_for_this_machine_alone() {
    let mut up = Up::start(&["--host", "0.0.0.0"]);
    up.says("warning: --host 0.0.0.0: whoever reaches this machine").await;
    up.ready().await;
    // Of several clients, this one comes by another address than loopback's own.
    let port = |url: &str| url.rsplit(':').next().unwrap().to_owned();
    let get = async |address: &str, url: &str, path: &str| {
        http_client().get(format!("http://{address}:{}{path}", port(url))).send().await
    };
    assert_eq!(get("127.0.0.2", &up.url, "/health").await.unwrap().status(), 200);
    assert_eq!(get("127.0.0.2", &up.url, "/metrics").await.unwrap().status(), 404);
    assert_eq!(get("127.0.0.1", &up.admin, "/metrics").await.unwrap().status(), 200);
    get("127.0.0.2", &up.admin, "/metrics").await.unwrap_err();
    assert!(up.run(&["status"]).status.success());
}

#[test]
fn help_and_version_are_printed() {
    let home = tempfile::tempdir().unwrap();
    let version = disagg(home.path(), &["--version"]).output().unwrap();
    assert_eq!(stdout(&version), concat!("disagg ", env!("CARGO_PKG_VERSION"), "\n"));
    for command in ["up", "status", "threshold", "bench", "router", "worker"] {
        let help = disagg(home.path(), &[command, "--help"]).output().unwrap();
        assert!(help.status.success() && stdout(&help).contains(&format!("disagg {command}")), "{command}");
    }
}
