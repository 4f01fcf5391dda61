//! One attempt with one prefill worker: the stream that is its lease, seen from the decode worker.

use std::sync::Arc;
use std::time::Duration;

use disagg_core::handoff::Attempt;
use disagg_proto::limits::MESSAGE_BYTES_MAX;
use disagg_proto::v1::prefill_client::PrefillClient;
use disagg_proto::v1::{
    PrefillCancel, PrefillCommand, PrefillEvent, PrefillHeartbeat, PrefillStart, prefill_command,
    prefill_event,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::convert::{FirstTokens, Peer, PromptLimits, first_tokens, worker_ref_to_wire};
use crate::transport::landing::Landed;
use crate::transport::peers::Peers;

/// Commands on their way: a start, heartbeats, a cancel.
const COMMANDS_MAX: usize = 8;

/// What an attempt reports.
#[derive(Debug)]
pub(super) enum Report {
    /// The prefill worker took it.
    Accepted,
    /// It did not, or was not reached.
    Refused(Status),
    /// It lives.
    Progress,
    /// Every block has landed.
    Landed,
    /// The prompt is computed.
    Completed(FirstTokens),
    /// Nothing is being pushed any more.
    Drained,
    /// The stream broke after the prefill worker had taken it.
    Lost(Status),
}

/// What an attempt is about.
pub(super) struct Spec {
    pub(super) attempt: Attempt,
    /// host:port of the prefill worker.
    pub(super) address: String,
    /// Who is asked, and has to answer.
    pub(super) peer: Peer,
    /// The first message.
    pub(super) start: PrefillStart,
    /// Progress of the landing zone; `None` if nothing is transferred.
    pub(super) landed: Option<watch::Receiver<Landed>>,
    pub(super) heartbeat_every: Duration,
    /// Longest wait for `drained` after a cancel.
    pub(super) drain: Duration,
    /// Choices asked for.
    pub(super) choices: u32,
    pub(super) limits: PromptLimits,
}

/// Runs the stream until it has ended and nothing more can land, or until `cancel` and a while for the prefill worker
/// to drain.
pub(super) async fn run(
    spec: Spec,
    peers: Arc<Peers>,
    reports: mpsc::Sender<(Attempt, Report)>,
    cancel: CancellationToken,
) {
    let Spec { attempt, address, peer, start, landed, heartbeat_every, drain, choices, limits } = spec;
    let channel = match peers.channel(&address) {
        Ok(channel) => channel,
        Err(error) => {
            let refused = Report::Refused(Status::invalid_argument(error.to_string()));
            // Whoever asked may be gone.
            let _ = reports.send((attempt, refused)).await;
            return;
        }
    };
    let mut client = PrefillClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (commands, outgoing) = mpsc::channel(COMMANDS_MAX);
    let mut stream = Stream { attempt, peer, commands, reports, landed, accepted: false, choices, limits };
    stream.command(prefill_command::Command::Start(start));

    let events = tokio::select! {
        called = client.prefill(ReceiverStream::new(outgoing)) => called,
        // Dropping the call resets it, which tells the prefill worker.
        () = cancel.cancelled() => return,
        () = stream.reports.closed() => return,
    };
    match events {
        Ok(events) => stream.follow(events.into_inner(), heartbeat_every, drain, cancel).await,
        Err(status) => stream.report(Report::Refused(status)).await,
    }
}

struct Stream {
    attempt: Attempt,
    peer: Peer,
    commands: mpsc::Sender<PrefillCommand>,
    reports: mpsc::Sender<(Attempt, Report)>,
    landed: Option<watch::Receiver<Landed>>,
    accepted: bool,
    choices: u32,
    limits: PromptLimits,
}

impl Stream {
    async fn follow(
        &mut self,
        mut events: Streaming<PrefillEvent>,
        heartbeat_every: Duration,
        drain: Duration,
        cancel: CancellationToken,
    ) {
        let mut heartbeat = tokio::time::interval(heartbeat_every);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Set once the attempt is not wanted any more.
        let mut give_up_at: Option<Instant> = None;
        // The last blocks may land after the prefill worker has ended the stream.
        let mut listening = true;
        while listening || self.landed.is_some() {
            // In this order: what has landed is told before the end of the stream that brought it.
            tokio::select! {
                biased;
                () = unwanted(&cancel, &self.reports), if give_up_at.is_none() => {
                    if !listening {
                        return;
                    }
                    self.command(prefill_command::Command::Cancel(PrefillCancel {}));
                    give_up_at = Some(Instant::now() + drain);
                }
                () = tokio::time::sleep_until(give_up_at.unwrap_or_else(Instant::now)), if give_up_at.is_some() => {
                    return;
                }
                _ = heartbeat.tick(), if listening && give_up_at.is_none() => {
                    self.command(prefill_command::Command::Heartbeat(PrefillHeartbeat {}));
                }
                progress = landing(&mut self.landed) => match progress {
                    Some(progress) if progress.complete() => self.report(Report::Landed).await,
                    Some(_) => self.report(Report::Progress).await,
                    None => {}
                },
                event = events.message(), if listening => {
                    listening = self.on_event(event).await.is_continue();
                }
            }
        }
    }

    async fn on_event(&mut self, event: Result<Option<PrefillEvent>, Status>) -> std::ops::ControlFlow<()> {
        use std::ops::ControlFlow::{Break, Continue};

        let event = match event {
            Ok(Some(PrefillEvent { event: Some(event) })) => event,
            // An event that this version does not know.
            Ok(Some(PrefillEvent { event: None })) => return Continue(()),
            Ok(None) => {
                self.ended(Status::unavailable("the prefill worker ended the stream")).await;
                return Break(());
            }
            Err(status) => {
                self.ended(status).await;
                return Break(());
            }
        };
        match event {
            prefill_event::Event::Accepted(accepted) => {
                if accepted.prefill_worker != Some(worker_ref_to_wire(&self.peer)) {
                    let asked = format!("{} of epoch {}", self.peer.worker, self.peer.epoch);
                    let status = Status::failed_precondition(format!("{asked} was asked; another answers"));
                    self.report(Report::Refused(status)).await;
                    return Break(());
                }
                self.accepted = true;
                self.report(Report::Accepted).await;
            }
            prefill_event::Event::Progress(_) => self.report(Report::Progress).await,
            prefill_event::Event::Completed(completed) => {
                match first_tokens(&completed, self.choices, self.limits) {
                    Ok(tokens) => self.report(Report::Completed(tokens)).await,
                    Err(error) => {
                        self.report(Report::Lost(error.into())).await;
                        return Break(());
                    }
                }
            }
            prefill_event::Event::Drained(_) => self.report(Report::Drained).await,
        }
        Continue(())
    }

    async fn ended(&mut self, status: Status) {
        let report = if self.accepted { Report::Lost(status) } else { Report::Refused(status) };
        self.report(report).await;
    }

    async fn report(&self, report: Report) {
        // Nobody listens after the handoff is over.
        let _ = self.reports.send((self.attempt, report)).await;
    }

    /// A full outbox means a connection that is stuck, which keep-alive notices; heartbeats may be lost.
    fn command(&self, command: prefill_command::Command) {
        let _ = self.commands.try_send(PrefillCommand { command: Some(command) });
    }
}

/// Waits until more has landed; `None` once when the zone has been closed. Never again after that, or once all has.
async fn landing(landed: &mut Option<watch::Receiver<Landed>>) -> Option<Landed> {
    let Some(receiver) = landed else { return std::future::pending().await };
    let progress = match receiver.changed().await {
        Ok(()) => Some(*receiver.borrow_and_update()),
        Err(_) => None,
    };
    if progress.is_none_or(|progress| progress.complete()) {
        *landed = None;
    }
    progress
}

async fn unwanted(cancel: &CancellationToken, reports: &mpsc::Sender<(Attempt, Report)>) {
    tokio::select! {
        () = cancel.cancelled() => {}
        () = reports.closed() => {}
    }
}
