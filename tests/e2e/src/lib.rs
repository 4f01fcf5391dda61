//! Harness of the end-to-end tests: starts the real `disagg` processes on real sockets and talks to them as clients
//! do.
//!
//! Invariant of this crate: it looks at the product only from outside (HTTP, gRPC, metrics, signals, `/proc`). Every
//! wait has a deadline and says what it waited for; every process ends with the test that started it, and its log is
//! printed when the test fails.

// A harness fails by panicking with a good message, and prints logs of processes when a test fails.
#![allow(clippy::print_stderr)]

pub mod cluster;
pub mod deployment;
pub mod generate;
pub mod golden;
pub mod load;
pub mod metrics;
pub mod openai;
pub mod ports;
pub mod process;
pub mod procfs;
pub mod router;
pub mod sse;
pub mod wait;
pub mod worker;

pub use deployment::{Deployment, Plan};
pub use process::Process;
pub use router::Router;
pub use wait::eventually;
pub use worker::Worker;
