//! A port-forward: an address on this machine whose connections go to a port of a pod.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::console;

/// The pauses before a stream that was refused is tried again.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];

/// An open port-forward; closed when dropped.
pub(super) struct Forward {
    address: SocketAddr,
    accepting: tokio::task::JoinHandle<()>,
}

impl Forward {
    /// Opens one, with a first connection as proof that it is allowed and that somebody listens.
    pub(super) async fn open(pods: Api<Pod>, pod: &str, port: u16) -> anyhow::Result<Self> {
        let what = || format!("cannot forward a port to pod {pod}");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.with_context(what)?;
        let address = listener.local_addr().with_context(what)?;
        drop(pods.portforward(pod, &[port]).await.with_context(what)?);
        let accepting = tokio::spawn(accept(listener, pods, pod.to_owned(), port));
        Ok(Self { address, accepting })
    }

    /// URL of an HTTP server behind it.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Takes connections until it is dropped, and they with it.
async fn accept(listener: TcpListener, pods: Api<Pod>, pod: String, port: u16) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((connection, _)) = accepted else { return };
                open.spawn(carry(connection, pods.clone(), pod.clone(), port));
            }
            Some(_) = open.join_next() => {}
        }
    }
}

/// One connection, to its end. Whoever opened it sees a failure as its end, and the reason on stderr.
async fn carry(mut connection: TcpStream, pods: Api<Pod>, pod: String, port: u16) {
    let ports = [port];
    let mut forward = match patiently(|| pods.portforward(&pod, &ports)).await {
        Ok(forward) => forward,
        Err(error) => {
            console::note(&format!("cannot forward a connection to pod {pod}: {error}"));
            return;
        }
    };
    let Some(mut there) = forward.take_stream(port) else { return };
    let _ = connection.set_nodelay(true);
    let _ = tokio::io::copy_bidirectional(&mut connection, &mut there).await;
    drop(there);
    let _ = forward.join().await;
}

/// Opens a stream to a pod. A busy API server or kubelet refuses one now and then, and nothing has been sent yet, so it
/// is tried again.
async fn patiently<F, T, E>(open: impl Fn() -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    for pause in PAUSES {
        if let Ok(opened) = open().await {
            return Ok(opened);
        }
        tokio::time::sleep(pause).await;
    }
    open().await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_refused_is_tried_again_a_few_times() {
        for (refusals, outcome) in [(0, Ok(1)), (2, Ok(3)), (3, Err(3))] {
            let attempts = Cell::new(0);
            let opened = patiently(|| {
                attempts.set(attempts.get() + 1);
                let count = attempts.get();
                std::future::ready(if count > refusals { Ok(count) } else { Err(count) })
            });
            assert_eq!(opened.await, outcome);
        }
    }
}
