//! Matrix product with a weight matrix.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::kernels::products;
use super::simd::{Isa, Kernel, Lanes};
use super::tensors::rows;
use super::weights::Linear;
use crate::backend::pool::Rows;

/// Rows of the input in one task: they stay in the cache while weights stream by.
const TASK_ROWS: usize = 64;

/// Multiply-adds that are worth a task of their own.
const TASK_WORK: usize = 1 << 17;

/// Applies `linear` to `x`, `[tokens, in]` to `[tokens, out]`.
pub(super) fn linear(isa: Isa, x: &Tensor, linear: &Linear) -> Result<Tensor> {
    let y = x.apply_op2_no_bwd(&linear.weight, &MatMul { isa })?;
    match &linear.bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// `x` times the transpose of `w`: `[tokens, in]` and `[out, in]` to `[tokens, out]`.
///
/// An element's bits depend on its row of `x` and its row of `w` alone. The general product of a tensor library
/// chooses its order of summation by the number of rows; then a token computed in a batch, in a chunk, or on another
/// worker would differ in the last bits, and greedy decoding would now and then take another turn.
pub(super) struct MatMul {
    /// What to compute with.
    pub(super) isa: Isa,
}

impl CustomOp2 for MatMul {
    fn name(&self) -> &'static str {
        "batch-invariant-matmul"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (rows(x, lx)?, rows(w, lw)?);
        if x.width != w.width {
            bail!("{}: rows of {} elements and of {}", self.name(), x.width, w.width);
        }
        let mut out = vec![0.0; x.count * w.count];
        matmul(self.isa, x, w, &mut out);
        Ok((CpuStorage::F32(out), (x.count, w.count).into()))
    }
}

/// `out` is `[x.count, w.count]`.
fn matmul(isa: Isa, x: Rows<'_>, w: Rows<'_>, out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    let task_cols = columns_per_task(x, w);
    let mut tasks = Vec::new();
    for (index, out) in out.chunks_mut(TASK_ROWS * w.count).enumerate() {
        let x = part(x, index * TASK_ROWS, TASK_ROWS);
        let mut by_row: Vec<_> = out.chunks_mut(w.count).map(|row| row.chunks_mut(task_cols)).collect();
        for first in (0..w.count).step_by(task_cols) {
            let out = by_row.iter_mut().filter_map(Iterator::next).collect();
            tasks.push(Task { x, w: part(w, first, task_cols), out });
        }
    }
    if tasks.len() == 1 {
        for task in tasks {
            isa.run(task);
        }
    } else {
        tasks.into_par_iter().for_each(|task| isa.run(task));
    }
}

/// Enough columns to be worth a task, few enough that every thread gets some.
fn columns_per_task(x: Rows<'_>, w: Rows<'_>) -> usize {
    let rows = x.count.min(TASK_ROWS);
    let worth_it = (TASK_WORK / (rows * x.width).max(1)).max(16);
    let row_blocks = x.count.div_ceil(TASK_ROWS);
    // A few tasks for each thread even out what other work on the machine slows down.
    let fair = w.count.div_ceil((4 * rayon::current_num_threads()).div_ceil(row_blocks));
    fair.max(worth_it).min(w.count)
}

fn part(rows: Rows<'_>, first: usize, count: usize) -> Rows<'_> {
    let count = count.min(rows.count - first);
    Rows { data: &rows.data[first * rows.stride..], count, ..rows }
}

/// A block of the product.
struct Task<'a> {
    x: Rows<'a>,
    w: Rows<'a>,
    /// The block's part of every row.
    out: Vec<&'a mut [f32]>,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(mut self) {
        products::<V>(self.x, self.w, |row, col, product| self.out[row][col] = product);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    fn product(isa: Isa, x: &[f32], w: &[f32], width: usize) -> Vec<f32> {
        let (x, w) = (Rows::dense(x, width), Rows::dense(w, width));
        let mut out = vec![f32::NAN; x.count * w.count];
        matmul(isa, x, w, &mut out);
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against sums in f64; each row alone; and every instruction set of this CPU.
        #[test]
        fn rows_alone_and_together_have_equal_bits(
            m in 1_usize..150, n in 1_usize..80, k in 1_usize..100, seed in any::<u32>()
        ) {
            let (x, w) = (numbers(m * k, seed), numbers(n * k, !seed));
            let together = product(Isa::best(), &x, &w, k);
            for (row, x) in x.chunks(k).enumerate() {
                let out = &together[row * n..][..n];
                prop_assert_eq!(bits(out), bits(&product(Isa::best(), x, &w, k)));
                for (out, w) in out.iter().zip(w.chunks(k)) {
                    let want: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    prop_assert!((f64::from(*out) - want).abs() < 1e-5);
                }
            }
            for isa in Isa::available() {
                prop_assert_eq!(bits(&together), bits(&product(isa, &x, &w, k)), "{:?}", isa);
            }
        }
    }
}
