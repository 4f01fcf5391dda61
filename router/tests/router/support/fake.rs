//! A fake worker: a real gRPC server with scripted behaviour. Each runs in a runtime of its own, so that killing it
//! closes every socket at once, as `kill -9` does.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use disagg_proto::v1::{self, worker_server};
use futures::{Stream, StreamExt};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, WatchStream};
use tonic::{Request, Response, Status};

use super::SOON;
pub use super::script::{Scripts, Step, says};
use super::tokenizer::{EOS, byte_token, tokenizer_json};

/// How a fake worker is made.
#[derive(Clone)]
pub struct Options {
    pub name: &'static str,
    pub role: v1::Role,
    pub epoch: u64,
    pub fingerprint: u64,
    pub kv_compat: u64,
    pub model: &'static str,
    pub bos: bool,
    pub generation_config: &'static str,
    pub chat_template: &'static str,
    pub scripts: Scripts,
}

impl Options {
    pub fn new(name: &'static str, scripts: Scripts) -> Self {
        Self {
            name,
            role: v1::Role::Decode,
            epoch: 1,
            fingerprint: 7,
            kv_compat: 7,
            model: "tiny",
            bos: true,
            generation_config: r#"{"eos_token_id": 261}"#,
            chat_template: CHAT_TEMPLATE,
            scripts,
        }
    }
}

/// What a worker has seen.
#[derive(Clone, Default, Debug)]
pub struct Seen {
    pub requests: Vec<v1::GenerateRequest>,
    /// Answers whose stream was closed before their end.
    pub cancelled: usize,
    /// Messages sent in all.
    pub messages: usize,
}

struct Shared {
    options: Options,
    seen: watch::Sender<Seen>,
    load: watch::Sender<v1::LoadReport>,
    kv_events: watch::Sender<Vec<v1::KvEventBatch>>,
    gate: watch::Sender<bool>,
    runtime: Mutex<Option<Runtime>>,
}

/// A running fake worker; killed when dropped.
pub struct FakeWorker {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl FakeWorker {
    /// A decode worker.
    pub fn decode(name: &'static str, scripts: Scripts) -> Self {
        Self::start(Options::new(name, scripts))
    }

    /// A prefill worker.
    pub fn prefill(name: &'static str) -> Self {
        Self::start(Options { role: v1::Role::Prefill, ..Options::new(name, vec![]) })
    }

    pub fn start(options: Options) -> Self {
        Self::start_at(options, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Starts at a given address, as a restarted process does.
    pub fn start_at(options: Options, address: SocketAddr) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _guard = runtime.enter();
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            // The port of a killed process has connections that linger, and its runtime takes a moment to end.
            socket.set_reuseaddr(true).unwrap();
            let deadline = Instant::now() + SOON;
            while let Err(error) = socket.bind(address) {
                assert!(Instant::now() < deadline, "{address}: {error}");
                std::thread::yield_now();
            }
            socket.listen(64).unwrap()
        };
        let address = listener.local_addr().unwrap();
        let load = v1::LoadReport { epoch: options.epoch, blocks_total: 1000, ..Default::default() };
        let shared = Arc::new(Shared {
            options,
            seen: watch::channel(Seen::default()).0,
            load: watch::channel(load).0,
            kv_events: watch::channel(Vec::new()).0,
            gate: watch::channel(false).0,
            runtime: Mutex::new(None),
        });
        let service = worker_server::WorkerServer::new(Service(Arc::clone(&shared)));
        let server = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(server);
        *shared.runtime.lock().unwrap() = Some(runtime);
        Self { address, shared }
    }

    /// Every socket is closed at once.
    pub fn kill(&self) {
        self.shared.kill();
    }

    /// Waits until what the worker has seen is as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let mut seen = self.shared.seen.subscribe();
        let found = timeout(SOON, seen.wait_for(|seen| wanted(seen))).await;
        found.unwrap_or_else(|_| panic!("never {what}: {:?}", *self.shared.seen.borrow())).unwrap().clone()
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<v1::GenerateRequest> {
        self.seen().requests
    }

    pub fn seen(&self) -> Seen {
        self.shared.seen.borrow().clone()
    }

    /// Reports this load.
    pub fn report(&self, change: impl FnOnce(&mut v1::LoadReport)) {
        self.shared.load.send_modify(change);
    }

    /// Serves these KV events to subscribers, present and future.
    pub fn serve_kv_events(&self, batches: Vec<v1::KvEventBatch>) {
        self.shared.kv_events.send_replace(batches);
    }

    /// Lets answers go on that wait at [`Step::Gate`].
    pub fn open_gate(&self) {
        self.shared.gate.send_replace(true);
    }
}

impl Drop for FakeWorker {
    fn drop(&mut self) {
        self.shared.kill();
    }
}

impl Shared {
    fn kill(&self) {
        if let Some(runtime) = self.runtime.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }

    async fn play(self: Arc<Self>, steps: Vec<Step>, call: Call, out: Sender) {
        for step in steps {
            if self.step(step, &call, &out).await.is_err() {
                self.seen.send_modify(|seen| seen.cancelled += 1);
                return;
            }
        }
    }

    async fn step(&self, step: Step, call: &Call, out: &Sender) -> Result<(), Closed> {
        use v1::generate_event::Event;
        let ends = |choice, reason: v1::FinishReason| {
            let message = "the engine has failed".to_owned();
            Event::Finished(v1::Finished { choice, reason: reason.into(), message, stop_token_id: None })
        };
        let finished = |reason| ends(0, reason);
        let event = match step {
            Step::Started => {
                Event::Started(v1::Started { reason: "below-threshold".to_owned(), ..Default::default() })
            }
            Step::StartedRemote => Event::Started(v1::Started {
                remote: true,
                reason: "above-threshold".to_owned(),
                prefill_worker: call.remote.clone().unwrap_or_default(),
                overlap_tokens: 4,
            }),
            Step::Text(text) => tokens(0, text.bytes().map(byte_token), false),
            Step::Says(choice, text) => tokens(choice, text.bytes().map(byte_token), false),
            Step::Ends(choice) => ends(choice, v1::FinishReason::Length),
            Step::Repeat => tokens(0, call.prompt.iter().copied(), false),
            Step::Logprobs(text) => tokens(0, text.bytes().map(byte_token), true),
            Step::Stop => {
                self.send(out, tokens(0, [EOS], false)).await?;
                finished(v1::FinishReason::Stop)
            }
            Step::Length => finished(v1::FinishReason::Length),
            Step::Error => finished(v1::FinishReason::Error),
            Step::Forever(text) => loop {
                self.send(out, tokens(0, text.bytes().map(byte_token), false)).await?;
            },
            Step::Refuse => return out.send(Err(refused())).await.map_err(|_| Closed),
            Step::Fail(code) => {
                return out.send(Err(Status::new(code, "as scripted"))).await.map_err(|_| Closed);
            }
            Step::Hang => {
                out.closed().await;
                return Err(Closed);
            }
            Step::Gate => {
                let mut gate = self.gate.subscribe();
                tokio::select! {
                    () = out.closed() => return Err(Closed),
                    _ = gate.wait_for(|open| *open) => return Ok(()),
                }
            }
            Step::Die => {
                self.kill();
                return std::future::pending().await;
            }
        };
        self.send(out, event).await
    }

    async fn send(&self, out: &Sender, event: v1::generate_event::Event) -> Result<(), Closed> {
        out.send(Ok(v1::GenerateEvent { event: Some(event) })).await.map_err(|_| Closed)?;
        self.seen.send_modify(|seen| seen.messages += 1);
        Ok(())
    }
}

/// As a worker that drains answers.
fn refused() -> Status {
    let mut status = Status::unavailable("as scripted");
    status.metadata_mut().insert(disagg_proto::REFUSED_METADATA, "true".parse().unwrap());
    status
}

/// What a script may look at.
struct Call {
    /// Name of the first prefill candidate.
    remote: Option<String>,
    prompt: Vec<u32>,
}

/// The receiver of an answer is gone.
struct Closed;
type Sender = mpsc::Sender<Result<v1::GenerateEvent, Status>>;

fn tokens(choice: u32, ids: impl IntoIterator<Item = u32>, logprobs: bool) -> v1::generate_event::Event {
    let token = |id| v1::Token {
        token_id: id,
        logprob: logprobs.then_some(-0.25),
        top_logprobs: if logprobs {
            vec![
                v1::TokenLogprob { token_id: id, logprob: -0.25 },
                v1::TokenLogprob { token_id: byte_token(b'?'), logprob: -2.0 },
            ]
        } else {
            Vec::new()
        },
    };
    let tokens = ids.into_iter().map(token).collect();
    v1::generate_event::Event::Tokens(v1::Tokens { choice, tokens })
}

/// Writes the role, then the content, of each message.
pub const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{{ message.role + ':' + \
    message.content + '<|turn|>' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";

struct Service(Arc<Shared>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl worker_server::Worker for Service {
    async fn hello(&self, _: Request<v1::HelloRequest>) -> Result<Response<v1::HelloResponse>, Status> {
        let options = &self.0.options;
        Ok(Response::new(v1::HelloResponse {
            worker: Some(v1::WorkerRef { name: options.name.to_owned(), epoch: options.epoch }),
            role: options.role.into(),
            model_fingerprint: Some(v1::Hash128 { high: 0, low: options.fingerprint }),
            kv_compat: Some(v1::Hash128 { high: 0, low: options.kv_compat }),
            block_size: 4,
            max_model_len: 512,
            transports: vec!["tcp".to_owned()],
            version: "0".to_owned(),
            backend: "fake".to_owned(),
            kv_block_bytes: 1000,
        }))
    }

    type GetModelCardStream = Answers<v1::ModelCardPart>;

    async fn get_model_card(
        &self,
        _: Request<v1::GetModelCardRequest>,
    ) -> Result<Response<Self::GetModelCardStream>, Status> {
        let options = &self.0.options;
        let config = serde_json::json!({
            "bos_token": "<|begin|>", "eos_token": "<|end|>", "image_token": "<|turn|>",
            "chat_template": options.chat_template,
        });
        let files = [
            ("tokenizer.json", tokenizer_json(options.bos)),
            ("tokenizer_config.json", config.to_string()),
            ("generation_config.json", options.generation_config.to_owned()),
        ];
        let header = v1::ModelCardHeader {
            served_model_name: options.model.to_owned(),
            model_fingerprint: Some(v1::Hash128 { high: 0, low: options.fingerprint }),
            kv_compat: Some(v1::Hash128 { high: 0, low: options.kv_compat }),
            max_model_len: 512,
            block_size: 4,
            vocab_size: 263,
            created: 1_700_000_000 + options.fingerprint,
            files: files
                .iter()
                .map(|(name, text)| v1::ModelCardFile { name: (*name).to_owned(), size: text.len() as u64 })
                .collect(),
        };
        let mut parts = vec![Ok(v1::ModelCardPart { header: Some(header), ..Default::default() })];
        for (name, text) in files {
            parts.extend(text.into_bytes().chunks(1000).map(|chunk| {
                Ok(v1::ModelCardPart { header: None, file: name.to_owned(), payload: chunk.to_vec().into() })
            }));
        }
        Ok(Response::new(Box::pin(futures::stream::iter(parts))))
    }

    type GenerateStream = Answers<v1::GenerateEvent>;

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let request = request.into_inner();
        let remote = request.remote.as_ref().and_then(|remote| remote.candidates.first());
        let remote = remote.and_then(|candidate| Some(candidate.worker.as_ref()?.name.clone()));
        let prompt = request.prompt.as_ref().map(|prompt| prompt.token_ids.clone()).unwrap_or_default();
        let mut call = 0;
        self.0.seen.send_modify(|seen| {
            call = seen.requests.len();
            seen.requests.push(request);
        });
        let scripts = &self.0.options.scripts;
        let steps = scripts.get(call).or(scripts.last()).expect("a script").clone();
        match steps[..] {
            [Step::Fail(code)] => return Err(Status::new(code, "as scripted")),
            [Step::Refuse] => return Err(refused()),
            _ => {}
        }
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(Arc::clone(&self.0).play(steps, Call { remote, prompt }, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type WatchKvEventsStream = Answers<v1::KvEventBatch>;

    async fn watch_kv_events(
        &self,
        _: Request<v1::WatchKvEventsRequest>,
    ) -> Result<Response<Self::WatchKvEventsStream>, Status> {
        let batches = WatchStream::new(self.0.kv_events.subscribe());
        let one_by_one = batches.flat_map(|batches| futures::stream::iter(batches.into_iter().map(Ok)));
        Ok(Response::new(Box::pin(one_by_one)))
    }

    type WatchLoadStream = Answers<v1::LoadReport>;

    async fn watch_load(
        &self,
        _: Request<v1::WatchLoadRequest>,
    ) -> Result<Response<Self::WatchLoadStream>, Status> {
        let shared = Arc::clone(&self.0);
        // At once, on change, and at least every second, as the contract says.
        let reports =
            futures::stream::unfold((shared.load.subscribe(), true), |(mut load, first)| async move {
                if !first {
                    let _ = timeout(Duration::from_secs(1), load.changed()).await;
                }
                let report = load.borrow_and_update().clone();
                Some((Ok(report), (load, false)))
            });
        Ok(Response::new(Box::pin(reports)))
    }
}
