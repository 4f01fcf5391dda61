//! The commands as processes, as users run them. That a whole deployment serves is shown in `tests/e2e`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;
#[path = "../../../worker/tests/hub/fake.rs"]
#[allow(dead_code, unreachable_pub)] // shared with the tests of the worker
mod fake_hub;
mod fake_server;
mod harness;
mod hub;
mod live;
mod up;
