//! HTTP/1.1 for strangers: `axum::serve` with deadlines and bounds.
//!
//! One caller must not take a listener down, so nothing here lasts for ever: a head has to come within
//! [`HttpOptions::head_timeout`] and 64 KiB, a connection without a request ends after [`HttpOptions::idle_timeout`], a
//! client that takes nothing of its answer is cut after [`HttpOptions::write_timeout`]. Connections are bounded in all
//! and for each address ([`crate::slots`]): new ones take the place of those that ask nothing, and when all are at
//! work, a reserve still answers [`HttpOptions::always`].
//!
//! HTTP/2 is not spoken. Without TLS no browser and no OpenAI client uses it; one connection would carry any number of
//! requests past the bounds above; and it would be on or off by which crates happen to be built together.

mod body;
mod hosts;
mod io;
mod progress;
mod server;

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

pub use hosts::{Hosts, is_loopback_origin};
pub use server::serve;

/// Longest head of a request, in bytes: its line and its headers.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Most headers of a request.
pub const HEADERS_MAX: usize = 100;

/// What a listener allows.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// What the log calls the listener.
    pub name: &'static str,
    /// Connections in all.
    pub connections_max: usize,
    /// Connections of one address; of IPv6, of one /64 network.
    pub connections_per_peer_max: usize,
    /// From the first byte of a request to the end of its head; for the first, from the connection on.
    pub head_timeout: Duration,
    /// From an answer to the next request.
    pub idle_timeout: Duration,
    /// Longest time in which a client takes nothing of its answer.
    pub write_timeout: Duration,
    /// For whom requests are taken.
    pub hosts: Hosts,
    /// Paths that are answered even when every connection is at work.
    pub always: &'static [&'static str],
    /// An answer of the listener itself.
    pub refusal: fn(StatusCode, String) -> Response,
}

impl HttpOptions {
    /// For probes, metrics and people: a few callers with small questions.
    pub fn management(name: &'static str) -> Self {
        Self {
            name,
            connections_max: 256,
            connections_per_peer_max: 128,
            head_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_mins(2),
            write_timeout: Duration::from_secs(10),
            hosts: Hosts::Any,
            always: &["/health", "/ready", "/healthz", "/readyz"],
            refusal: |status, message| (status, message + "\n").into_response(),
        }
    }
}
