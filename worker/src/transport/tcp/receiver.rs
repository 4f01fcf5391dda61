//! The receiving side, on the decode worker.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use disagg_engine::KvAccessError;
use disagg_proto::v1::{PushDone, PushRefused, PushRequest, PushResponse, push_request, push_response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{MAGIC, frame};
use crate::convert::{InvalidField, push_begin};
use crate::metrics::Metrics;
use crate::transport::landing::{LandingRegistry, Refusal, Zone};
use crate::transport::stages::Stages;

/// Longest wait for the first message.
const BEGIN_MAX: Duration = Duration::from_secs(5);

/// Longest time for a chunk to come in, once it has been announced.
const CHUNK_MAX: Duration = Duration::from_secs(10);

/// Longest wait for the end once everything has landed.
const END_MAX: Duration = Duration::from_secs(5);

/// How long a sender that was refused may take to read why: until it closes the connection, what it still sends is
/// thrown away.
const LINGER_MAX: Duration = Duration::from_secs(1);

/// Lands pushes in the zones of a [`LandingRegistry`].
#[derive(Clone)]
pub struct PushReceiver {
    landing: Arc<LandingRegistry>,
    stages: Arc<Stages>,
    metrics: Arc<Metrics>,
}

/// Why a push did not end well.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    /// A message that has no place where it came.
    #[error("{0}")]
    OutOfTurn(&'static str),
    /// No room to receive into.
    #[error(transparent)]
    Memory(#[from] KvAccessError),
    /// The sender is gone, or speaks another protocol.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
}

impl PushReceiver {
    /// Lands in `landing` what it reads into `stages`, and counts in `metrics`.
    pub fn new(landing: Arc<LandingRegistry>, stages: Arc<Stages>, metrics: Arc<Metrics>) -> Self {
        Self { landing, stages, metrics }
    }

    /// Serves one connection to its end.
    pub async fn serve(&self, mut stream: TcpStream) {
        let answer = match self.receive(&mut stream).await {
            Ok(chunks) => push_response::Message::Done(PushDone { chunks }),
            Err(Failure::Broken(error)) => {
                // Whoever drives the handoff learns of a lost peer by the lease.
                tracing::debug!(%error, "a push broke off");
                return;
            }
            Err(failure) => {
                let reason = match &failure {
                    Failure::Refused(refusal) => refusal.label(),
                    Failure::Invalid(_) | Failure::OutOfTurn(_) => "invalid",
                    Failure::Memory(_) | Failure::Broken(_) => "memory",
                };
                self.metrics.chunk_refused(reason);
                tracing::warn!(reason = %failure, "a push was refused");
                push_response::Message::Refused(PushRefused { reason: failure.to_string() })
            }
        };
        let answer = frame::framed(&PushResponse { message: Some(answer) });
        // A sender that is gone needs no answer.
        let _ = tokio::time::timeout(LINGER_MAX, async {
            stream.write_all(&answer).await?;
            stream.shutdown().await?;
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
        })
        .await;
    }

    /// Lands chunks until the sender ends or is refused. Gives the chunks that have landed.
    async fn receive(&self, stream: &mut (impl AsyncRead + Unpin)) -> Result<u64, Failure> {
        let begin = in_time(BEGIN_MAX, "`begin` did not come", opening(stream)).await??;
        let Some(push_request::Message::Begin(begin)) = begin.message else {
            return Err(Failure::OutOfTurn("message: `begin` has to be the first"));
        };
        let zone = self.landing.begin(&push_begin(begin)?)?;
        let landing = self.land_all(&zone, stream);
        tokio::pin!(landing);
        tokio::select! {
            landed = &mut landing => return landed,
            // Also ends a push whose sender has vanished: every zone is closed in the end.
            () = zone.closed() => {}
        }
        if !zone.is_complete() {
            return Err(Refusal::Fenced.into());
        }
        // The handoff is activated with the last block, which may be before its connections have said that they end.
        in_time(END_MAX, "`end` did not come", landing).await?
    }

    async fn land_all(&self, zone: &Zone, stream: &mut (impl AsyncRead + Unpin)) -> Result<u64, Failure> {
        let mut chunks = 0;
        // Where the time of a connection goes: memory to receive into, receiving, writing.
        let (mut waited, mut received, mut written) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        loop {
            // No deadline: the sender waits for layers to be computed.
            match frame::read::<PushRequest>(stream).await?.message {
                Some(push_request::Message::Chunk(chunk)) => {
                    // Before its payload is read, so that there is room for it.
                    let bytes = zone.check(&chunk)?;
                    let begun = Instant::now();
                    let mut stage = self.stages.take().await?;
                    waited += begun.elapsed();
                    let begun = Instant::now();
                    let payload = stream.read_exact(&mut stage.bytes_mut()[..bytes]);
                    in_time(CHUNK_MAX, "a chunk did not come in", payload).await??;
                    received += begun.elapsed();
                    let begun = Instant::now();
                    zone.land(&chunk, &mut *stage)?;
                    written += begun.elapsed();
                    chunks += 1;
                    self.metrics.landed(bytes);
                }
                Some(push_request::Message::End(end)) if end.chunks == chunks => {
                    tracing::debug!(chunks, ?waited, ?received, ?written, "a connection's part has landed");
                    return Ok(chunks);
                }
                Some(push_request::Message::End(end)) => {
                    return Err(Refusal::Short { announced: end.chunks, got: chunks }.into());
                }
                Some(push_request::Message::Begin(_)) => {
                    return Err(Failure::OutOfTurn("begin: sent twice; it comes once, first"));
                }
                None => return Err(Failure::OutOfTurn("a message that this version does not know")),
            }
        }
    }
}

/// What `wait` gives; an error that says `late` if it takes longer than `limit`.
async fn in_time<T>(limit: Duration, late: &'static str, wait: impl Future<Output = T>) -> io::Result<T> {
    tokio::time::timeout(limit, wait).await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, late))
}

/// What a connection begins with, and the first message.
async fn opening(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<PushRequest> {
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic).await?;
    if magic != MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no push of this version"));
    }
    frame::read(stream).await
}
