//! The rule at its edges, and the ranking.

use std::str::FromStr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn worker(name: &str) -> PrefillWorker {
    PrefillWorker {
        worker: WorkerId::new(name),
        ready: true,
        compatible: true,
        queue_depth: 0,
        queue_tokens: 0,
        tokens_per_second: Some(1000.0),
        overlap_tokens: 0,
        transfer_ms_per_block: Some(1.0),
    }
}

fn place(net_new: u32, settings: &PlacementSettings, workers: &[PrefillWorker]) -> (Placement, &'static str) {
    let placement = place_prefill(net_new, settings, &PrefillPool { workers });
    (placement, placement.reason().as_str())
}

fn rank(demand: PrefillDemand, workers: &[PrefillWorker]) -> Vec<String> {
    rank_prefill(demand, RoutingStrategy::Kv, &PlacementSettings::default(), &PrefillPool { workers })
        .iter()
        .map(ToString::to_string)
        .collect()
}

const DEMAND: PrefillDemand = PrefillDemand { prompt_tokens: 1000, transfer_blocks: 10, draw: 0 };

#[test]
fn the_threshold_is_strict() {
    let settings = PlacementSettings::default();
    assert_eq!((settings.max_local_prefill_length, settings.max_prefill_queue_depth), (512, 2));
    let pool = [worker("p0")];
    let local = Placement::Local { reason: PlacementReason::BelowThreshold };
    assert_eq!(place(0, &settings, &pool), (local, "below-threshold"));
    assert_eq!(place(512, &settings, &pool), (local, "below-threshold"));
    let remote = Placement::Remote { reason: PlacementReason::AboveThreshold };
    assert_eq!(place(513, &settings, &pool), (remote, "above-threshold"));
    assert_eq!(place(u32::MAX, &settings, &pool), (remote, "above-threshold"));
}

#[test]
fn a_queue_at_its_bound_takes_no_more() {
    let settings = PlacementSettings::default();
    let depth = |queue_depth| [PrefillWorker { queue_depth, ..worker("p0") }];
    assert!(matches!(place(513, &settings, &depth(1)).0, Placement::Remote { .. }));
    let local = Placement::Local { reason: PlacementReason::PrefillQueueFull };
    assert_eq!(place(513, &settings, &depth(2)).0, local);
    // One with room is enough.
    let two = [depth(9)[0].clone(), depth(1)[0].clone()];
    assert!(matches!(place(513, &settings, &two).0, Placement::Remote { .. }));
    // A bound of zero keeps everything local.
    let closed = PlacementSettings { max_prefill_queue_depth: 0, ..settings };
    assert_eq!(place(513, &closed, &depth(0)).0, local);
}

#[test]
fn workers_that_cannot_serve_are_none() {
    let unready = PrefillWorker { ready: false, ..worker("p0") };
    let other_model = PrefillWorker { compatible: false, ..worker("p1") };
    let reason = PlacementReason::NoPrefillWorker;
    for pool in [vec![], vec![unready.clone()], vec![unready.clone(), other_model.clone()]] {
        let settings = PlacementSettings::default();
        assert_eq!(place(513, &settings, &pool).0, Placement::Local { reason });
        let strict = PlacementSettings { fallback: FallbackPolicy::Fail, ..settings };
        assert_eq!(place(513, &strict, &pool).0, Placement::Refuse { reason });
        assert_eq!(rank(DEMAND, &pool), Vec::<String>::new());
    }
    // The policy is about needed prefill workers only.
    let strict = PlacementSettings { fallback: FallbackPolicy::Fail, ..PlacementSettings::default() };
    assert_eq!(place(512, &strict, &[]).0, Placement::Local { reason: PlacementReason::BelowThreshold });
    let full = [PrefillWorker { queue_depth: 2, ..worker("p0") }];
    assert_eq!(place(513, &strict, &full).0, Placement::Refuse { reason: PlacementReason::PrefillQueueFull });
}

#[test]
fn names_round_trip() {
    for reason in PlacementReason::ALL {
        assert_eq!(PlacementReason::from_str(reason.as_str()), Ok(reason));
    }
    let error = PlacementReason::from_str("Above-Threshold").expect_err("names are exact");
    assert_eq!(error.to_string(), r#""Above-Threshold" is not a placement reason"#);
    for policy in [FallbackPolicy::Local, FallbackPolicy::Fail] {
        assert_eq!(FallbackPolicy::from_str(policy.as_str()), Ok(policy));
    }
    assert!(FallbackPolicy::from_str("local").is_err());
}

#[test]
fn each_part_of_the_estimate_counts() {
    let base = worker("b");
    // 1000 tokens at 1000 tokens/s and 10 blocks at 1 ms: 1010 ms. Each variant differs in one argument.
    let busy = PrefillWorker { queue_tokens: 100, ..worker("busy") };
    let slow = PrefillWorker { tokens_per_second: Some(900.0), ..worker("slow") };
    let fast = PrefillWorker { tokens_per_second: Some(1100.0), ..worker("fast") };
    let cached = PrefillWorker { overlap_tokens: 500, ..worker("cached") };
    let far = PrefillWorker { transfer_ms_per_block: Some(5.0), ..worker("far") };
    let near = PrefillWorker { transfer_ms_per_block: Some(0.5), ..worker("near") };
    let pool = [busy, far, base, slow, near, cached, fast];
    assert_eq!(rank(DEMAND, &pool), ["cached", "fast", "near", "b", "far", "busy", "slow"]);
}

#[test]
fn a_prompt_that_is_cached_whole_still_costs_a_token() {
    let demand = PrefillDemand { prompt_tokens: 64, transfer_blocks: 1, draw: 0 };
    // 1 token at 10 tokens/s is 100 ms; without it the slow one would win by its faster transfer.
    let slow = PrefillWorker {
        overlap_tokens: 64,
        tokens_per_second: Some(10.0),
        transfer_ms_per_block: Some(0.0),
        ..worker("slow")
    };
    let other = PrefillWorker { overlap_tokens: 64, ..worker("other") };
    assert_eq!(rank(demand, &[slow, other]), ["other", "slow"]);
}

#[test]
fn what_is_not_measured_is_taken_as_the_mean() {
    let unknown = PrefillWorker { tokens_per_second: None, transfer_ms_per_block: None, ..worker("unknown") };
    let slow =
        PrefillWorker { tokens_per_second: Some(500.0), transfer_ms_per_block: Some(3.0), ..worker("slow") };
    let pool = [slow, unknown.clone(), worker("fast")];
    assert_eq!(rank(DEMAND, &pool), ["fast", "unknown", "slow"]);
    for nonsense in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
        let broken = PrefillWorker { tokens_per_second: Some(nonsense), ..unknown.clone() };
        let pool = [pool[0].clone(), broken, pool[2].clone()];
        assert_eq!(rank(DEMAND, &pool), ["fast", "unknown", "slow"]);
    }
}

#[test]
fn ties_go_to_the_shorter_queue_then_by_name() {
    let longer = PrefillWorker { queue_depth: 1, ..worker("a") };
    assert_eq!(rank(DEMAND, &[longer, worker("c"), worker("b")]), ["b", "c", "a"]);
}

#[test]
fn other_strategies_do_not_look_at_speeds_or_caches() {
    let cached = PrefillWorker { overlap_tokens: 1000, queue_depth: 1, queue_tokens: 5, ..worker("a") };
    let longer = PrefillWorker { overlap_tokens: 1000, queue_depth: 1, queue_tokens: 6, ..worker("c") };
    let pool = [longer, cached, PrefillWorker { tokens_per_second: Some(1.0), ..worker("b") }];
    let rank = |strategy, draw| {
        let demand = PrefillDemand { draw, ..DEMAND };
        let ranked =
            rank_prefill(demand, strategy, &PlacementSettings::default(), &PrefillPool { workers: &pool });
        ranked.iter().map(ToString::to_string).collect::<String>()
    };
    assert_eq!(rank(RoutingStrategy::LeastLoaded, 7), "bac");
    for strategy in [RoutingStrategy::RoundRobin, RoutingStrategy::Random] {
        assert_eq!([0, 1, 2, 3].map(|draw| rank(strategy, draw)), ["abc", "bca", "cab", "abc"]);
    }
}

fn any_worker() -> impl Strategy<Value = PrefillWorker> {
    let measured = || prop_oneof![Just(None), Just(Some(f64::NAN)), (0.0..1e6).prop_map(Some)];
    ("[a-z]{1,3}", any::<(bool, bool)>(), 0_u32..4, 0_u64..100_000, measured(), 0_u32..2000, measured())
        .prop_map(|(name, (ready, compatible), queue_depth, queue_tokens, speed, overlap, transfer)| {
            PrefillWorker {
                worker: WorkerId::new(name),
                ready,
                compatible,
                queue_depth,
                queue_tokens,
                tokens_per_second: speed,
                overlap_tokens: overlap,
                transfer_ms_per_block: transfer,
            }
        })
}

proptest! {
    /// Remote if and only if there is somebody to go to, and then the ranking names them.
    #[test]
    fn remote_and_ranking_agree(
        net_new in 0_u32..2000,
        threshold in 0_u32..2000,
        bound in 0_u32..4,
        workers in vec(any_worker(), 0..12),
        draw in any::<u64>(),
    ) {
        let settings = PlacementSettings {
            max_local_prefill_length: threshold,
            max_prefill_queue_depth: bound,
            fallback: FallbackPolicy::Local,
        };
        let pool = PrefillPool { workers: &workers };
        let takes = workers.iter().filter(|w| w.ready && w.compatible && w.queue_depth < bound).count();
        let remote = matches!(place_prefill(net_new, &settings, &pool), Placement::Remote { .. });
        prop_assert_eq!(remote, net_new > threshold && takes > 0);
        let demand = PrefillDemand { prompt_tokens: net_new, transfer_blocks: net_new.div_ceil(64), draw };
        let rank = |strategy, workers| rank_prefill(demand, strategy, &settings, &PrefillPool { workers });
        for strategy in RoutingStrategy::ALL {
            prop_assert_eq!(rank(strategy, &workers).len(), takes);
        }
        // The order of the pool does not matter, as long as names differ.
        let mut names: Vec<_> = workers.iter().map(|w| &w.worker).collect();
        names.sort();
        names.dedup();
        if names.len() == workers.len() {
            let reversed: Vec<PrefillWorker> = workers.iter().rev().cloned().collect();
            for strategy in RoutingStrategy::ALL {
                prop_assert_eq!(rank(strategy, &workers), rank(strategy, &reversed));
            }
        }
    }
}
