//! One process under test: its pipes, its log, and its end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::wait::eventually;

/// Lines of a log that are printed when a test fails.
const LOG_TAIL_LINES: usize = 120;

/// A running (or ended) process. Its standard input stays open until [`Self::close_stdin`] or drop; the processes
/// under test end with it, so they end even when the test process is killed.
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// Path of the `disagg` executable: `DISAGG_BIN`, or the one cargo built beside this test. Panics if there is none.
pub fn disagg() -> PathBuf {
    if let Some(path) = std::env::var_os("DISAGG_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "DISAGG_BIN is {}, which is no file", path.display());
        return path;
    }
    // target/<profile>/deps/<this test> → target/<profile>/disagg
    let test = std::env::current_exe().expect("path of the test executable");
    let folder = test.parent().and_then(Path::parent).expect("the test lies in target/<profile>/deps");
    let path = folder.join("disagg");
    assert!(
        path.is_file(),
        "{} is not there; build it first (`make e2e` does: cargo build --profile ci --workspace --bins) \
         or name it in DISAGG_BIN",
        path.display()
    );
    path
}

impl Process {
    /// Starts `command` with its output in files under `folder`. Variables `DISAGG_*` of the environment, which would
    /// set flags, are taken away, except those that `command` itself sets.
    pub fn start(name: &str, folder: &Path, mut command: Command) -> Self {
        let own: Vec<_> = command.get_envs().map(|(key, _)| key.to_owned()).collect();
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("DISAGG_") && !own.contains(&key) {
                command.env_remove(key);
            }
        }
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "info,disagg=debug");
        }
        let (stdout, stderr) = (folder.join(format!("{name}.out")), folder.join(format!("{name}.err")));
        let create = |path: &Path| File::create(path).expect("log file");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(create(&stdout))
            .stderr(create(&stderr))
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", command.get_program().display()));
        let stdin = child.stdin.take();
        Self { name: name.to_owned(), child, stdin, stdout, stderr }
    }

    /// `disagg` with these arguments.
    pub fn disagg(name: &str, folder: &Path, arguments: &[String]) -> Self {
        let mut command = Command::new(disagg());
        command.args(arguments);
        Self::start(name, folder, command)
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it has written to standard output.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stdout).unwrap_or_default()).into_owned()
    }

    /// All it has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// Its end, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("state of a child")
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill_9(&mut self) {
        self.child.kill().expect("kill -9");
        self.child.wait().expect("end of a killed process");
    }

    /// Sends a signal by name, for example `INT`.
    pub fn signal(&self, name: &str) {
        let line = format!("kill -{name} {}", self.pid());
        let status = Command::new("sh").args(["-c", &line]).status().expect("sh");
        assert!(status.success(), "{line}: {status}");
    }

    /// Closes its standard input, as the death of its parent would.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits for its end.
    pub async fn end(&mut self, within: Duration) -> ExitStatus {
        let what = format!("end of {}", self.name);
        eventually(&what, within, async || self.ended().ok_or_else(|| "it runs".to_owned())).await
    }

    fn print_tail(&self) {
        for (stream, text) in [("stdout", self.stdout()), ("log", self.log())] {
            let lines: Vec<_> = text.lines().collect();
            let from = lines.len().saturating_sub(LOG_TAIL_LINES);
            if !lines.is_empty() {
                eprintln!(
                    "---- {} {stream} (last {} of {} lines)",
                    self.name,
                    lines.len() - from,
                    lines.len()
                );
                eprintln!("{}", lines[from..].join("\n"));
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail harmlessly if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.print_tail();
        }
    }
}
