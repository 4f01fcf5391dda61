//! One child's task: a loop of start, wait, back off.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use disagg_process::Failure;
use parking_lot::Mutex;
use tokio::process::Command;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use super::last_words::{LastWords, message};
use super::output::{Output, pump};
use super::{Event, Exit, Phase, Policy, Process, health};

/// How long to read on after a child's end. Its own output is there at once; only a grandchild that holds the pipe
/// could keep us waiting.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);

pub(super) struct Child {
    pub(super) index: usize,
    /// What is started next.
    pub(super) process: Arc<Mutex<Process>>,
    pub(super) policy: Policy,
    pub(super) http: reqwest::Client,
    pub(super) told: watch::Receiver<Phase>,
    /// It is to end and to be started again.
    pub(super) again: Arc<Notify>,
    pub(super) served: Arc<AtomicBool>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) output: Arc<dyn Output>,
}

/// How one life of a child ended.
enum Life {
    /// It ended by itself, without being asked to.
    Died(Exit),
    /// It ended because it was to be started again.
    Replaced,
    /// It ended because it was told to.
    Stopped(Exit),
}

impl Child {
    /// Runs until told to stop, or until the child is given up.
    pub(super) async fn keep_running(mut self) {
        let mut deaths = 0_u32;
        let mut restarts = 0;
        loop {
            let begin = Instant::now();
            let words = Arc::default();
            let (exit, name) = match self.live(restarts, &words).await {
                (Life::Died(exit), name) => (exit, name),
                (Life::Replaced, _) => {
                    restarts += 1;
                    continue;
                }
                (Life::Stopped(exit), name) => {
                    // That of another child, for which all are stopped, is the same.
                    if exit.failure() != Failure::Refused {
                        self.show(&name, &words.lock().take_held());
                    }
                    return;
                }
            };
            if begin.elapsed() >= self.policy.stable_after {
                deaths = 0;
            }
            deaths += 1;
            let served = self.served.load(Ordering::Relaxed);
            let held = words.lock().take_held();
            if exit.failure() == Failure::Refused && !served && !held.is_empty() {
                self.tell(Event::Refused { process: self.index, why: message(&held) }).await;
                return;
            }
            let why = message(&held);
            if exit.failure() != Failure::AddressInUse {
                self.show(&name, &held);
            }
            if deaths >= self.policy.start_attempts && !served {
                let last_lines = words.lock().take_lines();
                self.tell(Event::GaveUp { process: self.index, exit, last_lines }).await;
                return;
            }
            let restart_in = restart_delay(&self.policy, deaths);
            self.tell(Event::Died { process: self.index, exit, why, restart_in }).await;
            tokio::select! {
                () = tokio::time::sleep(restart_in) => {}
                () = told(&mut self.told, Phase::Stop) => return,
            }
            restarts += 1;
        }
    }

    /// One life, from start to end, and the name that it had.
    async fn live(&mut self, restarts: u32, words: &Arc<Mutex<LastWords>>) -> (Life, String) {
        // A wish for another start from before this one is met by it.
        tokio::select! {
            biased;
            () = self.again.notified() => {}
            () = std::future::ready(()) => {}
        }
        let process = self.process.lock().clone();
        let (name, health) = (process.name.clone(), process.health.clone());
        let mut child = match command(&process).spawn() {
            Ok(child) => child,
            Err(error) => return (Life::Died(Exit::NotStarted(error)), name),
        };
        let stdin = child.stdin.take();
        let mut pumps = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            pumps.spawn(pump(stdout, self.line_handler(&name, words)));
        }
        if let Some(stderr) = child.stderr.take() {
            pumps.spawn(pump(stderr, self.line_handler(&name, words)));
        }
        if let Some(pid) = child.id() {
            self.tell(Event::Started { process: self.index, pid, restarts }).await;
        }
        let silent = async {
            match &health {
                Some(url) => health::silent(&self.http, url, self.policy.silence_max).await,
                None => std::future::pending().await,
            }
        };
        let exit = |waited: std::io::Result<_>| waited.map_or_else(Exit::NotStarted, Exit::Status);
        let mut life = tokio::select! {
            status = child.wait() => Life::Died(exit(status)),
            () = silent => Life::Died(Exit::Silent(self.policy.silence_max)),
            () = self.again.notified() => Life::Replaced,
            () = told(&mut self.told, Phase::Stop) => Life::Stopped(Exit::Silent(self.policy.stop_grace)),
        };
        if !matches!(life, Life::Died(_)) {
            drop(stdin);
            let grace = self.policy.stop_grace;
            let ended = tokio::select! {
                status = child.wait() => Some(exit(status)),
                () = tokio::time::sleep(grace) => None,
                () = told(&mut self.told, Phase::Kill) => None,
            };
            if let (Life::Stopped(exit), Some(ended)) = (&mut life, ended) {
                *exit = ended;
            }
        }
        // For a child that still lives; one that is gone and reaped is not signalled.
        let _ = child.kill().await;
        let _ = tokio::time::timeout(OUTPUT_GRACE, pumps.join_all()).await;
        (life, name)
    }

    fn line_handler(&self, name: &str, words: &Arc<Mutex<LastWords>>) -> impl Fn(&str) + Send + 'static {
        let (name, output, words) = (name.to_owned(), Arc::clone(&self.output), Arc::clone(words));
        move |line| {
            for line in words.lock().hear(line) {
                output.line(&name, &line);
            }
        }
    }

    fn show(&self, name: &str, lines: &[String]) {
        for line in lines {
            self.output.line(name, line);
        }
    }

    async fn tell(&self, event: Event) {
        // Nobody listens any more: we are about to be told to stop.
        let _ = self.events.send(event).await;
    }
}

fn command(process: &Process) -> Command {
    let mut command = Command::new(&process.program);
    command
        .args(&process.args)
        .env_clear()
        .envs(process.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that the terminal's Ctrl-C reaches only this process, which ends the children in
        // order.
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// Waits until the phase is at least `phase`. The supervisor being gone counts as that.
async fn told(told: &mut watch::Receiver<Phase>, phase: Phase) {
    let _ = told.wait_for(|now| *now >= phase).await;
}

/// The delay before the restart after `deaths` deaths in a row, from 1.
fn restart_delay(policy: &Policy, deaths: u32) -> Duration {
    let doublings = deaths.saturating_sub(1).min(30);
    policy.restart_delay_min.saturating_mul(1 << doublings).min(policy.restart_delay_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_bound() {
        let policy = Policy {
            restart_delay_min: Duration::from_millis(200),
            restart_delay_max: Duration::from_secs(10),
            stable_after: Duration::ZERO,
            start_attempts: 3,
            stop_grace: Duration::ZERO,
            silence_max: Duration::MAX,
        };
        let delays: Vec<u128> = (1..9).map(|deaths| restart_delay(&policy, deaths).as_millis()).collect();
        assert_eq!(delays, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(restart_delay(&policy, u32::MAX), policy.restart_delay_max);
    }
}
