//! What the backends that compute on the CPU do with a batch before and after they compute it.

use disagg_engine::{Batch, KvLayout, SampleRow, SampledToken, TokenInput, sampling};

/// The batch's input tokens, after a check that its parts fit each other, the pool and the vocabulary. The engine is
/// trusted, but an index out of range must not become a panic on the engine's thread.
pub(super) fn checked(
    batch: &Batch<'_>,
    layout: &KvLayout,
    num_blocks: u32,
    vocab: usize,
) -> Result<Vec<u32>, String> {
    let tokens = batch.input_ids.len();
    let rows = batch.block_tables.len();
    let fits = batch.positions.len() == tokens
        && batch.slot_mapping.len() == tokens
        && batch.cu_seqlens.len() == rows + 1
        && batch.cu_seqlens.is_sorted_by(|a, b| a < b)
        && batch.cu_seqlens.first() == Some(&0)
        && batch.cu_seqlens.last() == Some(&(tokens as u32))
        && batch.samples.iter().all(|sample| (sample.row as usize) < rows);
    if !fits {
        return Err("the parts of the batch do not fit each other".to_owned());
    }
    let covered = batch.cu_seqlens.windows(2).zip(batch.block_tables).all(|(row, table)| {
        let positions = &batch.positions[row[0] as usize..row[1] as usize];
        positions.iter().all(|position| layout.blocks_for(position + 1) as usize <= table.len())
            && table.iter().all(|block| block.0 < num_blocks)
    });
    if !covered || batch.slot_mapping.iter().any(|slot| slot / layout.block_size >= num_blocks) {
        return Err("a token of the batch lies outside its blocks".to_owned());
    }
    batch
        .input_ids
        .iter()
        .map(|input| match *input {
            TokenInput::Id(id) if (id as usize) < vocab => Ok(id),
            TokenInput::Id(id) => Err(format!("token {id} is outside the vocabulary of {vocab}")),
            TokenInput::Sampled(_) => Err("a token was scheduled before it was drawn".to_owned()),
        })
        .collect()
}

/// Draws the choices of one row. A row that cannot be drawn from gets fewer tokens.
pub(super) fn draw(logits: &[f32], row: &SampleRow<'_>) -> Vec<SampledToken> {
    let choices = row.choices.clone().map(|choice| sampling::sample(logits, row, choice));
    choices.collect::<Result<Vec<_>, _>>().unwrap_or_else(|error| {
        tracing::warn!(row = row.row, position = row.position, %error, "no token drawn");
        Vec::new()
    })
}
