//! A hub in the test's process. It speaks the protocol of huggingface.co as far as a download needs it: the list of a
//! revision's files with sizes and hashes, `resolve` with redirects (small files within the hub, large ones to a
//! storage of another origin), ranges, and errors with `x-error-code`. And it can misbehave.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt as _, stream};
use ring::digest;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// The commit of the one revision, `main`.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// From this size on a file is stored outside the hub, as the hub does with LFS files.
const LARGE_BYTES: usize = 10_000;

/// What the storage does to its next answer.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Breaks off after so many bytes.
    CutAfter(usize),
    /// Sends so many bytes, and then nothing.
    StallAfter(usize),
    /// Answers with this status and `retry-after: 0`.
    Refuse(u16),
}

/// How the hub behaves.
#[allow(clippy::struct_excessive_bools)] // each is a fault of its own
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// One for each answer of the storage, from the first on.
    pub faults: VecDeque<Fault>,
    /// Every answer of the storage stalls at once.
    pub always_stalls: bool,
    /// The storage knows no ranges.
    pub ignores_ranges: bool,
    /// The storage has one byte less than the hub announces.
    pub one_byte_less: bool,
    /// The storage has one byte that is another.
    pub wrong_byte: bool,
    /// The licence must be accepted: only this token may read files.
    pub gated: Option<String>,
    /// Answers everything with a page for people.
    pub is_a_web_site: bool,
}

/// A request that came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    /// It came to the storage, not to the hub.
    pub storage: bool,
}

struct Inner {
    id: String,
    files: BTreeMap<String, Bytes>,
    behaviour: Mutex<Behaviour>,
    seen: Mutex<Vec<Seen>>,
    storage_url: String,
}

/// A running hub with one model. Ends with the test's runtime.
pub struct FakeHub {
    pub url: String,
    inner: Arc<Inner>,
}

impl FakeHub {
    pub async fn start(id: &str, files: &[(&str, Vec<u8>)]) -> Self {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), Bytes::from(bytes.clone())));
        Self::with(id, files.collect()).await
    }

    /// With the files of a folder.
    #[allow(dead_code)] // for tests of the command line, which share this file
    pub async fn of_folder(id: &str, folder: &Path) -> Self {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), Bytes::from(std::fs::read(entry.path()).unwrap()))
        });
        Self::with(id, files.collect()).await
    }

    async fn with(id: &str, files: BTreeMap<String, Bytes>) -> Self {
        let (hub, storage) = (listen().await, listen().await);
        let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let inner = Arc::new(Inner {
            id: id.to_owned(),
            files,
            behaviour: Mutex::default(),
            seen: Mutex::default(),
            storage_url: url(&storage),
        });
        let app = Router::new().fallback(serve_hub).with_state(Arc::clone(&inner));
        let fake = Self { url: url(&hub), inner: Arc::clone(&inner) };
        tokio::spawn(async move { axum::serve(hub, app).await });
        let app = Router::new().fallback(serve_storage).with_state(inner);
        tokio::spawn(async move { axum::serve(storage, app).await });
        fake
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.inner.behaviour.lock().unwrap() = behaviour;
    }

    pub fn bytes(&self, name: &str) -> &[u8] {
        &self.inner.files[name]
    }

    /// What the hub and the cache call this content.
    pub fn hash(&self, name: &str) -> String {
        hash(&self.inner.files[name])
    }

    /// Everything that was asked since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.inner.seen.lock().unwrap())
    }
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

fn hex(digest: &digest::Digest) -> String {
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// SHA-256 of a large file; of a small one what git calls it.
fn hash(bytes: &[u8]) -> String {
    if bytes.len() >= LARGE_BYTES {
        return hex(&digest::digest(&digest::SHA256, bytes));
    }
    hex(&digest::digest(
        &digest::SHA1_FOR_LEGACY_USE_ONLY,
        &[format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat(),
    ))
}

impl Inner {
    fn note(&self, request: &Request, storage: bool) -> Behaviour {
        let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        self.seen.lock().unwrap().push(Seen {
            path: request.uri().path().to_owned(),
            range: header("range"),
            authorization: header("authorization"),
            storage,
        });
        self.behaviour.lock().unwrap().clone()
    }

    fn info(&self) -> Value {
        let siblings = self.files.iter().map(|(name, bytes)| {
            let (size, hash) = (bytes.len(), hash(bytes));
            if size >= LARGE_BYTES {
                let lfs = json!({ "sha256": hash, "size": size, "pointerSize": 134 });
                json!({ "rfilename": name, "size": size, "blobId": "f".repeat(40), "lfs": lfs })
            } else {
                json!({ "rfilename": name, "size": size, "blobId": hash })
            }
        });
        let siblings: Vec<Value> = siblings.collect();
        json!({ "id": self.id, "modelId": self.id, "sha": COMMIT, "private": false, "siblings": siblings })
    }
}

fn error(status: StatusCode, code: &str, message: &str) -> Response {
    (status, [("x-error-code", code), ("x-error-message", message)], json!({ "error": message }).to_string())
        .into_response()
}

async fn serve_hub(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let behaviour = inner.note(&request, false);
    if behaviour.is_a_web_site {
        return "<html>Welcome</html>".into_response();
    }
    let path = request.uri().path();
    let authorization = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    if let Some(revision) = path.strip_prefix(&format!("/api/models/{}/revision/", inner.id)) {
        if revision != "main" && revision != COMMIT {
            return error(StatusCode::NOT_FOUND, "RevisionNotFound", "Invalid rev id");
        }
        assert_eq!(request.uri().query(), Some("blobs=true"));
        return inner.info().to_string().into_response();
    }
    // Small files are served by the hub itself, from another path.
    let name = path.strip_prefix(&format!("/{}/resolve/{COMMIT}/", inner.id));
    let cached = path.strip_prefix(&format!("/api/resolve-cache/models/{}/{COMMIT}/", inner.id));
    let Some(name) = name.or(cached) else {
        // The hub tells strangers the same of what is private and of what is not there.
        let status = if authorization.is_some() { StatusCode::NOT_FOUND } else { StatusCode::UNAUTHORIZED };
        return error(status, "RepoNotFound", "Repository not found");
    };
    if let Some(token) = &behaviour.gated {
        let message =
            format!("Access to model {} is restricted and you are not in the authorized list.", inner.id);
        match authorization {
            None => return error(StatusCode::UNAUTHORIZED, "GatedRepo", &message),
            Some(sent) if sent != format!("Bearer {token}") => {
                return error(StatusCode::FORBIDDEN, "GatedRepo", &message);
            }
            Some(_) => {}
        }
    }
    let Some(bytes) = inner.files.get(name) else {
        return error(StatusCode::NOT_FOUND, "EntryNotFound", "Entry not found");
    };
    let etag = format!("\"{}\"", hash(bytes));
    if bytes.len() >= LARGE_BYTES {
        let headers = [
            ("location", format!("{}/{name}", inner.storage_url)),
            ("x-repo-commit", COMMIT.to_owned()),
            ("x-linked-etag", etag),
            ("x-linked-size", bytes.len().to_string()),
        ];
        return (StatusCode::FOUND, headers).into_response();
    }
    if cached.is_none() {
        let location = format!("/api/resolve-cache/models/{}/{COMMIT}/{name}", inner.id);
        return (StatusCode::TEMPORARY_REDIRECT, [("location", location)]).into_response();
    }
    let headers = [("etag", etag), ("x-repo-commit", COMMIT.to_owned())];
    (headers, part(bytes, request.headers(), &Behaviour::default(), None)).into_response()
}

async fn serve_storage(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let behaviour = inner.note(&request, true);
    let fault = inner.behaviour.lock().unwrap().faults.pop_front();
    if let Some(Fault::Refuse(status)) = fault {
        return (StatusCode::from_u16(status).unwrap(), [("retry-after", "0")]).into_response();
    }
    let mut bytes = inner.files[request.uri().path().trim_start_matches('/')].to_vec();
    if behaviour.one_byte_less {
        bytes.pop();
    }
    if behaviour.wrong_byte {
        bytes[100] ^= 1;
    }
    let headers = [("etag", "\"that-of-the-storage\"")];
    (headers, part(&bytes.into(), request.headers(), &behaviour, fault)).into_response()
}

/// All of it, or the range that is asked for.
fn part(bytes: &Bytes, headers: &HeaderMap, behaviour: &Behaviour, fault: Option<Fault>) -> Response {
    let total = bytes.len();
    let range = headers.get("range").filter(|_| !behaviour.ignores_ranges);
    let start: Option<usize> = range.map(|range| {
        range.to_str().unwrap().strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap()
    });
    if start.is_some_and(|start| start >= total) {
        let range = [("content-range", format!("bytes */{total}"))];
        return (StatusCode::RANGE_NOT_SATISFIABLE, range).into_response();
    }
    let (begin, status) = start.map_or((0, StatusCode::OK), |start| (start, StatusCode::PARTIAL_CONTENT));
    let mut response = Response::builder().status(status).header("accept-ranges", "bytes");
    response = response.header("content-length", total - begin);
    if start.is_some() {
        response = response.header("content-range", format!("bytes {begin}-{}/{total}", total - 1));
    }
    let rest = bytes.slice(begin..);
    let some = |count: usize| stream::iter([Ok::<_, std::io::Error>(rest.slice(..count.min(rest.len())))]);
    let body = match fault {
        Some(Fault::CutAfter(count)) => {
            // Late, so that what came before has left.
            let cut = async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(std::io::Error::other("cut"))
            };
            Body::from_stream(some(count).chain(stream::once(cut)))
        }
        Some(Fault::StallAfter(count)) => Body::from_stream(some(count).chain(stream::pending())),
        _ if behaviour.always_stalls => Body::from_stream(stream::pending::<std::io::Result<Bytes>>()),
        _ => Body::from(rest),
    };
    response.body(body).unwrap()
}
