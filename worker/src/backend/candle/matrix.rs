//! Weight matrices as the product reads them.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::simd::LANES;
use super::tensors::with_rows;

/// A weight matrix `[outputs, inputs]`, kept in panels of [`LANES`] outputs: the weights of a panel's outputs for one
/// input lie side by side, as one vector. So a product takes one input after the other for sixteen outputs at once, and a
/// panel is read from its beginning to its end, for one token as for many.
pub(super) struct Matrix {
    /// `[outputs / LANES, rounded up][inputs][LANES]`; zeros where there is no output.
    panels: Vec<[f32; LANES]>,
    outputs: usize,
    inputs: usize,
}

impl Matrix {
    /// From rows of `inputs` weights, one for each output. Takes the tensor, so that its memory can go.
    pub(super) fn new(weight: Tensor) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let mut panels = vec![[0.0; LANES]; outputs.div_ceil(LANES) * inputs];
        with_rows(&weight, &weight, |rows, _| {
            panels.par_chunks_mut(inputs).enumerate().for_each(|(index, panel)| {
                for lane in 0..LANES.min(outputs - index * LANES) {
                    for (vector, &value) in panel.iter_mut().zip(rows.row(index * LANES + lane)) {
                        vector[lane] = value;
                    }
                }
            });
        })?;
        drop(weight);
        Ok(Self { panels, outputs, inputs })
    }

    /// Rows of the matrix.
    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Elements of a row.
    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Panels, the last of which may have fewer than [`LANES`] outputs.
    pub(super) fn panels(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    /// A panel: the weights of [`LANES`] outputs, input by input.
    #[inline(always)]
    pub(super) fn panel(&self, index: usize) -> &[[f32; LANES]] {
        &self.panels[index * self.inputs..][..self.inputs]
    }

    /// The rows of some outputs, `[indices, inputs]`: what an embedding is for.
    pub(super) fn rows(&self, indices: &[u32]) -> Result<Tensor> {
        let mut rows = Vec::with_capacity(indices.len() * self.inputs);
        for &index in indices {
            let (panel, lane) = (index as usize / LANES, index as usize % LANES);
            rows.extend(self.panel(panel).iter().map(|vector| vector[lane]));
        }
        Tensor::from_vec(rows, (indices.len(), self.inputs), &Device::Cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_were() {
        let (outputs, inputs) = (2 * LANES + 3, 5);
        let values: Vec<f32> = (0..outputs * inputs).map(|value| value as f32).collect();
        let matrix =
            Matrix::new(Tensor::from_vec(values.clone(), (outputs, inputs), &Device::Cpu).expect("fits"))
                .expect("a matrix");
        let all: Vec<u32> = (0..outputs as u32).collect();
        let rows = matrix.rows(&all).expect("within").flatten_all().and_then(|rows| rows.to_vec1::<f32>());
        assert_eq!(rows.expect("f32"), values);
        assert_eq!((matrix.panels(), matrix.panel(2)[4][3..].iter().sum::<f32>().to_bits()), (3, 0));
    }
}
