//! The CPU backend: candle tensors, with operations of our own wherever the order of a sum matters.
//!
//! It is the reference that other backends are tested against, and it is **batch-invariant**: the logits of a token
//! have the same bits whatever else is in the batch, however its prompt was cut into chunks, and whether its context
//! was computed here, found in the prefix cache, or brought by a handoff.
#![allow(clippy::inline_always, reason = "code is compiled for an instruction set only where it is inlined")]

mod attention;
mod forward;
mod kernels;
mod linear;
mod pool;
mod rows;
mod simd;
mod tensors;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::Tensor;
use disagg_engine::{
    Backend, BackendError, Batch, KvDtype, KvLayout, KvMemory, KvTransport, SampleRow, StepTokens,
    TokenInput, sampling,
};

use crate::model::{ModelConfig, Weights};
use forward::Decoder;
use pool::PagedPool;
use simd::Isa;

const NAME: &str = "candle-cpu";

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
    /// A backend with a KV pool of `num_blocks` blocks of `block_size` tokens.
    /// `KvLayout::block_bytes` of [`Self::layout_of`] tells what a block costs.
    pub fn new(
        config: ModelConfig,
        weights: Weights,
        block_size: u32,
        num_blocks: u32,
    ) -> Result<Self, BackendError> {
        if !(1..=BLOCK_SIZE_MAX).contains(&block_size) {
            return Err(error(format!("block size {block_size} is not in 1..={BLOCK_SIZE_MAX}")));
        }
        if num_blocks == 0 || num_blocks.checked_mul(block_size).is_none() {
            return Err(error(format!("{num_blocks} KV blocks of {block_size} tokens cannot be addressed")));
        }
        let layout = Self::layout_of(&config, block_size);
        let isa = Isa::best();
        tracing::info!(isa = isa.as_str(), threads = rayon::current_num_threads(), num_blocks, "CPU backend");
        let pool = Arc::new(PagedPool::new(layout, num_blocks));
        Ok(Self { decoder: Decoder::new(config, weights, isa), pool, done: VecDeque::new() })
    }

    /// Shape of the KV pool that this backend makes for a model.
    pub fn layout_of(config: &ModelConfig, block_size: u32) -> KvLayout {
        config.kv_layout(block_size, KvDtype::F32)
    }

    /// The engine is trusted, but an index out of range must not become a panic on the engine's thread.
    fn check(&self, batch: &Batch<'_>) -> Result<Vec<u32>, BackendError> {
        let tokens = batch.input_ids.len();
        let rows = batch.block_tables.len();
        let layout = self.pool.layout();
        let fits = batch.positions.len() == tokens
            && batch.slot_mapping.len() == tokens
            && batch.cu_seqlens.len() == rows + 1
            && batch.cu_seqlens.is_sorted_by(|a, b| a < b)
            && batch.cu_seqlens.first() == Some(&0)
            && batch.cu_seqlens.last() == Some(&(tokens as u32))
            && batch.samples.iter().all(|sample| (sample.row as usize) < rows);
        if !fits {
            return Err(error("the parts of the batch do not fit each other".to_owned()));
        }
        let num_blocks = self.pool.num_blocks();
        let covered = batch.cu_seqlens.windows(2).zip(batch.block_tables).all(|(row, table)| {
            let positions = &batch.positions[row[0] as usize..row[1] as usize];
            positions.iter().all(|position| layout.blocks_for(position + 1) as usize <= table.len())
                && table.iter().all(|block| block.0 < num_blocks)
        });
        if !covered || batch.slot_mapping.iter().any(|slot| slot / layout.block_size >= num_blocks) {
            return Err(error("a token of the batch lies outside its blocks".to_owned()));
        }
        let vocab = self.decoder.config().vocab_size as u32;
        batch
            .input_ids
            .iter()
            .map(|input| match *input {
                TokenInput::Id(id) if id < vocab => Ok(id),
                TokenInput::Id(id) => Err(error(format!("token {id} is outside the vocabulary of {vocab}"))),
                TokenInput::Sampled(_) => Err(error("a token was scheduled before it was drawn".to_owned())),
            })
            .collect()
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
        let input_ids = self.check(batch)?;
        // Within the pool of threads, so that each operation hands out its work without waking this thread between.
        let logits = rayon::scope(|_| self.decoder.forward(batch, &input_ids, &self.pool, transport));
        let logits = logits.map_err(|source| error(source.to_string()))?;
        let tokens = match logits {
            Some(logits) => sample(batch, &logits).map_err(|source| error(source.to_string()))?,
            None => Vec::new(),
        };
        self.done.push_back(tokens);
        Ok(())
    }

    fn collect(&mut self, _transport: &mut dyn KvTransport) -> Result<StepTokens, BackendError> {
        self.done.pop_front().ok_or_else(|| error("no step is under way".to_owned()))
    }
}

/// Draws every sampled row's choices from its logits. A row that cannot be drawn from gets fewer tokens.
fn sample(batch: &Batch<'_>, logits: &Tensor) -> candle_core::Result<StepTokens> {
    let vocab = logits.dim(1)?;
    let logits = logits.flatten_all()?.to_vec1::<f32>()?;
    let rows = logits.chunks_exact(vocab).zip(batch.samples);
    let draw = |(logits, row): (&[f32], &SampleRow<'_>)| {
        let choices = row.choices.clone().map(|choice| sampling::sample(logits, row, choice));
        choices.collect::<Result<Vec<_>, _>>().unwrap_or_else(|error| {
            tracing::warn!(row = row.row, position = row.position, %error, "no token drawn");
            Vec::new()
        })
    };
    Ok(rows.map(draw).collect())
}

fn error(message: String) -> BackendError {
    BackendError { backend: NAME, message }
}
