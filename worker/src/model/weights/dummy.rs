//! Random weights of any shape.

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

use super::TensorSource;
use crate::model::error::ModelError;

/// Standard deviation of matrices; what models are initialised with.
const STANDARD_DEVIATION: f32 = 0.02;

/// Weights that depend on the seed and on the tensor's name only: equal on every worker of a deployment.
#[derive(Clone, Copy, Debug)]
pub struct DummyWeights {
    seed: u64,
    standard_deviation: f32,
}

impl DummyWeights {
    /// Matrices and biases uniform around 0, norms 1.
    pub fn new(seed: u64) -> Self {
        Self { seed, standard_deviation: STANDARD_DEVIATION }
    }

    /// With another spread of the matrices.
    #[must_use]
    pub fn with_standard_deviation(self, standard_deviation: f32) -> Self {
        Self { standard_deviation, ..self }
    }

    /// Where a tensor's random numbers begin: the state of its generator.
    pub(crate) fn stream(self, name: &str) -> u64 {
        xxh3_64_with_seed(name.as_bytes(), self.seed)
    }

    /// Matrices are uniform over `(-width, width)`, whose standard deviation is `width / sqrt(3)`.
    pub(crate) fn width(self) -> f32 {
        self.standard_deviation * 3_f32.sqrt()
    }

    /// What tells these weights from others.
    pub(crate) fn digest(self) -> u128 {
        xxh3_128(format!("dummy {} {}", self.seed, self.standard_deviation).as_bytes())
    }
}

impl TensorSource for DummyWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let elements = shape.iter().product();
        if name.ends_with("norm.weight") {
            return Ok(vec![1.0; elements]);
        }
        let width = self.width();
        let mut state = self.stream(name);
        Ok((0..elements).map(|_| width * signed_unit(splitmix64(&mut state))).collect())
    }
}

/// Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The upper 24 bits as a number in `[-1, 1)`.
fn signed_unit(bits: u64) -> f32 {
    (bits >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_and_names_give_equal_weights() {
        let draw = |seed, name| DummyWeights::new(seed).tensor(name, &[64, 32]).expect("never fails");
        assert_eq!(draw(1, "a.weight"), draw(1, "a.weight"));
        assert_ne!(draw(1, "a.weight"), draw(2, "a.weight"));
        assert_ne!(draw(1, "a.weight"), draw(1, "b.weight"));
        let values = draw(1, "a.weight");
        let variance = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!((variance.sqrt() / STANDARD_DEVIATION - 1.0).abs() < 0.1, "{variance}");
        assert!(draw(1, "model.norm.weight").iter().all(|&v| v.to_bits() == 1_f32.to_bits()));
    }
}
