//! The commands as processes, as users run them. That a whole deployment serves is shown in `tests/e2e`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;
mod fake_server;
mod harness;
mod live;
mod up;
