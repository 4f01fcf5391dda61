//! Tests of both sides: what happens in the cases that matter, and random facts against the rules.

mod random;
mod scenarios;
mod source;
mod world;
