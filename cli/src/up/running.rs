//! A deployment while it runs: what happens to its processes, what is said about it, and how it ends.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use disagg_process::Failure;
use disagg_worker::model::BuiltIn;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::banner::{self, Example};
use super::layout::{Common, Layout, ROUTER};
use super::plan::Model;
use super::readiness::{self, Life, Reached, Target};
use super::signals::Signals;
use crate::console::{self, Console};
use crate::router_client::RouterClient;
use crate::supervise::{Event, Exit, Supervisor};

/// A running deployment.
pub(super) struct Up<'a> {
    common: Common<'a>,
    layout: Layout,
    console: &'a Console,
    client: RouterClient,
    supervisor: Supervisor,
    events: mpsc::Receiver<Event>,
    reached: mpsc::Receiver<Reached>,
    reached_sender: mpsc::Sender<Reached>,
    states: Vec<ProcessState>,
    /// The router has said that it serves.
    router_is_ready: bool,
    /// Everything has been ready once.
    was_ready: bool,
}

struct ProcessState {
    started: Instant,
    serves: bool,
    /// The task that waits for it to serve.
    waiting: Option<AbortHandle>,
    /// Of the last life that served.
    epoch: Option<String>,
    /// Of the present life.
    restarts: u32,
}

impl<'a> Up<'a> {
    pub(super) fn new(
        common: Common<'a>,
        layout: Layout,
        console: &'a Console,
        supervisor: Supervisor,
        events: mpsc::Receiver<Event>,
    ) -> anyhow::Result<Self> {
        let (reached_sender, reached) = mpsc::channel(layout.names.len() + 1);
        let new = || ProcessState {
            started: Instant::now(),
            serves: false,
            waiting: None,
            epoch: None,
            restarts: 0,
        };
        Ok(Self {
            common,
            console,
            client: RouterClient::new(&banner::url(layout.admin))?,
            supervisor,
            events,
            reached,
            reached_sender,
            states: layout.names.iter().map(|_| new()).collect(),
            layout,
            router_is_ready: false,
            was_ready: false,
        })
    }

    /// Until a signal (a success), the startup deadline, or a process that cannot be kept running.
    pub(super) async fn keep_running(
        &mut self,
        patience: Duration,
        signals: &mut Signals,
    ) -> anyhow::Result<ExitCode> {
        let deadline = tokio::time::sleep(patience);
        tokio::pin!(deadline);
        self.wait_for(Target::Serving, None);
        loop {
            tokio::select! {
                Some(event) = self.events.recv() => self.on_event(event)?,
                Some(reached) = self.reached.recv() => self.on_reached(reached),
                () = &mut deadline, if !self.was_ready => bail!(self.overdue(patience).await),
                name = signals.next() => {
                    self.console.say(&format!("{name}: finishing open answers; a second one stops at once"));
                    return Ok(ExitCode::SUCCESS);
                }
            }
        }
    }

    fn on_event(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Started { process, pid, restarts } => {
                let name = &self.layout.names[process];
                if restarts > 0 {
                    self.console.say(&format!("{name} started again, process {pid}"));
                }
                let state = &mut self.states[process];
                state.started = Instant::now();
                state.serves = false;
                state.restarts = restarts;
                let target = match self.layout.worker_address(process) {
                    Some(address) => Target::Worker { address, not_epoch: state.epoch.clone() },
                    None => Target::Router,
                };
                self.states[process].waiting = Some(self.wait_for(target, Some(Life { process, restarts })));
            }
            Event::Died { process, exit, why, restart_in } => {
                let state = &mut self.states[process];
                state.serves = false;
                if let Some(task) = state.waiting.take() {
                    task.abort();
                }
                let (name, seconds) = (self.layout.names[process].clone(), restart_in.as_secs_f64());
                if exit.failure() != Failure::AddressInUse {
                    self.console.say(&format!("{name} {exit}; starting it again in {seconds} s"));
                } else if process != ROUTER {
                    self.move_worker(process, restart_in)?;
                } else if self.was_ready {
                    self.console.say(&format!("{name}: {why}; trying again in {seconds} s"));
                } else {
                    // It was free a moment ago. Nobody uses it yet, so another may be chosen.
                    bail!("{name}: {why}; stop what listens there, or choose another with --port");
                }
            }
            Event::Refused { process, why } => bail!("{}: {why}", self.layout.names[process]),
            Event::GaveUp { process, exit, last_lines } => bail!(self.gave_up(process, &exit, &last_lines)),
        }
        Ok(())
    }

    /// Somebody else listens on one of a worker's ports: it takes others, and the router starts again to know them.
    fn move_worker(&mut self, process: usize, restart_in: Duration) -> anyhow::Result<()> {
        self.layout.move_worker(process)?;
        for (process, with) in self.layout.processes(&self.common)?.into_iter().enumerate() {
            self.supervisor.replace(process, with);
        }
        let (name, ports) = (&self.layout.names[process], self.layout.workers[process - 1]);
        let (port, seconds) = (ports.grpc.port(), restart_in.as_secs_f64());
        self.console.say(&format!(
            "another process has taken a port of {name}; starting it again on port {port} in {seconds} s, and the router \
             with it"
        ));
        self.supervisor.start_again(ROUTER);
        Ok(())
    }

    fn on_reached(&mut self, reached: Reached) {
        let Some(Life { process, restarts }) = reached.life else {
            self.router_is_ready = true;
            return self.tell_when_ready();
        };
        let state = &mut self.states[process];
        if state.restarts != restarts || state.waiting.take().is_none() {
            // It has died since.
            return;
        }
        state.serves = true;
        state.epoch = reached.epoch;
        let seconds = state.started.elapsed().as_secs_f64();
        let again = if state.restarts > 0 { "ready again" } else { "ready" };
        self.supervisor.mark_served(process);
        self.console.say(&format!("{} {again} ({seconds:.1} s)", self.layout.names[process]));
        self.tell_when_ready();
    }

    /// Once: when every process has come up and requests are served. The router alone is ready sooner, with the first
    /// decode worker.
    fn tell_when_ready(&mut self) {
        if self.was_ready || !self.router_is_ready || !self.states.iter().all(|state| state.serves) {
            return;
        }
        self.was_ready = true;
        let threshold = self.common.plan.settings.max_local_prefill_length;
        let has_prefill = self.common.plan.prefill.count > 0;
        let example = if self.common.plan.model == Model::BuiltIn(BuiltIn::Demo) {
            Example::Questions
        } else {
            Example::Continuations
        };
        let Layout { router, admin, .. } = self.layout;
        let name = &self.common.plan.served_name;
        console::print(&banner::ready(router, admin, name, example, threshold, has_prefill));
    }

    fn wait_for(&self, target: Target, life: Option<Life>) -> AbortHandle {
        let (client, reached) = (self.client.clone(), self.reached_sender.clone());
        tokio::spawn(readiness::wait_for(client, target, life, reached)).abort_handle()
    }

    fn gave_up(&self, process: usize, exit: &Exit, last_lines: &[String]) -> String {
        let name = &self.layout.names[process];
        let mut text = format!("{name} {exit} and never served; giving up. ");
        if last_lines.is_empty() {
            text.push_str("It wrote nothing.");
        } else {
            text.push_str("Its last lines:\n  ");
            text.push_str(&last_lines.join("\n  "));
        }
        text
    }

    async fn overdue(&self, patience: Duration) -> String {
        let mut missing: Vec<String> = Vec::new();
        let seen = self.client.workers().await.map(|answer| answer.workers).unwrap_or_default();
        for (process, name) in self.layout.names.iter().enumerate() {
            if self.states[process].serves {
                continue;
            }
            let address = self.layout.worker_address(process);
            let view = seen.iter().find(|worker| Some(&worker.address) == address.as_ref());
            missing.push(match view {
                Some(view) => match &view.problem {
                    Some(problem) => format!("{name} ({}: {problem})", view.state),
                    None => format!("{name} ({})", view.state),
                },
                None => name.clone(),
            });
        }
        let missing = if missing.is_empty() { "the router's /ready".to_owned() } else { missing.join(", ") };
        let seconds = patience.as_secs();
        format!(
            "not ready after {seconds} s; still missing: {missing}. -v shows logs, --startup-timeout-seconds waits longer"
        )
    }

    /// Ends every process: the router, which finishes open answers, then the workers. A signal meanwhile kills them,
    /// and gives the exit code.
    pub(super) async fn stop(&mut self, signals: &mut Signals) -> Option<ExitCode> {
        let workers: Vec<usize> = (1..self.layout.names.len()).collect();
        let mut killed = None;
        for group in [vec![ROUTER], workers] {
            for process in &group {
                self.supervisor.stop(*process);
            }
            for process in group {
                tokio::select! {
                    () = self.supervisor.stopped(process) => continue,
                    _ = signals.next(), if killed.is_none() => {}
                    () = drain(&mut self.events) => {}
                }
                self.supervisor.kill_all();
                killed = Some(ExitCode::from(130));
                self.supervisor.stopped(process).await;
            }
        }
        killed
    }
}

/// Keeps reading, so that no child's task waits for room; nobody cares any more.
async fn drain(events: &mut mpsc::Receiver<Event>) {
    while events.recv().await.is_some() {}
    std::future::pending::<()>().await;
}
