//! HTTP clients that speak TLS: rustls with ring, and the certificates that the system trusts.
//!
//! reqwest is built without a provider of its own, so every client of the executables is made here.

use std::net::IpAddr;

use reqwest::Url;

/// Begins a client for servers such as `url`. The system's certificates are read for `https` only: that takes
/// milliseconds, and a small image may have none. `SSL_CERT_FILE` and `SSL_CERT_DIR` name others.
pub fn client_builder(url: &str) -> reqwest::ClientBuilder {
    // Fails when one is installed already, and it can only be this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder();
    let secure = url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
    if secure { builder } else { builder.tls_certs_only([]) }
}

/// Whether it is a server on this machine, reached without encryption: what is sent there does not leave it.
pub fn is_loopback(url: &Url) -> bool {
    let is_loopback = |host: &str| {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    };
    url.scheme() == "http" && url.host_str().is_some_and(is_loopback)
}

/// An error with all its causes; of reqwest's, the outermost alone says little.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_can_be_made_twice() {
        for _ in 0..2 {
            client_builder("http://127.0.0.1:1").build().expect("a client");
        }
    }
}
