//! Keeps child processes running: starts them, passes their output on, restarts those that die, and ends them.
//!
//! The promises, each with a test:
//! - A child that dies is started again with the same arguments, after a delay that doubles up to a bound.
//! - A child that never served and dies again and again is given up, with the last lines it wrote; one whose exit status
//!   says that another start would end in the same way, at once, with its one message.
//! - A child that does not answer on its health port any more is killed, and started again like one that died.
//! - A child has of our environment what it was given, and nothing else.
//! - A child is asked to end by closing its standard input. One that does not is killed after a while.
//! - However this process ends, even by `kill -9`, the children's standard input closes. They are started with
//!   `--exit-with-stdin`, so none is left behind.

mod child;
mod health;
mod last_words;
mod output;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use disagg_process::Failure;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

pub(crate) use output::Output;

/// Events that may wait for their reader; a child waits when it is full.
const EVENT_QUEUE: usize = 64;

/// A program to keep running.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// Short name, shown before each line of its output.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Its whole environment; it inherits nothing.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// A URL that answers as long as the process works, from the first moment on.
    pub(crate) health: Option<String>,
}

/// When to restart, when to give up, how long to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Delay before the first restart. It doubles with every death that follows quickly.
    pub(crate) restart_delay_min: Duration,
    /// The longest delay.
    pub(crate) restart_delay_max: Duration,
    /// A child that ran this long begins anew with the shortest delay.
    pub(crate) stable_after: Duration,
    /// Deaths in a row after which a child that never served is given up.
    pub(crate) start_attempts: u32,
    /// Time to end after being asked to, before being killed.
    pub(crate) stop_grace: Duration,
    /// Silence on the health URL after which a child is killed.
    pub(crate) silence_max: Duration,
}

/// What happened to a child. `process` is its index in the list given to [`Supervisor::start`].
#[derive(Debug)]
pub(crate) enum Event {
    /// It runs. `restarts` counts up from 0.
    Started { process: usize, pid: u32, restarts: u32 },
    /// It died and will be started again. Of an address in use, `why` is the child's message, which has not been shown.
    Died { process: usize, exit: Exit, why: String, restart_in: Duration },
    /// It never served, died as often as allowed, and is not started again.
    GaveUp { process: usize, exit: Exit, last_lines: Vec<String> },
    /// It never served, and said that another start would be refused in the same way.
    Refused { process: usize, why: String },
}

/// How a child ended.
#[derive(Debug)]
pub(crate) enum Exit {
    Status(ExitStatus),
    /// It was killed, since it had not answered for so long.
    Silent(Duration),
    /// It could not be started at all.
    NotStarted(std::io::Error),
}

impl Exit {
    /// What its exit status says about another start.
    pub(crate) fn failure(&self) -> Failure {
        match self {
            Self::Status(status) => status.code().map_or(Failure::Passing, Failure::of_status),
            Self::Silent(_) | Self::NotStarted(_) => Failure::Passing,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use std::os::unix::process::ExitStatusExt as _;
        match self {
            Self::NotStarted(error) => write!(f, "could not be started: {error}"),
            Self::Silent(silence) => {
                write!(f, "has not answered for {} s and was killed", silence.as_secs_f64())
            }
            Self::Status(status) => match (status.code(), status.signal()) {
                (Some(code), _) => write!(f, "ended with exit code {code}"),
                (None, Some(9)) => f.write_str("was killed (SIGKILL)"),
                (None, Some(signal)) => write!(f, "was ended by signal {signal}"),
                (None, None) => write!(f, "ended: {status}"),
            },
        }
    }
}

/// What a child's task has been told to do. Only ever goes up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Phase {
    Run,
    /// End, within [`Policy::stop_grace`].
    Stop,
    /// End at once: it is killed, whatever it still does.
    Kill,
}

/// Handles of all children. Dropping it kills them.
pub(crate) struct Supervisor {
    children: Vec<Handle>,
}

struct Handle {
    process: Arc<Mutex<Process>>,
    again: Arc<Notify>,
    phase: watch::Sender<Phase>,
    served: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Starts every process. The receiver must be read, or the children's tasks wait.
    pub(crate) fn start(
        processes: Vec<Process>,
        policy: Policy,
        output: &Arc<dyn Output>,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Event>)> {
        let http = health::client()?;
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let children = processes
            .into_iter()
            .enumerate()
            .map(|(index, process)| {
                let (phase, told) = watch::channel(Phase::Run);
                let (process, again) = (Arc::new(Mutex::new(process)), Arc::new(Notify::new()));
                let served = Arc::new(AtomicBool::new(false));
                let child = child::Child {
                    index,
                    process: Arc::clone(&process),
                    policy,
                    http: http.clone(),
                    told,
                    again: Arc::clone(&again),
                    served: Arc::clone(&served),
                    events: events.clone(),
                    output: Arc::clone(output),
                };
                Handle { process, again, phase, served, task: tokio::spawn(child.keep_running()) }
            })
            .collect();
        Ok((Self { children }, receiver))
    }

    /// What the process is from its next start on.
    pub(crate) fn replace(&self, process: usize, with: Process) {
        *self.children[process].process.lock() = with;
    }

    /// Asks a process to end, and starts it again when it has.
    pub(crate) fn start_again(&self, process: usize) {
        self.children[process].again.notify_one();
    }

    /// The process has served: from now on it is restarted however often it dies.
    pub(crate) fn mark_served(&self, process: usize) {
        self.children[process].served.store(true, Ordering::Relaxed);
    }

    /// Asks a process to end and not to be restarted.
    pub(crate) fn stop(&self, process: usize) {
        self.raise(process, Phase::Stop);
    }

    /// Kills every process.
    pub(crate) fn kill_all(&self) {
        for process in 0..self.children.len() {
            self.raise(process, Phase::Kill);
        }
    }

    /// Waits until a process that was told to stop is gone. Bounded by [`Policy::stop_grace`] and the time a kill
    /// takes.
    pub(crate) async fn stopped(&mut self, process: usize) {
        let task = &mut self.children[process].task;
        if !task.is_finished() {
            // An error is a panic of the task; its child was killed when the task was dropped.
            let _ = task.await;
        }
    }

    fn raise(&self, process: usize, phase: Phase) {
        self.children[process].phase.send_if_modified(|told| {
            let raised = *told < phase;
            *told = phase.max(*told);
            raised
        });
    }
}

#[cfg(test)]
mod tests;
