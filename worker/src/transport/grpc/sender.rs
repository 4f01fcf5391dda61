//! The sending side, on the prefill worker.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use disagg_core::{HandoffId, WorkerId};
use disagg_engine::{KvAccessError, KvMemory};
use disagg_proto::MAX_MESSAGE_BYTES;
use disagg_proto::v1::kv_transfer_client::KvTransferClient;
use disagg_proto::v1::{KvChunk, PushBegin, PushEnd, PushRequest, PushResponse, push_request, push_response};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use xxhash_rust::xxh3::xxh3_64;

use crate::convert::{Peer, handoff_to_wire, hash, worker_ref_to_wire};
use crate::metrics::Metrics;
use crate::transport::peers::{BULK_LANES, BadAddress, Lane, Peers};
use crate::transport::queue::ReadyBlocks;
use crate::transport::speed::TransferSpeeds;

/// Longest wait for the receiver to answer `begin`, to grant credit, or to confirm the end. It lands chunks as they
/// come, so a receiver that takes longer is not well.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Messages between this task and the connection: what HTTP/2 has no room for yet.
const OUTBOX_CHUNKS: usize = 2;

/// Why a push ended early.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The address is none.
    #[error(transparent)]
    Address(#[from] BadAddress),
    /// The receiver refused, or the connection broke.
    #[error("the push was refused or broke: {0}")]
    Refused(#[from] Status),
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
}

/// Pushes blocks of this worker's pool. Cheap to clone.
#[derive(Clone)]
pub struct Pusher {
    /// Connections.
    pub peers: Arc<Peers>,
    /// Where blocks are read.
    pub memory: Arc<dyn KvMemory>,
    /// This worker.
    pub this_worker: Peer,
    /// Of this worker.
    pub kv_compat: disagg_core::KvCompat,
    /// Counts bytes.
    pub metrics: Arc<Metrics>,
    /// How fast they went.
    pub speeds: Arc<TransferSpeeds>,
}

impl Pusher {
    /// Sends what comes out of `ready` until it ends, over several connections side by side, and waits for the receiver
    /// to confirm. Returns the chunks sent.
    ///
    /// The pool is read only while this future is polled: once it has ended or was dropped, source blocks are free.
    pub async fn push(
        self,
        target: PushTarget,
        ready: mpsc::Receiver<ReadyBlocks>,
    ) -> Result<u64, PushError> {
        let ready = Mutex::new(ready);
        let lanes = (0..BULK_LANES).map(|lane| self.push_lane(lane, &target, &ready));
        let chunks = futures::future::try_join_all(lanes).await?;
        Ok(chunks.into_iter().sum())
    }

    /// One connection's part: a stream with a beginning, credit and an end of its own. Takes what is ready as fast as it
    /// can send it.
    async fn push_lane(
        &self,
        lane: u8,
        target: &PushTarget,
        ready: &Mutex<mpsc::Receiver<ReadyBlocks>>,
    ) -> Result<u64, PushError> {
        let channel = self.peers.channel(Lane::Bulk(lane), &target.address)?;
        let (outbox, outgoing) = mpsc::channel(OUTBOX_CHUNKS);
        let begin = PushBegin {
            handoff: Some(handoff_to_wire(target.handoff)),
            prefill_worker: Some(worker_ref_to_wire(&self.this_worker)),
            kv_compat: Some(hash(self.kv_compat.0)),
        };
        send(&outbox, push_request::Message::Begin(begin)).await?;
        let mut client = KvTransferClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let mut answers =
            within("answer `begin`", client.push(ReceiverStream::new(outgoing))).await??.into_inner();

        let mut credit = 0u32;
        let mut waiting = VecDeque::new();
        let mut chunks = 0u64;
        let mut bytes = 0u64;
        // Time in which there was something to send or to be confirmed.
        let mut busy = Duration::ZERO;
        loop {
            let begun = Instant::now();
            let idle = waiting.is_empty();
            if waiting.is_empty() {
                tokio::select! {
                    // No deadline: the engine decides when blocks are ready, and the lease bounds how long.
                    blocks = async { ready.lock().await.recv().await } => match blocks {
                        Some(blocks) => waiting.push_back(blocks),
                        None => break,
                    },
                    answer = answers.message() => credit += granted(answer?)?,
                }
            } else if credit == 0 {
                credit += granted(within("grant credit", answers.message()).await??)?;
            } else if let Some(blocks) = waiting.pop_front() {
                let chunk = self.read(&blocks)?;
                self.metrics.pushed(chunk.payload.len());
                bytes += chunk.payload.len() as u64;
                tokio::select! {
                    sent = send(&outbox, push_request::Message::Chunk(chunk)) => sent?,
                    answer = refusal(&mut answers, &mut credit) => return Err(answer),
                }
                credit -= 1;
                chunks += 1;
            }
            if !idle {
                busy += begun.elapsed();
            }
        }
        let begun = Instant::now();
        send(&outbox, push_request::Message::End(PushEnd { chunks })).await?;
        self.confirmed(&mut answers, chunks).await?;
        self.speeds.record(&target.peer, bytes, busy + begun.elapsed());
        Ok(chunks)
    }

    fn read(&self, blocks: &ReadyBlocks) -> Result<KvChunk, PushError> {
        let mut payload = Vec::with_capacity(blocks.blocks.len() * self.memory.layout().layer_block_bytes());
        self.memory.read_blocks(blocks.layer, &blocks.blocks, &mut payload)?;
        Ok(KvChunk {
            layer: blocks.layer,
            first_block: blocks.first,
            block_count: blocks.blocks.len() as u32,
            checksum: cfg!(debug_assertions).then(|| xxh3_64(&payload)),
            payload: payload.into(),
        })
    }

    async fn confirmed(&self, answers: &mut Streaming<PushResponse>, chunks: u64) -> Result<(), PushError> {
        loop {
            let answer = within("confirm the end", answers.message()).await??;
            match answer.and_then(|answer| answer.message) {
                Some(push_response::Message::Credit(_)) => {}
                Some(push_response::Message::Done(done)) if done.chunks == chunks => return Ok(()),
                Some(push_response::Message::Done(done)) => {
                    return Err(PushError::Protocol(format!(
                        "{} chunks confirmed, {chunks} sent",
                        done.chunks
                    )));
                }
                None => return Err(PushError::Protocol("the stream ended without `done`".to_owned())),
            }
        }
    }
}

async fn within<T>(what: &'static str, wait: impl Future<Output = T>) -> Result<T, PushError> {
    tokio::time::timeout(ANSWER_MAX, wait).await.map_err(|_| PushError::Silent { what })
}

async fn send(outbox: &mpsc::Sender<PushRequest>, message: push_request::Message) -> Result<(), PushError> {
    let sent = within("take a chunk", outbox.send(PushRequest { message: Some(message) })).await?;
    sent.map_err(|_| PushError::Refused(Status::unavailable("the connection to the receiver broke")))
}

/// The credit in an answer that comes while chunks are sent.
fn granted(answer: Option<PushResponse>) -> Result<u32, PushError> {
    match answer.and_then(|answer| answer.message) {
        Some(push_response::Message::Credit(credit)) => Ok(credit.chunks),
        Some(push_response::Message::Done(_)) => Err(PushError::Protocol("`done` before `end`".to_owned())),
        None => Err(PushError::Protocol("the stream ended before `end`".to_owned())),
    }
}

/// Adds up credit; returns only when the receiver refuses.
async fn refusal(answers: &mut Streaming<PushResponse>, credit: &mut u32) -> PushError {
    loop {
        let answer = answers.message().await.map_err(PushError::from).and_then(granted);
        match answer {
            Ok(chunks) => *credit = credit.saturating_add(chunks),
            Err(error) => return error,
        }
    }
}
