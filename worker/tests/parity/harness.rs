//! Engines with the CPU backend, and a handoff between two of them within the process.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use disagg_core::{BlockId, Epoch, HandoffId, SequenceId};
use disagg_engine::{
    Backend, Engine, EngineConfig, EngineEvent, KvDtype, KvMemory, KvPush, KvTransport, NoTransport,
    RemotePrefill, Request, SampledToken, SamplingParams, StopRules,
};
use disagg_worker::backend::candle::CandleBackend;

use crate::golden::Case;

const OUTPUT_TOKENS: u32 = 32;

/// What is asked of every prompt.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) sampling: SamplingParams,
    pub(crate) choices: u32,
}

impl Ask {
    /// The most likely token, always.
    pub(crate) fn greedy() -> Self {
        Self { sampling: SamplingParams::greedy(), choices: 1 }
    }

    /// Drawn, with every parameter that has a say.
    pub(crate) fn seeded() -> Self {
        let sampling = SamplingParams {
            temperature: 0.9,
            top_p: 0.95,
            top_k: 60,
            min_p: 0.01,
            presence_penalty: 0.3,
            frequency_penalty: 0.2,
            repetition_penalty: 1.1,
            logit_bias: vec![(7, 1.5)],
            seed: 42,
            top_logprobs: None,
        };
        Self { sampling, choices: 1 }
    }

    pub(crate) fn with_choices(self, choices: u32) -> Self {
        Self { choices, ..self }
    }
}

/// The tokens of each choice.
pub(crate) type Choices = Vec<Vec<SampledToken>>;

/// An engine that fits all of a case's prompts at once.
pub(crate) struct Worker {
    pub(crate) engine: Engine<CandleBackend>,
    /// A sequence that ran had to wait again.
    pub(crate) preempted: bool,
    ask: Ask,
    vocab_size: u32,
    handoffs: u64,
}

impl Worker {
    /// A worker for greedy requests. `budget` is in tokens per step.
    pub(crate) fn new(case: &Case, budget: u32, block_size: u32) -> Self {
        Self::with_pool(case, Ask::greedy(), budget, block_size, 8192 / block_size)
    }

    /// A worker with so many blocks.
    pub(crate) fn with_pool(case: &Case, ask: Ask, budget: u32, block_size: u32, num_blocks: u32) -> Self {
        let model = &case.model;
        let layout = CandleBackend::layout_of(&model.spec, block_size, KvDtype::F32);
        let backend = CandleBackend::new(model.spec.clone(), model.weights.clone(), layout, num_blocks)
            .expect("a valid pool");
        assert_eq!(backend.num_blocks(), num_blocks);
        let config = EngineConfig {
            fingerprint: model.card.fingerprint,
            max_model_len: 1024,
            max_num_seqs: budget.min(64),
            max_num_batched_tokens: budget,
            max_waiting: 64,
            max_prefill_queue: 16,
            enable_chunked_prefill: true,
            enable_prefix_caching: true,
        };
        let engine = Engine::new(config, backend).expect("a valid configuration");
        Self { engine, preempted: false, ask, vocab_size: model.card.vocab_size, handoffs: 0 }
    }

    fn request(&self, prompt: &[u32]) -> Request {
        Request {
            prompt: prompt.to_vec(),
            cache_salt: String::new(),
            // All of the vocabulary's log probabilities, so that tests see what the logits were.
            sampling: SamplingParams { top_logprobs: Some(self.vocab_size), ..self.ask.sampling.clone() },
            stop: StopRules {
                max_tokens: OUTPUT_TOKENS,
                min_tokens: 0,
                eos_token_ids: Vec::new(),
                stop_token_ids: Vec::new(),
                ignore_eos: true,
            },
            choices: self.ask.choices,
        }
    }

    /// Prefills and decodes the prompts here, all at once; the first choice of each.
    pub(crate) fn generate(&mut self, prompts: &[&[u32]]) -> Vec<Vec<SampledToken>> {
        first_choices(self.generate_all(prompts))
    }

    /// The same with every choice.
    pub(crate) fn generate_all(&mut self, prompts: &[&[u32]]) -> Vec<Choices> {
        let submit = |prompt: &&[u32]| self.engine.submit(self.request(prompt)).expect("taken");
        let sequences: Vec<_> = prompts.iter().map(submit).collect();
        self.finish(&sequences)
    }

    /// Steps until all work is done.
    fn finish(&mut self, sequences: &[SequenceId]) -> Vec<Choices> {
        let choices = self.ask.choices as usize;
        let mut outputs: HashMap<SequenceId, Choices> = HashMap::new();
        let mut finished = 0;
        while self.engine.has_work() {
            let waiting = self.engine.load().waiting;
            self.engine.step(&mut NoTransport).expect("computed");
            // Nothing is submitted meanwhile. Further choices do wait once, for the end of their prompt.
            self.preempted |= choices == 1 && self.engine.load().waiting > waiting;
            for event in self.engine.take_events() {
                match event {
                    EngineEvent::Tokens { sequence, choice, tokens } => {
                        let output = outputs.entry(sequence).or_insert_with(|| vec![Vec::new(); choices]);
                        output[choice as usize].extend(tokens);
                    }
                    EngineEvent::Finished { .. } => finished += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
        self.engine.check();
        assert_eq!((finished, self.engine.load().blocks_used), (choices * sequences.len(), 0));
        sequences.iter().map(|sequence| outputs.remove(sequence).expect("tokens")).collect()
    }
}

fn first_choices(outputs: Vec<Choices>) -> Vec<Vec<SampledToken>> {
    outputs.into_iter().map(|mut choices| choices.swap_remove(0)).collect()
}

/// One block of one layer on its way.
pub(crate) struct Block<'a> {
    pub(crate) layer: u32,
    /// Among the blocks that the receiver reserved.
    pub(crate) index: usize,
    pub(crate) bytes: &'a mut Vec<u8>,
}

/// Prefills the prompts on `prefill`, all at once, and decodes them on `decode`; the first choice of each. `change`
/// sees every block's bytes.
pub(crate) fn hand_over(
    prefill: &mut Worker,
    decode: &mut Worker,
    prompts: &[&[u32]],
    change: impl FnMut(Block<'_>) + Send,
) -> Vec<Vec<SampledToken>> {
    first_choices(hand_over_all(prefill, decode, prompts, change))
}

/// The same with every choice.
pub(crate) fn hand_over_all(
    prefill: &mut Worker,
    decode: &mut Worker,
    prompts: &[&[u32]],
    change: impl FnMut(Block<'_>) + Send,
) -> Vec<Choices> {
    let mut transport = Copy {
        from: prefill.engine.memory(),
        to: decode.engine.memory(),
        change,
        reserved: BTreeMap::new(),
        landed: BTreeMap::new(),
    };
    let mut sequences = BTreeMap::new();
    for prompt in prompts {
        decode.handoffs += 1;
        let handoff = HandoffId { epoch: Epoch(7), number: decode.handoffs };
        let request = decode.request(prompt);
        let reservation = decode.engine.reserve(request.clone()).expect("room");
        let first_block = reservation.first_block;
        prefill.engine.submit_prefill(RemotePrefill { handoff, request, first_block }).expect("room");
        transport.reserved.insert(handoff, reservation.blocks);
        sequences.insert(handoff, reservation.sequence);
    }
    while prefill.engine.has_work() {
        prefill.engine.step(&mut transport).expect("computed");
        for event in prefill.engine.take_events() {
            match event {
                EngineEvent::PrefillDone { handoff, first_tokens } => {
                    transport.assert_landed(handoff);
                    prefill.engine.push_drained(handoff);
                    decode.engine.activate(sequences[&handoff], first_tokens).expect("awaiting KV");
                }
                EngineEvent::PrefillProgress { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    prefill.engine.check();
    assert_eq!(prefill.engine.load().blocks_used, 0);
    let order: Vec<_> = sequences.into_values().collect();
    decode.finish(&order)
}

/// Lands every push at once.
struct Copy<F> {
    from: Arc<dyn KvMemory>,
    to: Arc<dyn KvMemory>,
    change: F,
    reserved: BTreeMap<HandoffId, Vec<BlockId>>,
    /// (layer, index) to how often it came.
    landed: BTreeMap<(HandoffId, u32, usize), u32>,
}

impl<F: FnMut(Block<'_>) + Send> KvTransport for Copy<F> {
    fn push_layer(&mut self, layer: u32, pushes: &[KvPush]) {
        for push in pushes {
            for (offset, &source) in push.blocks.iter().enumerate() {
                let index = push.first as usize + offset;
                let mut bytes = vec![0; self.from.layout().layer_block_bytes()];
                self.from.read(layer, source, &mut bytes).expect("in the pool");
                (self.change)(Block { layer, index, bytes: &mut bytes });
                self.to.write(layer, self.reserved[&push.handoff][index], &bytes).expect("in the pool");
                *self.landed.entry((push.handoff, layer, index)).or_default() += 1;
            }
        }
    }
}

impl<F> Copy<F> {
    /// Every layer of every reserved block came exactly once.
    fn assert_landed(&self, handoff: HandoffId) {
        for layer in 0..self.to.layout().layers {
            for index in 0..self.reserved[&handoff].len() {
                assert_eq!(
                    self.landed.get(&(handoff, layer, index)),
                    Some(&1),
                    "layer {layer}, block {index}"
                );
            }
        }
    }
}
