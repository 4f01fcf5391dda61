//! A process without file descriptors left: a child of this one, since the bound is of the whole process.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::harness::{Server, roomy};

/// Set in the child.
const CHILD: &str = "DISAGG_TEST_FEW_FILES";

/// Files that the child may open; the runtime and the test harness take some.
const FILES: u64 = 64;

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn without_files_it_says_so_and_goes_on() {
    if std::env::var_os(CHILD).is_some() {
        return serve_with_few_files();
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "files::without_files_it_says_so_and_goes_on", "--nocapture"]).env(CHILD, "1");
    let mut child = Killed(child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let address = lines
        .find_map(|line| line.unwrap().split_once("serves on ").map(|(_, address)| address.trim().to_owned()))
        .expect("it says where");
    // More than it has files for; all of them silent.
    let silent: Vec<TcpStream> = (0..3 * FILES).map(|_| TcpStream::connect(&address).unwrap()).collect();
    for _ in 0..3 {
        let mut honest = TcpStream::connect(&address).unwrap();
        honest.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        honest.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        honest.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("well"), "{answer:?}");
    }
    drop(silent);
    child.0.kill().unwrap();
    let mut log = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    let said = log.matches("this process has as many files open as it may").count();
    assert_eq!(said, 1, "once in a while, and no more: {log}");
}

/// What the child does until it is killed.
fn serve_with_few_files() {
    disagg_process::log_to_stderr(false);
    setrlimit(Resource::Nofile, Rlimit { current: Some(FILES), maximum: Some(FILES) }).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // More connections than files.
        let server = Server::start(roomy()).await;
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "serves on {}", server.address).unwrap();
        stdout.flush().unwrap();
        server.task.await.unwrap();
    });
}
