//! Faults that tests force: states that this crate never makes by itself.

use disagg_core::SequenceId;

use crate::backend::{Backend, BackendError};
use crate::engine::Engine;
use crate::kv::KvTransport;
use crate::sequence::SequenceKey;

impl<B: Backend> Engine<B> {
    /// Takes the first choice of a request away from under all that hold its key.
    pub(crate) fn lose(&mut self, request: SequenceId) {
        self.sequences.remove(SequenceKey { request, choice: 0 });
    }

    /// Launches the next step with a row of `request` that has forgotten which token of the step under way is its own.
    pub(crate) fn launch_without_pending(
        &mut self,
        request: SequenceId,
        transport: &mut dyn KvTransport,
    ) -> Result<(), BackendError> {
        let rows = self.scheduler.schedule(&mut self.sequences, &mut self.pool, true);
        let key = SequenceKey { request, choice: 0 };
        assert!(rows.iter().any(|row| row.key == key), "{key:?} takes part in the next step");
        if let Some(sequence) = self.sequences.get_mut(key) {
            sequence.pending = None;
        }
        self.launch(rows, transport)
    }
}
