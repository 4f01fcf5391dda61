//! How numbers are stored on the device: in the format that the model was published in, where that has 16 bits.

use cudarc::cublaslt::sys::{cudaDataType, cudaDataType_t};
use cudarc::driver::sys::CUtensorMapDataType;
use disagg_engine::KvDtype;
use half::{bf16, f16};

use crate::model::{ModelSpec, WeightFormat};

/// Bits of one stored number.
pub type Bits = u16;

/// Format of weights, activations and KV. Sums are float in either.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Format {
    /// The range of a float, 8 bits of precision.
    Bf16,
    /// 11 bits of precision, up to 65,504; larger results become infinite.
    F16,
}

impl Format {
    /// f16 for models that are published so, bf16 for others: weights in f32 are rounded to it.
    pub fn of(spec: &ModelSpec) -> Self {
        match spec.weight_format {
            WeightFormat::F16 => Self::F16,
            WeightFormat::Bf16 | WeightFormat::F32 => Self::Bf16,
        }
    }

    /// Whether numbers stored in `weights` are kept as they are.
    pub(super) fn stores(self, weights: WeightFormat) -> bool {
        matches!((self, weights), (Self::Bf16, WeightFormat::Bf16) | (Self::F16, WeightFormat::F16))
    }

    /// The same for the KV pool.
    pub fn kv(self) -> KvDtype {
        match self {
            Self::Bf16 => KvDtype::Bf16,
            Self::F16 => KvDtype::F16,
        }
    }

    /// Rounds to nearest, ties to even.
    pub fn encode(self, value: f32) -> u16 {
        match self {
            Self::Bf16 => bf16::from_f32(value).to_bits(),
            Self::F16 => f16::from_f32(value).to_bits(),
        }
    }

    /// What the bits stand for.
    pub fn decode(self, bits: u16) -> f32 {
        match self {
            Self::Bf16 => bf16::from_bits(bits).to_f32(),
            Self::F16 => f16::from_bits(bits).to_f32(),
        }
    }

    /// As cublasLt calls it.
    pub(super) fn blas(self) -> cudaDataType {
        match self {
            Self::Bf16 => cudaDataType_t::CUDA_R_16BF,
            Self::F16 => cudaDataType_t::CUDA_R_16F,
        }
    }

    /// As a tensor map calls it.
    pub(super) fn tensor_map(self) -> CUtensorMapDataType {
        match self {
            Self::Bf16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            Self::F16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_to_nearest_even_and_come_back() {
        // One unit in the last place of 1 is 2^-7 in bf16 and 2^-10 in f16.
        for (format, last) in [(Format::Bf16, 2_f32.powi(-7)), (Format::F16, 2_f32.powi(-10))] {
            // Equal to the bit.
            let rounds_to = |value: f32, want: f32| {
                assert_eq!(
                    format.decode(format.encode(value)).to_bits(),
                    want.to_bits(),
                    "{value} as {format:?}"
                );
            };
            rounds_to(1.0 + last, 1.0 + last);
            // A tie goes to the even one.
            rounds_to(1.0 + last / 2.0, 1.0);
            rounds_to(1.0 + 1.5 * last, 1.0 + 2.0 * last);
            rounds_to(1e6, if format == Format::Bf16 { 999_424.0 } else { f32::INFINITY });
            assert!(format.decode(format.encode(f32::NAN)).is_nan());
        }
    }
}
