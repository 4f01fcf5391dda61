//! Faults on purpose, to see on a real GPU what a worker does when it fails. Only in builds with debug assertions.
//!
//! `DISAGG_FAULT=KIND@STEP` strikes when step STEP (from 1) is launched. KIND is `illegal-address` (a kernel writes where
//! nothing is, after which CUDA refuses everything), `out-of-memory` (the step asks for more memory than there is) or `hang`
//! (what was launched never begins).

use std::ffi::c_void;

use super::super::compile::{INIT, Target};
use super::super::device::{Arg, Device, Kernel};
use super::super::{CudaError, Doing};

const VARIABLE: &str = "DISAGG_FAULT";

#[derive(Clone, Copy)]
enum Kind {
    IllegalAddress,
    OutOfMemory,
    Hang,
}

/// A fault that is to come.
pub(super) struct Fault {
    kind: Kind,
    step: usize,
    /// Writes where it is told to.
    write: Kernel,
}

impl Fault {
    /// What the environment asks for.
    pub(super) fn from_environment(device: &Device, target: &Target) -> Result<Option<Self>, CudaError> {
        let Ok(text) = std::env::var(VARIABLE) else { return Ok(None) };
        let refuse = || CudaError {
            doing: format!("reading {VARIABLE}"),
            cause: format!("{text:?} is not illegal-address@N, out-of-memory@N or hang@N"),
        };
        let (kind, step) = text.split_once('@').ok_or_else(refuse)?;
        let kind = match kind {
            "illegal-address" => Kind::IllegalAddress,
            "out-of-memory" => Kind::OutOfMemory,
            "hang" => Kind::Hang,
            _ => return Err(refuse()),
        };
        let step = step.parse().map_err(|_| refuse())?;
        tracing::warn!(fault = text, "the GPU will fail on purpose");
        let write = Kernel::new(&device.load(INIT, target)?, "fill_constant", 0)?;
        Ok(Some(Self { kind, step, write }))
    }

    /// Strikes if it is time; `launched` steps have been.
    pub(super) fn strike(&self, device: &Device, launched: usize) -> Result<(), CudaError> {
        if launched + 1 != self.step {
            return Ok(());
        }
        match self.kind {
            Kind::IllegalAddress => {
                let args = [Arg::Address(16), Arg::Long(1), Arg::Float(1.0)];
                // SAFETY: none: this is the fault. CUDA notices it and ends the context.
                unsafe { self.write.launch(device, (1, 1), 32, &args) }
            }
            Kind::OutOfMemory => device.buffer::<u8>(1 << 45).map(drop),
            Kind::Hang => {
                let stream = device.stream.cu_stream();
                // SAFETY: the function takes no argument and touches nothing.
                unsafe {
                    cudarc::driver::result::stream::launch_host_function(
                        stream,
                        for_ever,
                        std::ptr::null_mut(),
                    )
                }
                .doing("letting the stream wait for ever")
            }
        }
    }
}

/// What follows on the stream begins when this has returned.
unsafe extern "C" fn for_ever(_: *mut c_void) {
    loop {
        std::thread::park();
    }
}
