//! The receiving side, on the decode worker.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use disagg_proto::v1::kv_transfer_server::KvTransfer;
use disagg_proto::v1::{PushCredit, PushDone, PushRequest, PushResponse, push_request, push_response};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::CREDIT_CHUNKS;
use crate::convert::push_begin;
use crate::metrics::Metrics;
use crate::transport::landing::{LandingRegistry, Refusal, Zone};

/// Longest wait for the first message.
const BEGIN_MAX: Duration = Duration::from_secs(5);

/// Serves pushes into the zones of a [`LandingRegistry`].
#[derive(Clone)]
pub struct KvTransferService {
    landing: Arc<LandingRegistry>,
    metrics: Arc<Metrics>,
}

impl KvTransferService {
    /// Lands in `landing` and counts in `metrics`.
    pub fn new(landing: Arc<LandingRegistry>, metrics: Arc<Metrics>) -> Self {
        Self { landing, metrics }
    }

    fn refuse(&self, refusal: Refusal) -> Status {
        self.metrics.chunk_refused(refusal.label());
        tracing::warn!(%refusal, "a push was refused");
        refusal.into()
    }

    /// Lands chunks until the sender ends or is refused.
    async fn receive(
        &self,
        zone: &Zone,
        messages: &mut Streaming<PushRequest>,
        responses: &mpsc::Sender<Result<PushResponse, Status>>,
    ) -> Result<(), Status> {
        let mut chunks = 0;
        loop {
            // No deadline here: the lease of the handoff ends a stream that says nothing, by closing the zone on one
            // side and the connection on the other.
            let message = messages.message().await?.and_then(|request| request.message);
            match message {
                Some(push_request::Message::Chunk(chunk)) => {
                    zone.land(&chunk).map_err(|refusal| self.refuse(refusal))?;
                    chunks += 1;
                    self.metrics.landed(chunk.payload.len());
                    send(responses, push_response::Message::Credit(PushCredit { chunks: 1 })).await?;
                }
                Some(push_request::Message::End(end)) if end.chunks == chunks => {
                    return send(responses, push_response::Message::Done(PushDone { chunks })).await;
                }
                Some(push_request::Message::End(end)) => {
                    return Err(self.refuse(Refusal::Short { announced: end.chunks, got: chunks }));
                }
                Some(push_request::Message::Begin(_)) => {
                    return Err(Status::invalid_argument("begin: sent twice; it comes once, first"));
                }
                None => return Err(Status::cancelled("the sender ended without `end`")),
            }
        }
    }
}

async fn send(
    responses: &mpsc::Sender<Result<PushResponse, Status>>,
    message: push_response::Message,
) -> Result<(), Status> {
    let response = PushResponse { message: Some(message) };
    responses.send(Ok(response)).await.map_err(|_| Status::cancelled("the sender is gone"))
}

#[tonic::async_trait]
impl KvTransfer for KvTransferService {
    type PushStream = Pin<Box<dyn Stream<Item = Result<PushResponse, Status>> + Send>>;

    async fn push(
        &self,
        request: Request<Streaming<PushRequest>>,
    ) -> Result<Response<Self::PushStream>, Status> {
        let mut messages = request.into_inner();
        let first = tokio::time::timeout(BEGIN_MAX, messages.message())
            .await
            .map_err(|_| Status::deadline_exceeded("`begin` did not come"))??;
        let Some(push_request::Message::Begin(begin)) = first.and_then(|request| request.message) else {
            return Err(Status::invalid_argument("message: `begin` has to be the first"));
        };
        let zone = self.landing.begin(&push_begin(begin)?).map_err(|refusal| self.refuse(refusal))?;

        // Room for an answer to every chunk that may be on its way, so that landing never waits for the sender.
        let (responses, stream) = mpsc::channel(CREDIT_CHUNKS as usize + 2);
        let this = self.clone();
        tokio::spawn(async move {
            let grant = push_response::Message::Credit(PushCredit { chunks: CREDIT_CHUNKS });
            let result = match send(&responses, grant).await {
                Ok(()) => tokio::select! {
                    result = this.receive(&zone, &mut messages, &responses) => result,
                    () = responses.closed() => return,
                },
                Err(status) => Err(status),
            };
            if let Err(status) = result {
                // A sender that is gone needs no answer.
                let _ = responses.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
