//! A server under test and clients that write bytes as they like.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use disagg_process::http::{self, Hosts, HttpOptions};
use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

/// Everything that is waited for comes well within this, or the test fails.
pub const SOON: Duration = Duration::from_secs(20);

/// What `/big` sends: more than sockets hold.
const BIG_CHUNKS: usize = 512;
const BIG_CHUNK_BYTES: usize = 256 * 1024;

/// What handlers and tests tell each other.
#[derive(Clone)]
pub struct Shared {
    /// Each permit lets one `/gated` answer.
    pub gate: Arc<Semaphore>,
    /// Handlers and bodies that live.
    pub live: Arc<AtomicUsize>,
    /// Bytes of `/big` that were taken from it.
    pub taken: Arc<AtomicUsize>,
}

struct Live(Arc<AtomicUsize>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    fn lives(&self) -> Live {
        self.live.fetch_add(1, Ordering::SeqCst);
        Live(Arc::clone(&self.live))
    }
}

pub struct Server {
    pub address: SocketAddr,
    pub shared: Shared,
    pub stop: CancellationToken,
    pub task: JoinHandle<()>,
}

/// Bounds that no test meets by chance.
pub fn roomy() -> HttpOptions {
    HttpOptions {
        name: "test",
        connections_max: 1000,
        connections_per_peer_max: 1000,
        head_timeout: SOON,
        idle_timeout: SOON,
        write_timeout: SOON,
        hosts: Hosts::Any,
        always: &["/health"],
        refusal: |status, message| (status, message).into_response(),
    }
}

pub fn routes(shared: Shared) -> Router {
    Router::new()
        .route("/health", get(|| async { "well" }))
        .route("/echo", post(|body: Bytes| async { body }))
        .route("/refuse", post(|| async { StatusCode::PAYLOAD_TOO_LARGE }))
        .route("/gated", get(gated))
        .route("/later", post(later))
        .route("/begun", get(begun))
        .route("/big", get(big))
        .with_state(shared)
}

async fn gated(State(shared): State<Shared>) -> &'static str {
    let _live = shared.lives();
    shared.gate.acquire().await.expect("open").forget();
    "at last"
}

/// Echoes a body that is not read before the gate opens.
async fn later(State(shared): State<Shared>, body: Body) -> Bytes {
    let _live = shared.lives();
    shared.gate.acquire().await.expect("open").forget();
    axum::body::to_bytes(body, usize::MAX).await.expect("a body")
}

async fn begun(State(shared): State<Shared>) -> Response {
    let live = shared.lives();
    let first = futures::stream::iter([Ok::<_, std::io::Error>("begun")]);
    let rest = futures::stream::pending().map(move |(): ()| {
        let _live = &live;
        Ok("")
    });
    Body::from_stream(first.chain(rest)).into_response()
}

async fn big(State(shared): State<Shared>) -> Response {
    let live = shared.lives();
    let chunks = futures::stream::unfold((0, live), move |(sent, live)| {
        let taken = Arc::clone(&shared.taken);
        async move {
            let chunk = Bytes::from(vec![b'x'; BIG_CHUNK_BYTES]);
            taken.fetch_add(BIG_CHUNK_BYTES, Ordering::SeqCst);
            (sent < BIG_CHUNKS).then_some((Ok::<_, std::io::Error>(chunk), (sent + 1, live)))
        }
    });
    Body::from_stream(chunks).into_response()
}

impl Server {
    pub async fn start(options: HttpOptions) -> Self {
        let listener = disagg_process::listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared =
            Shared { gate: Arc::new(Semaphore::new(0)), live: Arc::default(), taken: Arc::default() };
        let stop = CancellationToken::new();
        let task = tokio::spawn(http::serve(listener, routes(shared.clone()), options, stop.clone()));
        Self { address, shared, stop, task }
    }

    pub async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    /// From another address of this machine.
    pub async fn connect_from(&self, source: &str) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
        Client { stream: socket.connect(self.address).await.unwrap() }
    }

    /// Somebody honest: a connection of its own, a whole request, the answer.
    pub async fn get(&self, path: &str) -> String {
        let mut client = self.connect().await;
        client.send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
        client.rest().await
    }

    /// Waits until so many handlers and bodies live.
    pub async fn until_live(&self, wanted: usize) {
        let mut ticks = interval(Duration::from_millis(5));
        let wait = async {
            while self.shared.live.load(Ordering::SeqCst) != wanted {
                ticks.tick().await;
            }
        };
        let seen = timeout(SOON, wait).await;
        assert!(seen.is_ok(), "{} live, not {wanted}", self.shared.live.load(Ordering::SeqCst));
    }

    /// A connection whose request is at work until the gate opens.
    pub async fn at_work(&self, source: &str) -> Client {
        let before = self.shared.live.load(Ordering::SeqCst);
        let mut client = self.connect_from(source).await;
        client.send("GET /gated HTTP/1.1\r\nhost: x\r\n\r\n").await;
        self.until_live(before + 1).await;
        client
    }
}

pub struct Client {
    pub stream: TcpStream,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self { stream: timeout(SOON, TcpStream::connect(address)).await.unwrap().unwrap() }
    }

    pub async fn send(&mut self, text: &str) {
        timeout(SOON, self.stream.write_all(text.as_bytes())).await.unwrap().unwrap();
    }

    /// All that comes until the server closes. A reset is an end, too.
    pub async fn rest(&mut self) -> String {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match timeout(SOON, self.stream.read(&mut buffer)).await.expect("closed in time") {
                Ok(0) | Err(_) => return String::from_utf8_lossy(&all).into_owned(),
                Ok(read) => all.extend_from_slice(&buffer[..read]),
            }
        }
    }

    /// What comes until it ends in `end`; the connection stays open.
    pub async fn until(&mut self, end: &str) -> String {
        let mut all = String::new();
        let mut byte = [0];
        while !all.ends_with(end) {
            let read = timeout(SOON, self.stream.read(&mut byte)).await.expect("in time").expect("open");
            assert_eq!(read, 1, "closed after {all:?}");
            all.push(byte[0].into());
        }
        all
    }

    /// A request whose answer ends in `end`, on a connection that stays open.
    pub async fn ask(&mut self, path: &str, end: &str) -> String {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
        self.until(end).await
    }

    /// Nothing has come, and it is open.
    pub fn is_open(&self) -> bool {
        let read = self.stream.try_read(&mut [0; 1]);
        matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }
}
