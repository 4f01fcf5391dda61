//! `disagg up`, as a newcomer uses it: from the first line it prints to the end of its last process.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use disagg_e2e::golden::Golden;
use disagg_e2e::ports::free_port;
use disagg_e2e::procfs::{self, ProcessInfo};
use disagg_e2e::router::{PlacementHeader, http_client};
use disagg_e2e::{Process, eventually, openai, process};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Everything up, with a model made on the spot, on a busy machine.
const READY: Duration = Duration::from_secs(90);
/// A process that died is there again and serves.
const BACK: Duration = Duration::from_secs(30);
/// All processes have ended.
const GONE: Duration = Duration::from_secs(15);

/// A running `disagg up` in a home of its own.
pub(crate) struct Up {
    process: Process,
    home: TempDir,
    /// Of what is for whoever runs it.
    pub(crate) admin: String,
}

impl Up {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let home = tempfile::Builder::new().prefix("disagg-up-").tempdir().expect("a temporary folder");
        let mut command = Command::new(process::disagg());
        let (port, admin_port) = (free_port().to_string(), free_port().to_string());
        command.args(["up", "--port", &port, "--admin-port", &admin_port]).args(arguments);
        command.env("HOME", home.path());
        command
            .env("XDG_CACHE_HOME", home.path().join("cache"))
            .env("XDG_STATE_HOME", home.path().join("state"));
        let admin = format!("http://127.0.0.1:{admin_port}");
        Self { process: Process::start("up", home.path(), command), home, admin }
    }

    /// Waits until it says that it is ready: the URL, and the curl lines below it.
    pub(crate) async fn ready(&mut self) -> (String, Vec<String>) {
        eventually("disagg up to be ready", READY, async || {
            if let Some(status) = self.process.ended() {
                panic!("disagg up ended with {status} before it was ready");
            }
            let text = self.process.stdout();
            let url = text.split_whitespace().find(|word| word.starts_with("http://"));
            match url {
                Some(url) if text.contains("Ctrl-C") => {
                    let lines = text.lines().map(str::trim).filter(|line| line.starts_with("curl "));
                    Ok((url.to_owned(), lines.map(Into::into).collect()))
                }
                _ => Err(format!("{text:?}")),
            }
        })
        .await
    }

    /// The processes it has started.
    fn children(&self) -> Vec<ProcessInfo> {
        procfs::children(self.process.pid())
    }

    /// The router, once there is one.
    pub(crate) fn router(&self) -> Option<ProcessInfo> {
        self.children().into_iter().find(|child| child.has_argument("router"))
    }

    /// The worker of this name, once there is one.
    fn worker(&self, name: &str) -> Option<ProcessInfo> {
        self.children().into_iter().find(|child| child.has_argument(name))
    }

    async fn all_gone(&self, processes: &[ProcessInfo]) {
        eventually("all processes to be gone", GONE, async || {
            let left: Vec<_> = processes.iter().filter(|child| child.runs()).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
    }
}

/// Runs a line as a shell would after it was pasted, and gives what curl wrote: headers and body.
///
/// Where there is no curl, a small stand-in takes its place.
async fn paste(line: &str, home: &Path) -> (PlacementHeader, Value) {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    let has_curl = std::env::split_paths(&path).any(|folder| folder.join("curl").is_file());
    if !has_curl {
        let bin = home.join("bin");
        std::fs::create_dir_all(&bin).expect("a folder for curl");
        std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("curl.py"), bin.join("curl"))
            .expect("curl.py");
        path = std::env::join_paths([bin].into_iter().chain(std::env::split_paths(&path))).expect("a PATH");
    }
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).env("PATH", path).env("no_proxy", "*");
    let output = tokio::task::spawn_blocking(move || shell.output()).await.expect("no panic").expect("sh");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        output.status.success(),
        "{line}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let (head, body) = text
        .replace("\r\n", "\n")
        .split_once("\n\n")
        .map_or_else(|| panic!("{line}: {text}"), |(head, body)| (head.to_owned(), body.to_owned()));
    assert!(head.starts_with("HTTP/1.1 200"), "{line}: {text}");
    let placement = head.lines().find_map(|line| line.strip_prefix("x-disagg-placement: "));
    let placement = PlacementHeader::parse(placement.unwrap_or_else(|| panic!("no placement: {head}")));
    (placement, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_printed_lines_work_and_ctrl_c_ends_everything() {
    let mut up = Up::start(&[]);
    let (url, lines) = up.ready().await;
    let [short, long] = lines.as_slice() else { panic!("two curl lines: {lines:?}") };
    let expected =
        [(short, false, "serves large language models"), (long, true, "moves a prefilled sequence")];
    for (line, remote, words) in expected {
        let (placement, body) = paste(line, up.home.path()).await;
        assert_eq!(placement.remote, remote, "{line}: {placement:?}");
        assert_eq!(body["choices"][0]["finish_reason"], "stop", "{line}: {body}");
        let said = body["choices"][0]["message"]["content"].as_str().expect("an answer");
        assert!(said.contains(words), "{line}: {said}");
    }
    assert_eq!(http_client().get(format!("{url}/ready")).send().await.expect("/ready").status(), 200);

    let children = up.children();
    assert_eq!(children.len(), 3, "a router and two workers: {children:?}");
    up.process.signal("INT");
    let status = up.process.end(GONE).await;
    assert_eq!(status.code(), Some(0), "Ctrl-C is the way to end it, no failure");
    up.all_gone(&children).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_die_come_back() {
    let mut up = Up::start(&[]);
    let (_, lines) = up.ready().await;
    for name in ["prefill-0", "decode-0"] {
        let worker = up.worker(name).unwrap_or_else(|| panic!("{name} among {:?}", up.children()));
        procfs::kill_9(worker.pid);
        let next = eventually("the worker to be back", BACK, async || match up.worker(name) {
            Some(next) if next.pid != worker.pid => Ok(next),
            other => Err(format!("{other:?}")),
        })
        .await;
        assert_eq!(next.arguments, worker.arguments, "the next life is like the one before");
    }
    // The router finds both again: a long prompt is prefilled remotely.
    eventually("a remote prefill again", BACK, async || {
        let (placement, _) = paste(&lines[1], up.home.path()).await;
        if placement.remote { Ok(()) } else { Err(format!("{placement:?}")) }
    })
    .await;
    let children = up.children();
    assert_eq!(children.len(), 3, "{children:?}");
    up.process.signal("TERM");
    up.process.end(GONE).await;
    up.all_gone(&children).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_a_killed_up() {
    let mut up = Up::start(&[]);
    up.ready().await;
    let children = up.children();
    assert_eq!(children.len(), 3, "{children:?}");
    up.process.kill_9();
    up.all_gone(&children).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_says_what_to_run_and_a_wrong_one_is_refused_by_name() {
    let mut wrong = Up::start(&["-f", "/nonexistent/deployment.yaml"]);
    assert!(!wrong.process.end(GONE).await.success());
    assert!(wrong.process.log().contains("/nonexistent/deployment.yaml"), "{}", wrong.process.log());

    let golden = Golden::load("llama");
    let file = wrong.home.path().join("deployment.yaml");
    let text = format!(
        "apiVersion: disagg.dev/v1alpha1\nkind: DisaggDeployment\nmetadata: {{name: golden}}\nspec:\n  \
         model: {{source: {{path: {}}}, servedName: golden-llama}}\n  \
         prefill: {{replicas: 1}}\n  decode: {{replicas: 2}}\n  \
         disaggregation: {{maxLocalPrefillLength: 99}}\n",
        std::fs::canonicalize(&golden.model).expect("the golden model").display(),
    );
    std::fs::write(&file, text).expect("a file");
    let mut up = Up::start(&["-f", file.to_str().expect("UTF-8")]);
    let (url, _) = up.ready().await;
    assert_eq!(up.children().len(), 4, "a router and three workers: {:?}", up.children());
    let http = http_client();
    let models: Value =
        openai::json(http.get(format!("{url}/v1/models")).send().await.expect("models")).await;
    assert_eq!(models["data"][0]["id"], "golden-llama", "{models}");
    for length in [64, 100] {
        let prompt =
            golden.prompts.iter().find(|prompt| prompt.prompt.len() == length).expect("golden prompts");
        let request = json!({
            "model": "golden-llama", "prompt": prompt.prompt, "max_tokens": prompt.output.len(), "ignore_eos": true,
            "temperature": 0,
        });
        let response =
            http.post(format!("{url}/v1/completions")).json(&request).send().await.expect("an answer");
        let answer = openai::completion(response).await;
        assert_eq!((answer.text, answer.placement.remote), (golden.text(&prompt.output), length == 100));
    }
}
