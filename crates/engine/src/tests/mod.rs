//! Tests of the engine as a whole, on the fake backend.

mod basics;
mod disaggregated;
mod faults;
mod handoff;
mod harness;
mod pool;
mod random;
mod scheduling;
