//! The table of rotary angles.

use super::CudaError;
use super::device::{Buffer, Device};
use crate::model::{ModelConfig, RopeScaling};

/// `[positions, head_dim]`: cosines of the first half of a head, then sines; angles in f64.
pub(super) fn rope_table(
    device: &Device,
    config: &ModelConfig,
    positions: u32,
) -> Result<Buffer<f32>, CudaError> {
    let half = config.head_dim / 2;
    let frequencies: Vec<f64> = (0..half)
        .map(|i| {
            let plain = f64::from(config.rope_theta).powf(-2.0 * i as f64 / config.head_dim as f64);
            match config.rope_scaling {
                RopeScaling::None => plain,
                RopeScaling::Linear { factor } => plain / f64::from(factor),
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                    let wavelength = std::f64::consts::TAU / plain;
                    let turns = f64::from(original_max_position) / wavelength;
                    let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
                    let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    plain * keep + plain / f64::from(factor) * (1.0 - keep)
                }
            }
        })
        .collect();
    let mut table = Vec::with_capacity(positions as usize * config.head_dim);
    for position in 0..positions {
        table.extend(frequencies.iter().map(|f| (f64::from(position) * f).cos() as f32));
        table.extend(frequencies.iter().map(|f| (f64::from(position) * f).sin() as f32));
    }
    device.upload("the RoPE table", &table)
}
