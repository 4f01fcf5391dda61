//! From the last layer's output to drawn tokens.

use super::super::CudaError;
use super::super::device::Arg;
use super::super::step::Step;
use super::Model;

/// CTAs that adjust logits; each takes 256 entries at a time.
const ADJUST_CTAS: u32 = 8;

impl Model {
    /// Logits of the sampled rows, which are all that `normed` holds; what is asked of them as they are, adjustments,
    /// drawing.
    pub(super) fn head(&mut self, step: &Step) -> Result<(), CudaError> {
        if step.samples == 0 {
            return Ok(());
        }
        let shape = self.head_shape(step.samples);
        let Self { device, blas, spec, weights, kernels, activations: a, .. } = self;
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        blas.multiply(device, shape, head.address(), 0, a.normed.address(), a.logits.address())?;
        // SAFETY: see `Model::step`.
        unsafe {
            kernels.raw_logprobs.launch(
                device,
                (step.samples, 1),
                1024,
                &[
                    Arg::Address(a.log_sums.address()),
                    Arg::Address(self.top_ids.address()),
                    Arg::Address(self.top_logprobs.address()),
                    Arg::Address(a.logits.address()),
                    Arg::Address(step.raw_list),
                    Arg::Int(spec.vocab_size as i32),
                ],
            )?;
            kernels.adjust.launch(
                device,
                (ADJUST_CTAS, 1),
                256,
                &[
                    Arg::Address(a.logits.address()),
                    Arg::Address(step.adjust_list),
                    Arg::Address(step.adjust_count),
                    Arg::Int(spec.vocab_size as i32),
                ],
            )?;
            kernels.draw.launch(
                device,
                (step.draws, 1),
                1024,
                &[
                    Arg::Address(self.sampled.address()),
                    Arg::Address(self.logprobs.address()),
                    Arg::Address(a.logits.address()),
                    Arg::Address(a.log_sums.address()),
                    Arg::Address(step.draw_list),
                    Arg::Address(step.adjust_list),
                    Arg::Address(step.adjust_count),
                    Arg::Int(spec.vocab_size as i32),
                ],
            )
        }
    }
}
