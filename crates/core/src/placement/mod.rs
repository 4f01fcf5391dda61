//! Placement: whether a prompt is prefilled on its decode worker or elsewhere, where, and why.

mod reason;
#[cfg(test)]
mod tests;

use crate::choice::RoutingStrategy;
use crate::ids::WorkerId;

pub use reason::{FallbackPolicy, PlacementReason, UnknownFallbackPolicy, UnknownPlacementReason};

/// Prefill speed, in tokens per second, assumed while no worker of the pool has measured its own.
const ASSUMED_TOKENS_PER_SECOND: f64 = 1000.0;

/// The rules of placement, as the router's settings give them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlacementSettings {
    /// Net-new tokens up to which, inclusive, a prompt is prefilled on its decode worker.
    pub max_local_prefill_length: u32,
    /// A prefill worker with this many prefills queued or running gets no more. Zero keeps every prompt local.
    pub max_prefill_queue_depth: u32,
    /// What to do when a prefill worker is needed and none can take it.
    pub fallback: FallbackPolicy,
}

impl Default for PlacementSettings {
    fn default() -> Self {
        Self {
            max_local_prefill_length: 512,
            max_prefill_queue_depth: 2,
            fallback: FallbackPolicy::default(),
        }
    }
}

/// A prefill worker as the router knows it, seen from the chosen decode worker.
#[derive(Clone, PartialEq, Debug)]
pub struct PrefillWorker {
    /// Its name.
    pub worker: WorkerId,
    /// It takes new work: joined, not draining, not suspect.
    pub ready: bool,
    /// Its `kv_compat` equals the decode worker's.
    pub compatible: bool,
    /// Prefills queued or running there: as last reported, plus those sent since.
    pub queue_depth: u32,
    /// Their tokens that are still to be computed.
    pub queue_tokens: u64,
    /// Recent prefill speed; `None` before its first prefill.
    pub tokens_per_second: Option<f64>,
    /// Tokens of this prompt that it has cached.
    pub overlap_tokens: u32,
    /// Time to move one block from it to the decode worker, as that pair measured it; `None` before their first
    /// handoff.
    pub transfer_ms_per_block: Option<f64>,
}

/// The prefill workers that could serve one decode worker. The decode worker itself is not among them.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PrefillPool<'a> {
    /// In any order.
    pub workers: &'a [PrefillWorker],
}

/// What a prompt would ask of a prefill worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrefillDemand {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Blocks that the decode worker lacks.
    pub transfer_blocks: u32,
    /// As [`crate::choice::DecodeDemand::draw`], counted or drawn for remote prefills alone.
    pub draw: u64,
}

/// Where a prompt is prefilled.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Placement {
    /// On a prefill worker; [`rank_prefill`] says which.
    Remote {
        /// Why.
        reason: PlacementReason,
    },
    /// On its decode worker.
    Local {
        /// Why.
        reason: PlacementReason,
    },
    /// Nowhere: it needs a prefill worker, none can take it, and the policy is [`FallbackPolicy::Fail`].
    Refuse {
        /// Why.
        reason: PlacementReason,
    },
}

impl Placement {
    /// Why.
    pub fn reason(self) -> PlacementReason {
        match self {
            Self::Remote { reason } | Self::Local { reason } | Self::Refuse { reason } => reason,
        }
    }
}

/// Whether a prompt with `net_new` tokens is long enough for a remote prefill: strictly over the threshold. Decode
/// workers ask the same once they know their own overlap.
pub fn exceeds_local_length(net_new: u32, max_local_prefill_length: u32) -> bool {
    net_new > max_local_prefill_length
}

/// Decides where a prompt with `net_new` tokens (prompt minus what the decode worker has cached) is prefilled.
///
/// Remote if and only if `net_new` is **over** the threshold and a ready, compatible prefill worker's queue is
/// **under** its bound.
pub fn place_prefill(net_new: u32, settings: &PlacementSettings, pool: &PrefillPool<'_>) -> Placement {
    if !exceeds_local_length(net_new, settings.max_local_prefill_length) {
        return Placement::Local { reason: PlacementReason::BelowThreshold };
    }
    let reason = if pool.workers.iter().any(|worker| takes_more(worker, settings)) {
        return Placement::Remote { reason: PlacementReason::AboveThreshold };
    } else if pool.workers.iter().any(can_serve) {
        PlacementReason::PrefillQueueFull
    } else {
        PlacementReason::NoPrefillWorker
    };
    match settings.fallback {
        FallbackPolicy::Local => Placement::Local { reason },
        FallbackPolicy::Fail => Placement::Refuse { reason },
    }
}

/// The prefill workers that can take the prompt, the one to ask first at the front.
///
/// With [`RoutingStrategy::Kv`] that is the one that would deliver first, with [`RoutingStrategy::LeastLoaded`] the
/// one with the shortest queue; the others go by name, beginning at the demand's draw.
pub fn rank_prefill(
    demand: PrefillDemand,
    strategy: RoutingStrategy,
    settings: &PlacementSettings,
    pool: &PrefillPool<'_>,
) -> Vec<WorkerId> {
    let ranked = match strategy {
        RoutingStrategy::Kv => by_delivery(demand, settings, pool),
        RoutingStrategy::LeastLoaded => {
            let mut workers = takers(settings, pool);
            workers.sort_by_key(|worker| (worker.queue_depth, worker.queue_tokens, &worker.worker));
            workers
        }
        RoutingStrategy::RoundRobin | RoutingStrategy::Random => {
            let mut workers = takers(settings, pool);
            workers.sort_by_key(|worker| &worker.worker);
            if !workers.is_empty() {
                let first = demand.draw % workers.len() as u64;
                workers.rotate_left(first as usize);
            }
            workers
        }
    };
    ranked.into_iter().map(|worker| worker.worker.clone()).collect()
}

/// By the time to work off the queue, plus to prefill what the worker lacks, plus to transfer what the decode worker
/// lacks. What a worker has not measured yet is taken as the mean of those that have. Ties go to the shorter queue,
/// then by name.
fn by_delivery<'a>(
    demand: PrefillDemand,
    settings: &PlacementSettings,
    pool: &PrefillPool<'a>,
) -> Vec<&'a PrefillWorker> {
    let default_speed =
        mean(pool.workers.iter().filter_map(measured_speed)).unwrap_or(ASSUMED_TOKENS_PER_SECOND);
    let default_transfer_ms = mean(pool.workers.iter().filter_map(measured_transfer_ms)).unwrap_or(0.0);
    let mut ranked: Vec<(f64, &PrefillWorker)> = takers(settings, pool)
        .into_iter()
        .map(|worker| {
            let ms_per_token = 1000.0 / measured_speed(worker).unwrap_or(default_speed);
            // A fully cached prompt still recomputes its last token.
            let lacking = demand.prompt_tokens.saturating_sub(worker.overlap_tokens).max(1);
            let transfer_ms_per_block = measured_transfer_ms(worker).unwrap_or(default_transfer_ms);
            let queue_ms = worker.queue_tokens as f64 * ms_per_token;
            let prefill_ms = f64::from(lacking) * ms_per_token;
            let transfer_ms = f64::from(demand.transfer_blocks) * transfer_ms_per_block;
            (queue_ms + prefill_ms + transfer_ms, worker)
        })
        .collect();
    ranked.sort_by(|(a_ms, a), (b_ms, b)| {
        a_ms.total_cmp(b_ms).then(a.queue_depth.cmp(&b.queue_depth)).then_with(|| a.worker.cmp(&b.worker))
    });
    ranked.into_iter().map(|(_, worker)| worker).collect()
}

/// Those that can take the prompt.
fn takers<'a>(settings: &PlacementSettings, pool: &PrefillPool<'a>) -> Vec<&'a PrefillWorker> {
    pool.workers.iter().filter(|worker| takes_more(worker, settings)).collect()
}

fn can_serve(worker: &PrefillWorker) -> bool {
    worker.ready && worker.compatible
}

fn takes_more(worker: &PrefillWorker, settings: &PlacementSettings) -> bool {
    can_serve(worker) && worker.queue_depth < settings.max_prefill_queue_depth
}

/// Measurements come from other processes: what cannot be a speed is none.
fn measured_speed(worker: &PrefillWorker) -> Option<f64> {
    worker.tokens_per_second.filter(|speed| speed.is_finite() && *speed > 0.0)
}

fn measured_transfer_ms(worker: &PrefillWorker) -> Option<f64> {
    worker.transfer_ms_per_block.filter(|ms| ms.is_finite() && *ms >= 0.0)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}
