//! One child's task: a loop of start, wait, back off.

use std::collections::VecDeque;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::process::Command;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::output::{Output, pump};
use super::{Event, Exit, Phase, Policy, Process};

/// Lines kept of each child, to show when it is given up.
const LAST_LINES: usize = 20;

/// How long to read on after a child's end. Its own output is there at once; only a grandchild that holds the pipe
/// could keep us waiting.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);

pub(super) struct Child {
    pub(super) index: usize,
    pub(super) process: Process,
    pub(super) policy: Policy,
    pub(super) told: watch::Receiver<Phase>,
    pub(super) served: Arc<AtomicBool>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) output: Arc<dyn Output>,
}

/// How one life of a child ended.
enum Life {
    /// By itself.
    Died(Exit),
    /// Because it was told to.
    Stopped,
}

impl Child {
    /// Runs until told to stop, or until the child is given up.
    pub(super) async fn keep_running(mut self) {
        let mut deaths = 0_u32;
        let mut restarts = 0;
        loop {
            let begin = Instant::now();
            let last_lines = Arc::default();
            let Life::Died(exit) = self.live(restarts, &last_lines).await else { return };
            if begin.elapsed() >= self.policy.stable_after {
                deaths = 0;
            }
            deaths += 1;
            if deaths >= self.policy.start_attempts && !self.served.load(Ordering::Relaxed) {
                let last_lines = std::mem::take(&mut *last_lines.lock()).into();
                self.tell(Event::GaveUp { process: self.index, exit, last_lines }).await;
                return;
            }
            let restart_in = restart_delay(&self.policy, deaths);
            self.tell(Event::Died { process: self.index, exit, restart_in }).await;
            tokio::select! {
                () = tokio::time::sleep(restart_in) => {}
                () = told(&mut self.told, Phase::Stop) => return,
            }
            restarts += 1;
        }
    }

    /// One life: from start to end.
    async fn live(&mut self, restarts: u32, last_lines: &Arc<Mutex<VecDeque<String>>>) -> Life {
        let mut child = match self.command().spawn() {
            Ok(child) => child,
            Err(error) => return Life::Died(Exit::NotStarted(error)),
        };
        let stdin = child.stdin.take();
        let mut pumps = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            pumps.spawn(pump(stdout, self.line_handler(last_lines)));
        }
        if let Some(stderr) = child.stderr.take() {
            pumps.spawn(pump(stderr, self.line_handler(last_lines)));
        }
        if let Some(pid) = child.id() {
            self.tell(Event::Started { process: self.index, pid, restarts }).await;
        }
        let died = tokio::select! {
            status = child.wait() => Some(status),
            () = told(&mut self.told, Phase::Stop) => None,
        };
        let life = match died {
            Some(Ok(status)) => Life::Died(Exit::Status(status)),
            Some(Err(error)) => Life::Died(Exit::NotStarted(error)),
            None => {
                drop(stdin);
                let grace = self.policy.stop_grace;
                let _: Option<ExitStatus> = tokio::select! {
                    status = child.wait() => status.ok(),
                    () = tokio::time::sleep(grace) => None,
                    () = told(&mut self.told, Phase::Kill) => None,
                };
                Life::Stopped
            }
        };
        // For a child that still lives; one that is gone and reaped is not signalled.
        let _ = child.kill().await;
        let _ = tokio::time::timeout(OUTPUT_GRACE, pumps.join_all()).await;
        life
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.process.program);
        command
            .args(&self.process.args)
            .envs(self.process.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that the terminal's Ctrl-C reaches only this process, which ends the children in
            // order.
            .process_group(0)
            .kill_on_drop(true);
        for name in &self.process.env_remove {
            command.env_remove(name);
        }
        command
    }

    fn line_handler(&self, last_lines: &Arc<Mutex<VecDeque<String>>>) -> impl Fn(&str) + Send + 'static {
        let (name, output, last_lines) =
            (self.process.name.clone(), Arc::clone(&self.output), Arc::clone(last_lines));
        move |line| {
            output.line(&name, line);
            let mut last_lines = last_lines.lock();
            if last_lines.len() == LAST_LINES {
                last_lines.pop_front();
            }
            last_lines.push_back(line.to_owned());
        }
    }

    async fn tell(&self, event: Event) {
        // Nobody listens any more: we are about to be told to stop.
        let _ = self.events.send(event).await;
    }
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
        };
        let delays: Vec<u128> = (1..9).map(|deaths| restart_delay(&policy, deaths).as_millis()).collect();
        assert_eq!(delays, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(restart_delay(&policy, u32::MAX), policy.restart_delay_max);
    }
}
