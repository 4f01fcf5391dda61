//! Service `Worker`: what the router asks.

use std::pin::Pin;
use std::sync::Arc;

use disagg_proto::limits::CHUNK_BYTES_MAX;
use disagg_proto::v1;
use disagg_proto::v1::worker_server::Worker;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{generate, watch};
use crate::convert;
use crate::state::WorkerState;

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// See the module.
#[derive(Clone)]
pub struct WorkerService {
    worker: Arc<WorkerState>,
    /// Ends streams that have no end of their own.
    stopping: CancellationToken,
}

impl WorkerService {
    /// Serves `worker` until `stopping`.
    pub fn new(worker: Arc<WorkerState>, stopping: CancellationToken) -> Self {
        Self { worker, stopping }
    }

    /// Ends a stream when the worker stops.
    fn until_stopping<T: Send + 'static>(
        &self,
        stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> BoxStream<T> {
        let stopping = self.stopping.clone();
        Box::pin(futures::StreamExt::take_until(stream, stopping.cancelled_owned()))
    }
}

#[tonic::async_trait]
impl Worker for WorkerService {
    type GetModelCardStream = BoxStream<v1::ModelCardPart>;
    type GenerateStream = BoxStream<v1::GenerateEvent>;
    type WatchKvEventsStream = BoxStream<v1::KvEventBatch>;
    type WatchLoadStream = BoxStream<v1::LoadReport>;

    async fn hello(&self, _: Request<v1::HelloRequest>) -> Result<Response<v1::HelloResponse>, Status> {
        let identity = &self.worker.identity;
        Ok(Response::new(v1::HelloResponse {
            worker: Some(convert::worker_ref_to_wire(&self.worker.this_worker())),
            role: convert::role(identity.role).into(),
            model_fingerprint: Some(convert::hash(identity.fingerprint.0)),
            kv_compat: Some(convert::hash(identity.kv_compat.0)),
            block_size: identity.layout.block_size,
            max_model_len: identity.max_model_len,
            transports: vec![convert::TCP_TRANSPORT.to_owned()],
            version: env!("CARGO_PKG_VERSION").to_owned(),
            backend: identity.backend.clone(),
            kv_block_bytes: identity.layout.block_bytes() as u64,
        }))
    }

    async fn get_model_card(
        &self,
        _: Request<v1::GetModelCardRequest>,
    ) -> Result<Response<Self::GetModelCardStream>, Status> {
        let card = &self.worker.card;
        let header = v1::ModelCardPart {
            header: Some(convert::card_header(card, &self.worker.identity)),
            ..Default::default()
        };
        let mut parts = vec![header];
        for file in &card.files {
            // Slices of one buffer; nothing is copied.
            for begin in (0..file.bytes.len()).step_by(CHUNK_BYTES_MAX) {
                let end = file.bytes.len().min(begin + CHUNK_BYTES_MAX);
                parts.push(v1::ModelCardPart {
                    header: None,
                    file: file.name.to_owned(),
                    payload: file.bytes.slice(begin..end),
                });
            }
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(parts.into_iter().map(Ok)))))
    }

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let request = convert::generate(request.into_inner(), self.worker.limits())?;
        if !self.worker.identity.role.decodes() {
            return Err(Status::failed_precondition("this is a prefill worker; it does not generate"));
        }
        self.worker.same_model(request.prompt.fingerprint)?;
        self.worker.accepts_work()?;
        let guard = self.worker.requests.enter(request.prompt.request_id.clone()).ok_or_else(|| {
            Status::already_exists(format!("request {:?} is live already", request.prompt.request_id))
        })?;
        let (sender, mut events) = tokio::sync::mpsc::channel(generate::EVENTS_MAX);
        let worker = Arc::clone(&self.worker);
        self.worker.lifecycle.spawn_sequence(generate::run(worker, request, guard, sender));
        // A request that is refused answers with a status, not with a stream that fails. Dropping `events` here, or
        // with the stream, tells the task that the caller has gone.
        match events.recv().await {
            Some(Ok(first)) => {
                let rest = tokio_stream::wrappers::ReceiverStream::new(events);
                Ok(Response::new(Box::pin(tokio_stream::once(Ok(first)).chain(rest))))
            }
            Some(Err(status)) => Err(status),
            None => Err(Status::internal("the request ended without an answer")),
        }
    }

    async fn watch_kv_events(
        &self,
        _: Request<v1::WatchKvEventsRequest>,
    ) -> Result<Response<Self::WatchKvEventsStream>, Status> {
        Ok(Response::new(self.until_stopping(watch::kv_events(Arc::clone(&self.worker)))))
    }

    async fn watch_load(
        &self,
        _: Request<v1::WatchLoadRequest>,
    ) -> Result<Response<Self::WatchLoadStream>, Status> {
        Ok(Response::new(self.until_stopping(watch::load(Arc::clone(&self.worker)))))
    }
}
