//! Both sides of a handoff, live: [`decode`] drives `disagg_core::handoff::Handoff`, [`prefill`] drives
//! `disagg_core::handoff::PrefillLease`. The decisions are in those machines; here are streams, timers and channels.

pub mod attempt;
pub mod decode;
mod first_token;
pub mod prefill;
mod timers;
