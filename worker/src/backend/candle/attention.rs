//! Causal attention over the paged pool.
//!
//! A query meets the keys of its context block by block, in order, with a running maximum and sum (Milakov and
//! Gimelshein, "Online normalizer calculation for softmax", 2018). What is summed in which order depends on the
//! query's position, the window and the block size alone: not on the chunk that the query came in, nor on the batch.

use std::ops::Range;

use disagg_core::BlockId;
use disagg_engine::Batch;
use rayon::prelude::*;

use super::kernels::{add_scaled_rows, exp, products, sum_lanes};
use super::simd::{Isa, Kernel, LANES, Lanes};
use crate::backend::pool::{PagedPool, Rows};

/// Tokens of one sequence in one task: they share the keys and values while these are in the cache.
const TASK_TOKENS: usize = 16;

/// The attention of one layer to the contexts of a batch.
pub(super) struct PagedAttention<'a> {
    pub(super) isa: Isa,
    pub(super) pool: &'a PagedPool,
    pub(super) layer: u32,
    pub(super) batch: &'a Batch<'a>,
    /// Elements of a head.
    pub(super) head_dim: usize,
    /// KV heads; the number of query heads is a multiple.
    pub(super) kv_heads: usize,
    pub(super) block_size: usize,
    /// Tokens that a query sees, its own included; `None`: all before it.
    pub(super) window: Option<u32>,
}

impl PagedAttention<'_> {
    /// The first position that a query sees.
    fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window as usize))
    }

    /// Queries `[tokens, heads * head_dim]` to the same shape. The batch's own keys and values are in the pool already.
    pub(super) fn apply(&self, queries: Rows<'_>, out: &mut [f32]) {
        let tasks = self.tasks(queries, out);
        tasks.into_par_iter().for_each(|task| self.isa.run(task));
    }

    /// One task for every KV head of every few tokens of a sequence.
    fn tasks<'t>(&'t self, queries: Rows<'t>, out: &'t mut [f32]) -> Vec<Task<'t>> {
        let group_width = queries.width / self.kv_heads;
        let mut tasks = Vec::new();
        let mut out_rows = out.chunks_exact_mut(queries.width);
        for (row, table) in self.batch.cu_seqlens.windows(2).zip(self.batch.block_tables) {
            let tokens: Vec<usize> = (row[0] as usize..row[1] as usize).collect();
            for tokens in tokens.chunks(TASK_TOKENS) {
                let mut heads: Vec<Task<'t>> = (0..self.kv_heads)
                    .map(|kv_head| Task {
                        attention: self,
                        kv_head,
                        table,
                        positions: tokens.iter().map(|&token| self.batch.positions[token] as usize).collect(),
                        queries: Vec::with_capacity(tokens.len() * group_width),
                        out: Vec::with_capacity(tokens.len()),
                    })
                    .collect();
                for (&token, out) in tokens.iter().zip(&mut out_rows) {
                    let groups = queries.row(token).chunks_exact(group_width);
                    for ((task, group), out) in
                        heads.iter_mut().zip(groups).zip(out.chunks_exact_mut(group_width))
                    {
                        task.queries.extend_from_slice(group);
                        task.out.push(out);
                    }
                }
                tasks.append(&mut heads);
            }
        }
        tasks
    }
}

/// The queries of a few tokens of one sequence that share one KV head.
struct Task<'a> {
    attention: &'a PagedAttention<'a>,
    kv_head: usize,
    table: &'a [BlockId],
    /// Of each token, ascending.
    positions: Vec<usize>,
    /// `[tokens * heads of the group, head_dim]`.
    queries: Vec<f32>,
    /// For each token `[heads of the group, head_dim]`.
    out: Vec<&'a mut [f32]>,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(mut self) {
        let PagedAttention { pool, layer, head_dim, block_size, kv_heads, .. } = *self.attention;
        let queries = Rows::dense(&self.queries, head_dim);
        let group = queries.count / self.positions.len();
        let scale = 1.0 / (head_dim as f32).sqrt();
        let padded = block_size.next_multiple_of(LANES);
        let mut scores = vec![0.0; queries.count * padded];
        let mut softmax = vec![Softmax::new(); queries.count];
        let last = self.positions.iter().copied().max().unwrap_or(0);
        self.out.iter_mut().for_each(|out| out.fill(0.0));
        let first = self.attention.first_seen(self.positions.iter().copied().min().unwrap_or(0));

        for block in first / block_size..=last / block_size {
            let guard = pool.block(layer, self.table[block]);
            let head = |half: usize| {
                let elements = block_size * head_dim;
                &guard[(half * kv_heads + self.kv_head) * elements..][..elements]
            };
            let keys = Rows {
                count: block_size.min(last + 1 - block * block_size),
                ..Rows::dense(head(0), head_dim)
            };
            let values = Rows::dense(head(1), head_dim);
            products::<V>(queries, keys, |query, key, product| {
                scores[query * padded + key] = product * scale;
            });
            for (token, (&position, out)) in self.positions.iter().zip(&mut self.out).enumerate() {
                // Keys of this block that the token sees.
                let start = self.attention.first_seen(position).saturating_sub(block * block_size);
                let end = block_size.min((position + 1).saturating_sub(block * block_size));
                if start >= end {
                    continue;
                }
                for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                    let query = token * group + head;
                    let scores = &mut scores[query * padded..][..padded];
                    softmax[query].add_block::<V>(scores, start..end, out);
                    add_scaled_rows::<V>(out, &scores[start..end], values.skip_rows(start));
                }
            }
        }
        for (token, out) in self.out.iter_mut().enumerate() {
            for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                let factor = 1.0 / softmax[token * group + head].sum::<V>();
                for value in out {
                    *value *= factor;
                }
            }
        }
    }
}

/// Running state of one query's softmax.
#[derive(Clone, Copy)]
struct Softmax {
    /// Largest score so far.
    max: f32,
    /// Sum of `exp(score - max)`, in lanes.
    sums: [f32; LANES],
}

impl Softmax {
    fn new() -> Self {
        Self { max: f32::NEG_INFINITY, sums: [0.0; LANES] }
    }

    /// Turns the scores of a block that are `seen` into weights, the others into zeros, and scales `out` and the sum
    /// down to the new maximum. `scores` is a multiple of [`LANES`].
    #[inline(always)]
    fn add_block<V: Lanes>(&mut self, scores: &mut [f32], seen: Range<usize>, out: &mut [f32]) {
        let max = scores[seen.clone()].iter().fold(self.max, |max, &score| max.max(score));
        let shrink = if self.max == f32::NEG_INFINITY { 0.0 } else { exp(self.max - max) };
        self.max = max;
        for score in scores.iter_mut() {
            *score = exp(*score - max);
        }
        scores[..seen.start].fill(0.0);
        scores[seen.end..].fill(0.0);
        for value in out {
            *value *= shrink;
        }

        let (one, shrink) = (V::splat(1.0), V::splat(shrink));
        let mut sums = V::splat(0.0).add_product(V::load(&self.sums), shrink);
        for chunk in scores.as_chunks().0 {
            sums = sums.add_product(V::load(chunk), one);
        }
        sums.store(&mut self.sums);
    }

    #[inline(always)]
    fn sum<V: Lanes>(&self) -> f32 {
        sum_lanes(V::load(&self.sums))
    }
}
