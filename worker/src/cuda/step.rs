//! The inputs of a step, as addresses on the device.

/// Where a step's inputs lie on the device, and how many there are. Sections are as the kernels' headers say.
#[derive(Clone, Copy, Default, Debug)]
pub struct Step {
    /// Tokens in all.
    pub tokens: u32,
    /// `[tokens]`.
    pub ids: u64,
    /// `[tokens]`.
    pub positions: u64,
    /// `[tokens]`.
    pub slots: u64,
    /// Sequences with one query token.
    pub decode_rows: u32,
    /// `[decode_rows]`.
    pub q_rows: u64,
    /// `[decode_rows]`.
    pub context_lens: u64,
    /// `[decode_rows, table_stride]`.
    pub decode_tables: u64,
    /// Tiles of sequences with several query tokens.
    pub tiles: u32,
    /// `[tiles, 4]`.
    pub tile_list: u64,
    /// `[prefill rows]`.
    pub row_lens: u64,
    /// `[prefill rows, table_stride]`.
    pub prefill_tables: u64,
    /// Words from one row's table to the next.
    pub table_stride: u32,
    /// Rows whose next token is drawn.
    pub samples: u32,
    /// `[samples]`: their last tokens.
    pub sample_rows: u64,
    /// Tokens to draw: one for each choice of each row.
    pub draws: u32,
    /// `[draws]` of [`Draw`].
    pub draw_list: u64,
    /// `[samples]` of [`RawRow`].
    pub raw_list: u64,
    /// `[adjust count]` of [`Adjust`].
    pub adjust_list: u64,
    /// One word: how many adjustments there are.
    pub adjust_count: u64,
}
