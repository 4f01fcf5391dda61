//! The product of a few rows, or of many, with panels of a weight matrix.
//!
//! An element is summed input by input with fused multiply-adds, in blocks of [`BLOCK`] inputs that each begin from zero,
//! and the blocks in their order. That is all that its bits depend on: how many rows and outputs are computed at once
//! changes speed alone.
//!
//! For many rows the loops are those of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication"
//! (2008): a block of a panel stays in the first cache while all tiles of rows pass by, and a tile's sums stay in
//! registers. For few rows, as in decoding, the weights are read once from memory, which is all the time that it takes.
#![allow(clippy::needless_range_loop, reason = "index arithmetic on small tiles")]

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use super::simd::{LANES, Lanes};
use crate::backend::pool::Rows;

/// Inputs whose products are summed before the sum goes to the total. Bounds what has to stay in the cache, and how far
/// rounding errors grow.
pub(super) const BLOCK: usize = 256;

/// Rows of a tile when registers are few, and twice as many when they are many. Tiles of fewer rows are what is left over.
const TILE_ROWS: usize = 6;

/// Rows of which a block's inputs stay in the second cache. A multiple of every tile.
pub(super) const CHUNK_ROWS: usize = 384;

/// Outputs side by side, input by input: what a matrix is kept in. See `matrix.rs`.
pub(super) type Panel<W> = [[W; LANES]];

/// An element of a weight matrix, as it is kept.
pub(super) trait Weight: Copy + Send + Sync {
    /// Sixteen of them as f32, which is exact.
    fn widen<V: Lanes>(from: &[Self; LANES]) -> V;

    /// A block of a panel as f32; `space` is there for those that are something else.
    fn widen_block<'a, V: Lanes>(from: &'a Panel<Self>, space: &'a mut Panel<f32>) -> &'a Panel<f32>;
}

impl Weight for f32 {
    #[inline(always)]
    fn widen<V: Lanes>(from: &[Self; LANES]) -> V {
        V::load(from)
    }

    #[inline(always)]
    fn widen_block<'a, V: Lanes>(from: &'a Panel<Self>, _: &'a mut Panel<f32>) -> &'a Panel<f32> {
        from
    }
}

impl Weight for bf16 {
    #[inline(always)]
    fn widen<V: Lanes>(from: &[Self; LANES]) -> V {
        V::load_bf16(from)
    }

    #[inline(always)]
    fn widen_block<'a, V: Lanes>(from: &'a Panel<Self>, space: &'a mut Panel<f32>) -> &'a Panel<f32> {
        widened::<V, Self>(from, space)
    }
}

impl Weight for f16 {
    #[inline(always)]
    fn widen<V: Lanes>(from: &[Self; LANES]) -> V {
        V::load_f16(from)
    }

    #[inline(always)]
    fn widen_block<'a, V: Lanes>(from: &'a Panel<Self>, space: &'a mut Panel<f32>) -> &'a Panel<f32> {
        widened::<V, Self>(from, space)
    }
}

#[inline(always)]
fn widened<'a, V: Lanes, W: Weight>(from: &Panel<W>, space: &'a mut Panel<f32>) -> &'a Panel<f32> {
    let space = &mut space[..from.len()];
    for (from, to) in from.iter().zip(space.iter_mut()) {
        W::widen::<V>(from).store(to);
    }
    space
}

/// Some rows of an input that go through registers together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    first: usize,
    rows: usize,
}

/// Cuts rows into tiles.
fn tiles(rows: usize, many_registers: bool) -> Vec<Tile> {
    let widest = if many_registers { 2 * TILE_ROWS } else { TILE_ROWS };
    let (mut tiles, mut first) = (Vec::with_capacity(rows.div_ceil(widest) + 1), 0);
    while first < rows {
        let left = rows - first;
        let rows = if left >= widest { widest } else { left.min(TILE_ROWS) };
        tiles.push(Tile { first, rows });
        first += rows;
    }
    tiles
}

/// The rows of an input as products read them: tile by tile, and in a tile the rows' elements of one input side by side.
pub(super) struct Tiles {
    /// For each tile `[inputs][rows of the tile]`.
    values: Vec<f32>,
    bounds: Vec<Tile>,
    inputs: usize,
}

impl Tiles {
    /// For vectors with few registers or many, see [`Lanes::MANY_REGISTERS`].
    pub(super) fn new(x: Rows<'_>, many_registers: bool) -> Self {
        let tiles = tiles(x.count, many_registers);
        let mut values = vec![0.0; x.count * x.width];
        let mut rest = values.as_mut_slice();
        let parts: Vec<_> = tiles
            .iter()
            .map(|&tile| {
                let (part, behind) = std::mem::take(&mut rest).split_at_mut(tile.rows * x.width);
                rest = behind;
                (tile, part)
            })
            .collect();
        parts.into_par_iter().with_min_len(4).for_each(|(tile, part)| match tile.rows {
            1 => part.copy_from_slice(x.row(tile.first)),
            TILE_ROWS => interleave::<TILE_ROWS>(x, tile.first, part),
            rows => {
                for row in 0..rows {
                    let to = part.iter_mut().skip(row).step_by(rows);
                    to.zip(x.row(tile.first + row)).for_each(|(to, &from)| *to = from);
                }
            }
        });
        Self { values, bounds: tiles, inputs: x.width }
    }

    /// Length of a row.
    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    /// The tiles of some rows, which begin and end where tiles do.
    fn of_rows(&self, rows: &Range<usize>) -> &[Tile] {
        let from = self.bounds.partition_point(|tile| tile.first < rows.start);
        let to = self.bounds.partition_point(|tile| tile.first < rows.end);
        &self.bounds[from..to]
    }

    /// Some inputs of a tile of `M` rows.
    #[inline(always)]
    fn tile<const M: usize>(&self, first: usize, inputs: &Range<usize>) -> &[[f32; M]] {
        let values = &self.values[first * self.inputs + inputs.start * M..][..inputs.len() * M];
        values.as_chunks().0
    }
}

fn interleave<const M: usize>(x: Rows<'_>, first: usize, part: &mut [f32]) {
    let rows: [&[f32]; M] = std::array::from_fn(|row| &x.row(first + row)[..x.width]);
    for (input, to) in part.as_chunks_mut::<M>().0.iter_mut().enumerate().take(x.width) {
        for row in 0..M {
            to[row] = rows[row][input];
        }
    }
}

/// A part of a product: some rows with some panels.
pub(super) struct Part<'a, W> {
    pub(super) x: &'a Tiles,
    /// Of the input; they begin and end where tiles do.
    pub(super) rows: Range<usize>,
    /// `[panels][inputs][LANES]`.
    pub(super) panels: &'a Panel<W>,
    /// For each row its outputs from these panels; the last panel may have fewer than [`LANES`].
    pub(super) out: Vec<&'a mut [f32]>,
}

impl<W: Weight> Part<'_, W> {
    /// Computes it.
    #[inline(always)]
    pub(super) fn compute<V: Lanes>(mut self) {
        let tiles = self.x.of_rows(&self.rows);
        if self.rows.len() <= TILE_ROWS {
            self.few_rows::<V>(tiles);
        } else if V::MANY_REGISTERS {
            self.many_rows::<V, 2>(tiles);
        } else {
            self.many_rows::<V, 1>(tiles);
        }
    }

    /// With `P` panels at once. Each block of them is widened once for all rows.
    #[inline(always)]
    fn many_rows<V: Lanes, const P: usize>(&mut self, tiles: &[Tile]) {
        let mut space = vec![[0.0; LANES]; P * BLOCK];
        let count = self.panels.len() / self.x.inputs;
        for inputs in blocks(self.x.inputs) {
            let mut panel = 0;
            while panel + P <= count {
                self.widened::<V, P>(panel, &inputs, tiles, &mut space);
                panel += P;
            }
            while panel < count {
                self.widened::<V, 1>(panel, &inputs, tiles, &mut space);
                panel += 1;
            }
        }
    }

    #[inline(always)]
    fn widened<V: Lanes, const P: usize>(
        &mut self,
        panel: usize,
        inputs: &Range<usize>,
        tiles: &[Tile],
        space: &mut Panel<f32>,
    ) {
        let mut panels: [&Panel<f32>; P] = [&[]; P];
        for (p, space) in space.chunks_exact_mut(BLOCK).take(P).enumerate() {
            panels[p] = W::widen_block::<V>(self.block(panel + p, inputs), space);
        }
        for &tile in tiles {
            match tile.rows {
                12 if V::MANY_REGISTERS => self.add::<V, f32, 12, P>(tile, panel, inputs, panels),
                6 => self.add::<V, f32, 6, P>(tile, panel, inputs, panels),
                5 => self.add::<V, f32, 5, P>(tile, panel, inputs, panels),
                4 => self.add::<V, f32, 4, P>(tile, panel, inputs, panels),
                3 => self.add::<V, f32, 3, P>(tile, panel, inputs, panels),
                2 => self.add::<V, f32, 2, P>(tile, panel, inputs, panels),
                _ => self.add::<V, f32, 1, P>(tile, panel, inputs, panels),
            }
        }
    }

    /// Without a detour: weights are widened in registers. Several panels at once where sums would wait for each other.
    #[inline(always)]
    fn few_rows<V: Lanes>(&mut self, tiles: &[Tile]) {
        for &tile in tiles {
            match tile.rows {
                1 => self.stream::<V, 1, 4>(tile),
                2 if V::MANY_REGISTERS => self.stream::<V, 2, 4>(tile),
                2 => self.stream::<V, 2, 2>(tile),
                3 if V::MANY_REGISTERS => self.stream::<V, 3, 4>(tile),
                3 => self.stream::<V, 3, 1>(tile),
                4 if V::MANY_REGISTERS => self.stream::<V, 4, 4>(tile),
                4 => self.stream::<V, 4, 1>(tile),
                5 if V::MANY_REGISTERS => self.stream::<V, 5, 4>(tile),
                5 => self.stream::<V, 5, 1>(tile),
                _ if V::MANY_REGISTERS => self.stream::<V, 6, 4>(tile),
                _ => self.stream::<V, 6, 1>(tile),
            }
        }
    }

    /// All panels, `P` at once and each to its end, for one tile of `M` rows.
    #[inline(always)]
    fn stream<V: Lanes, const M: usize, const P: usize>(&mut self, tile: Tile) {
        let count = self.panels.len() / self.x.inputs;
        let mut panel = 0;
        while panel < count {
            let several = panel + P <= count;
            for inputs in blocks(self.x.inputs) {
                if several {
                    let panels = std::array::from_fn(|p| self.block(panel + p, &inputs));
                    self.add::<V, W, M, P>(tile, panel, &inputs, panels);
                } else {
                    let panels = [self.block(panel, &inputs)];
                    self.add::<V, W, M, 1>(tile, panel, &inputs, panels);
                }
            }
            panel += if several { P } else { 1 };
        }
    }

    /// Some inputs of a panel.
    #[inline(always)]
    fn block<'a>(&self, panel: usize, inputs: &Range<usize>) -> &'a Panel<W>
    where
        Self: 'a,
    {
        &self.panels[panel * self.x.inputs + inputs.start..][..inputs.len()]
    }

    /// Adds a block's sums to a tile of `M` rows and `P` panels from `panel` on; the first block's to zero.
    #[inline(always)]
    fn add<V: Lanes, B: Weight, const M: usize, const P: usize>(
        &mut self,
        tile: Tile,
        panel: usize,
        inputs: &Range<usize>,
        panels: [&Panel<B>; P],
    ) {
        let sums = sums::<V, B, M, P>(self.x.tile(tile.first, inputs), panels);
        let first = tile.first - self.rows.start;
        for (out, sums) in self.out[first..first + M].iter_mut().zip(sums) {
            for (p, sum) in sums.into_iter().enumerate() {
                let out = &mut out[(panel + p) * LANES..];
                if let Some(out) = out.first_chunk_mut() {
                    let total = if inputs.start == 0 { V::splat(0.0) } else { V::load(out) };
                    total.add(sum).store(out);
                } else {
                    // The last panel may have fewer outputs.
                    let mut lanes = [0.0; LANES];
                    sum.store(&mut lanes);
                    for (out, lane) in out.iter_mut().zip(lanes) {
                        *out = if inputs.start == 0 { 0.0 } else { *out } + lane;
                    }
                }
            }
        }
    }
}

/// All inputs, in blocks of [`BLOCK`]; the last may be shorter.
#[inline(always)]
fn blocks(inputs: usize) -> impl Iterator<Item = Range<usize>> {
    (0..inputs).step_by(BLOCK).map(move |start| start..inputs.min(start + BLOCK))
}

/// Sums over a block, all in registers: for each of `M` rows and `P` panels sixteen outputs.
#[inline(always)]
fn sums<V: Lanes, W: Weight, const M: usize, const P: usize>(
    x: &[[f32; M]],
    panels: [&Panel<W>; P],
) -> [[V; P]; M] {
    // Lengths repeated so that the bounds checks leave the loop.
    let panels = panels.map(|panel| &panel[..x.len()]);
    let mut sums = [[V::splat(0.0); P]; M];
    for input in 0..x.len() {
        for p in 0..P {
            let weights = W::widen::<V>(&panels[p][input]);
            for row in 0..M {
                sums[row][p] = sums[row][p].add_product(V::splat(x[input][row]), weights);
            }
        }
    }
    sums
}
