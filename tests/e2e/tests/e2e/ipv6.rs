//! Workers as in a cluster that has IPv6 alone: they listen on every address, know their own as Kubernetes writes it,
//! and hand KV to each other.

// A reason is said where people look.
#![allow(clippy::print_stderr)]

use std::net::{Ipv6Addr, TcpListener};

use disagg_e2e::openai;

use crate::{completion_request, tiny_plan};

#[tokio::test(flavor = "multi_thread")]
async fn kv_is_handed_over_between_addresses_of_ipv6() {
    if let Err(error) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        eprintln!("skipped: this machine has no IPv6: {error}");
        return;
    }
    let deployment = tiny_plan().ipv6().router(["--max-local-prefill-length", "64"]).start().await;
    for (length, remote) in [(20, false), (200, true)] {
        let request = completion_request(length, 3, "", 8);
        let answer = openai::completion(deployment.router().post("/v1/completions", &request).await).await;
        assert_eq!(answer.placement.remote, remote, "{:?}", answer.placement);
    }
}
