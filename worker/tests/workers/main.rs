//! Workers over real TCP: what routers and other workers see of them.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a test: nobody else sees it, and a failed expectation is the point"
)]

mod connections;
mod failure;
mod generate;
mod handoff;
mod harness;
mod lifecycle;
mod pushes;
#[path = "../../examples/support/shape.rs"]
mod shape;
mod watch;
mod wire;
