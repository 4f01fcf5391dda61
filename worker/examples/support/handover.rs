//! Prefills on one engine what another one decodes, whatever their devices, with every block copied as soon as it is
//! pushed.

use std::collections::HashMap;
use std::sync::Arc;

use disagg_core::{BlockId, Epoch, HandoffId};
use disagg_engine::{
    Backend, Engine, EngineEvent, KvMemory, KvPush, KvTransport, RemotePrefill, Request, SampledToken,
};

/// The tokens of each request, of one choice.
pub(crate) fn hand_over<P: Backend, D: Backend>(
    prefill: &mut Engine<P>,
    decode: &mut Engine<D>,
    requests: &[Request],
    finish: impl Fn(&mut Engine<D>) -> HashMap<(disagg_core::SequenceId, u32), Vec<SampledToken>>,
) -> Vec<Vec<SampledToken>> {
    let (from, to) = (prefill.memory(), decode.memory());
    assert_eq!(from.layout(), to.layout(), "KV would mean something else");
    let mut copy = Copy { from, to, reserved: HashMap::new(), copied: HashMap::new() };
    let mut sequences = Vec::new();
    for (number, request) in (0..).zip(requests) {
        let handoff = HandoffId { epoch: Epoch(7), number };
        let reservation = decode.reserve(request.clone()).unwrap();
        let first_block = reservation.first_block;
        copy.reserved.insert(handoff, reservation.blocks);
        prefill.submit_prefill(RemotePrefill { handoff, request: request.clone(), first_block }).unwrap();
        let mut first = None;
        while prefill.has_work() {
            prefill.step(&mut copy).unwrap();
            for event in prefill.take_events() {
                if let EngineEvent::PrefillDone { first_tokens, .. } = event {
                    prefill.push_drained(handoff);
                    first = Some(first_tokens);
                }
            }
        }
        let (got, want) = (copy.copied[&handoff], copy.reserved[&handoff].len());
        assert_eq!(got, want * copy.to.layout().layers as usize, "blocks of layers that were pushed");
        decode.activate(reservation.sequence, first.unwrap()).unwrap();
        sequences.push(reservation.sequence);
    }
    prefill.check();
    assert_eq!(prefill.load().blocks_used, 0);
    let mut outputs = finish(decode);
    sequences.into_iter().map(|sequence| outputs.remove(&(sequence, 0)).unwrap_or_default()).collect()
}

struct Copy {
    from: Arc<dyn KvMemory>,
    to: Arc<dyn KvMemory>,
    reserved: HashMap<HandoffId, Vec<BlockId>>,
    /// Blocks of layers.
    copied: HashMap<HandoffId, usize>,
}

impl KvTransport for Copy {
    fn push_layer(&mut self, layer: u32, pushes: &[KvPush]) {
        let mut bytes = vec![0; self.from.layout().layer_block_bytes()];
        for push in pushes {
            for (index, &source) in (push.first as usize..).zip(&push.blocks) {
                self.from.read(layer, source, &mut bytes).unwrap();
                self.to.write(layer, self.reserved[&push.handoff][index], &bytes).unwrap();
                *self.copied.entry(push.handoff).or_default() += 1;
            }
        }
    }
}
