//! Where the bytes of tensors come from, and their way into f32.

use rayon::prelude::*;

use crate::error::ModelError;

/// Number format of stored weights. `config.json` names the one to compute in; each tensor on disk has its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WeightFormat {
    /// 32-bit float, or nothing is said.
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit float.
    F16,
}

impl WeightFormat {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// Elements that one task reads and converts: enough that a read is worth its call, few enough that all cores get some
/// of a small tensor.
const TASK_ELEMENTS: usize = 1 << 20;

/// Tensors by name, as the bytes they are stored in: row-major, little-endian.
///
/// What reads them decides where they go and in which format they are kept, so nothing is converted that need not be.
pub trait TensorSource: Sync {
    /// Format of the tensor's elements. An error if it is not there, has another shape, or a format that is not
    /// supported.
    fn format(&self, name: &str, shape: &[usize]) -> Result<WeightFormat, ModelError>;

    /// Fills `out` with the tensor's bytes from `offset` on. Both are multiples of the element's size and within the
    /// tensor that [`Self::format`] has been asked about.
    fn read(&self, name: &str, offset: usize, out: &mut [u8]) -> Result<(), ModelError>;
}

/// Fills `out` with all elements of a tensor of `shape`, in parallel.
pub fn read_f32(
    source: &dyn TensorSource,
    name: &str,
    shape: &[usize],
    out: &mut [f32],
) -> Result<(), ModelError> {
    let format = source.format(name, shape)?;
    debug_assert_eq!(shape.iter().product::<usize>(), out.len());
    out.par_chunks_mut(TASK_ELEMENTS).enumerate().try_for_each_init(Vec::new, |bytes, (index, out)| {
        bytes.resize(out.len() * format.bytes(), 0);
        source.read(name, index * TASK_ELEMENTS * format.bytes(), bytes)?;
        match format {
            WeightFormat::F32 => convert(bytes, out, f32::from_le_bytes),
            WeightFormat::Bf16 => convert(bytes, out, |b| half::bf16::from_le_bytes(b).to_f32()),
            WeightFormat::F16 => convert(bytes, out, |b| half::f16::from_le_bytes(b).to_f32()),
        }
        Ok(())
    })
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], element: impl Fn([u8; N]) -> f32) {
    for (value, &chunk) in out.iter_mut().zip(bytes.as_chunks().0) {
        *value = element(chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts up, in one format.
    struct Counting(WeightFormat);

    impl TensorSource for Counting {
        fn format(&self, _: &str, _: &[usize]) -> Result<WeightFormat, ModelError> {
            Ok(self.0)
        }

        fn read(&self, _: &str, offset: usize, out: &mut [u8]) -> Result<(), ModelError> {
            let first = offset / self.0.bytes();
            for (index, out) in out.chunks_exact_mut(self.0.bytes()).enumerate() {
                let value = ((first + index) % 199) as f32;
                match self.0 {
                    WeightFormat::F32 => out.copy_from_slice(&value.to_le_bytes()),
                    WeightFormat::Bf16 => out.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
                    WeightFormat::F16 => out.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
                }
            }
            Ok(())
        }
    }

    #[test]
    fn every_format_is_read_in_pieces_that_fit_together() {
        let elements = 2 * TASK_ELEMENTS + 3;
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16] {
            let mut out = vec![f32::NAN; elements];
            read_f32(&Counting(format), "a", &[elements], &mut out).expect("never fails");
            let wrong = out
                .iter()
                .enumerate()
                .find(|&(index, &value)| value.to_bits() != ((index % 199) as f32).to_bits());
            assert_eq!(wrong, None, "{format:?}");
        }
    }
}
