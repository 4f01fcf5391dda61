//! The CPU backend: operations of our own, each with a fixed order of its sums.
//!
//! It is the reference that other backends are tested against, and it is **batch-invariant**: the logits of a token
//! have the same bits whatever else is in the batch, however its prompt was cut into chunks, and whether its context
//! was computed here, found in the prefix cache, or brought by a handoff.
#![allow(clippy::inline_always, reason = "code is compiled for an instruction set only where it is inlined")]

mod attention;
mod experts;
mod forward;
mod kernels;
mod linear;
mod matrix;
mod product;
#[cfg(test)]
mod reference;
mod rows;
mod simd;
#[cfg(test)]
mod tests;
mod weights;

use std::collections::VecDeque;
use std::sync::Arc;

use disagg_engine::{Backend, BackendError, Batch, KvDtype, KvLayout, KvMemory, KvTransport, StepTokens};

use super::batch;
use super::pool::PagedPool;
use crate::model::ModelSpec;
use forward::Decoder;
pub use matrix::Matrix;
use simd::Isa;
pub use weights::{Cpu, Linear, Weights, load_weights};

const NAME: &str = "cpu";

/// Longest block, in tokens.
const BLOCK_SIZE_MAX: u32 = 1024;

/// Computes on the CPU, on rayon's global thread pool. Steps are computed at launch: the pipeline has depth one.
pub struct CandleBackend {
    decoder: Decoder,
    pool: Arc<PagedPool>,
    /// Of launched steps that are not collected.
    done: VecDeque<StepTokens>,
}

impl CandleBackend {
    /// A backend with a KV pool of `num_blocks` blocks; `layout` is [`Self::layout_of`] this model.
    /// [`Self::block_bytes`] tells what a block costs.
    pub fn new(
        spec: ModelSpec,
        weights: Arc<Weights>,
        layout: KvLayout,
        num_blocks: u32,
    ) -> Result<Self, BackendError> {
        let block_size = layout.block_size;
        if !(1..=BLOCK_SIZE_MAX).contains(&block_size) {
            return Err(error(format!("block size {block_size} is not in 1..={BLOCK_SIZE_MAX}")));
        }
        if num_blocks == 0 || num_blocks.checked_mul(block_size).is_none() {
            return Err(error(format!("{num_blocks} KV blocks of {block_size} tokens cannot be addressed")));
        }
        let isa = Isa::best();
        tracing::info!(isa = isa.as_str(), threads = rayon::current_num_threads(), num_blocks, "CPU backend");
        let pool = Arc::new(PagedPool::new(layout, num_blocks));
        Ok(Self { decoder: Decoder::new(spec, weights, isa), pool, done: VecDeque::new() })
    }

    /// Shape of the KV pool for a model, in blocks of `block_size` tokens. Keys and values are rounded to `dtype`, and go
    /// to other workers in it.
    pub fn layout_of(spec: &ModelSpec, block_size: u32, dtype: KvDtype) -> KvLayout {
        spec.kv_layout(block_size, dtype)
    }

    /// Bytes that a block of such a pool takes in main memory: four for each number, whatever it is rounded to.
    pub fn block_bytes(layout: &KvLayout) -> usize {
        KvLayout { dtype: KvDtype::F32, ..*layout }.block_bytes()
    }
}

impl Backend for CandleBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn layout(&self) -> KvLayout {
        self.pool.layout()
    }

    fn num_blocks(&self) -> u32 {
        self.pool.num_blocks()
    }

    fn memory(&self) -> Arc<dyn KvMemory> {
        self.pool.clone()
    }

    fn launch(&mut self, batch: &Batch<'_>, transport: &mut dyn KvTransport) -> Result<(), BackendError> {
        let vocab = self.decoder.spec().vocab_size;
        let input_ids =
            batch::checked(batch, &self.pool.layout(), self.pool.num_blocks(), vocab).map_err(error)?;
        // Within the pool of threads, so that each operation hands out its work without waking this thread between.
        let logits = rayon::scope(|_| self.decoder.forward(batch, &input_ids, &self.pool, transport));
        let rows = logits.chunks_exact(vocab).zip(batch.samples);
        let tokens = rows.map(|(logits, row)| batch::draw(logits, row)).collect();
        self.done.push_back(tokens);
        Ok(())
    }

    fn collect(&mut self, _transport: &mut dyn KvTransport) -> Result<StepTokens, BackendError> {
        self.done.pop_front().ok_or_else(|| error("no step is under way".to_owned()))
    }
}

fn error(message: String) -> BackendError {
    BackendError { backend: NAME, message }
}
