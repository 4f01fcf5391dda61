//! Which decode worker serves a request.
//!
//! Loads and savings are compared in one unit, KV blocks: what a worker lacks of the prompt has to be computed, and
//! what it holds has to be read at every decode step. So a cached prefix is worth as many blocks of load as it has.
//! Every choice is a pure function of its arguments, and ties never depend on the order of the candidates.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::ids::WorkerId;

/// How workers are chosen: `kv` by what they have cached of the prompt and by their load, `least-loaded` by load alone,
/// `round-robin` in turn, `random` at random. The default is `kv`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum RoutingStrategy {
    /// Longest cached prefix, weighed against load.
    #[default]
    Kv,
    /// Least load, whatever is cached where.
    LeastLoaded,
    /// Each in turn, in order of name.
    RoundRobin,
    /// Any.
    Random,
}

impl RoutingStrategy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Kv, Self::LeastLoaded, Self::RoundRobin, Self::Random];

    /// The name used in flags, settings and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kv => "kv",
            Self::LeastLoaded => "least-loaded",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
        }
    }
}

impl fmt::Display for RoutingStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name is none of a strategy's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("routing strategy {0:?} is none of kv, least-loaded, round-robin, random")]
pub struct UnknownRoutingStrategy(String);

impl FromStr for RoutingStrategy {
    type Err = UnknownRoutingStrategy;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|strategy| strategy.as_str() == name)
            .ok_or_else(|| UnknownRoutingStrategy(name.to_owned()))
    }
}

/// How [`RoutingStrategy::Kv`] weighs cached blocks against load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoutingWeights {
    /// What a block of the prompt that the worker has cached is worth, in percent of a block that it holds or has
    /// promised.
    pub overlap_percent: u32,
}

impl Default for RoutingWeights {
    fn default() -> Self {
        Self { overlap_percent: 100 }
    }
}

/// A decode worker that could serve the request: ready, of the chosen generation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DecodeCandidate {
    /// Its name.
    pub worker: WorkerId,
    /// Blocks in its pool.
    pub blocks_total: u32,
    /// Of these, held by sequences, handoffs or quarantine, as last reported.
    pub blocks_used: u32,
    /// Requests that wait there, as last reported. They hold no blocks yet and are counted as large as this one.
    pub waiting: u32,
    /// Blocks needed by requests that were sent there since that report.
    pub blocks_sent: u32,
    /// Leading blocks of the prompt that it has cached.
    pub overlap_blocks: u32,
}

impl DecodeCandidate {
    /// Blocks held or promised there.
    fn load_blocks(&self, request_blocks: u32) -> u64 {
        u64::from(self.blocks_used)
            + u64::from(self.blocks_sent)
            + u64::from(self.waiting) * u64::from(request_blocks)
    }

    /// Blocks of the prompt that it would have to get.
    fn missing_blocks(&self, request_blocks: u32) -> u32 {
        request_blocks.saturating_sub(self.overlap_blocks)
    }

    /// Whether the request would have to wait for others to end.
    fn is_full(&self, request_blocks: u32) -> bool {
        self.load_blocks(request_blocks) + u64::from(self.missing_blocks(request_blocks))
            > u64::from(self.blocks_total)
    }
}

/// What is to be placed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct DecodeDemand {
    /// Blocks of the prompt, a partial last one included.
    pub prompt_blocks: u32,
    /// For [`RoutingStrategy::RoundRobin`] a number that counts up from request to request, for
    /// [`RoutingStrategy::Random`] one that is uniform over `u64`; the others do not look at it.
    pub draw: u64,
}

/// Chooses the decode worker: the index into `candidates`, or `None` if there are none.
///
/// Ties are broken by load, then by name.
pub fn choose_decode(
    demand: DecodeDemand,
    strategy: RoutingStrategy,
    weights: RoutingWeights,
    candidates: &[DecodeCandidate],
) -> Option<usize> {
    rank_decode(demand, strategy, weights, candidates).first().copied()
}

/// All candidates as indices, the one to choose at the front.
fn rank_decode(
    demand: DecodeDemand,
    strategy: RoutingStrategy,
    weights: RoutingWeights,
    candidates: &[DecodeCandidate],
) -> Vec<usize> {
    let blocks = demand.prompt_blocks;
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    let by_name = |a: &usize, b: &usize| candidates[*a].worker.cmp(&candidates[*b].worker);
    let by_load = |a: &usize, b: &usize| {
        let (a, b) = (&candidates[*a], &candidates[*b]);
        // A full worker makes the request wait, which no cached prefix makes up for.
        a.is_full(blocks)
            .cmp(&b.is_full(blocks))
            .then_with(|| a.load_blocks(blocks).cmp(&b.load_blocks(blocks)))
    };
    let by_cost = |a: &usize, b: &usize| -> Ordering {
        let (a, b) = (&candidates[*a], &candidates[*b]);
        let cost = |candidate: &DecodeCandidate| {
            let missing = u64::from(candidate.missing_blocks(blocks));
            // 128 bits: a report of any size from a worker must not overflow.
            u128::from(missing * u64::from(weights.overlap_percent))
                + u128::from(candidate.load_blocks(blocks)) * 100
        };
        a.is_full(blocks).cmp(&b.is_full(blocks)).then_with(|| cost(a).cmp(&cost(b)))
    };
    match strategy {
        RoutingStrategy::Kv => {
            order.sort_by(|a, b| by_cost(a, b).then_with(|| by_load(a, b)).then_with(|| by_name(a, b)));
        }
        RoutingStrategy::LeastLoaded => {
            order.sort_by(|a, b| by_load(a, b).then_with(|| by_name(a, b)));
        }
        RoutingStrategy::RoundRobin | RoutingStrategy::Random => {
            order.sort_by(by_name);
            if !order.is_empty() {
                let first = demand.draw % order.len() as u64;
                order.rotate_left(first as usize);
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn worker(name: &str) -> DecodeCandidate {
        DecodeCandidate {
            worker: WorkerId::new(name),
            blocks_total: 1000,
            blocks_used: 100,
            waiting: 0,
            blocks_sent: 0,
            overlap_blocks: 0,
        }
    }

    const DEMAND: DecodeDemand = DecodeDemand { prompt_blocks: 20, draw: 0 };

    fn ranked(
        strategy: RoutingStrategy,
        demand: DecodeDemand,
        candidates: &[DecodeCandidate],
    ) -> Vec<String> {
        rank_decode(demand, strategy, RoutingWeights::default(), candidates)
            .into_iter()
            .map(|index| candidates[index].worker.to_string())
            .collect()
    }

    #[test]
    fn a_cached_prefix_is_worth_its_blocks_of_load() {
        let cached =
            |overlap_blocks, blocks_used| DecodeCandidate { blocks_used, overlap_blocks, ..worker("cached") };
        let other = worker("other");
        assert_eq!(ranked(RoutingStrategy::Kv, DEMAND, &[other.clone(), cached(15, 114)])[0], "cached");
        assert_eq!(ranked(RoutingStrategy::Kv, DEMAND, &[other.clone(), cached(15, 116)])[0], "other");
        // Equal cost: the load breaks the tie.
        assert_eq!(ranked(RoutingStrategy::Kv, DEMAND, &[cached(15, 115), other.clone()])[0], "other");
        // What is cached beyond the prompt is worth nothing.
        assert_eq!(ranked(RoutingStrategy::Kv, DEMAND, &[other, cached(99, 121)])[0], "other");
    }

    #[test]
    fn weights_shift_the_balance() {
        let cached = DecodeCandidate { overlap_blocks: 10, blocks_used: 119, ..worker("cached") };
        let candidates = [worker("other"), cached];
        let choose = |overlap_percent| {
            choose_decode(DEMAND, RoutingStrategy::Kv, RoutingWeights { overlap_percent }, &candidates)
        };
        // 10 blocks cached against 19 of load.
        assert_eq!(choose(100), Some(0));
        assert_eq!(choose(189), Some(0));
        assert_eq!(choose(191), Some(1));
        assert_eq!(choose(0), Some(0));
    }

    #[test]
    fn what_was_sent_and_what_waits_is_load() {
        let sent = DecodeCandidate { blocks_used: 50, blocks_sent: 51, ..worker("sent") };
        let waiting = DecodeCandidate { blocks_used: 50, waiting: 3, ..worker("waiting") };
        for strategy in [RoutingStrategy::Kv, RoutingStrategy::LeastLoaded] {
            let order = ranked(strategy, DEMAND, &[waiting.clone(), sent.clone(), worker("idle")]);
            assert_eq!(order, ["idle", "sent", "waiting"]);
        }
    }

    #[test]
    fn a_full_worker_comes_last_whatever_it_has_cached() {
        let full = |blocks_used| DecodeCandidate {
            blocks_total: 200,
            blocks_used,
            overlap_blocks: 19,
            ..worker("small")
        };
        let large = DecodeCandidate { blocks_used: 400, ..worker("large") };
        for strategy in [RoutingStrategy::Kv, RoutingStrategy::LeastLoaded] {
            assert_eq!(ranked(strategy, DEMAND, &[large.clone(), full(199)])[0], "small");
            assert_eq!(ranked(strategy, DEMAND, &[large.clone(), full(200)])[0], "large");
        }
    }

    #[test]
    fn least_loaded_does_not_look_at_the_cache() {
        let cached = DecodeCandidate { overlap_blocks: 20, blocks_used: 101, ..worker("cached") };
        assert_eq!(ranked(RoutingStrategy::LeastLoaded, DEMAND, &[cached, worker("other")])[0], "other");
    }

    #[test]
    fn round_robin_goes_by_name_and_leaves_nobody_out() {
        let candidates = [worker("c"), worker("a"), worker("b")];
        let chosen: Vec<String> = (0..6)
            .map(|draw| {
                ranked(RoutingStrategy::RoundRobin, DecodeDemand { draw, ..DEMAND }, &candidates)[0].clone()
            })
            .collect();
        assert_eq!(chosen, ["a", "b", "c", "a", "b", "c"]);
        let last = DecodeDemand { draw: u64::MAX, ..DEMAND };
        assert_eq!(ranked(RoutingStrategy::Random, last, &candidates), ["a", "b", "c"]);
    }

    #[test]
    fn nobody_is_chosen_from_nobody() {
        for strategy in RoutingStrategy::ALL {
            assert_eq!(choose_decode(DEMAND, strategy, RoutingWeights::default(), &[]), None);
        }
    }

    #[test]
    fn names_round_trip() {
        for strategy in RoutingStrategy::ALL {
            assert_eq!(strategy.as_str().parse(), Ok(strategy));
        }
        assert!("prefix".parse::<RoutingStrategy>().is_err());
    }

    proptest! {
        /// Every candidate is ranked once, and the order they are listed in does not matter.
        #[test]
        fn the_order_of_candidates_does_not_matter(
            loads in vec((0_u32..4, 0_u32..3, 0_u32..3, 0_u32..4), 0..8),
            draw in any::<u64>(),
            rotate in 0_usize..8,
        ) {
            let candidates: Vec<DecodeCandidate> = loads
                .iter()
                .enumerate()
                .map(|(i, (blocks_used, waiting, blocks_sent, overlap_blocks))| DecodeCandidate {
                    blocks_total: 10,
                    blocks_used: *blocks_used,
                    waiting: *waiting,
                    blocks_sent: *blocks_sent,
                    overlap_blocks: *overlap_blocks,
                    ..worker(&format!("w{i}"))
                })
                .collect();
            let mut rotated = candidates.clone();
            rotated.rotate_left(rotate.checked_rem(candidates.len()).unwrap_or(0));
            let demand = DecodeDemand { prompt_blocks: 3, draw };
            for strategy in RoutingStrategy::ALL {
                let order = ranked(strategy, demand, &candidates);
                prop_assert_eq!(&order, &ranked(strategy, demand, &rotated));
                let mut names = order;
                names.sort();
                names.dedup();
                prop_assert_eq!(names.len(), candidates.len());
            }
        }
    }
}
