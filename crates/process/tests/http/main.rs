//! The HTTP listener over real TCP: each way to take it down, beside someone honest who is served.

#![allow(clippy::unwrap_used)] // a failed assumption fails the test
#![allow(unreachable_pub)] // a test has no outside

mod bounds;
mod deadlines;
mod ends;
mod files;
mod harness;
mod protocol;
