//! A port-forward: an address on this machine whose connections go to a port of a pod.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

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

/// One connection, to its end. Whoever opened it sees a failure as its end.
async fn carry(mut connection: TcpStream, pods: Api<Pod>, pod: String, port: u16) {
    let Ok(mut forward) = pods.portforward(&pod, &[port]).await else { return };
    let Some(mut there) = forward.take_stream(port) else { return };
    let _ = connection.set_nodelay(true);
    let _ = tokio::io::copy_bidirectional(&mut connection, &mut there).await;
    drop(there);
    let _ = forward.join().await;
}
