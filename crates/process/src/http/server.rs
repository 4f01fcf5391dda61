//! The listener: connections in, answers out, and its end.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::header::{CONNECTION, RETRY_AFTER};
use axum::http::{HeaderValue, Request, StatusCode, Version};
use axum::response::Response;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use super::body::{Received, Sent};
use super::io::{Socket, Timeouts};
use super::progress::Progress;
use super::{HEAD_BYTES_MAX, HEADERS_MAX, HttpOptions};
use crate::Acceptor;
use crate::slots::{Slot, SlotLimits, Slots};

/// Bytes of an answer that the system may hold before the first of them is on its way. The system's own bound is some
/// megabytes a connection, which a few hundred clients that read nothing would fill at the cost of everybody's CPU.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 64 * 1024;

/// Connections beyond all bounds, for [`HttpOptions::always`].
const RESERVE: usize = 32;

/// Serves `routes` until `stop`. Each request carries its [`crate::slots::Peer`] as an extension. Then no connection is taken any more, those that are idle are closed, and it ends when
/// the others have their answers. Dropped, it closes them all at once.
pub async fn serve(listener: TcpListener, routes: Router, options: HttpOptions, stop: CancellationToken) {
    let limits = SlotLimits {
        total: options.connections_max,
        per_peer: options.connections_per_peer_max,
        reserve: RESERVE,
    };
    let slots = Slots::new(options.name, limits);
    let acceptor = Acceptor::new(listener, options.name, Some(options.write_timeout));
    let server = Arc::new(Server { http: http(&options), routes, options });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            (stream, peer) = acceptor.accept(|| slots.evict_one()) => match slots.take(peer.ip()) {
                Ok(slot) => {
                    let stop = stop.clone();
                    connections.spawn(Arc::clone(&server).connection(stream, slot, stop));
                }
                // Closed. That is logged by `Slots`.
                Err(full) => tracing::debug!(%peer, %full, "refused"),
            },
        }
    }
    drop(acceptor);
    while connections.join_next().await.is_some() {}
}

struct Server {
    http: http1::Builder,
    routes: Router,
    options: HttpOptions,
}

fn http(options: &HttpOptions) -> http1::Builder {
    let mut http = http1::Builder::new();
    // More is answered 431. The bound of what is read and not yet parsed is one of heads that never end.
    http.max_header_size(HEAD_BYTES_MAX).max_buf_size(HEAD_BYTES_MAX).max_headers(HEADERS_MAX);
    // `Socket` is stricter. With this, hyper asks it again for the next request as soon as an answer is sent.
    http.timer(TokioTimer::new()).header_read_timeout(options.idle_timeout + options.head_timeout);
    http
}

impl Server {
    async fn connection(self: Arc<Self>, stream: TcpStream, slot: Slot, stop: CancellationToken) {
        let timeouts = Timeouts {
            head: self.options.head_timeout,
            idle: self.options.idle_timeout,
            write: self.options.write_timeout,
        };
        #[cfg(target_os = "linux")]
        if let Err(error) = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
            tracing::debug!(listener = self.options.name, %error, "the bound on what is not sent was not taken");
        }
        let progress = Arc::new(Progress::new(slot));
        let socket = TokioIo::new(Socket::new(stream, Arc::clone(&progress), timeouts));
        let service = service_fn(|request| self.answer(request, &progress));
        let mut connection = pin!(self.http.serve_connection(socket, service));
        let mut stopping = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(listener = self.options.name, %error, "a connection broke off");
                    }
                    return;
                }
                () = progress.slot().evicted() => return,
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
        progress: &Arc<Progress>,
    ) -> Result<Response<Sent>, Infallible> {
        let old = request.version() < Version::HTTP_11;
        progress.request_begins(old, !request.body().is_end_stream());
        request.extensions_mut().insert(progress.slot().peer());
        let is_reserve = progress.slot().is_reserve();
        let mut response = if let Err(why) = self.options.hosts.check(&request) {
            (self.options.refusal)(StatusCode::FORBIDDEN, why)
        } else if is_reserve && !self.options.always.contains(&request.uri().path()) {
            let why = "This server has as many connections at work as it takes. Try again shortly.";
            let mut response = (self.options.refusal)(StatusCode::SERVICE_UNAVAILABLE, why.to_owned());
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            response
        } else {
            let request = request.map(|body| Body::new(Received::new(body, Arc::clone(progress))));
            self.routes.clone().call(request).await?
        };
        // The next connection may need a slot of the reserve. A connection whose request was answered before it was read
        // ends with this answer, and a client that does not know would send its next request in vain.
        if is_reserve || progress.has_unread() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        progress.answer_begins();
        Ok(response.map(|body| Sent::new(body, Arc::clone(progress))))
    }
}
