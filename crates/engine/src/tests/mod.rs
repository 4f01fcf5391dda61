//! Tests of the engine as a whole, on the fake backend.

mod basics;
mod disaggregated;
mod fairness;
mod faults;
mod handoff;
mod harness;
mod impossible;
mod pausing;
mod pool;
mod random;
mod scheduling;
