//! Seeded noise for prompts and arrival times: the same seed, the same load, on every machine and in every version.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
pub(super) struct Random(u64);

impl Random {
    /// Of one `purpose` (a letter, say) and `number` under a seed; all are independent.
    pub(super) fn new(seed: u64, purpose: u64, number: u64) -> Self {
        let mut random = Self(seed);
        for part in [purpose, number] {
            random.0 = random.next().wrapping_add(part.wrapping_mul(0xd6e8_feb8_6659_fd93));
        }
        random
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `count` - 1, for counts far below 2^64, where the bias of a remainder is nothing.
    pub(super) fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    /// Seconds to the next event of a Poisson process with `rate` events a second.
    pub(super) fn exponential(&mut self, rate: f64) -> f64 {
        // In (0, 1]: its logarithm is finite.
        let uniform = ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        -uniform.ln() / rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_values_of_splitmix64() {
        let mut random = Random(1_234_567);
        let values: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(values, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn streams_differ_and_repeat() {
        let first = |seed, purpose, number| Random::new(seed, purpose, number).next();
        let all = [first(1, 0, 0), first(1, 0, 1), first(1, 1, 0), first(2, 0, 0)];
        for (at, value) in all.iter().enumerate() {
            assert!(!all[..at].contains(value), "{all:?}");
        }
        assert_eq!(first(1, 0, 1), all[1]);
    }

    #[test]
    fn gaps_are_exponential() {
        let mut random = Random::new(5, 0, 0);
        let gaps: Vec<f64> = (0..20_000).map(|_| random.exponential(4.0)).collect();
        let mean = gaps.iter().sum::<f64>() / 20_000.0;
        assert!((mean - 0.25).abs() < 0.01, "{mean}");
        // P(gap > mean) = 1/e: an even spread would give a half.
        let longer = gaps.iter().filter(|&&gap| gap > 0.25).count() as f64 / 20_000.0;
        assert!((longer - (-1.0_f64).exp()).abs() < 0.015, "{longer}");
    }
}
