//! Workers in this process, each on a runtime of its own so that it can be killed, over real TCP.
//!
//! They compute with the engine's fake backend, whose tokens are wrong as soon as one block of KV is, behind a gate
//! that lets a test stop the engine between two steps.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use disagg_core::{ModelFingerprint, Role, WorkerId};
use disagg_engine::fake::{FakeBackend, FakeControl, FakeModel};
use disagg_engine::{
    Backend, BackendError, Batch, FinishReason, KvLayout, KvMemory, KvTransport, Request, SamplingParams,
    StepTokens, StopRules,
};
use disagg_proto::v1;
use disagg_proto::v1::worker_client::WorkerClient;
use disagg_worker::args::{EngineLimits, ServeConfig};
use disagg_worker::engine_thread::Load;
use disagg_worker::http::Probes;
use disagg_worker::model::{CardFile, ModelCard};
use disagg_worker::server::{ServeError, Server};
use disagg_worker::state::WorkerState;
use parking_lot::{Condvar, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

pub const MODEL: FakeModel = FakeModel { vocab_size: 97 };
pub const FINGERPRINT: ModelFingerprint = ModelFingerprint(0xfeed);
pub const BLOCK_SIZE: u32 = 4;
pub const MAX_MODEL_LEN: u32 = 512;

/// No wait of a test is longer. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Lets steps pass, or holds the engine thread before the next one.
#[derive(Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    /// `None`: all pass.
    permits: Option<u32>,
    held: bool,
    panics: bool,
}

impl Gate {
    /// Lets `steps` more pass.
    pub fn hold_after(&self, steps: u32) {
        self.state.lock().permits = Some(steps);
        self.changed.notify_all();
    }

    pub fn open(&self) {
        self.state.lock().permits = None;
        self.changed.notify_all();
    }

    /// The next step panics.
    pub fn panic(&self) {
        self.state.lock().panics = true;
        self.changed.notify_all();
    }

    /// Whether the engine thread stands before it.
    pub fn holds(&self) -> bool {
        self.state.lock().held
    }

    fn pass(&self) {
        let mut state = self.state.lock();
        while state.permits == Some(0) && !state.panics {
            state.held = true;
            self.changed.wait(&mut state);
        }
        state.held = false;
        assert!(!state.panics, "a test asked for this");
        state.permits = state.permits.map(|permits| permits - 1);
    }
}

struct GatedBackend {
    inner: FakeBackend,
    gate: Arc<Gate>,
}

impl Backend for GatedBackend {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn layout(&self) -> KvLayout {
        self.inner.layout()
    }

    fn num_blocks(&self) -> u32 {
        self.inner.num_blocks()
    }

    fn memory(&self) -> Arc<dyn KvMemory> {
        self.inner.memory()
    }

    fn launch(&mut self, batch: &Batch<'_>, transport: &mut dyn KvTransport) -> Result<(), BackendError> {
        self.gate.pass();
        self.inner.launch(batch, transport)
    }

    fn collect(&mut self, transport: &mut dyn KvTransport) -> Result<StepTokens, BackendError> {
        self.inner.collect(transport)
    }
}

/// What may differ between workers of a test.
#[derive(Clone)]
pub struct Options {
    pub name: &'static str,
    pub role: Role,
    pub limits: EngineLimits,
    pub lease: Duration,
    pub num_blocks: u32,
    pub metrics: bool,
    pub drain: Duration,
    pub step_max: Duration,
    pub unread_max: Duration,
}

pub fn options(name: &'static str, role: Role) -> Options {
    let limits = EngineLimits {
        max_num_batched_tokens: 16,
        max_num_seqs: 16,
        max_waiting: 64,
        max_prefill_queue: 8,
        enable_chunked_prefill: true,
        enable_prefix_caching: true,
    };
    Options {
        name,
        role,
        limits,
        lease: Duration::from_secs(5),
        num_blocks: 512,
        metrics: false,
        drain: PATIENCE,
        // Longer than any test holds the gate.
        step_max: Duration::from_hours(1),
        unread_max: ServeConfig::UNREAD_MAX,
    }
}

pub struct TestWorker {
    pub name: &'static str,
    pub address: SocketAddr,
    pub metrics_address: Option<SocketAddr>,
    pub state: Arc<WorkerState>,
    pub gate: Arc<Gate>,
    pub control: Arc<FakeControl>,
    shutdown: CancellationToken,
    running: Option<JoinHandle<Result<(), ServeError>>>,
    runtime: Option<Runtime>,
}

impl TestWorker {
    pub async fn start(options: Options) -> Self {
        // Set by whichever test comes first; shown for tests that fail, at the level of RUST_LOG.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let gate = Arc::new(Gate::default());
        let inner = FakeBackend::new(MODEL, options.num_blocks, BLOCK_SIZE, 1);
        let control = inner.control();
        let backend = GatedBackend { inner, gate: Arc::clone(&gate) };
        let config = ServeConfig {
            name: WorkerId::new(options.name),
            role: options.role,
            listen: "127.0.0.1:0".into(),
            advertise: None,
            limits: options.limits,
            lease: options.lease,
            drain: options.drain,
            step_max: options.step_max,
            unread_max: options.unread_max,
        };
        let bind = async move {
            let probes = if options.metrics { Some(Probes::listen("127.0.0.1:0").await?) } else { None };
            Server::bind(config, card(), MAX_MODEL_LEN, backend, probes).await
        };
        let server = runtime.spawn(bind).await.unwrap().unwrap();
        let (address, metrics_address) = (server.grpc_address(), server.metrics_address());
        let state = Arc::clone(server.state());
        let shutdown = CancellationToken::new();
        let running = runtime.spawn(server.run(shutdown.clone().cancelled_owned()));
        Self {
            name: options.name,
            address,
            metrics_address,
            state,
            gate,
            control,
            shutdown,
            running: Some(running),
            runtime: Some(runtime),
        }
    }

    pub async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub async fn client(&self) -> WorkerClient<Channel> {
        WorkerClient::new(self.channel().await)
    }

    pub fn worker_ref(&self) -> v1::WorkerRef {
        v1::WorkerRef { name: self.name.into(), epoch: self.state.identity.epoch.0 }
    }

    pub fn candidate(&self) -> v1::PrefillCandidate {
        self.candidate_at(self.address)
    }

    pub fn candidate_at(&self, address: SocketAddr) -> v1::PrefillCandidate {
        v1::PrefillCandidate { worker: Some(self.worker_ref()), address: address.to_string() }
    }

    /// Every connection and task of it is gone at once, as after `kill -9`.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub fn begin_shutdown(&self) {
        self.shutdown.cancel();
    }

    /// How `Server::run` ended.
    pub async fn ended(&mut self) -> Result<(), ServeError> {
        let running = self.running.take().unwrap();
        tokio::time::timeout(PATIENCE, running).await.expect("the worker ends").unwrap()
    }

    /// Waits for load that `condition` likes.
    pub async fn load(&self, what: &str, condition: impl FnMut(&Load) -> bool) -> Load {
        let mut load = self.state.engine.load();
        let waited = tokio::time::timeout(PATIENCE, load.wait_for(condition)).await;
        let last = *self.state.engine.load().borrow();
        *waited.unwrap_or_else(|_| panic!("{}: {what}: {last:?}", self.name)).unwrap()
    }

    /// Waits until nothing holds a block or a task here any more.
    pub async fn idle(&self) {
        self.load("no block is in use", |load| {
            load.engine.blocks_used == 0 && load.engine.awaiting_kv == 0 && load.engine.prefill_queue == 0
        })
        .await;
        until("no zone is open", || self.state.landing.is_empty()).await;
    }

    /// The value of a metric, 0 if it is not there.
    pub fn metric(&self, line: &str) -> u64 {
        let load = *self.state.engine.load().borrow();
        let text = self.state.metrics.render(&load).unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }
}

impl Drop for TestWorker {
    fn drop(&mut self) {
        self.gate.open();
        self.kill();
    }
}

pub fn card() -> ModelCard {
    ModelCard {
        served_model_name: "fake".into(),
        fingerprint: FINGERPRINT,
        max_model_len: MAX_MODEL_LEN,
        vocab_size: MODEL.vocab_size,
        created_seconds: 1,
        files: vec![
            CardFile { name: "config.json", bytes: "{}".into() },
            CardFile { name: "tokenizer.json", bytes: vec![7; (2 << 20) + 5].into() },
        ],
    }
}

/// Waits for a condition that nothing announces.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

/// A prompt of its own for each `seed`, so that nothing is cached.
pub fn request(seed: u32, prompt_tokens: u32, max_tokens: u32) -> Request {
    Request {
        prompt: (0..prompt_tokens).map(|i| (seed * 31 + i * i + 7 * i) % MODEL.vocab_size).collect(),
        cache_salt: String::new(),
        sampling: SamplingParams::greedy(),
        stop: StopRules {
            max_tokens,
            min_tokens: 0,
            eos_token_ids: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
        },
        choices: 1,
    }
}

pub fn prompt(id: &str, request: &Request) -> v1::Prompt {
    let sampling = &request.sampling;
    v1::Prompt {
        request_id: id.into(),
        token_ids: request.prompt.clone(),
        model_fingerprint: Some(hash(FINGERPRINT.0)),
        cache_salt: request.cache_salt.clone(),
        sampling: Some(v1::Sampling {
            temperature: sampling.temperature,
            top_p: 1.0,
            repetition_penalty: 1.0,
            seed: sampling.seed,
            top_logprobs: sampling.top_logprobs,
            ..Default::default()
        }),
        stop: Some(v1::StopRules {
            max_tokens: request.stop.max_tokens,
            stop_token_ids: request.stop.stop_token_ids.clone(),
            ..Default::default()
        }),
        choices: request.choices,
    }
}

pub fn hash(value: u128) -> v1::Hash128 {
    v1::Hash128 { high: (value >> 64) as u64, low: value as u64 }
}

pub fn local(id: &str, request: &Request) -> v1::GenerateRequest {
    v1::GenerateRequest {
        prompt: Some(prompt(id, request)),
        remote: None,
        placement_reason: "below-threshold".into(),
    }
}

pub fn remote(id: &str, request: &Request, candidates: Vec<v1::PrefillCandidate>) -> v1::GenerateRequest {
    let remote = v1::RemotePrefill { candidates, max_local_prefill_length: 8, fail_without_remote: false };
    v1::GenerateRequest {
        prompt: Some(prompt(id, request)),
        remote: Some(remote),
        placement_reason: "above-threshold".into(),
    }
}

/// All that a request answered.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Answer {
    pub started: Option<v1::Started>,
    pub tokens: BTreeMap<u32, Vec<v1::Token>>,
    pub finished: BTreeMap<u32, v1::Finished>,
}

impl Answer {
    pub fn ids(&self, choice: u32) -> Vec<u32> {
        self.tokens.get(&choice).into_iter().flatten().map(|token| token.token_id).collect()
    }

    /// Where and why: `remote above-threshold prefill-0`.
    pub fn placement(&self) -> String {
        let started = self.started.as_ref().expect("a request that answers says how it started");
        let placement = if started.remote { "remote" } else { "local" };
        format!("{placement} {} {}", started.reason, started.prefill_worker).trim_end().to_owned()
    }
}

pub async fn collect(mut events: Streaming<v1::GenerateEvent>) -> Result<Answer, Status> {
    let mut answer = Answer::default();
    let wait = async {
        while let Some(event) = events.message().await? {
            match event.event.unwrap() {
                v1::generate_event::Event::Started(started) => {
                    assert_eq!(answer, Answer::default(), "`started` comes first, once");
                    answer.started = Some(started);
                }
                v1::generate_event::Event::Tokens(tokens) => {
                    assert!(!answer.finished.contains_key(&tokens.choice), "tokens after the end");
                    assert!(!tokens.tokens.is_empty());
                    answer.tokens.entry(tokens.choice).or_default().extend(tokens.tokens);
                }
                v1::generate_event::Event::Finished(finished) => {
                    let before = answer.finished.insert(finished.choice, finished);
                    assert_eq!(before, None, "a choice ends once");
                }
            }
        }
        Ok(answer)
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the stream ends")
}

pub async fn generate(worker: &TestWorker, request: v1::GenerateRequest) -> Result<Answer, Status> {
    let call = async { worker.client().await.generate(request).await };
    let events = tokio::time::timeout(PATIENCE, call).await.expect("the call is answered")?;
    collect(events.into_inner()).await
}

/// Compares with the model, which knows no blocks, no batches and no network.
pub fn assert_right(answer: &Answer, request: &Request) {
    let expected = MODEL.generate(request, MAX_MODEL_LEN as usize);
    assert_eq!(answer.finished.len(), expected.len());
    for (choice, (tokens, reason)) in (0..).zip(expected) {
        let expected: Vec<_> = tokens.iter().map(|token| token.token).collect();
        assert_eq!(answer.ids(choice), expected, "choice {choice}");
        let finished = &answer.finished[&choice];
        let reason = match reason {
            FinishReason::Stop(token) => (v1::FinishReason::Stop, Some(token)),
            FinishReason::Length => (v1::FinishReason::Length, None),
            FinishReason::Cancelled | FinishReason::Error => unreachable!("the model always ends"),
        };
        assert_eq!((finished.reason(), finished.stop_token_id), reason, "choice {choice}");
        for (got, want) in answer.tokens.get(&choice).into_iter().flatten().zip(tokens) {
            assert_eq!(got.logprob, want.logprob, "choice {choice}");
        }
    }
}

/// A TCP relay in front of a worker, whose connections can be cut while the worker lives on.
pub struct Relay {
    pub address: SocketAddr,
    cut: CancellationToken,
}

impl Relay {
    pub async fn to(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cut = CancellationToken::new();
        tokio::spawn(cut.clone().run_until_cancelled_owned({
            let cut = cut.clone();
            async move {
                while let Ok((mut near, _)) = listener.accept().await {
                    let cut = cut.clone();
                    tokio::spawn(cut.run_until_cancelled_owned(async move {
                        if let Ok(mut far) = TcpStream::connect(upstream).await {
                            // Ends when either side does.
                            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                        }
                    }));
                }
            }
        }));
        Self { address, cut }
    }

    /// Closes every connection, and takes no more.
    pub fn cut(&self) {
        self.cut.cancel();
    }
}

/// The whole answer of a worker's HTTP server.
pub async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}
