//! The router as its clients and its workers see it: the real thing over real TCP, in front of fake workers that do
//! what each test tells them to.

#![allow(clippy::unwrap_used)] // a failed assumption fails the test
#![allow(clippy::float_cmp)] // what goes through unchanged is equal
#![allow(clippy::format_push_string)]
#![allow(unreachable_pub)] // a test has no outside

mod answers;
mod bounds;
mod choices;
mod connections;
mod failures;
mod generations;
mod kubernetes;
mod lifecycle;
mod placement;
mod refusals;
mod routing;
mod support;
mod templates;
