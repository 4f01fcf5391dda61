//! For whom requests are taken: the check of `Host` that keeps web pages out of a listener on loopback.

use std::net::{IpAddr, SocketAddr};

use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Request};

/// The hosts whose requests a listener takes.
///
/// A listener on loopback is out of reach for other machines, but not for web pages in a browser on this one: a page
/// whose own name its owner lets point to 127.0.0.1 (DNS rebinding) talks to it as if it were its own server. The
/// browser then still sends that name as `Host`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hosts {
    /// Whoever can reach the listener may use it.
    Any,
    /// Names of this machine for itself (`localhost`, `*.localhost`, 127.0.0.0/8, `[::1]`), and these.
    Loopback {
        /// Further names, as a proxy on this machine passes them on. Without ports.
        also: Vec<String>,
    },
}

impl Hosts {
    /// Of a listener on `address`.
    pub fn of(address: SocketAddr, also: &[String]) -> Self {
        if address.ip().to_canonical().is_loopback() {
            Self::Loopback { also: also.to_vec() }
        } else {
            Self::Any
        }
    }

    /// Why a request is not taken. One without any `Host`, as HTTP/1.0 allows, is no browser's.
    pub(super) fn check<B>(&self, request: &Request<B>) -> Result<(), String> {
        let Self::Loopback { also } = self else { return Ok(()) };
        let headers = request.headers().get_all(HOST).iter().map(HeaderValue::as_bytes);
        let target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
        for name in headers.chain(target) {
            if !is_allowed(name, also) {
                return Err(format!(
                    "This server listens on this machine alone, and takes requests for localhost, 127.0.0.1 or [::1], \
                     not for {:?} (the Host header). Behind a proxy on this machine: --allowed-host.",
                    String::from_utf8_lossy(&name[..name.len().min(100)])
                ));
            }
        }
        Ok(())
    }
}

fn is_allowed(name: &[u8], also: &[String]) -> bool {
    let Ok(authority) = Authority::try_from(name) else { return false };
    // `user@host` is nobody's `Host`.
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    is_loopback(host) || also.iter().any(|also| also.eq_ignore_ascii_case(host))
}

/// A name or address (IPv6 in brackets) of this machine for itself. Resolvers and browsers keep `localhost` and what
/// ends in it for that (RFC 6761).
fn is_loopback(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if name == "localhost" || name.ends_with(".localhost") {
        return true;
    }
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(&name);
    address.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Whether a web page is one of this machine, by the `Origin` that its browser sends: `http://localhost:3000` and the
/// like.
pub fn is_loopback_origin(origin: &HeaderValue) -> bool {
    let Ok(origin) = origin.to_str() else { return false };
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    matches!(scheme, "http" | "https") && is_allowed(authority.as_bytes(), &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(hosts: &Hosts, uri: &str, host: &[&str]) -> bool {
        let mut request = Request::builder().uri(uri);
        for host in host {
            request = request.header(HOST, *host);
        }
        hosts.check(&request.body(()).unwrap()).is_ok()
    }

    fn loopback(also: &[&str]) -> Hosts {
        let also: Vec<String> = also.iter().map(|&name| name.to_owned()).collect();
        Hosts::of("127.0.0.1:8181".parse().unwrap(), &also)
    }

    #[test]
    fn loopback_names_are_taken() {
        for host in [
            "localhost",
            "LocalHost:8181",
            "localhost.",
            "ui.localhost:1",
            "127.0.0.1",
            "127.0.0.1:80",
            "127.9.8.7",
            "[::1]",
            "[::1]:8181",
            "[::ffff:127.0.0.1]:80",
        ] {
            assert!(taken(&loopback(&[]), "/", &[host]), "{host}");
        }
    }

    #[test]
    fn other_names_are_refused() {
        for host in [
            "evil.example",
            "evil.example:8181",
            "localhost.evil.example",
            "notlocalhost",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "0.0.0.0",
            "[::]",
            "[2001:db8::1]:80",
            "",
            "localhost@evil.example",
            "evil.example@localhost",
            "a b",
            "2130706433",
        ] {
            assert!(!taken(&loopback(&[]), "/", &[host]), "{host}");
        }
    }

    #[test]
    fn every_place_of_a_name_counts() {
        let hosts = loopback(&[]);
        assert!(!taken(&hosts, "/", &["localhost", "evil.example"]), "a second header");
        assert!(!taken(&hosts, "http://evil.example/", &["localhost"]), "the target itself");
        assert!(taken(&hosts, "http://localhost/", &["localhost"]));
        assert!(taken(&hosts, "/", &[]), "HTTP/1.0 has none, and no browser speaks it");
    }

    #[test]
    fn names_can_be_added_and_other_listeners_take_all() {
        assert!(taken(&loopback(&["llm.example"]), "/", &["LLM.example:443"]));
        assert!(!taken(&loopback(&["llm.example"]), "/", &["example"]));
        for open in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"] {
            assert_eq!(Hosts::of(open.parse().unwrap(), &[]), Hosts::Any, "{open}");
        }
        for closed in ["127.3.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_ne!(Hosts::of(closed.parse().unwrap(), &[]), Hosts::Any, "{closed}");
        }
        assert!(taken(&Hosts::Any, "/", &["evil.example"]));
    }

    #[test]
    fn pages_of_this_machine_are_known_by_their_origin() {
        for (origin, expected) in [
            ("http://localhost:3000", true),
            ("https://127.0.0.1", true),
            ("http://[::1]:5173", true),
            ("http://evil.example", false),
            ("http://localhost.evil.example", false),
            ("null", false),
            ("file://localhost", false),
        ] {
            assert_eq!(is_loopback_origin(&HeaderValue::from_static(origin)), expected, "{origin}");
        }
    }
}
