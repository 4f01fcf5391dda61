//! Service `Prefill`: what a decode worker asks. Checks here; the lease itself is in [`crate::handoff::prefill`].

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use disagg_proto::v1::prefill_server::Prefill;
use disagg_proto::v1::{PrefillCommand, PrefillEvent, prefill_command};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::convert::{StartPrefill, start_prefill};
use crate::handoff::prefill;
use crate::state::WorkerState;

/// Longest wait for the first message.
const START_MAX: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Clone)]
pub struct PrefillService {
    worker: Arc<WorkerState>,
}

impl PrefillService {
    /// Serves `worker`.
    pub fn new(worker: Arc<WorkerState>) -> Self {
        Self { worker }
    }

    /// Whether this worker is the one that is meant, and can do it.
    fn check(&self, start: &StartPrefill) -> Result<(), Status> {
        let worker = &self.worker;
        if !worker.identity.role.accepts_remote_prefill() {
            return Err(Status::failed_precondition(
                "this is a decode worker; it does not prefill for others",
            ));
        }
        let this = worker.this_worker();
        if start.prefill_worker != this {
            return Err(Status::failed_precondition(format!(
                "prefill_worker: {} of epoch {} is meant; this is {} of epoch {}",
                start.prefill_worker.worker, start.prefill_worker.epoch, this.worker, this.epoch
            )));
        }
        worker.same_model(start.prompt.fingerprint)?;
        if start.kv_compat != worker.identity.kv_compat {
            return Err(Status::failed_precondition(format!(
                "kv_compat: {} given; this worker's is {}",
                start.kv_compat, worker.identity.kv_compat
            )));
        }
        worker.accepts_work()
    }
}

#[tonic::async_trait]
impl Prefill for PrefillService {
    type PrefillStream = Pin<Box<dyn Stream<Item = Result<PrefillEvent, Status>> + Send>>;

    async fn prefill(
        &self,
        request: Request<Streaming<PrefillCommand>>,
    ) -> Result<Response<Self::PrefillStream>, Status> {
        let mut commands = request.into_inner();
        let first = tokio::time::timeout(START_MAX, commands.message())
            .await
            .map_err(|_| Status::deadline_exceeded("`start` did not come"))??;
        let Some(prefill_command::Command::Start(start)) = first.and_then(|first| first.command) else {
            return Err(Status::invalid_argument("command: `start` has to be the first"));
        };
        let worker = &self.worker;
        let start = start_prefill(start, worker.limits(), worker.identity.layout.block_size)?;
        self.check(&start)?;

        let (events, stream) = mpsc::channel(prefill::EVENTS_MAX);
        worker.lifecycle.spawn_handoff(prefill::run(Arc::clone(worker), start, commands, events));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
