//! A `disagg up` under test, and commands beside it.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use disagg_e2e::ports::free_port;
use disagg_e2e::router::{PlacementHeader, http_client};
use disagg_e2e::{Process, eventually};
use serde_json::json;
use tempfile::TempDir;

/// Everything up, on a busy machine.
pub(crate) const READY: Duration = Duration::from_secs(90);
/// A command that has nothing to wait for has ended.
pub(crate) const DONE: Duration = Duration::from_secs(30);

/// A running `disagg up` in a home of its own.
pub(crate) struct Up {
    pub(crate) process: Process,
    pub(crate) home: TempDir,
    pub(crate) url: String,
    /// URL of what is for whoever runs it.
    pub(crate) admin: String,
}

pub(crate) fn disagg(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_disagg"));
    command.args(arguments).env("HOME", home);
    for folder in ["XDG_CACHE_HOME", "XDG_STATE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH"]
    {
        command.env_remove(folder);
    }
    command
}

impl Up {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let port = free_port().to_string();
        Self::start_in(tempfile::tempdir().unwrap(), &port, arguments)
    }

    pub(crate) fn start_in(home: TempDir, port: &str, arguments: &[&str]) -> Self {
        Self::start_with(home, port, arguments, &[])
    }

    pub(crate) fn start_with(home: TempDir, port: &str, arguments: &[&str], env: &[(&str, &str)]) -> Self {
        let admin_port = free_port().to_string();
        let mut command = disagg(home.path(), &["up", "--port", port, "--admin-port", &admin_port]);
        command.args(arguments).envs(env.iter().copied());
        let process = Process::start("up", home.path(), command);
        let url = |port: &str| format!("http://127.0.0.1:{port}");
        Self { process, home, url: url(port), admin: url(&admin_port) }
    }

    pub(crate) async fn ready(&mut self) {
        eventually("up to be ready", READY, async || match self.process.ended() {
            Some(status) => panic!("up ended with {status}"),
            None if self.process.stdout().contains("Ctrl-C") => Ok(()),
            None => Err(self.process.log()),
        })
        .await;
    }

    /// Waits until it fails; gives what it wrote to standard error.
    pub(crate) async fn failure(mut self) -> String {
        let status = self.process.end(DONE).await;
        assert_eq!(status.code(), Some(1), "{}", self.process.log());
        assert_eq!(self.process.stdout(), "", "an error goes to standard error");
        self.process.log()
    }

    pub(crate) async fn says(&self, what: &str) {
        eventually(what, READY, async || {
            let log = self.process.log();
            if log.contains(what) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// Runs another command beside it.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        disagg(self.home.path(), arguments).args(["--admin", &self.admin]).output().unwrap()
    }

    pub(crate) async fn placement(&self, prompt: &str) -> PlacementHeader {
        let body = json!({"model": "demo", "prompt": prompt, "max_tokens": 1, "temperature": 0});
        let response =
            http_client().post(format!("{}/v1/completions", self.url)).json(&body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        PlacementHeader::of(&response)
    }
}

pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}
