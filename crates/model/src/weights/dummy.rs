//! Random weights of any shape.

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

use super::{TensorSource, WeightFormat};
use crate::error::ModelError;

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
    pub fn stream(self, name: &str) -> u64 {
        xxh3_64_with_seed(name.as_bytes(), self.seed)
    }

    /// Matrices are uniform over `(-width, width)`, whose standard deviation is `width / sqrt(3)`.
    pub fn width(self) -> f32 {
        self.standard_deviation * 3_f32.sqrt()
    }

    /// What tells these weights from others.
    pub(crate) fn digest(self) -> u128 {
        xxh3_128(format!("dummy {} {}", self.seed, self.standard_deviation).as_bytes())
    }
}

impl TensorSource for DummyWeights {
    fn format(&self, _name: &str, _shape: &[usize]) -> Result<WeightFormat, ModelError> {
        Ok(WeightFormat::F32)
    }

    fn read(&self, name: &str, offset: usize, out: &mut [u8]) -> Result<(), ModelError> {
        let (values, _) = out.as_chunks_mut();
        if name.ends_with("norm.weight") {
            values.fill(1_f32.to_le_bytes());
            return Ok(());
        }
        let (stream, width) = (self.stream(name), self.width());
        let first = offset / size_of::<f32>();
        for (index, value) in values.iter_mut().enumerate() {
            *value = (width * signed_unit(splitmix64(stream, (first + index) as u64))).to_le_bytes();
        }
        Ok(())
    }
}

/// Number `index` of the stream that begins at `seed`: a counter goes up by a constant, and its bits are mixed.
/// Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
fn splitmix64(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
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

    fn draw(seed: u64, name: &str, offset: usize, elements: usize) -> Vec<f32> {
        let mut bytes = vec![0; elements * 4];
        DummyWeights::new(seed).read(name, offset * 4, &mut bytes).expect("never fails");
        bytes.as_chunks().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect()
    }

    #[test]
    fn equal_seeds_and_names_give_equal_weights() {
        let draw = |seed, name| super::tests::draw(seed, name, 0, 64 * 32);
        assert_eq!(draw(1, "a.weight"), draw(1, "a.weight"));
        assert_ne!(draw(1, "a.weight"), draw(2, "a.weight"));
        assert_ne!(draw(1, "a.weight"), draw(1, "b.weight"));
        let values = draw(1, "a.weight");
        let variance = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!((variance.sqrt() / STANDARD_DEVIATION - 1.0).abs() < 0.1, "{variance}");
        assert_eq!(values[100..], super::tests::draw(1, "a.weight", 100, values.len() - 100));
        assert!(draw(1, "model.norm.weight").iter().all(|&v| v.to_bits() == 1_f32.to_bits()));
    }
}
