//! A batch as the kernels read it, written into pinned memory.

use disagg_engine::{Batch, TokenInput};

use super::super::CudaError;
use super::super::forward::TILE;
use super::super::lists::{Draw, RawRow, Wanted, sampling_lists};
use super::super::step::Step;
use super::{BLOCK_SIZE, CudaBackend};

impl CudaBackend {
    /// Sections at places that depend on `padded` alone, so that the graph finds them again.
    pub(super) fn stage_decode(
        &mut self,
        slot: usize,
        batch: &Batch<'_>,
        padded: u32,
    ) -> Result<(Step, Vec<Wanted>), CudaError> {
        let ids = self.input_ids(batch);
        let staging = &mut self.slots[slot].staging;
        let rows = batch.block_tables.len();
        let pad = padded as usize - rows;
        let padding = |value: u32| std::iter::repeat_n(value, pad);
        let stride = self.table_stride as usize;
        let mut step = Step {
            tokens: padded,
            ids: staging.push(ids.into_iter().chain(padding(0)))?,
            positions: staging.push(batch.positions.iter().copied().chain(padding(0)))?,
            slots: staging
                .push(batch.slot_mapping.iter().map(|&slot| with_tail(slot, 0)).chain(padding(u32::MAX)))?,
            decode_rows: padded,
            q_rows: staging.push(0..padded)?,
            context_lens: staging.push(batch.positions.iter().map(|p| p + 1).chain(padding(0)))?,
            samples: padded,
            sample_rows: staging.push(0..padded)?,
            draws: padded,
            table_stride: self.table_stride,
            ..Step::default()
        };
        let (mut draws, mut raw, adjusts, wanted) = sampling_lists(batch.samples, self.model.spec.vocab_size);
        draws.resize(padded as usize, Draw::default());
        raw.resize(padded as usize, RawRow { row: 0, top: RawRow::NOTHING });
        step.draw_list = staging.push_structs(&draws)?;
        step.raw_list = staging.push_structs(&raw)?;
        step.adjust_count = staging.push([adjusts.len() as u32])?;
        // With the tables of the padding rows, which are never read, so that the place of what follows is fixed too.
        let tables = batch
            .block_tables
            .iter()
            .flat_map(|table| table.iter().map(|block| block.0).chain(std::iter::repeat(0)).take(stride));
        step.decode_tables = staging.push(tables.chain(std::iter::repeat_n(0, pad * stride)))?;
        step.adjust_list = staging.push_structs(&adjusts)?;
        Ok((step, wanted))
    }

    pub(super) fn stage_mixed(
        &mut self,
        slot: usize,
        batch: &Batch<'_>,
    ) -> Result<(Step, Vec<Wanted>), CudaError> {
        let ids = self.input_ids(batch);
        let staging = &mut self.slots[slot].staging;
        let stride = self.table_stride as usize;
        let (mut q_rows, mut contexts, mut decodes, mut prefills) = (vec![], vec![], vec![], vec![]);
        let mut tiles: Vec<[u32; 4]> = Vec::new();
        let mut row_lens = Vec::new();
        let mut slots: Vec<u32> = batch.slot_mapping.to_vec();
        for (row, window) in batch.cu_seqlens.windows(2).enumerate() {
            let (start, len) = (window[0], window[1] - window[0]);
            let first = batch.positions[start as usize];
            let last = (start + len - 1) as usize;
            slots[last] = with_tail(slots[last], len - 1);
            if len == 1 {
                q_rows.push(start);
                contexts.push(first + 1);
                decodes.push(row);
            } else {
                let index = prefills.len() as u32;
                tiles.extend((0..len).step_by(TILE as usize).map(|q| [index, q, start + q, first + q]));
                row_lens.push(len);
                prefills.push(row);
            }
        }
        // The longest contexts first, so that the last CTAs to start are short.
        tiles.sort_unstable_by_key(|tile| std::cmp::Reverse(tile[3]));
        let tables = |rows: &[usize]| {
            rows.iter()
                .flat_map(|&row| {
                    let table = batch.block_tables[row];
                    table.iter().map(|block| block.0).chain(std::iter::repeat(0)).take(stride)
                })
                .collect::<Vec<_>>()
        };
        let (draws, raw, adjusts, wanted) = sampling_lists(batch.samples, self.model.spec.vocab_size);
        let step = Step {
            tokens: ids.len() as u32,
            ids: staging.push(ids)?,
            positions: staging.push(batch.positions.iter().copied())?,
            slots: staging.push(slots)?,
            decode_rows: decodes.len() as u32,
            q_rows: staging.push(q_rows)?,
            context_lens: staging.push(contexts)?,
            decode_tables: staging.push(tables(&decodes))?,
            tiles: tiles.len() as u32,
            tile_list: staging.push(tiles.into_iter().flatten())?,
            row_lens: staging.push(row_lens)?,
            prefill_tables: staging.push(tables(&prefills))?,
            table_stride: self.table_stride,
            samples: batch.samples.len() as u32,
            sample_rows: staging
                .push(batch.samples.iter().map(|sample| batch.cu_seqlens[sample.row as usize + 1] - 1))?,
            draws: draws.len() as u32,
            draw_list: staging.push_structs(&draws)?,
            raw_list: staging.push_structs(&raw)?,
            adjust_list: staging.push_structs(&adjusts)?,
            adjust_count: staging.push([adjusts.len() as u32])?,
        };
        Ok((step, wanted))
    }

    /// Token ids as `embed` takes them.
    fn input_ids(&self, batch: &Batch<'_>) -> Vec<u32> {
        batch
            .input_ids
            .iter()
            .map(|input| match *input {
                TokenInput::Id(id) => id,
                TokenInput::Sampled(sample) => {
                    1 << 31 | self.first_draws.get(sample as usize).copied().unwrap_or_default()
                }
            })
            .collect()
    }
}

/// Slot of a row's last token. With bit 31 the kernel clears the block's values behind it, which is needed when the
/// block was begun in this step: when the row has at least as many tokens before this one as the block.
fn with_tail(slot: u32, tokens_before: u32) -> u32 {
    if slot % BLOCK_SIZE <= tokens_before { slot | 1 << 31 } else { slot }
}
