//! The attacks, one file each.

mod deaf;
mod forged_pushes;
mod half_closed;
mod idle;
mod long_prompts;
mod n_hogs;
mod oversize;
mod slow_bodies;
mod slow_heads;
mod templates;
mod tiny_messages;
mod worker_noise;

use crate::attacker::Attack;

/// In the order in which they run: connections, bodies, answers, text, workers.
pub(crate) const ATTACKS: [Attack; 13] = [
    slow_heads::ATTACK,
    idle::ATTACK,
    half_closed::ATTACK,
    slow_bodies::ATTACK,
    oversize::ATTACK,
    deaf::STREAMS,
    deaf::ANSWERS,
    n_hogs::ATTACK,
    long_prompts::ATTACK,
    tiny_messages::ATTACK,
    templates::ATTACK,
    worker_noise::ATTACK,
    forged_pushes::ATTACK,
];
