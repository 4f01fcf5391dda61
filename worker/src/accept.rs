//! The one listener of a worker: takes connections, and tells gRPC and KV pushes apart by their first bytes.
//!
//! Nobody who is silent keeps others out: connections that have not said yet what they are have bounds of their own,
//! and the longest silent one makes room for a new one. Those that speak are counted by what they speak, so that
//! neither kind takes the place of the other, nor of the probes ([`crate::http`]).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use disagg_process::slots::{Full, Slot, SlotLimits, Slots};
use disagg_process::{Acceptor, Seldom, open_files};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::transport::tcp::{MAGIC, PushReceiver};

/// Connections of one kind: that have said nothing yet, of gRPC, of pushes.
const CONNECTIONS_MAX: usize = 1024;

/// Of these, from one address. A router has one to each worker; a prefill worker a few for each handoff.
const CONNECTIONS_PER_PEER_MAX: usize = 256;

/// What one kind may have of the files that the process may open.
const FILES_PERCENT: u64 = 25;

/// gRPC connections that wait to be served.
const WAITING_MAX: usize = 64;

/// Time for a new connection to say what it is: HTTP/2 and pushes both begin with the client.
const FIRST_BYTES_MAX: Duration = Duration::from_secs(10);

/// Pause before looking again at a connection that has sent part of its first bytes: at first, and at most. Who is
/// honest sends them all at once.
const LOOK_AFTER: Duration = Duration::from_millis(5);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a client of HTTP/2 begins with.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Between two lines of the log about connections that were refused.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Takes connections until `stopping`; the stream has those for gRPC, pushes go to `pushes`.
pub(crate) fn accept(
    listener: TcpListener,
    pushes: PushReceiver,
    stopping: CancellationToken,
) -> ReceiverStream<io::Result<GrpcConnection>> {
    let (grpc, incoming) = mpsc::channel(WAITING_MAX);
    tokio::spawn(async move {
        // No bound of the time without acknowledgement: pings of HTTP/2 and leases notice peers that vanish sooner.
        let acceptor = Acceptor::new(listener, "worker", None);
        let kinds = Arc::new(Kinds::new(pushes, grpc));
        let accepting = async {
            loop {
                let (stream, peer) = acceptor.accept(|| kinds.silent.evict_one()).await;
                let Ok(slot) = kinds.silent.take(peer.ip()) else { continue };
                let (kinds, stopping) = (Arc::clone(&kinds), stopping.clone());
                tokio::spawn(async move {
                    stopping.run_until_cancelled_owned(kinds.dispatch(stream, peer, slot)).await;
                });
            }
        };
        stopping.run_until_cancelled(accepting).await;
    });
    ReceiverStream::new(incoming)
}

/// Connections by what they have said.
struct Kinds {
    silent: Arc<Slots>,
    grpc: Arc<Slots>,
    pushes: Arc<Slots>,
    receiver: PushReceiver,
    server: mpsc::Sender<io::Result<GrpcConnection>>,
    refused: Seldom,
}

impl Kinds {
    fn new(receiver: PushReceiver, server: mpsc::Sender<io::Result<GrpcConnection>>) -> Self {
        let total = open_files::share(CONNECTIONS_MAX, FILES_PERCENT);
        let limits = SlotLimits { total, per_peer: CONNECTIONS_PER_PEER_MAX.min(total), reserve: 0 };
        Self {
            silent: Slots::new("worker: silent", limits),
            grpc: Slots::new("worker: gRPC", limits),
            pushes: Slots::new("worker: pushes", limits),
            receiver,
            server,
            refused: Seldom::new(SAY_EVERY),
        }
    }

    /// A connection that ends or breaks before it says what it is, is nobody's.
    async fn dispatch(&self, stream: TcpStream, peer: SocketAddr, silent: Slot) {
        let kind = tokio::select! {
            kind = tokio::time::timeout(FIRST_BYTES_MAX, first_bytes(&stream)) => kind,
            () = silent.evicted() => return,
        };
        let Ok(Ok(kind)) = kind else {
            tracing::debug!(%peer, "a connection did not say what it is");
            return;
        };
        match kind {
            Kind::Push => {
                let Some(_slot) = self.slot(&self.pushes, peer.ip()) else { return };
                drop(silent);
                self.receiver.serve(stream).await;
            }
            Kind::Grpc => {
                let Some(slot) = self.slot(&self.grpc, peer.ip()) else { return };
                drop(silent);
                // Nobody serves any more, if it fails.
                let _ = self.server.send(Ok(GrpcConnection { stream, _slot: slot })).await;
            }
            Kind::Neither => {
                tracing::debug!(%peer, "a connection speaks neither gRPC nor pushes");
            }
        }
    }

    /// A slot of a connection that is at work to its end.
    fn slot(&self, kind: &Arc<Slots>, peer: IpAddr) -> Option<Slot> {
        match kind.take(peer) {
            Ok(slot) => {
                slot.works();
                Some(slot)
            }
            Err(full @ (Full::Total(_) | Full::PerPeer(_))) => {
                if let Some(times) = self.refused.now() {
                    tracing::warn!(%peer, times, %full, "a connection was refused");
                }
                None
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Grpc,
    Push,
    Neither,
}

impl Kind {
    /// `None`: more bytes are needed. A connection begins with all of one of the two, so that nobody who has said next
    /// to nothing is handed on.
    fn of(first: &[u8]) -> Option<Self> {
        if first.starts_with(&MAGIC) {
            Some(Self::Push)
        } else if first.starts_with(HTTP2_PREFACE) {
            Some(Self::Grpc)
        } else if MAGIC.starts_with(first) || HTTP2_PREFACE.starts_with(first) {
            None
        } else {
            Some(Self::Neither)
        }
    }
}

/// What a connection is, without taking its bytes.
async fn first_bytes(stream: &TcpStream) -> io::Result<Kind> {
    let mut first = [0; HTTP2_PREFACE.len()];
    let (mut known, mut pause) = (0, LOOK_AFTER);
    loop {
        let peeked = stream.peek(&mut first).await?;
        if peeked == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(kind) = Kind::of(&first[..peeked]) {
            return Ok(kind);
        }
        // What has been seen is seen again at once: the socket cannot be waited for until it has more.
        if peeked == known {
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LOOK_EVERY);
        }
        known = peeked;
    }
}

/// A connection of gRPC, which holds a slot for as long as it lasts.
pub(crate) struct GrpcConnection {
    stream: TcpStream,
    _slot: Slot,
}

impl Connected for GrpcConnection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for GrpcConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for GrpcConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_known_by_all_of_its_first_bytes() {
        assert_eq!(Kind::of(&MAGIC), Some(Kind::Push));
        assert_eq!(Kind::of(HTTP2_PREFACE), Some(Kind::Grpc));
        for whole in [&MAGIC[..], HTTP2_PREFACE] {
            for part in 1..whole.len() {
                assert_eq!(Kind::of(&whole[..part]), None, "{part} bytes");
                let mut other = whole[..part].to_vec();
                other.push(!whole[part]);
                assert_eq!(Kind::of(&other), Some(Kind::Neither));
            }
        }
        assert_eq!(Kind::of(b"GET / HTTP/1.1\r\n"), Some(Kind::Neither));
    }
}
