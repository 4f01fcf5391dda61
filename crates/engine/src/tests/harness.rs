//! An engine on the fake backend, with what it has answered so far, and requests in the shapes that tests need.

use std::collections::BTreeMap;
use std::sync::Arc;

use disagg_core::{HandoffId, ModelFingerprint, SequenceId};
use proptest::prelude::*;

use crate::backend::SampledToken;
use crate::engine::{Engine, EngineConfig, EngineEvent};
use crate::fake::{FakeBackend, FakeControl, FakeModel, FakeTransport};
use crate::request::{FinishReason, Request, SamplingParams, StopRules};

pub(super) const MODEL: FakeModel = FakeModel { vocab_size: 24 };

/// As many cases as find every mutant; more with `PROPTEST_CASES`.
pub(super) fn cases() -> ProptestConfig {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    ProptestConfig { cases: config.cases.max(1500), ..config }
}

/// Shape of a test engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) blocks: u32,
    pub(super) block_size: u32,
    pub(super) depth: usize,
    pub(super) seqs: u32,
    pub(super) tokens: u32,
    pub(super) max_len: u32,
    pub(super) chunked: bool,
    pub(super) caching: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            blocks: 32,
            block_size: 4,
            depth: 1,
            seqs: 8,
            tokens: 64,
            max_len: 64,
            chunked: true,
            caching: true,
        }
    }
}

impl Shape {
    pub(super) fn config(self) -> EngineConfig {
        EngineConfig {
            fingerprint: ModelFingerprint(7),
            max_model_len: self.max_len,
            max_num_seqs: self.seqs,
            max_num_batched_tokens: self.tokens,
            max_waiting: 64,
            max_prefill_queue: 8,
            enable_chunked_prefill: self.chunked,
            enable_prefix_caching: self.caching,
        }
    }

    /// Most tokens of a sequence here.
    pub(super) fn len_limit(self) -> usize {
        self.max_len.min(self.blocks * self.block_size) as usize
    }
}

pub(super) fn shapes() -> impl Strategy<Value = Shape> {
    (2u32..20, 1u32..5, 1usize..3, 1u32..5, 0u32..12, 4u32..40, any::<bool>(), any::<bool>()).prop_map(
        |(blocks, block_size, depth, seqs, extra, max_len, chunked, caching)| Shape {
            blocks,
            block_size,
            depth,
            seqs,
            tokens: seqs + extra,
            max_len,
            chunked,
            caching,
        },
    )
}

/// Requests whose prompts often share heads, with every kind of sampling and stopping.
pub(super) fn requests() -> impl Strategy<Value = Request> {
    let prompt = (0u32..3, 1usize..24, proptest::option::of(0u32..24)).prop_map(|(family, len, last)| {
        let mut prompt: Vec<u32> = (0..len as u32).map(|i| (i * (family + 1) + family) % 24).collect();
        prompt.extend(last);
        prompt
    });
    let sampling = (0usize..5, any::<u64>()).prop_map(|(kind, seed)| {
        let greedy = SamplingParams { seed, ..SamplingParams::greedy() };
        match kind {
            0 | 1 => greedy,
            2 => SamplingParams { temperature: 1.0, top_p: 0.8, top_logprobs: Some(2), ..greedy },
            3 => SamplingParams { temperature: 0.7, top_k: 5, min_p: 0.05, ..greedy },
            _ => SamplingParams { frequency_penalty: 0.5, repetition_penalty: 1.2, ..greedy },
        }
    });
    let stop = (1u32..12, 0u32..4, prop::collection::vec(0u32..24, 0..3), any::<bool>()).prop_map(
        |(max_tokens, min_tokens, eos_token_ids, ignore_eos)| StopRules {
            max_tokens,
            min_tokens,
            stop_token_ids: eos_token_ids.iter().map(|token| token / 2).take(1).collect(),
            eos_token_ids,
            ignore_eos,
        },
    );
    (prompt, sampling, stop, 1u32..4, 0u8..4).prop_map(|(prompt, sampling, stop, choices, salt)| Request {
        prompt,
        cache_salt: if salt == 0 { "other".to_owned() } else { String::new() },
        sampling,
        stop,
        choices: if choices == 3 { 3 } else { 1 },
    })
}

/// A greedy request that ends by length alone.
pub(super) fn request(prompt: Vec<u32>, max_tokens: u32) -> Request {
    let stop = StopRules {
        max_tokens,
        min_tokens: 0,
        eos_token_ids: Vec::new(),
        stop_token_ids: Vec::new(),
        ignore_eos: false,
    };
    Request { prompt, cache_salt: String::new(), sampling: SamplingParams::greedy(), stop, choices: 1 }
}

pub(super) fn tokens_of(sampled: &[SampledToken]) -> Vec<u32> {
    sampled.iter().map(|sampled| sampled.token).collect()
}

/// What became of one choice.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) tokens: Vec<SampledToken>,
    pub(super) finished: Option<FinishReason>,
}

pub(super) struct Worker {
    pub(super) engine: Engine<FakeBackend>,
    pub(super) control: Arc<FakeControl>,
    pub(super) transport: FakeTransport,
    pub(super) shape: Shape,
    /// By request and choice.
    pub(super) outcomes: BTreeMap<(SequenceId, u32), Outcome>,
    pub(super) requests: BTreeMap<SequenceId, Request>,
    /// Prefills for others that ended: with first tokens, or failed.
    pub(super) prefilled: BTreeMap<HandoffId, Option<Vec<SampledToken>>>,
    pub(super) progress: Vec<(HandoffId, u32)>,
}

impl Worker {
    pub(super) fn new(shape: Shape) -> Self {
        let backend = FakeBackend::new(MODEL, shape.blocks, shape.block_size, shape.depth);
        let control = backend.control();
        let engine = Engine::new(shape.config(), backend).unwrap();
        let transport = FakeTransport::new(engine.memory());
        Self {
            engine,
            control,
            transport,
            shape,
            outcomes: BTreeMap::new(),
            requests: BTreeMap::new(),
            prefilled: BTreeMap::new(),
            progress: Vec::new(),
        }
    }

    /// Notes a request that the engine has taken.
    pub(super) fn expect(&mut self, sequence: SequenceId, request: Request) {
        for choice in 0..request.choices {
            self.outcomes.insert((sequence, choice), Outcome::default());
        }
        self.requests.insert(sequence, request);
    }

    pub(super) fn submit(&mut self, request: Request) -> SequenceId {
        let sequence = self.engine.submit(request.clone()).unwrap();
        self.expect(sequence, request);
        sequence
    }

    pub(super) fn step(&mut self) {
        let result = self.engine.step(&mut self.transport);
        assert!(result.is_ok(), "{result:?}");
        self.take_events();
    }

    pub(super) fn take_events(&mut self) {
        self.engine.check();
        for event in self.engine.take_events() {
            match event {
                EngineEvent::Tokens { sequence, choice, tokens } => {
                    let outcome = self.outcomes.get_mut(&(sequence, choice)).expect("a known choice");
                    assert!(outcome.finished.is_none() && !tokens.is_empty());
                    outcome.tokens.extend(tokens);
                }
                EngineEvent::Finished { sequence, choice, reason } => {
                    let outcome = self.outcomes.get_mut(&(sequence, choice)).expect("a known choice");
                    assert!(outcome.finished.is_none(), "finished twice");
                    outcome.finished = Some(reason);
                }
                EngineEvent::PrefillProgress { handoff, computed_tokens } => {
                    self.progress.push((handoff, computed_tokens));
                }
                EngineEvent::PrefillDone { handoff, first_tokens } => {
                    assert!(self.prefilled.insert(handoff, Some(first_tokens)).is_none());
                }
                EngineEvent::PrefillFailed { handoff } => {
                    assert!(self.prefilled.insert(handoff, None).is_none());
                }
            }
        }
        let most = |counter: &std::sync::atomic::AtomicU32| counter.load(std::sync::atomic::Ordering::SeqCst);
        assert!(most(&self.control.most_tokens) <= self.shape.tokens, "over the token budget");
        assert!(most(&self.control.most_rows) <= self.shape.seqs, "too many sequences in a step");
    }

    /// Steps until there is no work.
    pub(super) fn run(&mut self) {
        let mut steps = 0;
        while self.engine.has_work() {
            self.step();
            steps += 1;
            assert!(steps < 20_000, "no end in sight: {:?}", self.engine.load());
        }
    }

    pub(super) fn tokens(&self, sequence: SequenceId, choice: u32) -> Vec<u32> {
        tokens_of(&self.outcomes[&(sequence, choice)].tokens)
    }

    pub(super) fn finished(&self, sequence: SequenceId, choice: u32) -> Option<FinishReason> {
        self.outcomes[&(sequence, choice)].finished
    }

    /// Every choice has ended, with the naive model's tokens, or a head of them if it was stopped from outside.
    pub(super) fn assert_as_expected(&self) {
        for (sequence, request) in &self.requests {
            let expected = MODEL.generate(request, self.shape.len_limit());
            for (choice, (tokens, reason)) in (0..).zip(expected) {
                let outcome = &self.outcomes[&(*sequence, choice)];
                match outcome.finished {
                    None => panic!("{sequence:?}/{choice} never ended"),
                    Some(FinishReason::Cancelled | FinishReason::Error) => {
                        assert!(tokens.starts_with(&outcome.tokens), "{sequence:?}/{choice}");
                    }
                    Some(finished) => {
                        assert_eq!(outcome.tokens, tokens, "{sequence:?}/{choice}");
                        assert_eq!(finished, reason, "{sequence:?}/{choice}");
                    }
                }
            }
        }
    }

    /// Every block has come home.
    pub(super) fn assert_idle(&self) {
        self.engine.check();
        let load = self.engine.load();
        assert!(!self.engine.has_work());
        assert_eq!(
            load,
            crate::engine::EngineLoad { blocks_total: self.shape.blocks, ..Default::default() },
            "something is left"
        );
    }
}
