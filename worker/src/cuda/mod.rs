//! The NVIDIA backend: our own kernels and cublasLt, driven through `cudarc` with run-time loading.
//!
//! The same binary starts on a machine without a GPU: no CUDA library is linked, and [`available`] says whether they
//! are there. `unsafe` is allowed in this module only; every block says why it is sound. The rule that most of them
//! lean on: all device work of a backend is issued on one stream, buffers live as long as the backend, and a buffer
//! that the host writes is written again only after the event recorded behind its last use.
//!
//! | file | what |
//! |---|---|
//! | `compile` | CUDA sources to cubins with NVRTC, cached on disk |
//! | `device` | context, stream, loaded kernels, device buffers |
//! | `format` | how numbers are stored: bf16 or f16 |
//! | `blas` | matrix products with a timed choice of algorithm |
//! | `weights`, `upload` | weights on the device, from safetensors or made there; their way from files to the GPU |
//! | `step`, `lists` | the inputs of a step, and what its rows draw, as the kernels read them |
//! | `forward`, `rope` | one step of the model as a list of launches; which form a decode step takes |
//! | `split` | how products of decode steps are cut among CTAs |
//! | `tuned` | timed choices of algorithms, kept on disk |
//! | `staging` | inputs on their way through pinned memory |
//! | `memory` | the KV pool for transports |
//! | `support` | which GPUs and drivers the kernels work with; advice on errors |
//! | `limits` | what the kernels can compute and what fits |
//! | `budget` | how much of the GPU's memory this process may take |
//! | `gpus` | which GPUs there are |
//! | `backend` | `Backend`: CUDA graphs, steps under way; batches as kernels read them; faults on purpose |
#![allow(unsafe_code)]
#![allow(clippy::cast_possible_wrap, reason = "CUDA counts in int; every size here is far below 2^31")]

pub mod backend;
pub mod blas;
mod budget;
pub mod compile;
pub mod device;
pub mod format;
pub mod forward;
pub mod gpus;
mod limits;
pub mod lists;
mod memory;
mod rope;
pub mod split;
mod staging;
pub mod step;
pub mod support;
mod tuned;
mod upload;
pub mod weights;

use std::fmt;

pub use limits::check_config;

/// Something that CUDA, cublasLt or NVRTC refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CudaError {
    /// What was being done.
    pub doing: String,
    /// What the library said.
    pub cause: String,
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.cause)?;
        support::advice(&self.cause).map_or(Ok(()), |advice| write!(f, " ({advice})"))
    }
}

impl std::error::Error for CudaError {}

/// Adds what was being done to an error of any CUDA library.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl Into<String>) -> Result<T, CudaError>;
}

impl<T, E: fmt::Debug> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Into<String>) -> Result<T, CudaError> {
        self.map_err(|cause| CudaError { doing: what.into(), cause: format!("{cause:?}") })
    }
}

/// How many GPUs this process can use, at least one; if none, why not, in one sentence.
pub fn available() -> Result<usize, String> {
    // SAFETY: these only try to open shared libraries.
    let (driver, nvrtc, blas) = unsafe {
        (
            cudarc::driver::sys::is_culib_present(),
            cudarc::nvrtc::sys::is_culib_present(),
            cudarc::cublaslt::sys::is_culib_present(),
        )
    };
    if !driver {
        return Err("the NVIDIA driver (libcuda.so.1) is not on this machine".to_owned());
    }
    for (present, name) in [(nvrtc, "NVRTC (libnvrtc.so)"), (blas, "cublasLt (libcublasLt.so)")] {
        if !present {
            return Err(format!(
                "{name} of CUDA 12 or 13 is not found; install the CUDA runtime libraries or set LD_LIBRARY_PATH"
            ));
        }
    }
    match cudarc::driver::CudaContext::device_count() {
        Ok(count) if count > 0 => Ok(count as usize),
        Ok(_) => Err("the NVIDIA driver sees no GPU".to_owned()),
        Err(error) => Err(format!("the NVIDIA driver does not start: {error:?}")),
    }
}
