//! Operations on each row (token) by itself: norms, rotary embedding, the MLP's activation.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, bail};
use rayon::prelude::*;

use super::kernels::{exp, sum_of_squares};
use super::simd::{Isa, Kernel, Lanes};
use super::tensors::rows;
use crate::backend::pool::Rows;

/// Elements that are worth a task of their own.
const TASK_ELEMENTS: usize = 1 << 14;

/// Calls `f(row index, input row, output row)` for every row, on several threads if it is worth it.
fn for_each_row(
    input: Rows<'_>,
    out: &mut [f32],
    out_width: usize,
    f: impl Fn(usize, &[f32], &mut [f32]) + Sync,
) {
    let per_task = (TASK_ELEMENTS / input.width.max(1)).max(1);
    let task = |(index, out): (usize, &mut [f32])| {
        for (offset, out) in out.chunks_exact_mut(out_width).enumerate() {
            let row = index * per_task + offset;
            f(row, input.row(row), out);
        }
    };
    if input.count <= per_task {
        task((0, out));
    } else {
        out.par_chunks_mut(per_task * out_width).enumerate().for_each(task);
    }
}

/// RMS norm: `[rows, width]` and weights `[width]` to `[rows, width]`.
pub(super) struct RmsNorm {
    pub(super) isa: Isa,
    pub(super) eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = rows(x, lx)?;
        let Some((start, end)) = lw.contiguous_offsets() else { bail!("{}: weights in pieces", self.name()) };
        let weight = &w.as_slice::<f32>()?[start..end];
        if weight.len() != x.width {
            bail!("{}: {} weights for rows of {}", self.name(), weight.len(), x.width);
        }
        let mut out = vec![0.0; x.count * x.width];
        for_each_row(x, &mut out, x.width, |_, row, out| {
            self.isa.run(NormRow { row, weight, eps: self.eps, out });
        });
        Ok((CpuStorage::F32(out), (x.count, x.width).into()))
    }
}

struct NormRow<'a> {
    row: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for NormRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let mean = sum_of_squares::<V>(self.row) / self.row.len() as f32;
        let scale = 1.0 / (mean + self.eps).sqrt();
        for ((out, x), weight) in self.out.iter_mut().zip(self.row).zip(self.weight) {
            *out = weight * (x * scale);
        }
    }
}

/// The gated activation of the MLP: rows of gate, then up, `[rows, 2 * width]` to `silu(gate) * up`, `[rows, width]`.
pub(super) struct SiluMul {
    pub(super) isa: Isa,
}

impl CustomOp1 for SiluMul {
    fn name(&self) -> &'static str {
        "silu-mul"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = rows(x, layout)?;
        let width = x.width / 2;
        let mut out = vec![0.0; x.count * width];
        for_each_row(x, &mut out, width, |_, row, out| {
            let (gate, up) = row.split_at(width);
            self.isa.run(SiluMulRow { gate, up, out });
        });
        Ok((CpuStorage::F32(out), (x.count, width).into()))
    }
}

struct SiluMulRow<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for SiluMulRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        for ((out, gate), up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

/// Cosines and sines for the tokens of a batch.
pub(super) struct RotaryTable {
    half: usize,
    /// `[tokens, 2, head_dim / 2]`: cosines, then sines.
    values: Vec<f32>,
}

impl RotaryTable {
    pub(super) fn new(frequencies: &[f32], positions: &[u32]) -> Self {
        let half = frequencies.len();
        let mut values = vec![0.0; positions.len() * 2 * half];
        values.par_chunks_mut(2 * half).with_min_len(64).zip(positions).for_each(|(row, &position)| {
            let (cos, sin) = row.split_at_mut(half);
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
                // In f64, so that after rounding the bits do not depend on the platform's library.
                let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                (*sin, *cos) = (s as f32, c as f32);
            }
        });
        Self { half, values }
    }
}

/// Rotary embedding of every head, `[tokens, heads * head_dim]`. Element `i` of a head pairs with `i + head_dim / 2`,
/// as in Hugging Face's weights.
pub(super) struct Rotary<'a> {
    pub(super) table: &'a RotaryTable,
}

impl CustomOp1 for Rotary<'_> {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = rows(x, layout)?;
        let half = self.table.half;
        if x.count * 2 * half != self.table.values.len() || !x.width.is_multiple_of(2 * half) {
            bail!("{}: {} rows of {} do not fit the table", self.name(), x.count, x.width);
        }
        let mut out = vec![0.0; x.count * x.width];
        for_each_row(x, &mut out, x.width, |token, row, out| {
            let (cos, sin) = self.table.values[token * 2 * half..][..2 * half].split_at(half);
            for (head, out) in row.chunks_exact(2 * half).zip(out.chunks_exact_mut(2 * half)) {
                let (a, b) = head.split_at(half);
                let (out_a, out_b) = out.split_at_mut(half);
                for i in 0..half {
                    out_a[i] = a[i] * cos[i] - b[i] * sin[i];
                    out_b[i] = b[i] * cos[i] + a[i] * sin[i];
                }
            }
        });
        Ok((CpuStorage::F32(out), (x.count, x.width).into()))
    }
}
