//! A simulated device: steps take the time that [`Speed`] says, tokens are drawn from a hash of the context, and keys
//! and values are real bytes in a real pool.
//!
//! It lets tens of workers run on a laptop and still notices a wrong block. What it keeps for a token says which
//! context it belongs to (`chain`), and whenever it draws a token it reads the KV of that context back through the
//! block table, in every layer: where each block joins the one before it, the last block as a whole, and one more block
//! as a whole, another with every token. KV that is missing, stale or another sequence's ends the request with
//! an error; it never becomes a wrong answer.
//!
//! Workers on a simulated device have a model fingerprint of their own ([`fingerprint`]): their KV means nothing to
//! others.

mod chain;
mod speed;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use disagg_core::{BlockId, ModelFingerprint};
use disagg_engine::{
    Backend, BackendError, Batch, KvDtype, KvLayout, KvMemory, KvTransport, SampleRow, StepTokens,
};

use super::batch;
use super::pool::{PagedPool, Rows};
use crate::model::ModelSpec;
use chain::{Block, Digest, embed, fill, mix};

pub use speed::{BadSpeed, Speed};

const NAME: &str = "sim";

/// Most tokens that it speaks. A whole vocabulary of logits for every token would take longer than what is simulated.
const SPOKEN_MAX: usize = 1024;
/// Vocabularies begin with special tokens and single bytes. It leaves them out where there is something else to say.
const UNSPOKEN: usize = 260;

/// See the module.
pub struct SimBackend {
    speed: Speed,
    vocab: usize,
    pool: Arc<PagedPool>,
    /// Of launched steps that are not collected.
    done: VecDeque<StepTokens>,
}

/// The fingerprint of a model on simulated devices.
#[must_use]
pub fn fingerprint(model: ModelFingerprint) -> ModelFingerprint {
    let name = format!("{NAME} {model}");
    ModelFingerprint(xxhash_rust::xxh3::xxh3_128(name.as_bytes()))
}

/// Why KV is not what the context asks for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("layer {layer}: the KV of position {position}, in block {}, {what}", .block.0)]
struct BadKv {
    layer: u32,
    position: usize,
    block: BlockId,
    what: &'static str,
}

impl SimBackend {
    /// A pool of `num_blocks` blocks of `block_size` tokens, for a model of these shapes.
    pub fn new(
        spec: &ModelSpec,
        speed: Speed,
        block_size: u32,
        num_blocks: u32,
    ) -> Result<Self, BackendError> {
        if num_blocks == 0 || num_blocks.checked_mul(block_size).is_none_or(|slots| slots == 0) {
            return Err(error(format!("{num_blocks} KV blocks of {block_size} tokens cannot be addressed")));
        }
        let pool = Arc::new(PagedPool::new(Self::layout_of(spec, block_size), num_blocks));
        Ok(Self { speed, vocab: spec.vocab_size, pool, done: VecDeque::new() })
    }

    /// Shape of the KV pool that this backend makes for a model.
    pub fn layout_of(spec: &ModelSpec, block_size: u32) -> KvLayout {
        spec.kv_layout(block_size, KvDtype::F32)
    }

    /// What a layer's chain begins with.
    fn root(layer: u32) -> Digest {
        mix(u64::MAX, layer.into())
    }

    fn place(&self, table: &[BlockId], position: usize) -> (BlockId, usize) {
        let block_size = self.pool.block_size();
        (table[position / block_size], position % block_size)
    }

    /// Keeps one layer's keys and values of the batch.
    fn store(&self, layer: u32, batch: &Batch<'_>, input_ids: &[u32]) {
        let layout = self.pool.layout();
        let width = (layout.kv_heads * layout.head_dim) as usize;
        let (mut keys, mut values) = (vec![0.0; input_ids.len() * width], vec![0.0; input_ids.len() * width]);
        let mut rows = keys.chunks_exact_mut(width).zip(values.chunks_exact_mut(width));
        for (row, table) in batch.cu_seqlens.windows(2).zip(batch.block_tables) {
            let tokens = row[0] as usize..row[1] as usize;
            let mut chain = match (batch.positions[tokens.start] as usize).checked_sub(1) {
                None => Self::root(layer),
                Some(before) => {
                    let (block, offset) = self.place(table, before);
                    Block { layout, elements: &self.pool.block(layer, block) }.kept(offset).chain
                }
            };
            for (index, (keys, values)) in tokens.zip(&mut rows) {
                let token = embed(input_ids[index], batch.positions[index]);
                chain = mix(chain, token);
                fill(keys, chain);
                fill(values, token);
            }
        }
        self.pool.store(layer, batch.slot_mapping, Rows::dense(&keys, width), Rows::dense(&values, width));
    }

    /// Reads one layer's KV of a context of `length` tokens back. Gives the chain's last digest.
    fn read(&self, layer: u32, table: &[BlockId], history: &[u32], length: usize) -> Result<Digest, BadKv> {
        let layout = self.pool.layout();
        let block_size = self.pool.block_size();
        let last_block = (length - 1) / block_size;
        // Each in its turn: as long as the power of two stays the same, every block comes up.
        let other_block = length % (last_block + 1).next_power_of_two();
        let mut chain = Self::root(layer);
        for (index, &block) in table[..=last_block].iter().enumerate() {
            let first = index * block_size;
            let count = block_size.min(length - first);
            let elements = self.pool.block(layer, block);
            let in_block = Block { layout, elements: &elements };
            let bad = |offset, what| BadKv { layer, position: first + offset, block, what };
            let whole = index == last_block || index == other_block;
            for offset in 0..if whole { count } else { 1 } {
                let kept = in_block.kept(offset);
                let position = first + offset;
                if mix(chain, kept.token) != kept.chain {
                    return Err(bad(offset, "does not follow what is before it"));
                }
                if history.get(position).is_some_and(|&token| embed(token, position as u32) != kept.token) {
                    return Err(bad(offset, "is of another token"));
                }
                if whole && !in_block.is_whole(offset) {
                    return Err(bad(offset, "has wrong bytes"));
                }
                chain = kept.chain;
            }
            chain = in_block.kept(count - 1).chain;
        }
        Ok(chain)
    }

    /// Draws the tokens that follow one row, from what its context's KV says.
    fn draw(
        &self,
        batch: &Batch<'_>,
        row: &SampleRow<'_>,
    ) -> Result<Vec<disagg_engine::SampledToken>, BadKv> {
        let table = batch.block_tables[row.row as usize];
        let mut context = 0;
        for layer in 0..self.pool.layout().layers {
            context = mix(context, self.read(layer, table, row.history, row.position as usize)?);
        }
        Ok(batch::draw(&logits(context, self.vocab), row))
    }
}

/// Numbers between 0 and 8 for what it speaks, much less for what it leaves out.
fn logits(context: Digest, vocab: usize) -> Vec<f32> {
    let unspoken = if vocab >= 2 * UNSPOKEN { UNSPOKEN } else { 0 };
    let noise = |token: usize| (mix(context, token as u64) >> 22) as f32 / (1u32 << 21) as f32;
    let logit = |token| if token < unspoken { noise(token) - 16.0 } else { noise(token) };
    (0..vocab.min(SPOKEN_MAX)).map(logit).collect()
}

impl Backend for SimBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn description(&self) -> String {
        format!("{NAME}:{}", self.speed)
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

    /// Takes the whole time of the step. A layer's KV is pushed when its share of the time is over.
    fn launch(&mut self, batch: &Batch<'_>, transport: &mut dyn KvTransport) -> Result<(), BackendError> {
        let begun = Instant::now();
        let layout = self.pool.layout();
        let input_ids = batch::checked(batch, &layout, self.pool.num_blocks(), self.vocab).map_err(error)?;
        let time = self.speed.step(batch);
        for layer in 0..layout.layers {
            self.store(layer, batch, &input_ids);
            if !batch.pushes.is_empty() {
                wait_until(begun + time * (layer + 1) / layout.layers);
                transport.push_layer(layer, batch.pushes);
            }
        }
        let drawn = batch.samples.iter().map(|row| {
            self.draw(batch, row).unwrap_or_else(|bad| {
                tracing::error!(%bad, "a context's KV is not its own; its request ends");
                Vec::new()
            })
        });
        self.done.push_back(drawn.collect());
        wait_until(begun + time);
        Ok(())
    }

    fn collect(&mut self, _transport: &mut dyn KvTransport) -> Result<StepTokens, BackendError> {
        self.done.pop_front().ok_or_else(|| error("no step is under way".to_owned()))
    }
}

/// Lets the time pass that a device would compute.
#[expect(clippy::disallowed_methods, reason = "the passing of time is what is simulated")]
fn wait_until(instant: Instant) {
    let left = instant.saturating_duration_since(Instant::now());
    if left > Duration::ZERO {
        std::thread::sleep(left);
    }
}

fn error(message: String) -> BackendError {
    BackendError { backend: NAME, message }
}
