//! Weight matrices as products read them.

use std::sync::Arc;

use half::{bf16, f16};
use rayon::prelude::*;

use super::product::Panel;
use super::simd::LANES;
use crate::model::weights::TensorSource;
use crate::model::{ModelError, WeightFormat};

/// Bytes that one task reads and packs: enough that a read is worth its call, few enough that they stay in the cache.
const TASK_BYTES: usize = 1 << 19;

/// A weight matrix `[outputs, inputs]`, in panels of [`LANES`] outputs: what belongs to a panel's outputs and one input lies
/// side by side, as one vector. So a product takes one input after the other for sixteen outputs at once, and a panel is
/// read from its beginning to its end, for one token as for many.
///
/// Elements have the format of the file that they come from, which products widen as they go. Reading the file into panels
/// makes the only copy. Clones share it.
#[derive(Clone)]
pub struct Matrix {
    panels: Arc<Panels>,
    outputs: usize,
    inputs: usize,
}

/// `[outputs / LANES, rounded up][inputs][LANES]`; zeros where there is no output.
pub(super) enum Panels {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Matrix {
    /// Reads tensors `[rows, inputs]`, given by name and number of rows, one below the other. They are kept as f32 if
    /// their formats differ.
    pub(crate) fn read(
        source: &dyn TensorSource,
        inputs: usize,
        parts: &[(&str, usize)],
    ) -> Result<Self, ModelError> {
        let formats = parts.iter().map(|&(name, rows)| source.format(name, &[rows, inputs]));
        let formats = formats.collect::<Result<Vec<_>, _>>()?;
        let outputs = parts.iter().map(|(_, rows)| rows).sum();
        let parts: Vec<Part<'_>> = parts
            .iter()
            .zip(&formats)
            .map(|(&(name, rows), &format)| Part { source, name, rows, format })
            .collect();
        let same = formats.iter().all(|&format| format == formats[0]);
        let panels = match formats.first() {
            Some(WeightFormat::Bf16) if same => Panels::Bf16(pack(&parts, outputs, inputs, |_, bytes| {
                bf16::from_le_bytes([bytes[0], bytes[1]])
            })?),
            Some(WeightFormat::F16) if same => Panels::F16(pack(&parts, outputs, inputs, |_, bytes| {
                f16::from_le_bytes([bytes[0], bytes[1]])
            })?),
            _ => Panels::F32(pack(&parts, outputs, inputs, widened)?),
        };
        Ok(Self { panels: Arc::new(panels), outputs, inputs })
    }

    /// Rows of the matrix.
    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Elements of a row.
    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    /// All panels.
    pub(super) fn storage(&self) -> &Panels {
        &self.panels
    }

    /// The rows of some outputs as f32, `[indices, inputs]`: what an embedding is for.
    pub(super) fn rows(&self, indices: &[u32]) -> Vec<f32> {
        match self.storage() {
            Panels::F32(panels) => self.gather(panels, indices, |weight| weight),
            Panels::Bf16(panels) => self.gather(panels, indices, bf16::to_f32),
            Panels::F16(panels) => self.gather(panels, indices, f16::to_f32),
        }
    }

    fn gather<W: Copy>(&self, panels: &[W], indices: &[u32], widen: impl Fn(W) -> f32) -> Vec<f32> {
        let panels: &Panel<W> = panels.as_chunks().0;
        let mut rows = Vec::with_capacity(indices.len() * self.inputs);
        for &index in indices {
            let (panel, lane) = (index as usize / LANES, index as usize % LANES);
            let panel = &panels[panel * self.inputs..][..self.inputs];
            rows.extend(panel.iter().map(|vector| widen(vector[lane])));
        }
        rows
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let format = match self.storage() {
            Panels::F32(_) => WeightFormat::F32,
            Panels::Bf16(_) => WeightFormat::Bf16,
            Panels::F16(_) => WeightFormat::F16,
        };
        write!(f, "Matrix([{}, {}], {format:?})", self.outputs, self.inputs)
    }
}

/// A tensor that is some rows of a matrix.
struct Part<'a> {
    source: &'a dyn TensorSource,
    name: &'a str,
    rows: usize,
    format: WeightFormat,
}

fn widened(format: WeightFormat, bytes: &[u8]) -> f32 {
    match format {
        WeightFormat::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        WeightFormat::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        WeightFormat::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
    }
}

/// Reads all rows into panels, in parallel, a few panels at a time.
fn pack<W: Copy + Default + Send>(
    parts: &[Part<'_>],
    outputs: usize,
    inputs: usize,
    element: impl Fn(WeightFormat, &[u8]) -> W + Sync,
) -> Result<Vec<W>, ModelError> {
    let mut panels = vec![W::default(); outputs.div_ceil(LANES) * inputs * LANES];
    let rows_at_once = (TASK_BYTES / (inputs * size_of::<W>()).max(1)).max(LANES) / LANES * LANES;
    panels.par_chunks_mut((rows_at_once * inputs).max(1)).enumerate().try_for_each_init(
        || (Vec::new(), Vec::new()),
        |(bytes, values), (index, panels)| {
            let first = index * rows_at_once;
            let rows = rows_at_once.min(outputs - first);
            values.clear();
            let mut before = 0;
            for part in parts {
                let wanted = first.max(before)..(first + rows).min(before + part.rows);
                if !wanted.is_empty() {
                    let row_bytes = inputs * part.format.bytes();
                    bytes.resize(wanted.len() * row_bytes, 0);
                    part.source.read(part.name, (wanted.start - before) * row_bytes, bytes)?;
                    let elements = bytes.chunks_exact(part.format.bytes());
                    values.extend(elements.map(|bytes| element(part.format, bytes)));
                }
                before += part.rows;
            }
            for (panel, rows) in panels.chunks_mut(inputs * LANES).zip(values.chunks(inputs * LANES)) {
                interleave(rows, inputs, panel.as_chunks_mut().0);
            }
            Ok::<(), ModelError>(())
        },
    )?;
    Ok(panels)
}

/// Up to [`LANES`] rows to a panel, whose other lanes stay as they are.
fn interleave<W: Copy>(rows: &[W], inputs: usize, panel: &mut Panel<W>) {
    if rows.len() == inputs * LANES {
        // Rows in an array, and inputs outside: stores are side by side.
        let rows: [&[W]; LANES] = std::array::from_fn(|lane| &rows[lane * inputs..][..inputs]);
        for (input, vector) in panel.iter_mut().enumerate().take(inputs) {
            for lane in 0..LANES {
                vector[lane] = rows[lane][input];
            }
        }
    } else {
        for (lane, row) in rows.chunks_exact(inputs).enumerate() {
            panel.iter_mut().zip(row).for_each(|(vector, &weight)| vector[lane] = weight);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two tensors that are parts of one matrix, in their own formats; elements are given by a function of row and column of
    /// the matrix.
    pub(in super::super) struct Halves<F> {
        pub(in super::super) formats: [WeightFormat; 2],
        /// Of the first part.
        pub(in super::super) rows: usize,
        pub(in super::super) inputs: usize,
        pub(in super::super) element: F,
    }

    impl<F: Fn(usize, usize) -> f32 + Sync> TensorSource for Halves<F> {
        fn format(&self, name: &str, _: &[usize]) -> Result<WeightFormat, ModelError> {
            Ok(self.formats[usize::from(name == "second")])
        }

        fn read(&self, name: &str, offset: usize, out: &mut [u8]) -> Result<(), ModelError> {
            let format = self.format(name, &[])?;
            let first = offset / format.bytes();
            for (index, out) in out.chunks_exact_mut(format.bytes()).enumerate() {
                let row = (first + index) / self.inputs + if name == "second" { self.rows } else { 0 };
                let value = (self.element)(row, (first + index) % self.inputs);
                match format {
                    WeightFormat::F32 => out.copy_from_slice(&value.to_le_bytes()),
                    WeightFormat::Bf16 => out.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                    WeightFormat::F16 => out.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                }
            }
            Ok::<(), ModelError>(())
        }
    }

    /// Every format and a mixture; parts that end within a panel, within a task, and a last panel that is not full.
    #[test]
    fn rows_come_back_as_they_were() {
        use WeightFormat::{Bf16, F16, F32};
        for (first, second, inputs) in [(2 * LANES + 3, 7, 5), (7, 2000, 601), (3000, 1, 201)] {
            for formats in [[F32; 2], [Bf16; 2], [F16; 2], [Bf16, F16], [F32, Bf16]] {
                // Exact in every format.
                let element = |row: usize, column: usize| ((row * 31 + column * 7) % 251) as f32;
                let source = Halves { formats, rows: first, inputs, element };
                let outputs = first + second;
                let matrix =
                    Matrix::read(&source, inputs, &[("first", first), ("second", second)]).expect("it fits");
                let kept = match matrix.storage() {
                    Panels::F32(_) => F32,
                    Panels::Bf16(_) => Bf16,
                    Panels::F16(_) => F16,
                };
                assert_eq!(kept, if formats[0] == formats[1] { formats[0] } else { F32 });
                let all: Vec<u32> = (0..outputs as u32).collect();
                for (row, values) in matrix.rows(&all).chunks(inputs).enumerate() {
                    let want: Vec<f32> = (0..inputs).map(|column| element(row, column)).collect();
                    assert_eq!(values, want, "row {row} of {outputs}, {formats:?}");
                }
                assert_eq!(matrix.outputs(), outputs);
            }
        }
    }
}
