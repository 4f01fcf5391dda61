//! The one listener of a worker: takes connections, and tells gRPC and KV pushes apart by the first byte.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::transport::tcp::{MAGIC, PushReceiver};

/// Connections that have said nothing yet, and pushes under way. Beyond that, new ones wait in the system's queue.
const CONNECTIONS_MAX: usize = 1024;

/// gRPC connections that wait to be served.
const WAITING_MAX: usize = 64;

/// Longest silence of a new connection: HTTP/2 and pushes both begin with the client.
const FIRST_BYTE_MAX: Duration = Duration::from_secs(10);

/// Pause after the system refused to accept, mostly for want of file descriptors.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Takes connections until `stopping`; the stream has those for gRPC, pushes go to `pushes`.
pub(crate) fn accept(
    listener: TcpListener,
    pushes: PushReceiver,
    stopping: CancellationToken,
) -> ReceiverStream<io::Result<TcpStream>> {
    let (grpc, incoming) = mpsc::channel(WAITING_MAX);
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let accepting = async {
            while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
                let stream = match listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(RETRY_AFTER).await;
                        continue;
                    }
                };
                let (grpc, pushes, stopping) = (grpc.clone(), pushes.clone(), stopping.clone());
                tokio::spawn(async move {
                    let _permit = permit;
                    stopping.run_until_cancelled_owned(dispatch(stream, grpc, pushes)).await;
                });
            }
        };
        stopping.run_until_cancelled(accepting).await;
    });
    ReceiverStream::new(incoming)
}

/// A connection that ends or breaks before it says anything is nobody's.
async fn dispatch(stream: TcpStream, grpc: mpsc::Sender<io::Result<TcpStream>>, pushes: PushReceiver) {
    let mut first = [0];
    let peeked = tokio::time::timeout(FIRST_BYTE_MAX, stream.peek(&mut first)).await;
    if !matches!(peeked, Ok(Ok(1))) || stream.set_nodelay(true).is_err() {
        return;
    }
    if first[0] == MAGIC[0] {
        pushes.serve(stream).await;
    } else {
        // Nobody serves any more.
        let _ = grpc.send(Ok(stream)).await;
    }
}
