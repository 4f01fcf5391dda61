//! Products with weight matrices.

use rayon::prelude::*;

use super::matrix::{Matrix, Panels};
use super::product::{CHUNK_ROWS, Part, Tiles, Weight};
use super::rows::add_to_each_row;
use super::simd::{Isa, Kernel, LANES, Lanes};
use super::weights::Linear;
use crate::backend::pool::Rows;

/// Multiply-adds that are worth a task of their own.
const TASK_WORK: usize = 1 << 17;

/// Applies `linear` to `x`, `[tokens, in]` to `[tokens, out]`.
pub(super) fn linear(isa: Isa, x: Rows<'_>, linear: &Linear, out: &mut [f32]) {
    multiply(isa, x, &linear.weight, out);
    if let Some(bias) = &linear.bias {
        add_to_each_row(out, bias);
    }
}

/// `x` times the transpose of `matrix`: `[tokens, in]` to `[tokens, out]`.
///
/// An element's bits depend on its row of the input and its row of the matrix alone. The general product of a tensor
/// library chooses its order of summation by the number of rows; then a token computed in a batch, in a chunk, or on
/// another worker would differ in the last bits, and greedy decoding would now and then take another turn.
pub(super) fn multiply(isa: Isa, x: Rows<'_>, matrix: &Matrix, out: &mut [f32]) {
    assert_eq!((x.width, x.count * matrix.outputs()), (matrix.inputs(), out.len()), "{matrix:?}");
    if out.is_empty() {
        return;
    }
    let x = Tiles::new(x, isa.run(ManyRegisters));
    match matrix.storage() {
        Panels::F32(panels) => multiply_panels(isa, &x, panels, matrix.outputs(), out),
        Panels::Bf16(panels) => multiply_panels(isa, &x, panels, matrix.outputs(), out),
        Panels::F16(panels) => multiply_panels(isa, &x, panels, matrix.outputs(), out),
    }
}

/// Cuts the product into parts of rows and panels, and computes them on all threads.
fn multiply_panels<W: Weight>(isa: Isa, x: &Tiles, panels: &[W], outputs: usize, out: &mut [f32]) {
    let rows = out.len() / outputs;
    let rows_at_once = rows_at_once(rows);
    let panels_at_once = panels_at_once(rows, rows_at_once, x.inputs(), outputs.div_ceil(LANES));
    let panels_of = |index: usize| {
        let length = panels_at_once * x.inputs() * LANES;
        let start = index * length;
        panels[start..panels.len().min(start + length)].as_chunks().0
    };
    let mut tasks = Vec::new();
    for (index, out) in out.chunks_mut(rows_at_once * outputs).enumerate() {
        let first = index * rows_at_once;
        let rows = first..first + out.len() / outputs;
        let mut by_row: Vec<_> =
            out.chunks_mut(outputs).map(|row| row.chunks_mut(panels_at_once * LANES)).collect();
        for index in 0..outputs.div_ceil(panels_at_once * LANES) {
            let out = by_row.iter_mut().filter_map(Iterator::next).collect();
            tasks.push(Task(Part { x, rows: rows.clone(), panels: panels_of(index), out }));
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

/// Rows of a part: all, or equal numbers of them if they are more than the cache has room for. They end where a tile does.
fn rows_at_once(rows: usize) -> usize {
    const MULTIPLE: usize = 12;
    let chunks = rows.div_ceil(CHUNK_ROWS).max(1);
    rows.div_ceil(chunks).next_multiple_of(MULTIPLE)
}

/// Enough panels to be worth a task, few enough that every thread gets some.
fn panels_at_once(rows: usize, rows_at_once: usize, inputs: usize, panels: usize) -> usize {
    let worth_it = TASK_WORK.div_ceil((rows.min(rows_at_once) * inputs * LANES).max(1));
    // A few tasks for each thread even out what other work on the machine slows down.
    let shares = (4 * rayon::current_num_threads()).div_ceil(rows.div_ceil(rows_at_once));
    panels.div_ceil(shares).max(worth_it).min(panels)
}

/// [`Part::compute`].
struct Task<'a, W>(Part<'a, W>);

impl<W: Weight> Kernel for Task<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        self.0.compute::<V>();
    }
}

/// [`Lanes::MANY_REGISTERS`].
struct ManyRegisters;

impl Kernel for ManyRegisters {
    type Output = bool;

    #[inline(always)]
    fn run<V: Lanes>(self) -> bool {
        V::MANY_REGISTERS
    }
}

#[cfg(test)]
mod tests {
    use super::super::matrix::tests::Halves;
    use super::super::product::BLOCK;
    use super::*;
    use crate::model::WeightFormat;
    use half::{bf16, f16};
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

    /// What remains of a number in a format.
    fn rounded(format: WeightFormat, value: f32) -> f32 {
        match format {
            WeightFormat::F32 => value,
            WeightFormat::Bf16 => bf16::from_f32(value).to_f32(),
            WeightFormat::F16 => f16::from_f32(value).to_f32(),
        }
    }

    fn matrix(format: WeightFormat, weights: &[f32], inputs: usize) -> Matrix {
        let outputs = weights.len() / inputs;
        let element = |row: usize, column: usize| weights[row * inputs + column];
        let source = Halves { formats: [format; 2], rows: outputs, inputs, element };
        Matrix::read(&source, inputs, &[("first", outputs)]).expect("it fits")
    }

    fn product(isa: Isa, x: Rows<'_>, matrix: &Matrix) -> Vec<f32> {
        let mut out = vec![f32::NAN; x.count * matrix.outputs()];
        multiply(isa, x, matrix, &mut out);
        out
    }

    /// What the order of summation is said to be, in plain code.
    fn in_blocks(x: &[f32], w: &[f32]) -> f32 {
        x.chunks(BLOCK).zip(w.chunks(BLOCK)).fold(0.0, |total, (x, w)| {
            total + x.iter().zip(w).fold(0.0_f32, |sum, (x, w)| x.mul_add(*w, sum))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Every element has the bits of its plain definition, which is close to the sum in f64: for each format and
        /// instruction set, whatever is computed beside it. So rows have equal bits alone and in any grouping.
        #[test]
        fn products_of_any_shape_have_the_bits_of_their_definition(
            rows in prop_oneof![1_usize..16, 1_usize..150],
            outputs in 1_usize..80,
            inputs in prop_oneof![1_usize..40, 200_usize..300, 500_usize..800],
            format in prop::sample::select(vec![WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16]),
            gap in 0_usize..3,
            seed in any::<u32>(),
        ) {
            // Rows of a part of a wider tensor.
            let data = numbers(rows * (inputs + gap), seed);
            let x = Rows { data: &data, stride: inputs + gap, width: inputs, count: rows };
            let w: Vec<f32> = numbers(outputs * inputs, !seed).iter().map(|&w| rounded(format, w)).collect();
            let matrix = matrix(format, &w, inputs);
            let want: Vec<f32> =
                (0..rows).flat_map(|row| w.chunks(inputs).map(move |w| in_blocks(x.row(row), w))).collect();
            for (index, &got) in want.iter().enumerate() {
                let (x, w) = (x.row(index / outputs), &w[index % outputs * inputs..][..inputs]);
                let (mut exact, mut size) = (0.0, 0.0);
                for product in x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)) {
                    exact += product;
                    size += product.abs();
                }
                // Each block's error grows with its length, and the blocks' with their number.
                let steps = inputs.min(BLOCK) + inputs.div_ceil(BLOCK);
                let bound = steps as f64 * f64::from(f32::EPSILON) / 2.0 * size;
                prop_assert!((f64::from(got) - exact).abs() <= bound, "{got} for {exact}, within {bound}");
            }
            for isa in Isa::available() {
                prop_assert_eq!(bits(&product(isa, x, &matrix)), bits(&want), "{:?}, {:?}", isa, format);
            }
        }
    }

    /// The same without randomness, where tiles, chunks of rows, blocks of inputs and panels end.
    #[test]
    fn rows_alone_and_in_any_grouping_have_equal_bits() {
        for isa in Isa::available() {
            for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16] {
                for (outputs, inputs) in [(33, BLOCK + 1), (64, BLOCK - 1), (17, 2 * BLOCK), (1, 3)] {
                    let weights = numbers(outputs * inputs, 3);
                    let matrix = matrix(format, &weights, inputs);
                    let data = numbers((CHUNK_ROWS + 31) * inputs, 5);
                    let x = Rows::dense(&data, inputs);
                    let want = bits(&product(isa, x, &matrix));
                    for at_once in (1..=13).chain([18, 25, CHUNK_ROWS, CHUNK_ROWS + 1]) {
                        let got: Vec<f32> = data
                            .chunks(at_once * inputs)
                            .flat_map(|rows| product(isa, Rows::dense(rows, inputs), &matrix))
                            .collect();
                        let what = (isa, format, outputs, inputs, at_once);
                        assert!(bits(&got) == want, "{what:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_that_is_missing_here_is_named() {
        let names: Vec<&str> = Isa::available().iter().map(|isa| isa.as_str()).collect();
        for name in ["avx512", "avx2"] {
            if !names.contains(&name) {
                eprintln!("products with {name} are not tested: this CPU does not have it");
            }
        }
        assert_eq!(names.last(), Some(&"portable"));
    }
}
