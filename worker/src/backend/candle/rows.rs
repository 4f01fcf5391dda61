//! Operations on each row (token) by itself: norms, rotary embedding, the MLP's activation, sums with vectors.

use rayon::prelude::*;

use super::kernels::{exp, sum_of_squares};
use super::simd::{Isa, Kernel, Lanes};
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

/// `to += from`, element by element.
pub(super) fn add(to: &mut [f32], from: &[f32]) {
    let parts = to.par_chunks_mut(TASK_ELEMENTS).zip(from.par_chunks(TASK_ELEMENTS));
    parts.for_each(|(to, from)| to.iter_mut().zip(from).for_each(|(to, from)| *to += from));
}

/// Adds `[width]` to every row of `[rows, width]`.
pub(super) fn add_to_each_row(to: &mut [f32], row: &[f32]) {
    to.par_chunks_mut(row.len()).with_min_len((TASK_ELEMENTS / row.len()).max(1)).for_each(|to| {
        to.iter_mut().zip(row).for_each(|(to, from)| *to += from);
    });
}

/// RMS norm: `[rows, width]` and weights `[width]` to `[rows, width]`.
pub(super) fn rms_norm(isa: Isa, x: Rows<'_>, weight: &[f32], eps: f32, out: &mut [f32]) {
    for_each_row(x, out, x.width, |_, row, out| isa.run(NormRow { row, weight, eps, out }));
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
pub(super) fn silu_mul(isa: Isa, x: Rows<'_>, out: &mut [f32]) {
    let width = x.width / 2;
    for_each_row(x, out, width, |_, row, out| {
        let (gate, up) = row.split_at(width);
        isa.run(SiluMulRow { gate, up, out });
    });
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

/// What becomes of the heads of queries or keys before they meet.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    /// Weights of an RMS norm of every head, `[head_dim]`.
    pub(super) norm: Option<&'a [f32]>,
    pub(super) eps: f32,
    /// For the tokens of the batch.
    pub(super) table: &'a RotaryTable,
}

impl Heads<'_> {
    /// Norms and turns every head, `[tokens, heads * head_dim]`.
    pub(super) fn apply(self, isa: Isa, x: Rows<'_>, out: &mut [f32]) {
        for_each_row(x, out, x.width, |token, row, out| isa.run(HeadsRow { heads: self, token, row, out }));
    }
}

/// The heads of one token.
struct HeadsRow<'a> {
    heads: Heads<'a>,
    token: usize,
    row: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for HeadsRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Heads { norm, eps, table } = self.heads;
        let half = table.half;
        let (cos, sin) = table.values[self.token * 2 * half..][..2 * half].split_at(half);
        for (row, out) in self.row.chunks_exact(2 * half).zip(self.out.chunks_exact_mut(2 * half)) {
            match norm {
                Some(weight) => NormRow { row, weight, eps, out }.run::<V>(),
                None => out.copy_from_slice(row),
            }
            rotate(out, cos, sin);
        }
    }
}

/// Rotary embedding of a head. Element `i` pairs with `i + head_dim / 2`, as in Hugging Face's weights.
#[inline(always)]
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for i in 0..cos.len() {
        let (a, b) = (first[i], second[i]);
        first[i] = a * cos[i] - b * sin[i];
        second[i] = b * cos[i] + a * sin[i];
    }
}
