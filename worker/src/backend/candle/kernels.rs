//! Arithmetic that the operations share. The order of every sum is fixed by the sizes of what is summed, so a result
//! never depends on what else is computed beside it.
#![allow(
    clippy::many_single_char_names,
    clippy::needless_range_loop,
    clippy::excessive_precision,
    reason = "index arithmetic on small tiles; published constants"
)]

use super::simd::{LANES, Lanes};
use crate::backend::pool::Rows;

/// Dot products of every row of `x` with every row of `w`, given to `put(x row, w row, product)`.
///
/// Each is summed in sixteen lanes (element `i` in lane `i % 16`), in order, and the lanes in a fixed tree. How many
/// products are computed at once changes speed, never bits.
#[inline(always)]
pub(super) fn products<V: Lanes>(x: Rows<'_>, w: Rows<'_>, put: impl FnMut(usize, usize, f32)) {
    if V::MANY_REGISTERS { tiles::<V, 4, 6>(x, w, put) } else { tiles::<V, 2, 3>(x, w, put) }
}

/// [`products`] in tiles of `M` by `N`, and single rows or columns at the edges.
#[inline(always)]
fn tiles<V: Lanes, const M: usize, const N: usize>(
    x: Rows<'_>,
    w: Rows<'_>,
    mut put: impl FnMut(usize, usize, f32),
) {
    let (full_x, full_w) = (x.count - x.count % M, w.count - w.count % N);
    for col in (0..full_w).step_by(N) {
        for row in (0..full_x).step_by(M) {
            tile::<V, M, N>(x, w, row, col, &mut put);
        }
        for row in full_x..x.count {
            tile::<V, 1, N>(x, w, row, col, &mut put);
        }
    }
    for col in full_w..w.count {
        for row in (0..full_x).step_by(M) {
            tile::<V, M, 1>(x, w, row, col, &mut put);
        }
        for row in full_x..x.count {
            tile::<V, 1, 1>(x, w, row, col, &mut put);
        }
    }
}

#[inline(always)]
fn tile<V: Lanes, const M: usize, const N: usize>(
    x: Rows<'_>,
    w: Rows<'_>,
    row: usize,
    col: usize,
    put: &mut impl FnMut(usize, usize, f32),
) {
    let steps = x.width / LANES;
    let rest = x.width % LANES;
    let xs: [&[f32]; M] = std::array::from_fn(|i| x.row(row + i));
    let ws: [&[f32]; N] = std::array::from_fn(|j| w.row(col + j));
    // Lengths repeated so that the bounds checks leave the loop.
    let x_chunks: [&[[f32; LANES]]; M] = std::array::from_fn(|i| &xs[i].as_chunks().0[..steps]);
    let w_chunks: [&[[f32; LANES]]; N] = std::array::from_fn(|j| &ws[j].as_chunks().0[..steps]);
    let mut sums = [[V::splat(0.0); N]; M];
    for step in 0..steps {
        let a: [V; M] = std::array::from_fn(|i| V::load(&x_chunks[i][step]));
        for j in 0..N {
            let b = V::load(&w_chunks[j][step]);
            for i in 0..M {
                sums[i][j] = sums[i][j].add_product(a[i], b);
            }
        }
    }
    if rest > 0 {
        let a: [V; M] = std::array::from_fn(|i| V::load(&padded(&xs[i][steps * LANES..])));
        for j in 0..N {
            let b = V::load(&padded(&ws[j][steps * LANES..]));
            for i in 0..M {
                sums[i][j] = sums[i][j].add_product(a[i], b);
            }
        }
    }
    for i in 0..M {
        for j in 0..N {
            put(row + i, col + j, sum_lanes(sums[i][j]));
        }
    }
}

/// The rest of a row, filled up with zeros.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut chunk = [0.0; LANES];
    chunk[..rest.len()].copy_from_slice(rest);
    chunk
}

/// Sum of the lanes: halves onto each other until one is left.
#[inline(always)]
pub(super) fn sum_lanes<V: Lanes>(lanes: V) -> f32 {
    let mut values = [0.0; LANES];
    lanes.store(&mut values);
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            values[lane] += values[lane + half];
        }
        half /= 2;
    }
    values[0]
}

/// Sum of squares, in sixteen lanes.
#[inline(always)]
pub(super) fn sum_of_squares<V: Lanes>(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks();
    let mut sums = V::splat(0.0);
    for chunk in chunks {
        let values = V::load(chunk);
        sums = sums.add_product(values, values);
    }
    if !rest.is_empty() {
        let values = V::load(&padded(rest));
        sums = sums.add_product(values, values);
    }
    sum_lanes(sums)
}

/// `out += factor * row`, element by element.
#[inline(always)]
pub(super) fn add_scaled_rows<V: Lanes>(out: &mut [f32], factors: &[f32], rows: Rows<'_>) {
    // Several vectors at once, since each waits for its own sum.
    const AT_ONCE: usize = 4;
    let mut start = 0;
    while out.len() - start >= AT_ONCE * LANES {
        add_scaled_columns::<V, AT_ONCE>(out, factors, rows, start);
        start += AT_ONCE * LANES;
    }
    while out.len() - start >= LANES {
        add_scaled_columns::<V, 1>(out, factors, rows, start);
        start += LANES;
    }
    for column in start..out.len() {
        for (index, factor) in factors.iter().enumerate() {
            out[column] = factor.mul_add(rows.row(index)[column], out[column]);
        }
    }
}

#[inline(always)]
fn add_scaled_columns<V: Lanes, const N: usize>(
    out: &mut [f32],
    factors: &[f32],
    rows: Rows<'_>,
    start: usize,
) {
    let out = out[start..start + N * LANES].as_chunks_mut().0;
    let mut sums: [V; N] = std::array::from_fn(|i| V::load(&out[i]));
    for (index, &factor) in factors.iter().enumerate() {
        let factor = V::splat(factor);
        let chunks: &[[f32; LANES]] = rows.row(index)[start..start + N * LANES].as_chunks().0;
        for i in 0..N {
            sums[i] = sums[i].add_product(factor, V::load(&chunks[i]));
        }
    }
    for i in 0..N {
        sums[i].store(&mut out[i]);
    }
}

/// e to the `x`, within 2 units in the last place; `x` is taken as at least -87 and at most 88.
///
/// Cody and Waite's reduction with the polynomial of Cephes' `expf`, written so that compilers vectorise it. The
/// standard library's depends on the platform, and is slow in loops.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Added and taken off again it rounds to a whole number, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-0.693_359_375, x);
    let r = n.mul_add(2.121_944_40e-4, r);
    let mut p = 1.987_569_15e-4_f32;
    for coefficient in [1.398_199_95e-3, 8.333_451_9e-3, 4.166_579_6e-2, 1.666_666_55e-1, 5.000_000_12e-1] {
        p = p.mul_add(r, coefficient);
    }
    let y = p.mul_add(r * r, r) + 1.0;
    f32::from_bits(y.to_bits().wrapping_add(rounded.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exp() {
        for step in 0..175_000 {
            let x = -87.0 + step as f32 * 1e-3;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) / want - 1.0).abs();
            assert!(error < 2.5e-7, "exp({x}): relative error {error}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1.7e-38);
        assert!(exp(f32::NAN).is_nan());
    }
}
