//! Where one request goes: its decode worker, and whether and where its prompt is prefilled elsewhere. The rules are
//! `disagg-core`'s; this puts together what they ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use disagg_core::choice::{DecodeCandidate, DecodeDemand, choose_decode};
use disagg_core::placement::{PrefillDemand, PrefillPool, PrefillWorker, place_prefill, rank_prefill};
use disagg_core::{
    BlockHasher, ModelFingerprint, Placement, PlacementReason, PlacementSettings, RoutingStrategy,
    RoutingWeights, WorkerId,
};
use disagg_proto::limits::CANDIDATES_MAX;

use crate::workers::{ReadyWorker, Registry, Sending};

/// What is to be placed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand<'a> {
    pub fingerprint: ModelFingerprint,
    pub prompt: &'a [u32],
    pub cache_salt: &'a str,
}

/// What decides: the flag `--routing`, and the settings in force.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub strategy: RoutingStrategy,
    pub weights: RoutingWeights,
    pub placement: PlacementSettings,
}

/// Where it goes.
#[derive(Debug)]
pub(crate) struct Plan {
    pub decode: ReadyWorker,
    /// Prefill workers to try, best first; empty for a local prefill.
    pub prefill: Vec<ReadyWorker>,
    pub reason: PlacementReason,
    /// What it adds to the load of the decode worker, and of the first prefill worker.
    pub decode_load: Sending,
    pub prefill_load: Sending,
}

/// The part of a request for which a worker is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Decode,
    Prefill,
}

/// Where [`RoutingStrategy::RoundRobin`] is, for each phase. Routers share none of this.
#[derive(Debug, Default)]
pub(crate) struct RoundRobinCounters {
    decode: AtomicU64,
    prefill: AtomicU64,
}

impl RoundRobinCounters {
    /// The number that a strategy chooses one worker by, for one attempt. `random` is uniform, and the request's own.
    pub(crate) fn next(&self, strategy: RoutingStrategy, random: u128, phase: Phase) -> u64 {
        match (strategy, phase) {
            (RoutingStrategy::Kv | RoutingStrategy::LeastLoaded, _) => 0,
            (RoutingStrategy::RoundRobin, Phase::Decode) => self.decode.fetch_add(1, Ordering::Relaxed),
            (RoutingStrategy::RoundRobin, Phase::Prefill) => self.prefill.fetch_add(1, Ordering::Relaxed),
            (RoutingStrategy::Random, Phase::Decode) => random as u64,
            (RoutingStrategy::Random, Phase::Prefill) => (random >> 64) as u64,
        }
    }
}

/// Why it goes nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoPlan {
    /// No decode worker of this generation.
    NoDecodeWorker,
    /// It needs a prefill worker, and the policy is to fail without.
    Refused(PlacementReason),
}

/// Prompt tokens that each worker has cached, by what the index knows.
pub(crate) fn overlap_tokens(
    registry: &Registry,
    demand: Demand<'_>,
    workers: &[ReadyWorker],
) -> BTreeMap<WorkerId, u32> {
    let sizes: BTreeSet<u32> = workers.iter().map(|worker| worker.identity.block_size).collect();
    let mut tokens = BTreeMap::new();
    for size in sizes {
        let hashes = BlockHasher::new(demand.fingerprint, size, demand.cache_salt).hash_blocks(demand.prompt);
        // A block's identity depends on its size, so only workers with this size match.
        for (worker, blocks) in registry.overlap(&hashes) {
            tokens.insert(worker, blocks.saturating_mul(size));
        }
    }
    tokens
}

/// Decides where a request goes. `decoders` are the decode workers to choose from, all of the demand's generation;
/// `all` are all ready workers, for the prefill. `draw` is asked once for each choice that is made.
pub(crate) fn plan(
    demand: Demand<'_>,
    decoders: &[ReadyWorker],
    all: &[ReadyWorker],
    overlap: &BTreeMap<WorkerId, u32>,
    rules: &Rules,
    draw: impl Fn(Phase) -> u64,
) -> Result<Plan, NoPlan> {
    let prompt_tokens = demand.prompt.len() as u32;
    let overlap_of = |worker: &ReadyWorker| overlap.get(&worker.identity.name).copied().unwrap_or(0);
    let first = decoders.first().ok_or(NoPlan::NoDecodeWorker)?;
    // One unit for all, should their block sizes differ.
    let unit = first.identity.block_size;
    let candidates: Vec<DecodeCandidate> = decoders
        .iter()
        .map(|worker| DecodeCandidate {
            worker: worker.identity.name.clone(),
            blocks_total: worker.load.blocks_total,
            blocks_used: worker.load.blocks_used,
            waiting: worker.load.waiting,
            blocks_sent: worker.unreported.blocks,
            overlap_blocks: overlap_of(worker) / unit,
        })
        .collect();
    let blocks = DecodeDemand { prompt_blocks: prompt_tokens.div_ceil(unit), draw: draw(Phase::Decode) };
    let chosen = choose_decode(blocks, rules.strategy, rules.weights, &candidates);
    let decode = decoders[chosen.ok_or(NoPlan::NoDecodeWorker)?].clone();

    let block_size = decode.identity.block_size;
    let overlap_here = overlap_of(&decode);
    let net_new = prompt_tokens.saturating_sub(overlap_here);
    let others: Vec<&ReadyWorker> = all
        .iter()
        .filter(|worker| worker.identity.role.accepts_remote_prefill())
        .filter(|worker| worker.identity.fingerprint == demand.fingerprint)
        .filter(|worker| worker.identity.name != decode.identity.name)
        .collect();
    let workers: Vec<PrefillWorker> = others
        .iter()
        .map(|worker| PrefillWorker {
            worker: worker.identity.name.clone(),
            ready: true,
            compatible: worker.identity.kv_compat == decode.identity.kv_compat,
            queue_depth: worker.load.prefill_queue.saturating_add(worker.unreported.prefills),
            queue_tokens: worker.load.prefill_queue_tokens.saturating_add(worker.unreported.prefill_tokens),
            tokens_per_second: Some(worker.load.prefill_tokens_per_second).filter(|speed| *speed > 0.0),
            overlap_tokens: overlap_of(worker),
            transfer_ms_per_block: worker.transfer_ms_per_block(&decode.identity.name),
        })
        .collect();
    let pool = PrefillPool { workers: &workers };
    let placement = place_prefill(net_new, &rules.placement, &pool);
    let prefill = match placement {
        Placement::Local { .. } => Vec::new(),
        Placement::Refuse { reason } => return Err(NoPlan::Refused(reason)),
        Placement::Remote { .. } => {
            let blocks = prompt_tokens.div_ceil(block_size);
            let demand = PrefillDemand {
                prompt_tokens,
                transfer_blocks: blocks.saturating_sub(overlap_here / block_size),
                draw: draw(Phase::Prefill),
            };
            let named = |name: &WorkerId| others.iter().find(|worker| worker.identity.name == *name);
            rank_prefill(demand, rules.strategy, &rules.placement, &pool)
                .iter()
                .filter_map(named)
                .take(CANDIDATES_MAX as usize)
                .map(|w| (*w).clone())
                .collect()
        }
    };
    let prefill_tokens = prefill.first().map_or(0, |worker| prompt_tokens.saturating_sub(overlap_of(worker)));
    Ok(Plan {
        decode_load: Sending {
            blocks: prompt_tokens.div_ceil(block_size).saturating_sub(overlap_here / block_size),
            ..Sending::default()
        },
        prefill_load: Sending { blocks: 0, prefills: 1, prefill_tokens: prefill_tokens.into() },
        decode,
        prefill,
        reason: placement.reason(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workers::test_worker;
    use disagg_core::Role;

    const PROMPT: [u32; 100] = [7; 100];

    fn settings(max_local_prefill_length: u32) -> PlacementSettings {
        PlacementSettings { max_local_prefill_length, ..PlacementSettings::default() }
    }

    fn place(
        all: &[ReadyWorker],
        overlap: &[(&str, u32)],
        settings: &PlacementSettings,
    ) -> Result<Plan, NoPlan> {
        place_weighing(RoutingWeights::default(), all, overlap, settings)
    }

    fn place_weighing(
        weights: RoutingWeights,
        all: &[ReadyWorker],
        overlap: &[(&str, u32)],
        settings: &PlacementSettings,
    ) -> Result<Plan, NoPlan> {
        let demand = Demand { fingerprint: ModelFingerprint(1), prompt: &PROMPT, cache_salt: "" };
        let decoders: Vec<ReadyWorker> =
            all.iter().filter(|worker| worker.identity.role.decodes()).cloned().collect();
        let overlap = overlap.iter().map(|(name, tokens)| (WorkerId::new(*name), *tokens)).collect();
        let rules = Rules { strategy: RoutingStrategy::Kv, weights, placement: *settings };
        plan(demand, &decoders, all, &overlap, &rules, |_| 0)
    }

    fn names(workers: &[ReadyWorker]) -> Vec<&str> {
        workers.iter().map(|worker| worker.identity.name.as_str()).collect()
    }

    #[tokio::test]
    async fn long_prompts_go_to_compatible_prefill_workers() {
        let mut other_layout = test_worker("p-other", Role::Prefill);
        let identity = crate::workers::Identity {
            kv_compat: disagg_core::KvCompat(9),
            ..(*other_layout.identity).clone()
        };
        other_layout.identity = std::sync::Arc::new(identity);
        let mut busy = test_worker("p-busy", Role::Prefill);
        busy.unreported.prefills = 1;
        busy.unreported.prefill_tokens = 50;
        let all = [test_worker("d", Role::Decode), busy, other_layout, test_worker("p", Role::Prefill)];
        let plan = place(&all, &[], &settings(99)).unwrap();
        assert_eq!(plan.decode.identity.name.as_str(), "d");
        assert_eq!(names(&plan.prefill), ["p", "p-busy"]);
        assert_eq!(plan.reason, PlacementReason::AboveThreshold);
        assert_eq!(plan.decode_load.blocks, 25);
        assert_eq!(plan.prefill_load.prefill_tokens, 100);
    }

    #[tokio::test]
    async fn the_pair_that_transfers_faster_is_preferred() {
        let measured = |name, bytes_per_second: f64| {
            let mut worker = test_worker(name, Role::Prefill);
            let transfers =
                BTreeMap::from([(WorkerId::new("d"), bytes_per_second), (WorkerId::new("x"), 1e12)]);
            worker.transfers = std::sync::Arc::new(transfers);
            worker
        };
        let all = [test_worker("d", Role::Decode), measured("p-far", 1e6), measured("p-near", 1e8)];
        assert_eq!(names(&place(&all, &[], &settings(0)).unwrap().prefill), ["p-near", "p-far"]);
        // 1000 bytes a block.
        assert_eq!(all[1].transfer_ms_per_block(&WorkerId::new("d")), Some(1.0));
        assert_eq!(all[1].transfer_ms_per_block(&WorkerId::new("y")), None);
        assert_eq!(measured("p", f64::NAN).transfer_ms_per_block(&WorkerId::new("d")), None);
    }

    #[test]
    fn each_strategy_draws_what_it_needs() {
        let draws = RoundRobinCounters::default();
        let random = 5 | (7 << 64);
        let next = |strategy, phase| draws.next(strategy, random, phase);
        assert_eq!(
            (next(RoutingStrategy::Kv, Phase::Decode), next(RoutingStrategy::LeastLoaded, Phase::Decode)),
            (0, 0)
        );
        assert_eq!([(); 3].map(|()| next(RoutingStrategy::RoundRobin, Phase::Decode)), [0, 1, 2]);
        // Local prefills between remote ones do not disturb the turns of prefill workers.
        assert_eq!([(); 2].map(|()| next(RoutingStrategy::RoundRobin, Phase::Prefill)), [0, 1]);
        assert_eq!(next(RoutingStrategy::Random, Phase::Decode), 5);
        assert_eq!(next(RoutingStrategy::Random, Phase::Prefill), 7);
    }

    #[tokio::test]
    async fn what_is_cached_does_not_count() {
        let all = [test_worker("d", Role::Decode), test_worker("p", Role::Prefill)];
        let plan = place(&all, &[("d", 60)], &settings(40)).unwrap();
        assert_eq!((names(&plan.prefill).len(), plan.reason), (0, PlacementReason::BelowThreshold));
        let plan = place(&all, &[("d", 60)], &settings(39)).unwrap();
        assert_eq!(names(&plan.prefill), ["p"]);
    }

    #[tokio::test]
    async fn what_was_sent_since_the_report_fills_a_queue() {
        let mut full = test_worker("p", Role::Prefill);
        full.load.prefill_queue = 1;
        full.unreported.prefills = 1;
        let all = [test_worker("d", Role::Decode), full];
        assert_eq!(place(&all, &[], &settings(0)).unwrap().reason, PlacementReason::PrefillQueueFull);
        let failing = PlacementSettings { fallback: disagg_core::FallbackPolicy::Fail, ..settings(0) };
        let refused = place(&all, &[], &failing).unwrap_err();
        assert_eq!(refused, NoPlan::Refused(PlacementReason::PrefillQueueFull));
    }

    #[tokio::test]
    async fn a_worker_of_both_roles_does_not_prefill_for_itself() {
        let alone = [test_worker("b", Role::Both)];
        assert_eq!(place(&alone, &[], &settings(0)).unwrap().reason, PlacementReason::NoPrefillWorker);
        let two = [test_worker("a", Role::Both), test_worker("b", Role::Both)];
        let plan = place(&two, &[("a", 40), ("b", 80)], &settings(0)).unwrap();
        assert_eq!((plan.decode.identity.name.as_str(), names(&plan.prefill)), ("b", vec!["a"]));
    }

    #[tokio::test]
    async fn the_weight_in_force_decides_between_cache_and_load() {
        let mut cached = test_worker("cached", Role::Decode);
        cached.load.blocks_used = 10;
        let all = [cached, test_worker("idle", Role::Decode)];
        // 15 blocks of 4 tokens are cached, against 10 of load.
        let decode = |overlap_percent| {
            let weights = RoutingWeights { overlap_percent };
            let plan = place_weighing(weights, &all, &[("cached", 60)], &settings(512)).unwrap();
            plan.decode.identity.name.to_string()
        };
        assert_eq!([decode(100), decode(67), decode(66), decode(0)], ["cached", "cached", "idle", "idle"]);
    }

    #[tokio::test]
    async fn no_more_prefill_workers_are_proposed_than_a_request_may_name() {
        let prefill = (0..=CANDIDATES_MAX).map(|number| test_worker(&format!("p-{number}"), Role::Prefill));
        let all: Vec<_> = std::iter::once(test_worker("d", Role::Decode)).chain(prefill).collect();
        let plan = place(&all, &[], &settings(0)).unwrap();
        assert_eq!(plan.prefill.len(), CANDIDATES_MAX as usize);
        assert_eq!(plan.prefill[0].identity.name.as_str(), "p-0", "the best are kept");
    }

    #[tokio::test]
    async fn nothing_to_decode_on_is_no_plan() {
        let all = [test_worker("p", Role::Prefill)];
        assert_eq!(place(&all, &[], &settings(0)).unwrap_err(), NoPlan::NoDecodeWorker);
    }
}
