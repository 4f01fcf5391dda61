//! The sending side, on the prefill worker.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Buf;
use disagg_core::{HandoffId, WorkerId};
use disagg_engine::KvAccessError;
use disagg_proto::v1::{KvChunk, PushBegin, PushEnd, PushRequest, PushResponse, push_request, push_response};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use super::{MAGIC, frame};
use crate::convert::{Peer, handoff_to_wire, hash, worker_ref_to_wire};
use crate::metrics::Metrics;
use crate::transport::peers::CONNECT_MAX;
use crate::transport::queue::{ReadyBlocks, ReadyQueues};
use crate::transport::reach::Reach;
use crate::transport::speed::TransferSpeeds;
use crate::transport::stages::Stages;
use crate::transport::token::LandingToken;

/// Longest wait for the receiver to take a chunk, or to confirm the end. It lands chunks as they come, so a receiver
/// that takes longer is not well.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long a broken connection is looked at for the reason that the receiver gave.
const REASON_MAX: Duration = Duration::from_millis(200);

/// Why a push ended early.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// Nobody takes connections there.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// host:port.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The receiver did not want it.
    #[error("the receiver refused the push: {0}")]
    Refused(String),
    /// The connection broke, or what came over it was no answer.
    #[error("the connection to the receiver broke: {0}")]
    Broken(#[from] io::Error),
    /// The receiver did not answer in time.
    #[error("the receiver did not {what} within {} s", ANSWER_MAX.as_secs())]
    Silent {
        /// What was waited for.
        what: &'static str,
    },
    /// The receiver confirmed another number of chunks than were sent, or answered out of turn.
    #[error("the receiver answered out of turn: {0}")]
    Protocol(String),
    /// The pool refused to be read.
    #[error(transparent)]
    Memory(#[from] KvAccessError),
}

/// Where a push goes.
#[derive(Clone, Debug)]
pub struct PushTarget {
    /// Names the transfer.
    pub handoff: HandoffId,
    /// Name of the receiver.
    pub peer: WorkerId,
    /// host:port of the receiver.
    pub address: String,
    /// What the receiver asks of whoever pushes there.
    pub token: LandingToken,
}

/// Pushes blocks of this worker's pool. Cheap to clone.
#[derive(Clone)]
pub struct Pusher {
    /// Where blocks are read into.
    pub stages: Arc<Stages>,
    /// This worker.
    pub this_worker: Peer,
    /// Of this worker.
    pub kv_compat: disagg_core::KvCompat,
    /// Where it connects to.
    pub reach: Reach,
    /// Counts bytes.
    pub metrics: Arc<Metrics>,
    /// How fast they went.
    pub speeds: Arc<TransferSpeeds>,
}

/// What went over one connection.
#[derive(Clone, Copy, Default)]
struct Sent {
    chunks: u64,
    bytes: u64,
    /// Time in which there was something to send or to be confirmed.
    busy: Duration,
}

impl Pusher {
    /// Sends what comes out of `ready` until that ends, over several connections side by side, and waits for the receiver
    /// to confirm. Returns the chunks sent; `None` if it was stopped.
    ///
    /// Source blocks are free once this has returned: nothing reads the pool for it any more, however it ended.
    pub async fn push(
        self,
        target: PushTarget,
        ready: ReadyQueues,
        stop: CancellationToken,
    ) -> Option<Result<u64, PushError>> {
        let begun = Instant::now();
        // Of all lanes as soon as one fails.
        let stop = stop.child_token();
        let shared = Arc::new((self, target));
        // Tasks of their own, since each works on its own core: reading the pool and writing the socket is copying.
        let mut lanes = JoinSet::new();
        for ready in ready {
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            lanes.spawn(async move {
                let (pusher, target) = &*shared;
                stop.run_until_cancelled(pusher.push_lane(target, ready)).await
            });
        }
        let (mut sent, mut stopped, mut failed) = (Sent::default(), false, None);
        while let Some(ended) = lanes.join_next().await {
            match ended {
                Ok(Some(Ok(lane))) => {
                    sent.chunks += lane.chunks;
                    sent.bytes += lane.bytes;
                    sent.busy = sent.busy.max(lane.busy);
                }
                Ok(None) => stopped = true,
                Ok(Some(Err(error))) => {
                    failed.get_or_insert(error);
                    stop.cancel();
                }
                Err(error) => {
                    failed.get_or_insert(PushError::Protocol(format!("the push ended abnormally: {error}")));
                    stop.cancel();
                }
            }
        }
        if let Some(error) = failed {
            return Some(Err(error));
        }
        if stopped {
            return None;
        }
        let (pusher, target) = &*shared;
        pusher.speeds.record(&target.peer, sent.bytes, sent.busy);
        let (bytes, busy) = (sent.bytes, sent.busy);
        tracing::debug!(handoff = %target.handoff, bytes, ?busy, total = ?begun.elapsed(), "pushed");
        Some(Ok(sent.chunks))
    }

    /// One connection's part. Takes what is ready as fast as it can send it.
    ///
    /// It is opened only with something to send: as long as that has not landed, the handoff is not over, so that no
    /// connection comes too late for a handoff which the others have brought to its end.
    async fn push_lane(
        &self,
        target: &PushTarget,
        mut ready: mpsc::Receiver<ReadyBlocks>,
    ) -> Result<Sent, PushError> {
        // No deadline, here and below: the engine decides when blocks are ready, and the lease bounds how long.
        let Some(first) = ready.recv().await else { return Ok(Sent::default()) };
        let begun = Instant::now();
        let mut stream = self.connect(&target.address).await?;
        let connecting = begun.elapsed();
        let (mut reader, mut writer) = stream.split();
        // The one answer: at the end, or earlier when the receiver refuses.
        let answer = frame::read::<PushResponse>(&mut reader);
        tokio::pin!(answer);
        let sent = tokio::select! {
            biased;
            early = &mut answer => return Err(early_end(early)),
            sent = self.send_all(target, first, &mut ready, &mut writer) => sent,
        };
        let mut sent = match sent {
            // A receiver that refuses says why, and then closes: its reason is worth more than how the connection broke.
            Err(PushError::Broken(error)) => {
                return Err(match tokio::time::timeout(REASON_MAX, answer).await {
                    Ok(Ok(reason)) => early_end(Ok(reason)),
                    Ok(Err(_)) | Err(_) => PushError::Broken(error),
                });
            }
            sent => sent?,
        };
        let begun = Instant::now();
        let confirmed = confirmed(within("confirm the end", answer).await?)?;
        if confirmed != sent.chunks {
            let sent = sent.chunks;
            return Err(PushError::Protocol(format!("{confirmed} chunks confirmed, {sent} sent")));
        }
        sent.busy += connecting + begun.elapsed();
        Ok(sent)
    }

    async fn connect(&self, address: &str) -> Result<TcpStream, PushError> {
        let failed = |source| PushError::Connect { address: address.to_owned(), source };
        let connected = tokio::time::timeout(CONNECT_MAX, self.reach.connect(address)).await;
        let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        Ok(stream)
    }

    /// Everything that this connection says.
    async fn send_all(
        &self,
        target: &PushTarget,
        first: ReadyBlocks,
        ready: &mut mpsc::Receiver<ReadyBlocks>,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Sent, PushError> {
        let begin = PushBegin {
            handoff: Some(handoff_to_wire(target.handoff)),
            prefill_worker: Some(worker_ref_to_wire(&self.this_worker)),
            kv_compat: Some(hash(self.kv_compat.0)),
            token: target.token.to_wire(),
        };
        let mut opening = MAGIC.to_vec();
        frame::append(&request(push_request::Message::Begin(begin)), &mut opening);
        write(writer, &mut opening.as_slice()).await?;

        let unit = self.stages.memory().layout().layer_block_bytes();
        let mut sent = Sent::default();
        let mut some = Some(first);
        while let Some(blocks) = some {
            let begun = Instant::now();
            let mut stage = self.stages.take().await?;
            stage.read(blocks.layer, &blocks.blocks)?;
            let payload = &stage.bytes()[..blocks.blocks.len() * unit];
            let chunk = KvChunk {
                layer: blocks.layer,
                first_block: blocks.first,
                block_count: blocks.blocks.len() as u32,
                payload_bytes: payload.len() as u32,
                checksum: cfg!(debug_assertions).then(|| xxh3_64(payload)),
            };
            let header = frame::framed(&request(push_request::Message::Chunk(chunk)));
            write(writer, &mut header.chain(payload)).await?;
            self.metrics.pushed(payload.len());
            sent.bytes += payload.len() as u64;
            sent.chunks += 1;
            sent.busy += begun.elapsed();
            some = ready.recv().await;
        }
        let end = PushEnd { chunks: sent.chunks };
        write(writer, &mut frame::framed(&request(push_request::Message::End(end))).as_slice()).await?;
        Ok(sent)
    }
}

fn request(message: push_request::Message) -> PushRequest {
    PushRequest { message: Some(message) }
}

/// Header and payload go out in one call where the system takes them.
async fn write(writer: &mut (impl AsyncWrite + Unpin), bytes: &mut impl Buf) -> Result<(), PushError> {
    Ok(within("take a chunk", writer.write_all_buf(bytes)).await??)
}

async fn within<T>(what: &'static str, wait: impl Future<Output = T>) -> Result<T, PushError> {
    tokio::time::timeout(ANSWER_MAX, wait).await.map_err(|_| PushError::Silent { what })
}

/// The chunks that the receiver says have landed.
fn confirmed(answer: io::Result<PushResponse>) -> Result<u64, PushError> {
    match answer?.message {
        Some(push_response::Message::Done(done)) => Ok(done.chunks),
        Some(push_response::Message::Refused(refused)) => Err(PushError::Refused(refused.reason)),
        None => Err(PushError::Protocol("an answer that this version does not know".to_owned())),
    }
}

/// An answer before the end was sent.
fn early_end(answer: io::Result<PushResponse>) -> PushError {
    match confirmed(answer) {
        Ok(_) => PushError::Protocol("`done` before `end`".to_owned()),
        Err(error) => error,
    }
}
