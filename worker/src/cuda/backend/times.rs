//! How long the GPU computed and how long it waited for the next step, if that is to be measured.

use std::sync::Arc;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, CudaStream};
use parking_lot::Mutex;

use super::super::{CudaError, Doing};

/// Sums over the steps collected so far.
#[derive(Clone, Copy, Default, Debug)]
pub struct StepTimes {
    /// Steps that followed another.
    pub steps: u32,
    /// From the first kernel of each to its last, in milliseconds.
    pub busy_ms: f64,
    /// Between the last kernel of a step and the first of the next one, in milliseconds: tokens go to the host, inputs
    /// come from there, and nothing is computed.
    pub idle_ms: f64,
}

/// Events around the kernels of one step.
pub(super) struct Around {
    begun: CudaEvent,
    ended: CudaEvent,
}

/// Measures steps as they are collected.
#[derive(Default)]
pub(super) struct Clock {
    sums: Arc<Mutex<StepTimes>>,
    before: Option<CudaEvent>,
}

impl Clock {
    pub(super) fn sums(&self) -> Arc<Mutex<StepTimes>> {
        Arc::clone(&self.sums)
    }

    /// The step has been waited for.
    pub(super) fn collected(&mut self, step: Around) -> Result<(), CudaError> {
        let busy = step.begun.elapsed_ms(&step.ended).doing("timing a step")?;
        if let Some(before) = &self.before {
            let idle = before.elapsed_ms(&step.begun).doing("timing a step")?;
            let mut sums = self.sums.lock();
            sums.steps += 1;
            sums.busy_ms += f64::from(busy);
            sums.idle_ms += f64::from(idle);
        }
        self.before = Some(step.ended);
        Ok(())
    }
}

impl Around {
    /// Both events, around what `issue` issues; none of them unless it is `timed`.
    pub(super) fn issue(
        stream: &Arc<CudaStream>,
        timed: bool,
        issue: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Option<Self>, CudaError> {
        if !timed {
            issue()?;
            return Ok(None);
        }
        let event = || {
            stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).doing("recording an event of a step")
        };
        let begun = event()?;
        issue()?;
        Ok(Some(Self { begun, ended: event()? }))
    }
}
