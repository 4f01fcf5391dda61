//! The table of rotary angles.

use super::CudaError;
use super::device::{Buffer, Device};
use crate::model::ModelSpec;

/// `[positions, head_dim]`: cosines of the first half of a head, then sines; angles in f64.
pub(super) fn rope_table(
    device: &Device,
    spec: &ModelSpec,
    positions: u32,
) -> Result<Buffer<f32>, CudaError> {
    let frequencies = spec.rope.frequencies(spec.head_dim);
    let mut table = Vec::with_capacity(positions as usize * spec.head_dim);
    for position in 0..positions {
        table.extend(frequencies.iter().map(|f| (f64::from(position) * f).cos() as f32));
        table.extend(frequencies.iter().map(|f| (f64::from(position) * f).sin() as f32));
    }
    device.upload("the RoPE table", &table)
}
