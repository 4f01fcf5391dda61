//! The kernels that a model needs, and the shared memory that each takes.

use super::super::CudaError;
use super::super::compile::{self, Target};
use super::super::device::{Device, Kernel};
use super::decode::DecodeKernels;

/// Loaded kernels.
pub(super) struct Kernels {
    pub(super) embed: Kernel,
    pub(super) rms_norm: Kernel,
    pub(super) rope_append: Kernel,
    pub(super) silu_mul: Kernel,
    pub(super) gather_rows: Kernel,
    pub(super) plan_decode: Kernel,
    pub(super) decode: Kernel,
    pub(super) prefill: Kernel,
    pub(super) prefill_sm90: Option<Kernel>,
    /// For steps of few tokens, where there are such kernels.
    pub(super) decode_chain: Option<DecodeKernels>,
    pub(super) raw_logprobs: Kernel,
    pub(super) adjust: Kernel,
    pub(super) draw: Kernel,
}

/// Dynamic shared memory of decode attention, in bytes: 4 warps × 3 stages × keys and values of 16 tokens.
pub const fn decode_attention_bytes(head_dim: u32) -> u32 {
    4 * 3 * 2 * 16 * head_dim * 2
}

impl Kernels {
    /// All but the decode chain, which needs the weights.
    pub(super) fn load(device: &Device, target: &Target) -> Result<Self, CudaError> {
        let element = device.load(compile::ELEMENTWISE, target)?;
        let decode = device.load(compile::ATTENTION_DECODE, target)?;
        let prefill = device.load(compile::ATTENTION_PREFILL, target)?;
        let sample = device.load(compile::SAMPLE, target)?;
        let head_bytes = target.head_dim * 2;
        let decode_shared = decode_attention_bytes(target.head_dim);
        // 2 stages × keys and values of 64 tokens.
        let prefill_shared = 2 * 2 * 64 * head_bytes;
        let prefill_sm90 = if target.capability == (9, 0) && target.head_dim == 128 {
            // Queries, 2 stages × keys and values of 128 tokens, barriers, alignment.
            let shared = 5 * 128 * head_bytes + 128 + 1024;
            let module = device.load(compile::ATTENTION_PREFILL_SM90, target)?;
            Some(Kernel::new(&module, "prefill_attention_sm90", shared)?)
        } else {
            None
        };
        Ok(Self {
            embed: Kernel::new(&element, "embed", 0)?,
            rms_norm: Kernel::new(&element, "rms_norm", 0)?,
            rope_append: Kernel::new(&element, "rope_append", 0)?,
            silu_mul: Kernel::new(&element, "silu_mul", 0)?,
            gather_rows: Kernel::new(&element, "gather_rows", 0)?,
            plan_decode: Kernel::new(&decode, "plan_decode", 0)?,
            decode: Kernel::new(&decode, "decode_attention", decode_shared)?,
            prefill: Kernel::new(&prefill, "prefill_attention", prefill_shared)?,
            prefill_sm90,
            decode_chain: None,
            raw_logprobs: Kernel::new(&sample, "raw_logprobs", 0)?,
            adjust: Kernel::new(&sample, "adjust_logits", 0)?,
            draw: Kernel::new(&sample, "draw_tokens", 0)?,
        })
    }
}
