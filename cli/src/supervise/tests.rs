//! The supervisor with shell scripts as children.

use super::*;
use parking_lot::Mutex;
use std::time::Instant;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl Output for Lines {
    fn line(&self, name: &str, line: &str) {
        self.0.lock().push(format!("{name}: {line}"));
    }
}

fn policy() -> Policy {
    Policy {
        restart_delay_min: Duration::from_millis(10),
        restart_delay_max: Duration::from_millis(40),
        stable_after: Duration::from_mins(1),
        start_attempts: 3,
        stop_grace: Duration::from_millis(300),
        silence_max: Duration::from_millis(600),
    }
}

fn script(name: &str, text: &str) -> Process {
    Process {
        name: name.to_owned(),
        program: "/bin/sh".into(),
        args: vec!["-c".into(), text.into()],
        env: vec![("GREETING".into(), "hello".into()), ("PATH".into(), env!("PATH").into())],
        health: None,
    }
}

struct Running {
    supervisor: Supervisor,
    events: mpsc::Receiver<Event>,
    lines: Arc<Lines>,
}

fn start(policy: Policy, processes: Vec<Process>) -> Running {
    let lines = Arc::new(Lines::default());
    let output: Arc<dyn Output> = Arc::clone(&lines) as _;
    let (supervisor, events) = Supervisor::start(processes, policy, &output).unwrap();
    Running { supervisor, events, lines }
}

impl Running {
    async fn event(&mut self) -> Event {
        timeout(PATIENCE, self.events.recv()).await.expect("an event in time").expect("an event")
    }

    async fn started(&mut self) -> u32 {
        match self.event().await {
            Event::Started { pid, .. } => pid,
            other => panic!("{other:?}"),
        }
    }

    async fn line(&self, wanted: &str) {
        let begin = Instant::now();
        while !self.lines.0.lock().iter().any(|line| line == wanted) {
            assert!(begin.elapsed() < PATIENCE, "{wanted:?} is not in {:?}", self.lines.0.lock());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(&mut self, process: usize) -> Duration {
        let begin = Instant::now();
        self.supervisor.stop(process);
        timeout(PATIENCE, self.supervisor.stopped(process)).await.expect("stops in time");
        begin.elapsed()
    }
}

fn kill_9(pid: u32) {
    let status = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

fn is_alive(pid: u32) -> bool {
    let quiet = std::process::Stdio::null();
    let mut kill = std::process::Command::new("kill");
    kill.args(["-0", &pid.to_string()]).stderr(quiet).status().unwrap().success()
}

/// Ends when its standard input does, like our own programs.
const WELL_BEHAVED: &str = "echo $GREETING; cat >/dev/null; echo bye >&2";

#[tokio::test]
async fn a_child_ends_when_its_pipe_closes_and_its_last_words_are_heard() {
    let mut running = start(policy(), vec![script("a", WELL_BEHAVED)]);
    let pid = running.started().await;
    running.line("a: hello").await;
    let took = running.stop(0).await;
    assert!(took < policy().stop_grace, "{took:?}");
    assert!(!is_alive(pid));
    assert_eq!(*running.lines.0.lock(), ["a: hello", "a: bye"]);
    assert!(running.events.try_recv().is_err(), "a stop that was asked for is no event");
}

#[tokio::test]
async fn a_killed_child_comes_back() {
    let mut running = start(policy(), vec![script("a", WELL_BEHAVED), script("b", WELL_BEHAVED)]);
    let first = [running.event().await, running.event().await];
    let pid = first.iter().find_map(|event| match event {
        Event::Started { process: 1, pid, restarts: 0 } => Some(*pid),
        _ => None,
    });
    kill_9(pid.unwrap());
    let Event::Died { process: 1, exit, restart_in, .. } = running.event().await else { panic!("b died") };
    assert_eq!(exit.to_string(), "was killed (SIGKILL)");
    assert_eq!(restart_in, policy().restart_delay_min);
    let Event::Started { process: 1, restarts: 1, pid: second } = running.event().await else {
        panic!("b is back")
    };
    assert_ne!(Some(second), pid);
}

#[tokio::test]
async fn a_child_that_never_serves_is_given_up_with_its_last_words() {
    let mut running = start(policy(), vec![script("a", "for i in $(seq 30); do echo line $i; done; exit 3")]);
    for _ in 1..policy().start_attempts {
        running.started().await;
        let Event::Died { exit, .. } = running.event().await else { panic!("died") };
        assert_eq!(exit.to_string(), "ended with exit code 3");
    }
    running.started().await;
    let Event::GaveUp { process: 0, last_lines, .. } = running.event().await else { panic!("given up") };
    assert_eq!(last_lines.len(), 20);
    assert_eq!(last_lines[19], "line 30");
    assert!(timeout(PATIENCE, running.events.recv()).await.unwrap().is_none(), "nothing follows");
    running.stop(0).await;
}

#[tokio::test]
async fn a_child_that_has_served_is_never_given_up() {
    let mut running = start(policy(), vec![script("a", "exit 1")]);
    running.supervisor.mark_served(0);
    let mut delays = Vec::new();
    while delays.len() < 6 {
        if let Event::Died { restart_in, .. } = running.event().await {
            delays.push(restart_in.as_millis());
        }
    }
    assert_eq!(delays, [10, 20, 40, 40, 40, 40]);
}

#[tokio::test]
async fn a_long_life_makes_delays_short_again() {
    let patient = Policy { stable_after: Duration::ZERO, ..policy() };
    let mut running = start(patient, vec![script("a", "exit 1")]);
    let mut delays = Vec::new();
    while delays.len() < 5 {
        match running.event().await {
            Event::Died { restart_in, .. } => delays.push(restart_in.as_millis()),
            Event::Started { .. } => {}
            end @ (Event::GaveUp { .. } | Event::Refused { .. }) => panic!("{end:?}"),
        }
    }
    assert_eq!(delays, [10; 5]);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_given_up() {
    let missing = Process { program: "/nonexistent/program".into(), ..script("a", "") };
    let mut running = start(policy(), vec![missing]);
    loop {
        if let Event::GaveUp { exit, .. } = running.event().await {
            assert!(exit.to_string().starts_with("could not be started: No such file"), "{exit}");
            return;
        }
    }
}

#[tokio::test]
async fn a_stubborn_child_is_killed_after_the_grace() {
    let mut running = start(policy(), vec![script("a", "trap '' TERM INT; echo deaf; exec sleep 1000")]);
    let pid = running.started().await;
    running.line("a: deaf").await;
    let took = running.stop(0).await;
    assert!(took >= policy().stop_grace, "{took:?}");
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn kill_does_not_wait_for_the_grace() {
    let slow = Policy { stop_grace: Duration::from_mins(10), ..policy() };
    let mut running = start(slow, vec![script("a", "exec sleep 1000"), script("b", "exec sleep 1000")]);
    let pids = [running.started().await, running.started().await];
    running.supervisor.stop(0);
    running.supervisor.kill_all();
    for process in 0..2 {
        timeout(PATIENCE, running.supervisor.stopped(process)).await.expect("killed");
    }
    assert!(!pids.into_iter().any(is_alive));
}

#[tokio::test]
async fn a_stop_during_the_delay_is_obeyed_at_once() {
    let slow =
        Policy { restart_delay_min: Duration::from_mins(10), restart_delay_max: Duration::MAX, ..policy() };
    let mut running = start(slow, vec![script("a", "exit 1")]);
    running.started().await;
    let Event::Died { .. } = running.event().await else { panic!("died") };
    running.stop(0).await;
}

#[tokio::test]
async fn dropping_the_supervisor_ends_the_children() {
    let mut running = start(policy(), vec![script("a", "cat >/dev/null")]);
    let pid = running.started().await;
    drop(running.supervisor);
    let begin = Instant::now();
    while is_alive(pid) {
        assert!(begin.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_start_that_is_refused_for_good_is_told_once() {
    for status in ["78", "2"] {
        let text = format!("echo loading; echo 'error: no such model:' >&2; echo '  /m' >&2; exit {status}");
        let mut running = start(policy(), vec![script("a", &text)]);
        running.started().await;
        let Event::Refused { process: 0, why } = running.event().await else { panic!("refused") };
        assert_eq!(why, "no such model:\n  /m");
        assert_eq!(*running.lines.0.lock(), ["a: loading"], "whoever reads the event says the rest");
        assert!(timeout(PATIENCE, running.events.recv()).await.unwrap().is_none(), "nothing follows");
    }
}

#[tokio::test]
async fn of_an_address_in_use_the_event_tells() {
    let mut running = start(policy(), vec![script("a", "echo 'error: port 1 is in use' >&2; exit 75")]);
    running.started().await;
    let Event::Died { exit, why, .. } = running.event().await else { panic!("died") };
    assert_eq!((exit.failure(), why.as_str()), (Failure::AddressInUse, "port 1 is in use"));
    assert!(running.lines.0.lock().is_empty(), "whoever reads the event says what follows from it");
}

#[tokio::test]
async fn what_has_served_is_not_refused() {
    // Its settings were broken meanwhile; the user may mend them.
    let mut running = start(policy(), vec![script("a", "echo 'error: bad' >&2; exit 78")]);
    running.supervisor.mark_served(0);
    let mut deaths = 0;
    while deaths < 2 {
        match running.event().await {
            Event::Died { .. } => deaths += 1,
            Event::Started { .. } => {}
            end @ (Event::GaveUp { .. } | Event::Refused { .. }) => panic!("{end:?}"),
        }
    }
    running.line("a: error: bad").await;
}

#[tokio::test]
async fn a_child_inherits_nothing() {
    let home = std::env::var("HOME").unwrap();
    let text = "echo \"home $HOME greeting $GREETING\"; cat >/dev/null";
    let running = start(policy(), vec![script("a", text)]);
    running.line("a: home  greeting hello").await;
    assert!(!home.is_empty(), "there was something to inherit");
}

#[tokio::test]
async fn a_replaced_child_ends_in_order_and_comes_back_as_it_is_now() {
    let mut running = start(policy(), vec![script("a", WELL_BEHAVED)]);
    let first = running.started().await;
    running.line("a: hello").await;
    running.supervisor.replace(0, script("a", "echo new; cat >/dev/null"));
    running.supervisor.start_again(0);
    let Event::Started { restarts: 1, pid, .. } = running.event().await else { panic!("started again") };
    assert_ne!(pid, first);
    running.line("a: new").await;
    assert!(running.lines.0.lock().contains(&"a: bye".to_owned()), "the first one was asked to end");
}

/// Answers every connection with an HTTP answer, as long as `answers`.
async fn health_port(answers: watch::Receiver<bool>) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/health", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut connection, _)) = listener.accept().await {
            if *answers.borrow() {
                let _ = connection.read(&mut [0; 1024]).await;
                // Any answer will do.
                let _ = connection
                    .write_all(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    .await;
            } else {
                // Taken by the system, as for a process that is stopped.
                held.push(connection);
            }
        }
    });
    url
}

#[tokio::test]
async fn a_child_that_does_not_answer_any_more_is_killed_and_comes_back() {
    let (answers, told) = watch::channel(true);
    let deaf =
        Process { health: Some(health_port(told).await), ..script("a", "trap '' TERM INT; exec sleep 1000") };
    let mut running = start(policy(), vec![deaf]);
    let pid = running.started().await;
    // As long as it answers, nothing happens.
    assert!(timeout(policy().silence_max * 3, running.events.recv()).await.is_err());
    answers.send(false).unwrap();
    let Event::Died { exit, .. } = running.event().await else { panic!("killed") };
    assert_eq!(exit.to_string(), "has not answered for 0.6 s and was killed");
    assert!(!is_alive(pid));
    answers.send(true).unwrap();
    assert_ne!(running.started().await, pid);
}

#[tokio::test]
async fn a_child_without_a_health_port_behind_its_url_is_killed_too() {
    let nobody =
        Process { health: Some("http://127.0.0.1:9/health".to_owned()), ..script("a", WELL_BEHAVED) };
    let mut running = start(policy(), vec![nobody]);
    running.started().await;
    let Event::Died { exit: Exit::Silent(_), .. } = running.event().await else { panic!("killed") };
}
